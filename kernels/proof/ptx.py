"""Reads PTX, NVIDIA's portable assembly, as Triton's compiler writes it: one kernel a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Fault(Exception):
    """What a kernel did that no kernel may do. The message says what and at which line of its source."""


class NotCovered(Exception):
    """An instruction that the executor does not know."""


class Instruction(NamedTuple):
    predicate: str  # "%p3", "!%p3", or empty
    opcode: tuple[str, ...]  # split at the dots
    arguments: tuple[str, ...]
    where: str  # "my_kernel.py:42 (ld.global.b32)"


class Program(NamedTuple):
    name: str
    threads: int  # of a block
    parameters: tuple[str, ...]
    registers: dict[str, str]  # prefix -> type, such as "rd" -> "b64"
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]  # -> index of an instruction
    local: int  # bytes of memory that each thread has for itself
    tables: dict[str, list[int]]  # constants in global memory, bytes

    @property
    def starts(self) -> list[int]:
        """The first instruction of each block: those that are always executed one after the other."""
        found = {0, *self.labels.values()}
        found |= {place + 1 for place, one in enumerate(self.instructions) if one.opcode[0] in ENDS}
        return sorted(start for start in found if start < len(self.instructions))

    def successors(self) -> list[list[int]]:
        """Of each block: which may come next."""
        starts = self.starts
        number = {start: block for block, start in enumerate(starts)}
        found: list[list[int]] = []
        for block, end in enumerate([*starts[1:], len(self.instructions)]):
            last, after = self.instructions[end - 1], [block + 1] if block + 1 < len(starts) else []
            jump = [number[self.labels[last.arguments[0]]]] if last.opcode[0] == "bra" else []
            found.append(jump + (after if last.predicate or last.opcode[0] not in ENDS else []))
        return found


ENDS = ("bra", "ret", "exit")  # of a block
_STATEMENT_ENDS = re.compile(r"^\$[\w$]+:$|^\.loc\b|^[{}]$")
_TABLE = re.compile(r"\.global \.align \d+ \.b8 ([\w$]+)\[\d+\] = \{([\d, ]+)\}")
_LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)(?:.*inlined_at\s+(\d+)\s+(\d+))?")


def parse(text: str) -> Program:
    """The kernel of a text. Raises `NotCovered` for what is no kernel of Triton's."""
    entry = re.search(r"\.visible \.entry (\S+?)\(", text)
    threads = re.search(r"\.(?:reqntid|maxntid) (\d+)", text)
    if not entry or not threads:
        raise NotCovered("a text without `.visible .entry` and `.reqntid`")
    files = {number: name for number, name in re.findall(r'\.file\s+(\d+)\s+"([^"]+)"', text)}
    rest = text[entry.end() :]
    parameters = re.findall(r"(\S+_param_\d+)", rest[: rest.index(")")])
    body = rest[rest.index("{") + 1 :].partition("$L__func_end0")[0]
    registers: dict[str, str] = {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    where = "?"
    for statement in _statements(body):
        if match := _LOCATION.match(statement):
            where = _place(files, *match.groups()) or where
        elif match := re.match(r"^(\$[\w$]+):$", statement):
            labels[match.group(1)] = len(instructions)
        elif match := re.match(r"\.reg \.(\w+)\s+%(\w+)<\d+>", statement):
            registers[match.group(2)] = match.group(1)
        elif not statement.startswith((".", "{", "}")):
            match = re.match(r"^(?:@(!?%p\d+)\s+)?(\S+)\s*(.*)$", statement)
            predicate, opcode, arguments = match.groups()
            at = f"{where} ({opcode})"
            instructions.append(Instruction(predicate or "", tuple(opcode.split(".")), split(arguments), at))
    local = re.search(r"\.local \.align \d+ \.b8\s+__local_depot\d+\[(\d+)\]", body)
    return Program(
        entry.group(1), int(threads.group(1)), tuple(parameters), registers, tuple(instructions), labels,
        int(local.group(1)) if local else 0,
        {name: [int(byte) for byte in values.split(",")] for name, values in _TABLE.findall(text)},
    )  # fmt: skip


def _statements(body: str) -> list[str]:
    """Without comments; inside of inline assembly without `.loc`, which counts lines of the assembly there."""
    found: list[str] = []
    pending, inline = "", False
    for raw in body.splitlines():
        inline = "begin inline asm" in raw or (inline and "end inline asm" not in raw)
        line = raw.partition("//")[0].strip()
        if not line or (inline and line.startswith(".loc")):
            continue
        if not pending and _STATEMENT_ENDS.match(line):
            found.append(line)
            continue
        pending = f"{pending} {line}".strip()
        if pending.endswith((";", "}")) and pending.count("{") == pending.count("}"):
            found += [part for part in (piece.strip() for piece in pending.split(";")) if part]
            pending = ""
    return found


def _place(files: dict[str, str], file: str, line: str, outer: str | None, outer_line: str | None) -> str:
    """File and line of a `.loc`; for a function of Triton's own those of its caller, empty where that is one too."""
    if "/triton/language/" in files.get(file, ""):
        file, line = outer or file, outer_line or line
    path = files.get(file, file)
    return "" if line == "0" or "/triton/language/" in path else f"{path.rpartition('/')[2]}:{line}"


def split(arguments: str) -> tuple[str, ...]:
    """At the commas outside of brackets."""
    found, depth, current = [], 0, ""
    for letter in arguments:
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += letter
    return tuple(found + [current.strip()] if current.strip() else found)


def names(argument: str) -> list[str]:
    """The registers of "{%r1, %r2}" or of "%r1"."""
    return [name.strip() for name in argument.strip("{} ").split(",")]


def arranged(successors: Sequence[Sequence[int]], first: int = 0, among: Sequence[int] | None = None) -> list[int]:
    """Blocks in an order in which each follows all that lead to it, but for jumps back to the first block of a loop.

    Those of a loop stay together; what nothing leads to comes last. The order of the text is another: what is rarely
    executed lies at its end, with a jump back.
    """
    inside = set(range(len(successors)) if among is None else among)
    edges = {block: [after for after in successors[block] if after in inside - {first}] for block in inside}
    seen: set[int] = set()
    left: list[int] = []  # blocks as a walk in depth leaves them
    stack = [(first, False)]
    while stack:
        block, leaves = stack.pop()
        if leaves:
            left.append(block)
        elif block not in seen:
            seen.add(block)
            stack += [(block, True), *((after, False) for after in edges[block])]
    before: dict[int, list[int]] = {block: [] for block in seen}
    for block in seen:
        for after in edges[block]:
            before[after].append(block)
    found: list[int] = []
    for block in reversed(left):  # the first of its loop: the walk came into it here
        loop, waiting = set(), [block]
        while waiting:
            one = waiting.pop()
            if one not in loop and one not in found:
                loop.add(one)
                waiting += before[one]
        if block not in found:
            found += [block] if len(loop) == 1 else arranged(successors, block, sorted(loop))
    return found + sorted(inside - seen)
