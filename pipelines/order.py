"""Which samples each rank reads at which step: a pure function of (seed, step, rank, world).

The shuffle is a keyed permutation evaluated on demand (a Feistel network with cycle walking, Black and Rogaway 2002),
so an epoch over 10^9 samples costs no memory. Ranks share samples, not shards: the global batch of a step is the same
list whatever the number of ranks, and rank r takes its r-th equal part.

The full shuffle reads one sample here, the next one there: right for memory and flash disks, slow on spinning ones and
on object stores. With `blocks`, neighbours are read at about the same time: blocks are shuffled, then the samples in
each window of `WINDOW` blocks. The price is randomness, since a batch is drawn from `WINDOW` blocks instead of all of
them: samples should have been shuffled when they were written, and a window hold many global batches. Every rank reads
its part of every window. An epoch costs a few numbers a block, still nothing a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from ..errors import UserError
from .rng import mix, stream_key
from .spec import ByteSource

ROUNDS = 8
_STRETCH = 1024  # positions that are looked up together
WINDOW = 16  # blocks that are read at about the same time


def permute(positions: torch.Tensor, size: int, key: int) -> torch.Tensor:
    """Images of `positions` (int64, in [0, size)) under a pseudo-random bijection of [0, size).

    The network permutes the next power of four above `size`; values that fall outside are sent through again until
    they land inside, which takes fewer than four passes on average.
    """
    half = half_bits(size)
    low_bits = (1 << half) - 1
    round_keys = list(mix(torch.arange(1, ROUNDS + 1) * 2 + key))

    def network(x: torch.Tensor) -> torch.Tensor:
        left, right = x >> half, x & low_bits
        for round_key in round_keys:
            left, right = right, left ^ (mix(right ^ round_key) & low_bits)
        return (left << half) | right

    result = network(positions)
    while True:
        outside = (result >= size).nonzero(as_tuple=True)
        if not outside[0].numel():
            return result
        result[outside] = network(result[outside])


def half_bits(size: int) -> int:
    """Half the bits of the next power of four, at least one."""
    return max(1, ((size - 1).bit_length() + 1) // 2)


def share_of(global_batch: int, world: int) -> int:
    """How many images of a global batch each process reads. Raises `UserError` where it does not divide."""
    if global_batch % world:
        raise UserError(
            f"train.batch_size: {global_batch} images do not divide among {world} processes; use a multiple of {world}"
        )
    return global_batch // world


@dataclass(frozen=True)
class Order:
    """The reading order of a run.

    `last` says what becomes of the samples that do not fill the last global batch of an epoch: ``drop`` leaves them out
    (other ones in every epoch), ``pad`` fills up with the first samples of the same epoch.

    `blocks`: None for the full shuffle, the number of samples of every block, or the sizes of all blocks one by one.
    """

    samples: int
    global_batch: int
    seed: int = 0
    shuffle: bool = True
    last: Literal["drop", "pad"] = "drop"
    blocks: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or self.global_batch < 1:
            raise UserError(f"order: {self.samples} samples in batches of {self.global_batch}: both must be at least 1")
        if self.last == "drop" and self.samples < self.global_batch:
            raise UserError(
                f"data: {self.samples} images do not fill one global batch of {self.global_batch}; "
                "lower train.batch_size or set data.last_batch=pad"
            )

        sizes = self.blocks if isinstance(self.blocks, tuple) else (1 if self.blocks is None else self.blocks,)
        if min(sizes) < 1 or isinstance(self.blocks, tuple) and sum(sizes) != self.samples:
            raise UserError(f"order: blocks of {sum(sizes):,} samples for {self.samples:,}, the smallest {min(sizes)}")

    @property
    def steps_per_epoch(self) -> int:
        full, rest = divmod(self.samples, self.global_batch)
        return full + (1 if rest and self.last == "pad" else 0)

    first, ends = 0, None  # the first step that it has, and after how many there is nothing more: never

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def ids(self, step: int, rank: int = 0, world: int = 1) -> torch.Tensor:
        """(global_batch / world,) int64: what `rank` reads at global step `step`, counted from 0 over all epochs."""
        share = share_of(self.global_batch, world)
        epoch, step = divmod(step, self.steps_per_epoch)
        start = step * self.global_batch + rank * share
        if not self.shuffle:
            return torch.arange(start, start + share) % self.samples
        first, last = start // _STRETCH, (start + share - 1) // _STRETCH
        found = torch.cat([_stretch(self, epoch, number) for number in range(first, last + 1)])
        return found[start - first * _STRETCH :][:share]

    def passes(self, step: int, rank: int = 0, world: int = 1) -> int | torch.Tensor:
        """Which time the samples of that step are read, from 0: what is drawn for a sample depends on it."""
        return self.epoch(step)

    def origin(self, ids: torch.Tensor) -> None:
        """Of one set nobody asks."""

    def at(self, positions: torch.Tensor, epoch: int) -> torch.Tensor:
        """What stands at `positions` (n,) of an epoch."""
        if not self.shuffle:
            return positions
        if self.blocks is not None:
            return self._in_blocks(positions, epoch)
        return permute(positions, self.samples, stream_key(self.seed, "order", epoch))

    def _in_blocks(self, positions: torch.Tensor, epoch: int) -> torch.Tensor:
        """What stands at `positions` (n,) of an epoch when blocks are shuffled, and then the samples of each window."""
        starts, bounds = _shuffled_blocks(self.samples, self.blocks, stream_key(self.seed, "order", epoch))
        windows = (torch.bucketize(positions, bounds, right=True) - 1) // WINDOW
        shuffled = torch.empty_like(positions)
        for window in windows.unique().tolist():
            inside = windows == window
            low = bounds[window * WINDOW]
            size = int(bounds[min((window + 1) * WINDOW, len(starts))] - low)
            key = stream_key(self.seed, f"order/{window}", epoch)
            shuffled[inside] = low + permute(positions[inside] - low, size, key)
        block = torch.bucketize(shuffled, bounds, right=True) - 1
        return starts[block] + shuffled - bounds[block]


@lru_cache(maxsize=8)
def _stretch(order: Order, epoch: int, number: int) -> torch.Tensor:
    """(_STRETCH,) what stands at the positions of an epoch from `number * _STRETCH` on, behind its end those of its
    beginning. A batch of 64 alone takes 590 us, all of these hardly more."""
    return order.at(torch.arange(number * _STRETCH, (number + 1) * _STRETCH) % order.samples, epoch)


@lru_cache(maxsize=2)  # the epoch that is read and the one that is planned ahead
def _shuffled_blocks(samples: int, blocks: int | tuple[int, ...], key: int) -> tuple[torch.Tensor, torch.Tensor]:
    """In reading order: (n,) the first sample of each block, and (n + 1,) the positions where they begin and end."""
    if isinstance(blocks, int):
        ends = torch.arange(blocks, samples + blocks, blocks).clamp(max=samples)
    else:
        ends = torch.tensor(blocks).cumsum(0)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    order = permute(torch.arange(len(ends)), len(ends), key)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), (ends - starts)[order].cumsum(0)])
    return starts[order], bounds


def shard_sizes(source: ByteSource) -> tuple[int, ...]:
    """How many samples each shard of a source holds, in order: blocks for `Order`."""
    if not hasattr(source, "neighbours"):
        raise UserError(f"data.block: {source.name} has no shards; give the number of samples of a block instead")
    sizes, first = [], 0
    while first < len(source):
        _, last = source.neighbours(first)
        sizes.append(last - first)
        first = last
    return tuple(sizes)
