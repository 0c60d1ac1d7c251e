"""The memory of a launch, and who touched it last: bounds, alignment, unwritten reads, races.

Two accesses of one place race when one of them writes, and they are by different warps of a block with no barrier
between them, or by different blocks. Two writes of the same value do not: the compiler has warps hold copies, and each
stores its own. Nor do two writes by one instruction to shared memory whose outcome nobody reads: warps that hold
nothing store it all the same. Places are as wide as the narrowest access of the kernel.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import NamedTuple

import numpy as np

from .ptx import Fault

BYTES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
NEVER = np.int64(-1)
CLASH = np.int64(-2)  # of several writes by one instruction: nobody knows which one was last
BLOCK, EPOCH, WARP = 40, 8, (1 << 8) - 1  # a stamp: block << 40 | barriers passed << 8 | warp
SEVERAL = np.int64(1 << 62)


class Findings:
    """What a launch did wrong but went on after: sentence -> how often."""

    def __init__(self) -> None:
        self.races: Counter[str] = Counter()
        self.unwritten: Counter[str] = Counter()
        self.launches = self.blocks = 0

    def __bool__(self) -> bool:
        return bool(self.races or self.unwritten)

    def lines(self) -> list[str]:
        return [f"{what} ({count} times)" for kind in (self.races, self.unwritten) for what, count in kind.items()]


class Trace:
    """Per place the stamp of its last write and of its last read."""

    def __init__(self, places: int, name: str, findings: Findings, *, read_by_all: bool) -> None:
        self.read_by_all = read_by_all  # after the launch
        self.wrote = np.full(places, NEVER)
        self.read = np.full(places, NEVER)
        self.name, self.findings = name, findings

    def _report(self, kind: str, conflict: np.ndarray, where: str) -> None:
        if conflict.any():
            self.findings.races[f"race in {self.name}: {kind} at {where}"] += int(conflict.sum())

    def note_read(self, places: np.ndarray, stamps: np.ndarray, where: str) -> None:
        wrote = self.wrote[places]
        self._report("read of what two wrote at once", wrote == CLASH, where)
        self._report("read of what another wrote", _conflict(wrote, stamps), where)
        merged = _merged(self.read[places], stamps)
        self.read[places] = merged
        # Of threads that read one place in the same instruction the last has written it; the others are added.
        lost = self.read[places] != merged
        if lost.any():
            self.read[places[lost]] = _merged(self.read[places[lost]], merged[lost])

    def write(
        self, view: np.ndarray, index: np.ndarray, values: list[np.ndarray], places: np.ndarray, stamps: np.ndarray,
        where: str,
    ) -> None:  # fmt: skip
        """Store values[k] at view[index + k], which are these places."""
        conflict = _conflict(self.wrote[places], stamps)
        if conflict.any():
            conflict &= np.repeat(_differ(view, index, values), len(places) // len(index))
        self._report("two writes", conflict, where)
        self.note_write(places, stamps, where)
        for k, value in enumerate(values):
            view[index + k] = value
        clash = _differ(view, index, values)
        if self.read_by_all:
            self._report("two writes", clash, where)
        elif clash.any():
            self.wrote[places[np.repeat(clash, len(places) // len(index))]] = CLASH

    def note_write(self, places: np.ndarray, stamps: np.ndarray, where: str) -> None:
        self._report("write of what another reads", _conflict(self.read[places], stamps), where)
        self.wrote[places] = stamps


def _differ(view: np.ndarray, index: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    found = np.zeros(len(index), bool)
    for k, value in enumerate(values):
        found |= view[index + k] != value
    return found


def _merged(earlier: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Who has read a place: the last one, all warps of a block, or several blocks."""
    elsewhere = (earlier != NEVER) & ((earlier >> BLOCK) != (now >> BLOCK))
    beside = (earlier >> EPOCH == now >> EPOCH) & (earlier != now)
    return np.where(elsewhere, SEVERAL, np.where(beside, now | WARP, now))


def _conflict(earlier: np.ndarray, now: np.ndarray) -> np.ndarray:
    other_block = (earlier >> BLOCK) != (now >> BLOCK)
    other_warp = ((earlier ^ now) >> EPOCH == 0) & (earlier != now)
    return (earlier >= 0) & (other_block | other_warp)


class Region(NamedTuple):
    base: int
    size: int
    views: dict[int, np.ndarray]
    name: str
    trace: Trace | None  # two numbers a place are too much for the tensors of real training runs


class Global:
    """The storages of the tensors that were handed in."""

    def __init__(self, grain: int, findings: Findings, *, traced: bool = True) -> None:
        self.grain, self.findings, self.traced = grain, findings, traced
        self.regions: list[Region] = []
        self.bases = np.zeros(0, np.uint64)

    def add(self, base: int, size: int, name: str) -> None:
        if size == 0 or any(region.base == base for region in self.regions):
            return
        raw = np.frombuffer((ctypes.c_uint8 * size).from_address(base), dtype=np.uint8)
        views = {width: raw[: size // width * width].view(kind) for width, kind in BYTES.items()}
        trace = Trace(-(-size // self.grain), f"`{name}`", self.findings, read_by_all=True) if self.traced else None
        self.regions.append(Region(base, size, views, name, trace))
        self.regions.sort()
        self.bases = np.array([region.base for region in self.regions], dtype=np.uint64)

    def _locate(self, address: np.ndarray, total: int, where: str):
        """Yields (which lanes, region, offsets in bytes)."""
        if (wrong := address % np.uint64(total) != 0).any():
            raise Fault(f"misaligned access of {total} bytes at {hex(int(address[wrong][0]))}, {where}")
        which = np.searchsorted(self.bases, address, side="right") - 1
        if (which < 0).any():
            raise Fault(f"access before all tensors, {where}")
        for number in np.unique(which):
            region = self.regions[number]
            lanes = which == number
            offset = (address[lanes] - np.uint64(region.base)).astype(np.int64)
            if (beyond := offset + total > region.size).any():
                raise Fault(
                    f"access out of bounds: {total} bytes at offset {int(offset[beyond][0])} of `{region.name}`, which "
                    f"has {region.size} bytes; {int(beyond.sum())} threads, {where}"
                )
            yield lanes, region, offset

    def load(self, address: np.ndarray, width: int, count: int, stamps: np.ndarray, where: str) -> list[np.ndarray]:
        found = [np.zeros(len(address), BYTES[width]) for _ in range(count)]
        for lanes, region, offset in self._locate(address, width * count, where):
            if region.trace:
                places, by = _places(offset, width * count, self.grain, stamps[lanes])
                region.trace.note_read(places, by, where)
            for k in range(count):
                found[k][lanes] = region.views[width][offset // width + k]
        return found

    def store(self, address: np.ndarray, width: int, values: list[np.ndarray], stamps: np.ndarray, where: str) -> None:
        for lanes, region, offset in self._locate(address, width * len(values), where):
            own, view, index = [value[lanes] for value in values], region.views[width], offset // width
            if region.trace:
                places, by = _places(offset, width * len(values), self.grain, stamps[lanes])
                region.trace.write(view, index, own, places, by, where)
            else:
                for k, value in enumerate(own):
                    view[index + k] = value

    def atomic(self, address: np.ndarray, width: int, change, where: str) -> np.ndarray:
        """`change(view, index)` does one lane's update and returns the old value. Atomics do not race."""
        old = np.zeros(len(address), BYTES[width])
        for lanes, region, offset in self._locate(address, width, where):
            old[lanes] = [
                change(region.views[width], lane, int(at))
                for lane, at in zip(np.flatnonzero(lanes), offset // width, strict=True)
            ]
        return old


class Shared:
    """The shared memory of all blocks of a chunk, one after the other."""

    def __init__(self, size: int, blocks: int, grain: int, findings: Findings, *, traced: bool = True) -> None:
        self.size = max(16, -(-size // 16) * 16)
        self.grain, self.findings = grain, findings
        raw = np.zeros(self.size * blocks, np.uint8)
        self.views = {width: raw.view(kind) for width, kind in BYTES.items()}
        self.trace = Trace(len(raw) // grain, "shared memory", findings, read_by_all=False) if traced else None
        self.reads: list[list[tuple[np.ndarray, np.ndarray, str]]] = [[]]  # of wgmma, in flight, by groups

    def _offsets(self, address: np.ndarray, block: np.ndarray, total: int, where: str) -> np.ndarray:
        address = address.astype(np.int64)
        if (address % total).any():
            raise Fault(f"misaligned access of {total} bytes of shared memory, {where}")
        if (address + total > self.size).any():
            raise Fault(f"access out of bounds: byte {int(address.max())} of {self.size} of shared memory, {where}")
        return address + block * self.size

    def load(self, address, width: int, count: int, block, stamps, where: str) -> list[np.ndarray]:
        offset = self._offsets(address, block, width * count, where)
        self.note_read(offset, width * count, stamps, where)
        return [self.views[width][offset // width + k] for k in range(count)]

    def store(self, address, width: int, values: list[np.ndarray], block, stamps, where: str) -> None:
        offset = self._offsets(address, block, width * len(values), where)
        view, index = self.views[width], offset // width
        if self.trace:
            places, by = _places(offset, width * len(values), self.grain, stamps)
            self.trace.write(view, index, values, places, by, where)
        else:
            for k, value in enumerate(values):
                view[index + k] = value

    def begin_copy(self, address, total: int, block, stamps, where: str) -> None:
        """An asynchronous copy may write from now on: until it is waited for, nobody knows what lies there."""
        offset = self._offsets(address, block, total, where)
        if self.trace:
            places, by = _places(offset, total, self.grain, stamps)
            self.trace.note_write(places, by, where)
            self.trace.wrote[places] = NEVER

    def note_read(self, offset: np.ndarray, total: int, stamps: np.ndarray, where: str) -> None:
        if not self.trace:
            return
        places, by = _places(offset, total, self.grain, stamps)
        if (unwritten := self.trace.wrote[places] == NEVER).any():
            self.findings.unwritten[f"read of unwritten shared memory at {where}"] += int(unwritten.sum())
        self.trace.note_read(places, by, where)

    def begin_read(self, offset: np.ndarray, stamps: np.ndarray, where: str) -> None:
        """wgmma reads 16-bit values until it is waited for."""
        if not self.trace:
            return
        self.note_read(offset, 2, stamps, where)
        places = np.unique(offset // self.grain)
        self.reads[-1].append((places, self.trace.wrote[places], where))

    def commit_reads(self) -> None:
        self.reads.append([])

    def wait_for_reads(self, pending: int) -> None:
        """All but the last `pending` groups are over. What they read must be as it was."""
        over = max(len(self.reads) - 1 - pending, 0)
        for places, wrote, where in (read for group in self.reads[:over] for read in group):
            if (changed := self.trace.wrote[places] != wrote).any():
                what = f"race in shared memory: overwritten while wgmma reads, {where}"
                self.findings.races[what] += int(changed.sum())
        del self.reads[:over]


def _places(offset: np.ndarray, total: int, grain: int, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places that accesses of `total` bytes cover, and the stamp of each."""
    first = offset // grain
    if total <= grain:
        return first, stamps
    spread = total // grain
    return (first[:, None] + np.arange(spread)).reshape(-1), np.repeat(stamps, spread)
