"""Some blocks of a launch, run side by side: their threads are the elements of every array."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from .memory import BLOCK, EPOCH, Findings, Global, Shared
from .ptx import Fault

ENDED = 1 << 30  # the place of a thread that has returned
LANES = 4096  # about as many threads at once: where numpy's cost of a call no longer counts


class Copy(NamedTuple):
    """cp.async, on its way."""

    lanes: np.ndarray
    groups: np.ndarray  # of each lane: how many groups it had committed
    address: np.ndarray
    values: list[np.ndarray]
    where: str


class Chunk:
    """The threads of blocks `first` ... of a grid, and what they share.

    `tid`, `ctaid`, `nctaid` are what the registers of that name have; `block` a thread's block, counted in this chunk;
    `stamps` says for `memory.Trace` who a thread is, and since which barrier.
    """

    def __init__(
        self, blocks: np.ndarray, grid: tuple[int, int, int], threads: int, memory: Global, shared: int, grain: int,
        findings: Findings, local: int = 0,
    ) -> None:  # fmt: skip
        count = len(blocks)
        self.lanes = count * threads
        self.tid = np.tile(np.arange(threads, dtype=np.uint32), count)
        self.block = np.repeat(np.arange(count), threads)
        numbers = np.repeat(blocks, threads)
        x, y, _ = grid
        self.ctaid = [part.astype(np.uint32) for part in (numbers % x, numbers // x % y, numbers // (x * y))]
        self.nctaid = [np.full(self.lanes, size, np.uint32) for size in grid]
        self.stamps = (numbers.astype(np.int64) << BLOCK) | (1 << EPOCH) | (self.tid >> 5).astype(np.int64)
        self.memory, self.shared = memory, Shared(shared, count, grain, findings, traced=memory.traced)
        self.numbers = np.arange(self.lanes)
        # A thread's own, `numbers` its block.
        self.local = Shared(local, self.lanes if local else 1, 1, findings, traced=memory.traced)
        self.committed = np.zeros(self.lanes, np.int64)
        self.copies: list[Copy] = []
        self.visits: Counter[int] = Counter()  # block of instructions -> threads that came by

    def whole_warps(self, active: np.ndarray, where: str) -> None:
        """Raises `Fault` where a warp does together what some of its threads do not take part in."""
        taking = active.reshape(-1, 32)
        if (taking.any(1) != taking.all(1)).any():
            raise Fault(f"a warp diverged before an instruction that it must execute as a whole, {where}")

    def barrier(self, active: np.ndarray, at: np.ndarray | None, where: str) -> None:
        by_block = active.reshape(len(active) // self._threads, -1)
        if at is not None:
            waiting = by_block | (at.reshape(by_block.shape) == ENDED)
            if (by_block.any(1) != waiting.all(1)).any():
                raise Fault(f"some threads of a block never reach its barrier, or another one, {where}")
        self.stamps[active] += 1 << EPOCH

    @property
    def _threads(self) -> int:
        return int(np.count_nonzero(self.block == 0))

    def copy(self, lanes: np.ndarray, address: np.ndarray, values: list[np.ndarray], where: str) -> None:
        total = 4 * len(values)
        self.shared.begin_copy(address, total, self.block[lanes], self.stamps[lanes], where)
        self.copies.append(Copy(lanes, self.committed[lanes], address, values, where))

    def wait(self, active: np.ndarray, pending: int | None) -> None:
        """Complete all but the last `pending` groups of copies; None: whatever there is, committed or not."""
        left = []
        for copy in self.copies:
            mine = active[copy.lanes]
            done = mine if pending is None else mine & (copy.groups < self.committed[copy.lanes] - pending)
            if done.any():
                lanes = copy.lanes[done]
                values = [value[done] for value in copy.values]
                self.shared.store(copy.address[done], 4, values, self.block[lanes], self.stamps[lanes], copy.where)
            if not done.all():
                rest = ~done
                values = [value[rest] for value in copy.values]
                left.append(Copy(copy.lanes[rest], copy.groups[rest], copy.address[rest], values, copy.where))
        self.copies = left
