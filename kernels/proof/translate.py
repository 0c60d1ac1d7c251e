"""PTX -> a Python function on numpy arrays, one element a thread.

Threads run in lock-step. Where they part, those that are least far go first (`b` is the place, in the order of
`ptx.arranged`, of the block of instructions that the threads `M` execute, `F` says that these are all), until the
others are met again.
"""

from __future__ import annotations

import re

import numpy as np

from . import expressions, matrices, numbers
from .chunk import ENDED
from .expressions import arithmetic
from .ptx import Fault, Instruction, NotCovered, arranged, names, parse
from .transfers import HANDLERS

DTYPES = {"pred": "bool", "b16": "U16", "b32": "U32", "b64": "U64", "f32": "U32", "f64": "U64"}
PREFIXES = {"p": "pred", "rs": "b16", "r": "b32", "rd": "b64", "f": "f32", "fd": "f64"}
SPECIAL = {
    "%tid.x": "C.tid",
    "%laneid": "C.tid & U32(31)",
    "%SPL": "np.zeros(C.lanes, U64)",  # where a thread's own memory begins
    **{f"%ctaid.{axis}": f"C.ctaid[{k}]" for k, axis in enumerate("xyz")},
    **{f"%nctaid.{axis}": f"C.nctaid[{k}]" for k, axis in enumerate("xyz")},
}
IGNORED = ("fence", "membar", "pragma", "prefetch", "discard")  # without effect on what is modelled
REGISTER = re.compile(r"%(rs|rd|fd|r|p|f)(\d+)")
INDENT = " " * 12
END_OF_TEXT = -1  # the place of what follows the last block


class Translator:
    """The function of one kernel: `run(chunk, parameters)`. Raises `NotCovered` with the place in the source."""

    def __init__(self, text: str) -> None:
        self.program = parse(text)
        if self.program.threads % 32:
            raise NotCovered(f"blocks of {self.program.threads} threads")
        program = self.program
        # Constants of the text that kernels read as global memory: name -> its bytes.
        self.tables = {name: np.array(values, np.uint8) for name, values in program.tables.items()}
        self.starts = program.starts
        self.number = {start: number for number, start in enumerate(self.starts)}
        self.place = {number: place for place, number in enumerate(arranged(program.successors()))}
        self.constants: dict[str, str] = {}
        self.lines: list[str] = []
        scope = {name: getattr(module, name) for module in (numbers, matrices) for name in dir(module)}
        scope |= {"np": np, "Fault": Fault, "END": ENDED}
        exec(compile(self._source(), f"<{program.name}>", "exec"), scope)
        self.run = scope["kernel"]

    def _source(self) -> str:
        ends = [*self.starts[1:], len(self.program.instructions)]
        for number, (start, end) in enumerate(zip(self.starts, ends, strict=True)):
            self.lines.append(f"        {'elif' if number else 'if'} b == {self.place[number]}:")
            self.emit(f"C.visits[{number}] += C.lanes if F else int(M.sum())")
            closed = False
            for one in self.program.instructions[start:end]:
                try:
                    closed = self._instruction(one, number)
                except NotCovered as refused:
                    raise NotCovered(f"{'.'.join(one.opcode)} at {one.where.partition(' ')[0]}") from refused
            if not closed:
                self._jump(number + 1)
        self.lines.append("        else: raise Fault('fell off the end')")
        used = sorted({match.group() for one in self.program.instructions for match in self._registers(one)})
        head = ["def kernel(C, PARAMETERS):", "    ONES = np.ones(C.lanes, bool)"]
        head += [f"    {name} = {value}" for value, name in self.constants.items()]
        head += [f"    {self.local(name)} = np.zeros(C.lanes, {self.dtype(name)})" for name in used]
        head += ["    CC = np.zeros(C.lanes, U64); pcs = None; M = ONES; F = True; b = 0", "    while True:"]
        return "\n".join(head + self.lines)

    @staticmethod
    def _registers(one: Instruction):
        return REGISTER.finditer(" ".join((*one.arguments, one.predicate)))

    def local(self, register: str) -> str:
        return register.strip().removeprefix("%")

    def dtype(self, register: str) -> str:
        prefix = REGISTER.fullmatch(register.strip()).group(1)
        return DTYPES[self.program.registers.get(prefix, PREFIXES[prefix])]

    def bits(self, operand: str) -> int | None:
        """Of a register; None for a constant."""
        if not REGISTER.fullmatch(operand.strip()):
            return None
        dtype = self.dtype(operand)
        return 1 if dtype == "bool" else int(dtype[1:])

    def value(self, operand: str, bits: int = 32) -> str:
        """A register, or a constant that is made once: an array of unsigned numbers of `bits` (of bool for 1)."""
        operand = operand.strip()
        if operand.startswith("!"):
            return f"(~{self.local(operand[1:])})"
        if REGISTER.fullmatch(operand):
            return self.local(operand)
        if operand in SPECIAL:
            return self._constant(SPECIAL[operand])
        if operand in self.tables:
            number = self.tables[operand].ctypes.data
        elif match := re.fullmatch(r"global_smem(?:\s*\+\s*(\d+))?", operand):
            number = int(match.group(1) or 0)
        elif re.fullmatch(r"0(?:[fF][0-9a-fA-F]{8}|[dD][0-9a-fA-F]{16})", operand):
            number = int(operand[2:], 16)
        elif re.fullmatch(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?", operand):
            number = int(operand.rstrip("U"), 0)
        else:
            raise NotCovered(operand)
        if bits == 1:
            return self._constant(f"np.full(C.lanes, {bool(number)})")
        return self._constant(f"np.full(C.lanes, {number & ((1 << bits) - 1)}, U{bits})")

    def _constant(self, expression: str) -> str:
        return self.constants.setdefault(expression, f"K{len(self.constants)}")

    def address(self, operand: str, bits: int) -> str:
        """Of "[%rd1 + 16]"."""
        match = re.fullmatch(r"\[\s*(\S+?)\s*(?:\+\s*(-?\w+))?\s*\]", operand.strip())
        if not match:
            raise NotCovered(operand)
        base, offset = self.value(match.group(1), bits), int(match.group(2) or "0", 0)
        return f"({base} + U{bits}({offset & ((1 << bits) - 1)}))" if offset else base

    def emit(self, *lines: str) -> None:
        self.lines += [INDENT + line for line in lines]

    def mask(self, one: Instruction) -> str:
        return f"(M & {self.value(one.predicate, 1)})" if one.predicate else "M"

    def put(self, one: Instruction, register: str, expression: str) -> None:
        """Write a register of the threads that take part."""
        if register.strip() == "_":
            return
        local = self.local(register)
        if one.predicate:
            self.emit(f"{local} = np.where({self.mask(one)}, {expression}, {local})")
        else:
            self.emit(f"t = {expression}", f"{local} = t if F else np.where(M, t, {local})")

    def whole_warps(self, one: Instruction) -> None:
        if one.predicate:
            raise NotCovered("a predicated instruction of whole warps")
        self.emit(f"if not F: C.whole_warps(M, {one.where!r})")

    def _jump(self, to: int, condition: str = "", otherwise: int = END_OF_TEXT) -> None:
        target, otherwise = (self.place.get(number, END_OF_TEXT) for number in (to, otherwise))
        proceed = "b = int(pcs.min()); M = pcs == b; F = bool(M.all()); continue"
        if not condition:
            self.emit(f"if F: b = {target}; continue", f"pcs[M] = {target}; {proceed}")
            return
        self.emit(
            f"t = {condition}",
            "if F:",
            f"    if t.all(): b = {target}; continue",
            f"    if not t.any(): b = {otherwise}; continue",
            f"    pcs = np.where(t, {target}, {otherwise})",
            f"else: pcs[M & t] = {target}; pcs[M & ~t] = {otherwise}",
            proceed,
        )

    def _instruction(self, one: Instruction, number: int) -> bool:
        """Emit one; True after one that ends a block."""
        operation = one.opcode[0]
        if operation == "bra":
            target = self.number[self.program.labels[one.arguments[0]]]
            self._jump(target, self.value(one.predicate, 1) if one.predicate else "", number + 1)
            return True
        if operation in ("ret", "exit"):
            if one.predicate:
                raise NotCovered("a predicated return")
            self.emit("if F: return", "pcs[M] = END; b = int(pcs.min())", "if b == END: return")
            self.emit("M = pcs == b; F = False; continue")
            return True
        if one.arguments[:1] == ("%SPL",):
            return False  # its value is in `SPECIAL`
        handler = HANDLERS.get("madc" if "cc" in one.opcode else operation)
        if handler is not None:
            handler(self, one)
        elif operation not in IGNORED:
            register = one.arguments[0].partition("|")[0]
            self.put(one, register, arithmetic(one, self, self.bits(register)))
        return False


def covered() -> list[str]:
    """The instructions that the executor knows, by their first word."""
    return sorted({*HANDLERS, *expressions.NAMES, *IGNORED, "bra", "ret", "exit"})


__all__ = ["Translator", "covered", "names"]
