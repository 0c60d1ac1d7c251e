"""Arithmetic instructions of PTX as expressions of numpy: what one thread does, for all threads at once.

A register is an array of raw unsigned bits, one element a thread. `typed` reads it as a type, `raw` writes it back.
"""

from __future__ import annotations

import re
from typing import Protocol

from .ptx import Instruction, NotCovered


class Operands(Protocol):
    def value(self, operand: str, bits: int) -> str:
        """A register, or a constant of so many bits, as an expression of an unsigned array; of bool for one bit."""

    def bits(self, operand: str) -> int | None:
        """Of a register; None for a constant, which has what is asked for."""


FLOATS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "fma": "fma({0}, {1}, {2})",
    "mad": "fma({0}, {1}, {2})",
    "div": "{0} / {1}",
    "max": "np.fmax({0}, {1})",
    "min": "np.fmin({0}, {1})",
    "neg": "-{0}",
    "abs": "np.abs({0})",
    "sqrt": "np.sqrt({0})",
    "ex2": "np.exp2({0}.astype(F64))",
    "lg2": "np.log2({0}.astype(F64))",
    "rsqrt": "1 / np.sqrt({0}.astype(F64))",
    "rcp": "1 / {0}.astype(F64)",
    "sin": "np.sin({0}.astype(F64))",
    "cos": "np.cos({0}.astype(F64))",
    "tanh": "np.tanh({0}.astype(F64))",
    "copysign": "np.copysign({1}, {0})",
}
NAN_WINS = {"max": "np.maximum({0}, {1})", "min": "np.minimum({0}, {1})"}
INTEGERS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "mad": "{0} * {1} + {2}",
    "div": "divided({0}, {1})",
    "rem": "remainder({0}, {1})",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "xor": "{0} ^ {1}",
    "not": "~{0}",
    "neg": "-{0}",
    "abs": "np.abs({0})",
    "min": "np.minimum({0}, {1})",
    "max": "np.maximum({0}, {1})",
    "shl": "shl({0}, {1})",
    "shr": "shr({0}, {1})",
    "bfe": "bfe({0}, {1}, {2})",
    "bfi": "bfi({0}, {1}, {2}, {3})",
}
PREDICATES = {"and": "{0} & {1}", "or": "{0} | {1}", "xor": "{0} ^ {1}", "not": "~{0}"}
COMPARISONS = {
    **{"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="},
    **{"lo": "<", "ls": "<=", "hi": ">", "hs": ">="},
}
FLOATING = ("f64", "f32", "f16", "bf16")
ROUNDINGS = {"rmi": "np.floor", "rpi": "np.ceil", "rzi": "np.trunc", "rni": "np.rint"}
ALONE = ("setp", "selp", "cvt", "prmt", "popc", "shf")  # the others are in the tables
NAMES = sorted({*FLOATS, *INTEGERS, *PREDICATES, *ALONE})


def size(kind: str) -> int:
    """Bits of a type such as "u16" or "bf16"."""
    if kind == "pred":
        return 1
    if not re.fullmatch(r"(?:[subf]|bf)\d+", kind):
        raise NotCovered(kind)
    return int(re.sub(r"\D", "", kind))


def typed(operands: Operands, operand: str, kind: str) -> str:
    """An operand read as a type, from a register that may be wider."""
    if kind == "pred":
        return operands.value(operand, 1)
    bits = size(kind)
    raw = operands.value(operand, max(bits, 16))
    if kind in ("f32", "f64"):
        return f"{kind}({raw})"
    if kind in ("f16", "bf16"):
        return f"from_{kind}({raw})"
    if kind[0] == "f":
        raise NotCovered(kind)
    narrow = raw if operands.bits(operand) in (bits, None) and bits >= 16 else f"{raw}.astype(U{bits})"
    return f"{narrow}.view(I{bits})" if kind[0] == "s" else narrow


def raw(expression: str, kind: str, register: int) -> str:
    """The bits of a value of a type, for a register that may be wider: signs are extended."""
    if kind == "pred":
        return expression
    if kind == "f32":
        return f"bits({expression})"
    if kind == "f64":
        return f"bits64({expression})"
    if kind in ("f16", "bf16"):
        return f"to_{kind}({expression})"
    letter = "I" if kind[0] == "s" else "U"
    wide = "" if register <= size(kind) else f".astype({letter}{register})"
    return f"({expression}){wide}" + (f".view(U{max(register, size(kind))})" if letter == "I" else "")


def arithmetic(one: Instruction, operands: Operands, register: int) -> str:
    """The raw result of an instruction, for a register of so many bits. Raises `NotCovered`."""
    operation, kind, arguments = one.opcode[0], one.opcode[-1], one.arguments[1:]
    value = operands.value
    if operation == "setp":
        return _compared(one, operands)
    if operation == "selp":
        yes, no, condition = arguments
        return f"np.where({value(condition, 1)}, {value(yes, size(kind))}, {value(no, size(kind))})"
    if operation == "cvt":
        return _converted(one, operands, register)
    if operation == "prmt" and len(one.opcode) == 2:
        return f"prmt({', '.join(value(argument, 32) for argument in arguments)})"
    if operation == "shf":
        low, high, by = (f"{value(argument, 32)}.astype(U64)" for argument in arguments)
        if one.opcode[2] != "wrap":
            raise NotCovered(".".join(one.opcode))
        whole, by = f"({low} | {high} << U64(32))", f"({by} & U64(31))"
        return f"({whole} << {by} >> U64(32) if {one.opcode[1] == 'l'} else {whole} >> {by}).astype(U32)"
    if operation == "popc":
        return f"popc({value(arguments[0], size(kind))})"
    if kind == "pred" and operation in PREDICATES:
        return PREDICATES[operation].format(*(value(argument, 1) for argument in arguments))
    if kind in ("f16x2", "bf16x2", "s16x2", "u16x2"):
        return _packed(one, operands)
    if kind in FLOATING:
        return raw(_float(one, [typed(operands, argument, kind) for argument in arguments]), kind, register)
    if operation in INTEGERS:
        return _integer(one, operands, register)
    raise NotCovered(operation)


def _float(one: Instruction, operands: list[str]) -> str:
    operation, flags = one.opcode[0], one.opcode[1:-1]
    if operation not in FLOATS or {"rz", "rm", "rp", "sat"} & set(flags):
        raise NotCovered(operation)
    if "ftz" in flags:
        operands = [f"ftz({operand})" for operand in operands]
    table = NAN_WINS if "NaN" in flags else FLOATS
    expression = table[operation].format(*operands)
    if {"approx", "full"} & set(flags):
        return f"approx({expression})"
    return f"({expression})"


def _packed(one: Instruction, operands: Operands) -> str:
    """The same on both halves of a register."""
    kind = one.opcode[-1].removesuffix("x2")
    halves = []
    for half in ("low", "high"):
        values = [f"{half}({operands.value(argument, 32)})" for argument in one.arguments[1:]]
        if kind in ("f16", "bf16"):
            found = _float(one, [f"from_{kind}({value})" for value in values])
            halves.append(f"to_{kind}({found})")
        elif one.opcode[0] in INTEGERS:
            signed = [f"{value}.view({'I' if kind[0] == 's' else 'U'}16)" for value in values]
            halves.append(raw(INTEGERS[one.opcode[0]].format(*signed), kind, 16))
        else:
            raise NotCovered(one.opcode[0])
    return f"packed({', '.join(halves)})"


def _integer(one: Instruction, operands: Operands, register: int) -> str:
    operation, kind = one.opcode[0], one.opcode[-1]
    bits, flags = size(kind), one.opcode[1:-1]
    letter = "I" if kind[0] == "s" else "U"
    counts = 1 if operation in ("shl", "shr") else 2 if operation in ("bfe", "bfi") else 0  # the last ones have 32 bits
    arguments = one.arguments[1:]
    values = [typed(operands, argument, kind) for argument in arguments[: len(arguments) - counts]]
    values += [operands.value(argument, 32) for argument in arguments[len(arguments) - counts :]]
    if operation in ("mul", "mad") and flags[:1] in (("wide",), ("hi",)):
        if bits == 64:
            raise NotCovered(".".join(one.opcode))
        product = f"({values[0]}.astype({letter}{2 * bits}) * {values[1]}.astype({letter}{2 * bits}))"
        if flags[0] == "wide":
            kind = f"{kind[0]}{2 * bits}"
        else:
            product = f"({product} >> {bits}).astype({letter}{bits})"
        if operation == "mad":
            product = f"({product} + {typed(operands, arguments[2], kind)})"
        return raw(product, kind, register)
    if {"sat", "cc"} & set(flags):
        raise NotCovered(".".join(one.opcode))
    return raw(INTEGERS[operation].format(*values), kind, register)


def _compared(one: Instruction, operands: Operands) -> str:
    comparison, kind = one.opcode[1], one.opcode[-1]
    left, right = (typed(operands, argument, kind) for argument in one.arguments[1:3])
    floating = kind in FLOATING
    unordered = f"(np.isnan({left}) | np.isnan({right}))"
    if floating and comparison in ("nan", "num"):
        found = unordered if comparison == "nan" else f"~{unordered}"
    elif floating and len(comparison) == 3:  # true where one is NaN
        found = f"(({left} {COMPARISONS[comparison[:2]]} {right}) | {unordered})"
    elif floating and comparison == "ne":
        found = f"(({left} != {right}) & ~{unordered})"
    else:
        found = f"({left} {COMPARISONS[comparison]} {right})"
    if len(one.opcode) == 4 and one.opcode[2] in PREDICATES:
        found = PREDICATES[one.opcode[2]].format(found, operands.value(one.arguments[3], 1))
    elif "|" in one.arguments[0]:
        raise NotCovered("setp with two results")
    return found


def _converted(one: Instruction, operands: Operands, register: int) -> str:
    to, source = one.opcode[-2:]
    flags = one.opcode[1:-2]
    if to in ("bf16x2", "f16x2") and source == "f32" and "relu" not in flags:
        kind = to.removesuffix("x2")
        upper, lower = (f"to_{kind}({typed(operands, argument, 'f32')})" for argument in one.arguments[1:3])
        return f"packed({lower}, {upper})"
    if {"sat", "relu", "rz", "rm", "rp"} & set(flags):
        raise NotCovered(".".join(one.opcode))
    taken = typed(operands, one.arguments[1], source)
    rounding = next((ROUNDINGS[flag] for flag in flags if flag in ROUNDINGS), None)
    float_from = source in FLOATING
    if to in (*FLOATING, "tf32"):
        if to == "tf32":
            return f"to_tf32({taken})"
        number = f"{rounding}({taken})" if rounding else taken
        return raw(f"({number}).astype({'F64' if to == 'f64' else 'F32'})", to, register)
    kind = f"{'I' if to[0] == 's' else 'U'}{size(to)}"
    if float_from:
        return raw(f"to_integer({rounding or 'np.trunc'}({taken}), {kind})", to, register)
    # By way of the source's sign, then of the target's.
    wide = f"{taken}.astype({'I' if source[0] == 's' else 'U'}64)"
    return raw(f"{wide}.astype({kind})", to, register)
