"""Samples of a set that are given more or less often, by a column of weights."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from ...errors import UserError
from ..rng import stream_key, uniform
from .bijections import permute_each


class Favour:
    """Which sample a set of n gives as its k-th: in proportion to `weights` (n,), none negative, not all 0.

    ``stratified``: in every n images sample j is given ``n * w_j / sum(w)`` times, rounded up or down (systematic
    sampling, Madow 1949, in a shuffled order); ``replacement``: each image is drawn anew, whatever came before.

    Takes 8 bytes a sample. Raises `UserError`, which begins with `where`, for other weights.
    """

    def __init__(self, weights: np.ndarray, rule: Literal["stratified", "replacement"], where: str) -> None:
        if np.ma.getdata(weights).dtype.kind not in "biuf":
            raise UserError(f"{where}: holds texts; a weight is a number from 0 on")
        weights = np.ma.filled(np.ma.asarray(weights, np.float64), np.nan)
        bad = ~np.isfinite(weights) | (weights < 0)
        if bad.any():
            index = int(np.flatnonzero(bad)[0])
            raise UserError(f"{where}: {bad.sum():,} weights are negative or not finite, the first {weights[index]}")
        if not weights.any():
            raise UserError(f"{where}: all weights are 0, so there is nothing to read")
        edges = np.cumsum(weights)
        self.edges = torch.from_numpy(edges * (len(edges) / edges[-1]))  # sample j has [edges[j-1], edges[j]) of [0, n)
        self.rule = rule

    def at(self, given: torch.Tensor, seed: int, name: str, first: int = 0) -> torch.Tensor:
        """(m,) int64 samples that the set gives as its images number `given` (m,); its passes count from `first`."""
        count = len(self.edges)
        if self.rule == "replacement":
            points = uniform(seed, f"favour/{name}", first, given, 1)[:, 0] * count
        else:
            passes, rows = (given // count).unique(return_inverse=True)
            passes += first
            sizes, keys = np.full(len(passes), count), stream_key(seed, f"order/{name}", passes).numpy()
            points = torch.from_numpy(permute_each((given % count).numpy(), sizes, keys, rows.numpy())).double()
            points += uniform(seed, f"favour/{name}", 0, passes[rows], 1)[:, 0]
        # a weight of 0 has an empty interval; the last of all ends at n, which no point reaches
        return torch.bucketize(points, self.edges, right=True).clamp(max=self._last)

    @property
    def _last(self) -> int:
        """The last sample that has a weight: where rounding leads beyond the end."""
        return int(torch.searchsorted(self.edges, self.edges[-1]))
