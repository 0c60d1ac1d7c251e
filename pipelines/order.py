"""Which samples each rank reads at which step: a pure function of (seed, step, rank, world).

The shuffle is a keyed permutation evaluated on demand (a Feistel network with cycle walking, Black and Rogaway 2002),
so an epoch over 10^9 samples costs no memory. Ranks share samples, not shards: the global batch of a step is the same
list whatever the number of ranks, and rank r takes its r-th equal part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..errors import UserError
from .rng import mix, stream_key

_ROUNDS = 8


def permute(positions: torch.Tensor, size: int, key: int) -> torch.Tensor:
    """Images of `positions` (int64, in [0, size)) under a pseudo-random bijection of [0, size).

    The network permutes the next power of four above `size`; values that fall outside are sent through again until
    they land inside, which takes fewer than four passes on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low_bits = (1 << half) - 1
    round_keys = mix(torch.arange(1, _ROUNDS + 1) * 2 + key)

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


@dataclass(frozen=True)
class Order:
    """The reading order of a run.

    `last` says what becomes of the samples that do not fill the last global batch of an epoch: ``drop`` leaves them out
    (other ones in every epoch), ``pad`` fills up with the first samples of the same epoch.
    """

    samples: int
    global_batch: int
    seed: int = 0
    shuffle: bool = True
    last: Literal["drop", "pad"] = "drop"

    def __post_init__(self) -> None:
        if self.samples < 1 or self.global_batch < 1:
            raise UserError(f"order: {self.samples} samples in batches of {self.global_batch}: both must be at least 1")
        if self.last == "drop" and self.samples < self.global_batch:
            raise UserError(
                f"data: {self.samples} images do not fill one global batch of {self.global_batch}; "
                "lower train.batch_size or set data.last_batch=pad"
            )

    @property
    def steps_per_epoch(self) -> int:
        full, rest = divmod(self.samples, self.global_batch)
        return full + (1 if rest and self.last == "pad" else 0)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def ids(self, step: int, rank: int = 0, world: int = 1) -> torch.Tensor:
        """(global_batch / world,) int64: what `rank` reads at global step `step`, counted from 0 over all epochs."""
        if self.global_batch % world:
            raise UserError(
                f"train.batch_size: {self.global_batch} images do not divide among {world} processes; "
                f"use a multiple of {world}"
            )
        share = self.global_batch // world
        epoch, step = divmod(step, self.steps_per_epoch)
        start = step * self.global_batch + rank * share
        positions = torch.arange(start, start + share) % self.samples
        if not self.shuffle:
            return positions
        return permute(positions, self.samples, stream_key(self.seed, "order", epoch))
