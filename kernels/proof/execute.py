"""Executes a compiled kernel on the CPU: `launch` runs every block of a grid on the tensors' own memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import gcd

import numpy as np
from torch import Tensor

from .chunk import LANES, Chunk
from .expressions import size
from .memory import Findings, Global
from .translate import Translator

SPACES = {"ld": ("global", "shared"), "st": ("global", "shared"), "atom": ("global",), "red": ("global",)}


@cache
def translated(ptx: str) -> Translator:
    return Translator(ptx)


def _grains(kernel: Translator) -> dict[str, int]:
    """The width of the narrowest access to global and to shared memory, in bytes; 4 where there is none."""
    narrowest = {"global": 4, "shared": 4}
    for one in kernel.program.instructions:
        space = one.opcode[1].partition("::")[0] if len(one.opcode) > 1 else ""
        if space in SPACES.get(one.opcode[0], ()):
            narrowest[space] = min(narrowest[space], size(one.opcode[-1]) // 8)
        elif one.opcode[0] in ("ldmatrix", "stmatrix") or one.opcode[:2] == ("wgmma", "mma_async"):
            narrowest["shared"] = min(narrowest["shared"], 2)
    return narrowest


def launch(
    ptx: str,
    shared: int,
    grid: Sequence[int],
    values: Sequence[int],
    tensors: Sequence[tuple[str, Tensor]],
    findings: Findings,
    sample: bool = False,
) -> Counter[int]:
    """Run a kernel. Returns how many threads came by each block of instructions.

    Args:
        ptx: its text.
        shared: bytes of shared memory of a block.
        grid: how many blocks, along one to three axes.
        values: a bit pattern for each parameter of the PTX.
        tensors: (name, tensor) of all memory that it may touch: the storages they lie in.
        findings: gets what is wrong.
        sample: run as many blocks as go at once, evenly spread over the grid (their shares of the work may differ by
            a lot), and look neither for races nor for unwritten reads.

    Raises:
        Fault: an access out of bounds, misaligned; a barrier or an instruction of a whole warp that threads part at.
        NotCovered: an instruction that the executor does not know.
    """
    kernel = translated(ptx)
    grains = _grains(kernel)
    memory = Global(grains["global"], findings, traced=not sample)
    for name, tensor in tensors:
        storage = tensor.untyped_storage()
        memory.add(storage.data_ptr(), storage.nbytes(), name)
    for name, table in kernel.tables.items():
        memory.add(table.ctypes.data, table.nbytes, name)
    parameters = dict(zip(kernel.program.parameters, values, strict=False))
    x, y, z = (*grid, 1, 1)[:3]
    at_once = max(1, LANES // kernel.program.threads)
    blocks = np.arange(x * y * z)
    if sample and len(blocks) > at_once:
        # By a step that shares no factor with the grid: at equal distances all could be first blocks of their rows.
        step = next(step for step in range(int(0.618 * len(blocks)), 2 * len(blocks)) if gcd(step, len(blocks)) == 1)
        blocks = np.arange(at_once) * step % len(blocks)
    visits: Counter[int] = Counter()
    with np.errstate(all="ignore"):
        for first in range(0, len(blocks), at_once):
            own = blocks[first : first + at_once]
            chunk = Chunk(own, (x, y, z), kernel.program.threads, memory, shared, grains["shared"], findings,
                          kernel.program.local)  # fmt: skip
            kernel.run(chunk, parameters)
            chunk.shared.wait_for_reads(0)
            visits.update(chunk.visits)
    findings.launches += 1
    findings.blocks += len(blocks)
    return visits
