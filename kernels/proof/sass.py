"""Reads machine code: what a kernel's loops are made of."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ...errors import UserError

_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
TENSOR = ("HGMMA", "HMMA", "UTCHMMA", "UTCQMMA", "QGMMA", "IMMA")
GLOBAL = ("LDG", "STG", "LDGSTS")
LOADS = ("LDG", "LDGSTS")


class Loop(NamedTuple):
    first: int  # index of an instruction
    last: int


class Code(NamedTuple):
    instructions: tuple[str, ...]  # opcodes with their modifiers, without NOPs
    loops: tuple[Loop, ...]  # in the order of their first instruction


class Summary(NamedTuple):
    products: int  # tensor-core instructions
    width: int  # bits that a load from global memory moves for a thread, on average; 0 without loads
    loop: int  # instructions of the longest inner loop; of the whole kernel where there is none


def tool(name: str) -> Path:
    """One of CUDA's programs for binaries: Triton's own, or else that on PATH. Raises `UserError` without."""
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    found = bundled if bundled.exists() else shutil.which(name)
    if found is None:
        raise UserError(f"kernels: {name} is neither in Triton's package nor on PATH; install the CUDA toolkit")
    return Path(found)


def disassemble(cubin: bytes) -> Code:
    """The code of a kernel's binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool("nvdisasm"), "-c", file.name]
        return parse(subprocess.check_output(command, encoding="utf-8", stderr=subprocess.DEVNULL))


def parse(text: str) -> Code:
    instructions: list[str] = []
    labels: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label.group(1)] = len(instructions)
        elif (match := _LINE.match(line)) and match.group(2) != "NOP":
            if match.group(2).startswith("BRA") and (target := re.search(r"\.L_x_\d+", match.group(3))):
                branches.append((len(instructions), target.group()))
            instructions.append(match.group(2))
    back = {(labels[target], at) for at, target in branches if target in labels and labels[target] < at}
    firsts = {first: max(last for start, last in back if start == first) for first, _ in back}
    return Code(tuple(instructions), tuple(Loop(first, last) for first, last in sorted(firsts.items())))


def innermost(code: Code) -> list[Loop]:
    """Loops that have no other one inside."""
    return [
        loop
        for loop in code.loops
        if not any(other != loop and loop.first <= other.first and other.last <= loop.last for other in code.loops)
    ]


def kinds(opcodes: tuple[str, ...]) -> Counter[str]:
    """How many of each: opcode, for accesses of memory with the width in bits, such as "LDG 128"."""
    found: Counter[str] = Counter()
    for opcode in opcodes:
        name = opcode.partition(".")[0]
        found[f"{name} {width(opcode)}" if name in (*GLOBAL, "LDS", "STS", "LDL", "STL") else name] += 1
    return found


def width(opcode: str) -> int:
    """Bits that a load or store moves for a thread."""
    parts = opcode.split(".")
    for part in parts[1:]:
        if re.fullmatch(r"(?:64|128|256)", part):
            return int(part)
        if re.fullmatch(r"[US](?:8|16)", part):
            return int(part[1:])
    return 32


def summary(code: Code) -> Summary:
    names = [opcode.partition(".")[0] for opcode in code.instructions]
    widths = [width(opcode) for opcode, name in zip(code.instructions, names, strict=True) if name in LOADS]
    longest = max((loop.last - loop.first + 1 for loop in innermost(code)), default=len(code.instructions))
    return Summary(sum(name in TENSOR for name in names), sum(widths) // max(len(widths), 1), longest)
