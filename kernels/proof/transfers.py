"""Instructions that move data, meet at barriers or belong to a whole warp, as lines of the translated function."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .expressions import size
from .ptx import Instruction, NotCovered, names

if TYPE_CHECKING:
    from .translate import Translator


def _move(to: Translator, one: Instruction) -> None:
    kind = one.opcode[-1]
    target, source = one.arguments
    bits = size(kind)
    if target.startswith("{"):  # one register into several
        parts = names(target)
        width = bits // len(parts)
        whole = to.value(source, bits)
        for k, part in enumerate(parts):
            to.put(one, part, f"({whole} >> U{bits}({width * k})).astype(U{width})")
    elif source.startswith("{"):
        parts = names(source)
        width = bits // len(parts)
        shifted = (f"({to.value(part, width)}.astype(U{bits}) << U{bits}({width * k}))" for k, part in enumerate(parts))
        to.put(one, target, " | ".join(shifted))
    else:
        to.put(one, target, to.value(source, bits))


def _load(to: Translator, one: Instruction) -> None:
    space, kind = one.opcode[1], one.opcode[-1]
    if space == "param":
        name = one.arguments[1].strip("[] ")
        to.put(one, one.arguments[0], f"np.full(C.lanes, PARAMETERS[{name!r}], {to.dtype(one.arguments[0])})")
        return
    width, targets = size(kind) // 8, names(one.arguments[0])
    to.emit(f"m = {to.mask(one)}", "if m.any():")
    call = _access(to, one, space, one.arguments[1])
    to.emit(f"    v = {call.format('load', f'{width}, {len(targets)}')}")
    for k, target in enumerate(targets):
        bits = to.bits(target)
        sign = f".view(I{8 * width}).astype(I{bits}).view(U{bits})" if kind[0] == "s" else f".astype(U{bits})"
        to.emit(f"    {to.local(target)} = {to.local(target)}.copy(); {to.local(target)}[m] = v[{k}]{sign}")


def _store(to: Translator, one: Instruction) -> None:
    space, width, sources = one.opcode[1], size(one.opcode[-1]) // 8, names(one.arguments[1])
    values = ", ".join(f"{to.value(source, max(16, 8 * width))}[m].astype(U{8 * width})" for source in sources)
    to.emit(f"m = {to.mask(one)}", "if m.any():")
    to.emit(f"    {_access(to, one, space, one.arguments[0]).format('store', f'{width}, [{values}]')}")


def _access(to: Translator, one: Instruction, space: str, operand: str) -> str:
    """A call of the memory, with places for the method and what comes between address and stamps."""
    if space == "global":
        return f"C.memory.{{0}}({to.address(operand, 64)}[m], {{1}}, C.stamps[m], {one.where!r})"
    if space.partition("::")[0] == "shared":
        return f"C.shared.{{0}}({to.address(operand, 32)}[m], {{1}}, C.block[m], C.stamps[m], {one.where!r})"
    if space == "local":
        return f"C.local.{{0}}({to.address(operand, 64)}[m], {{1}}, C.numbers[m], C.stamps[m], {one.where!r})"
    raise NotCovered(space)


def _with_carry(to: Translator, one: Instruction) -> None:
    """mad.lo.cc and madc.hi of 32 bits: a product of 64 bits plus another number, in two halves."""
    if one.opcode not in (("mad", "lo", "cc", "u32"), ("madc", "hi", "u32")) or one.predicate:
        raise NotCovered(".".join(one.opcode))
    a, b, c = (f"{to.value(argument)}.astype(U64)" for argument in one.arguments[1:])
    if one.opcode[0] == "mad":
        to.emit(f"s = ({a} * {b} & U64(0xFFFFFFFF)) + {c}", "CC = np.where(M, s >> U64(32), CC)")
    else:
        to.emit(f"s = ({a} * {b} >> U64(32)) + {c} + CC")
    to.put(one, one.arguments[0], "s.astype(U32)")


ATOMICS = {"add": "{0} + {1}", "min": "min({0}, {1})", "max": "max({0}, {1})", "exch": "{1}", "and": "{0} & {1}",
           "or": "{0} | {1}", "xor": "{0} ^ {1}"}  # fmt: skip


def _atomic(to: Translator, one: Instruction) -> None:
    operation = next((part for part in one.opcode if part in ATOMICS), None)
    kind = one.opcode[-1]
    returns = one.opcode[0] == "atom"
    address, value = one.arguments[1:3] if returns else one.arguments[:2]
    if operation is None or one.opcode[1] != "global" or kind not in ("f32", "u32", "s32", "b32", "u64", "s64", "b64"):
        raise NotCovered(".".join(one.opcode))
    bits = size(kind)
    view = "F32" if kind == "f32" else f"{'I' if kind[0] == 's' else 'U'}{bits}"
    to.emit(
        f"m = {to.mask(one)}",
        "if m.any():",
        f"    x = {to.value(value, bits)}[m].view({view})",
        "    def change(raw, lane, at):",
        f"        old = raw[at]; a = raw[at : at + 1].view({view})",
        f"        a[0] = {ATOMICS[operation].format('a[0]', 'x[lane]')}; return old",
        f"    v = C.memory.atomic({to.address(address, 64)}[m], {bits // 8}, change, {one.where!r})",
    )
    if returns and one.arguments[0] != "_":
        local = to.local(one.arguments[0])
        to.emit(f"    {local} = {local}.copy(); {local}[m] = v")


def _copy(to: Translator, one: Instruction) -> None:
    """cp.async of 4, 8 or 16 bytes; what is beyond the given size is zero."""
    if one.opcode[1] != "async" or one.opcode[2] == "bulk":
        raise NotCovered(".".join(one.opcode))
    if one.opcode[2] == "commit_group":
        to.emit("C.committed[M] += 1")
        return
    if one.opcode[2] in ("wait_group", "wait_all"):
        to.emit(f"C.wait(M, {int(one.arguments[0]) if one.opcode[2] == 'wait_group' else None})")
        return
    target, source, width = one.arguments[0], one.arguments[1], int(one.arguments[2], 0)
    count = width // 4
    to.emit(f"m = {to.mask(one)}", "if m.any():")
    read = f"C.memory.load({{0}}, 4, {count}, {{1}}, {one.where!r})"
    if len(one.arguments) > 3:
        to.emit(
            f"    n = {to.value(one.arguments[3])}[m]; full = n == {width}",
            f"    if not ((n == 0) | full).all(): raise Fault('a copy of part of its bytes, {one.where}')",
            f"    v = [np.zeros(len(n), U32) for _ in range({count})]",
            "    if full.any():",
            f"        w = {read.format(f'{to.address(source, 64)}[m][full]', 'C.stamps[m][full]')}",
            f"        for k in range({count}): v[k][full] = w[k]",
        )
    else:
        to.emit(f"    v = {read.format(f'{to.address(source, 64)}[m]', 'C.stamps[m]')}")
    to.emit(f"    C.copy(np.flatnonzero(m), {to.address(target, 32)}[m], v, {one.where!r})")


def _barrier(to: Translator, one: Instruction) -> None:
    if one.opcode[1] == "warp":
        return
    if one.predicate or one.arguments[:1] not in ((), ("0",)) or len(one.arguments) > 1:
        raise NotCovered("a barrier of part of the block")
    to.emit(f"C.barrier(M, None if F else pcs, {one.where!r})")


def _shuffle(to: Translator, one: Instruction) -> None:
    to.whole_warps(one)
    to.emit("n = (C.tid & U32(31)).astype(I64)")
    by = f"{to.value(one.arguments[2])}.astype(I64)"
    lanes = {
        "bfly": f"n ^ {by}",
        "idx": f"{by} & 31",
        "down": f"np.minimum(n + {by}, 31)",
        "up": f"np.maximum(n - {by}, 0)",
    }
    source = lanes[one.opcode[2]]
    to.emit(f"n = np.arange(C.lanes) // 32 * 32 + ({source})")
    to.put(one, one.arguments[0].partition("|")[0], f"{to.value(one.arguments[1])}[n]")


def _reduce(to: Translator, one: Instruction) -> None:
    to.whole_warps(one)
    if one.opcode[-1] not in ("u32", "s32", "b32"):
        raise NotCovered(".".join(one.opcode))
    functions = {"add": "add", "min": "minimum", "max": "maximum", "and": "bitwise_and", "or": "bitwise_or"}
    kind = "I32" if one.opcode[-1] == "s32" else "U32"
    values = f"{to.value(one.arguments[1])}.view({kind}).reshape(-1, 32)"
    reduced = f"np.{functions[one.opcode[2]]}.reduce({values}, axis=1, dtype={kind})"
    to.put(one, one.arguments[0], f"np.repeat({reduced}, 32).view(U32)")


def _vote(to: Translator, one: Instruction) -> None:
    to.whole_warps(one)
    votes = f"{to.value(one.arguments[1], 1)}.reshape(-1, 32)"
    found = {
        "ballot": f"({votes}.astype(U32) << np.arange(32, dtype=U32)).sum(1, dtype=U32)",
        "any": f"{votes}.any(1)",
        "all": f"{votes}.all(1)",
    }[one.opcode[2]]
    to.put(one, one.arguments[0], f"np.repeat({found}, 32)")


def _load_matrix(to: Translator, one: Instruction) -> None:
    to.whole_warps(one)
    to.emit("m = M")
    for k, target in enumerate(names(one.arguments[0])):
        rows = f"{to.address(one.arguments[1], 32)}[m], {k}, {'trans' in one.opcode}, C.block[m], C.stamps[m]"
        local = to.local(target)
        to.emit(f"t{k} = load_matrix(C.shared, {rows}, {one.where!r})")
        to.emit(f"v{k} = {local}.copy(); v{k}[m] = t{k}")
    for k, target in enumerate(names(one.arguments[0])):
        to.emit(f"{to.local(target)} = v{k}")


def _store_matrix(to: Translator, one: Instruction) -> None:
    to.whole_warps(one)
    for k, source in enumerate(names(one.arguments[1])):
        rows = f"{to.address(one.arguments[0], 32)}[M], {to.value(source)}[M], {k}, {'trans' in one.opcode}"
        to.emit(f"store_matrix(C.shared, {rows}, C.block[M], C.stamps[M], {one.where!r})")


MMA = {"m16n8k16": ("f16", "bf16"), "m16n8k8": ("tf32",)}


def _mma(to: Translator, one: Instruction) -> None:
    to.whole_warps(one)
    kind = one.opcode[-2]
    if kind not in MMA.get(one.opcode[3], ()) or one.opcode[-1] != "f32":
        raise NotCovered(".".join(one.opcode))
    d, a, b, c = (names(argument) for argument in one.arguments)
    factors = (f"[{', '.join(to.value(name) for name in part)}]" for part in (a, b, c))
    to.emit(f"v = mma({', '.join(factors)}, {kind!r})")
    for k, target in enumerate(d):
        to.put(one, target, f"v[{k}]")


def _wgmma(to: Translator, one: Instruction) -> None:
    if one.opcode[1] == "fence":
        return
    if one.opcode[1] == "commit_group":
        to.emit("C.shared.commit_reads()")
        return
    if one.opcode[1] == "wait_group":
        to.emit(f"C.shared.wait_for_reads({int(one.arguments[0])})")
        return
    to.whole_warps(one)
    columns, kind = int(re.search(r"m64n(\d+)k", ".".join(one.opcode)).group(1)), one.opcode[-1]
    in_registers = one.arguments[1].startswith("{")
    d, (a, b, keep, *flags) = names(one.arguments[0]), one.arguments[1:]
    turned = [flag == "1" for flag in flags[2:]]
    if kind not in ("f16", "bf16", "tf32") or one.opcode[-3] != "f32" or flags[:2] != ["1", "1"]:
        raise NotCovered(".".join(one.opcode))
    turn_a, turn_b = (False, *turned, False)[:2] if in_registers else (*turned, False, False)[:2]
    groups = "C.block[m][::128], C.stamps[m][::32].reshape(-1, 4)"
    call = f"shared_matrix(C.shared, {{0}}[m][::128], {groups}, {{1}}, {{2!r}}, {{3}}, {{4!r}})"
    right = call.format(to.value(b, 64), columns, kind, turn_b, one.where)
    if in_registers:
        left = f"wgmma_factor_a([{', '.join(f'{to.value(name)}[m]' for name in names(a))}], {kind!r})"
    else:
        left = call.format(to.value(a, 64), 64, kind, turn_a, one.where)
    before = ", ".join(f"{to.value(name)}[m]" for name in d)
    to.emit("m = M", f"v = wgmma({left} @ {right}.transpose(0, 2, 1), [{before}], {to.value(keep, 1)}[m])")
    for k, target in enumerate(d):
        local = to.local(target)
        to.emit(f"{local} = {local}.copy(); {local}[m] = v[{k}]")


HANDLERS = {
    "madc": _with_carry,
    "mov": _move,
    "ld": _load,
    "st": _store,
    "atom": _atomic,
    "red": _atomic,
    "cp": _copy,
    "bar": _barrier,
    "barrier": _barrier,
    "shfl": _shuffle,
    "redux": _reduce,
    "vote": _vote,
    "ldmatrix": _load_matrix,
    "stmatrix": _store_matrix,
    "mma": _mma,
    "wgmma": _wgmma,
}
