"""Dealing shares over blocks: how many slots of a block each set gets, and how many it had in all blocks before.

A period of 2^20 blocks has whole numbers of slots for every set. Set after set they are dealt out, one to a block, in
the order of bit-reversed counters (van der Corput 1935) scrambled by a key: so every block has each set's share to
within one slot, every stretch of blocks to within a few, and a count over any stretch is a sum over 20 bits.
"""

from __future__ import annotations

import numpy as np

BITS = 20
PERIOD = 1 << BITS  # blocks


def reverse(x: int, bits: int = BITS) -> int:
    """The lowest `bits` bits of x in the opposite order."""
    return int(f"{x:0{bits}b}"[::-1], 2)


def below(counters: np.ndarray, bound: int, key: int) -> np.ndarray:
    """For each n of `counters` (S,) in [0, PERIOD]: how many r < n have ``reverse(r) ^ key < bound`` (0..PERIOD).

    [0, bound) is cut into dyadic intervals, one for each bit of `bound`; r falls into one of them if, and only if, it
    leaves a certain rest modulo a power of two.
    """
    if bound == PERIOD:
        return counters.copy()
    total = np.zeros_like(counters)
    for length in range(1, BITS + 1):
        if bound >> (BITS - length) & 1:
            prefix = (bound >> (BITS - length)) - 1 ^ key >> (BITS - length)
            total += (counters - reverse(prefix, length) + (1 << length) - 1) >> length
    return total


def whole_numbers(shares: np.ndarray, total: int) -> np.ndarray:
    """(S,) int64 that add up to `total`, in proportion to `shares` (S,): rounded down, and up where most was lost."""
    exact = shares / shares.sum() * total
    parts = np.floor(exact).astype(np.int64)
    rest = int(total - parts.sum())
    parts[np.argsort(parts - exact, kind="stable")[:rest]] += 1
    return parts


class Deal:
    """Blocks of `size` slots, dealt to sets in proportion to `shares` (S,), all positive or 0."""

    def __init__(self, shares: np.ndarray, size: int, key: int) -> None:
        self.quotas = whole_numbers(shares, PERIOD * size)  # of a period
        self._edges = np.concatenate([[0], np.cumsum(self.quotas)])
        self._key = key & (PERIOD - 1)

    def before(self, block: int) -> np.ndarray:
        """(S,) int64: slots of each set in the blocks [0, block)."""
        turns, inside = divmod(block, PERIOD)
        edges = (self._edges >> BITS) * inside + below(self._edges & (PERIOD - 1), inside, self._key)
        return turns * self.quotas + np.diff(edges)

    def counts(self, block: int) -> np.ndarray:
        """(S,) int64: slots of each set in that block; they add up to `size`."""
        place = reverse((block ^ self._key) & (PERIOD - 1))
        return np.diff((self._edges - place + PERIOD - 1) >> BITS)


class Marks:
    """A share of all steps, evenly spread: which, and how many before."""

    def __init__(self, share: float, key: int) -> None:
        self._quota, self._key = round(share * PERIOD), key & (PERIOD - 1)

    def before(self, step: int) -> int:
        """How many of the steps [0, step) are marked."""
        turns, inside = divmod(step, PERIOD)
        return turns * self._quota + int(below(np.array([inside]), self._quota, self._key)[0])

    def __contains__(self, step: int) -> bool:
        return reverse(step % PERIOD) ^ self._key < self._quota
