"""All pairs of 64-bit hashes that differ in few bits: exact, and in memory for the hashes, not for the pairs.

Multi-index hashing (Norouzi, Punjani, Fleet, arXiv 1307.2982): hashes that differ in r bits differ, in one or more of m
parts of them, in at most r / m. So hashes are sorted by a part at a time, and each bucket is held against those whose
number differs from its own in so few bits. Which bits make a part is dealt out as cards are: neighbouring bits of a
perceptual hash depend on each other. A pair is told of in the first part that finds it, and in no other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
from numba import boolean, int64, types, uint64, void
from numba.extending import intrinsic

from ...cores import cores
from ..numba_cache import compiled

BITS = 64
_WIDEST = 24  # bits of a part: the table of its buckets has 2 ** bits entries of 8 bytes
_ROOM = 1 << 18  # pairs that a thread may have found before they are taken from it
_RANGES = 8  # of buckets, for each thread


def near_pairs(
    hashes: np.ndarray, radius: int, queries: np.ndarray | None = None, threads: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(a (P,), b (P,)) int64, some at a time: every pair of `hashes` (N,) uint64 that differ in at most `radius` bits.

    a < b, each once; with `queries` (Q,) uint64, a is the number of a query instead, and there is no such
    order. Takes about 40 bytes a hash, and at most 128 MiB for the buckets. Raises `ValueError` for another radius.
    """
    if not 0 <= radius < BITS:
        raise ValueError(f"radius: 0 to 63 bits, not {radius}")
    same = queries is None
    counts = (len(hashes), len(hashes) if same else len(queries))
    if not min(counts):
        return
    widths = _widths(_parts(radius, *counts, same))
    starts = np.cumsum([0, *widths[:-1]]).astype(np.uint64)
    masks = np.array([(1 << width) - 1 for width in widths], np.uint64)
    reach = _reach(radius, len(widths))
    deal = np.argsort(np.arange(BITS) % len(widths), kind="stable").astype(np.uint64)
    left = np.empty(counts[1], np.uint64)
    _dealt(np.ascontiguousarray(hashes if same else queries), deal, left)
    right = left
    if not same:
        right = np.empty(counts[0], np.uint64)
        _dealt(np.ascontiguousarray(hashes), deal, right)
    with ThreadPoolExecutor(threads or cores()) as pool:
        for part, width in enumerate(widths):
            table = _sorted(left, starts[part], masks[part])
            other = table if same else _sorted(right, starts[part], masks[part])
            flips = np.array(list(_flips(width, int(reach[part]))), np.int64)
            fixed = (*table, *other, flips, same, radius, part, starts, masks, reach)
            yield from _joined(pool, threads or cores(), 1 << width, fixed)


def _joined(pool, threads: int, buckets: int, fixed: tuple) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of one part. Each thread has a range of buckets and room for so many pairs; where that is full, they
    are taken, and it goes on from there."""
    edges = np.linspace(0, buckets, min(buckets, threads * _RANGES) + 1).astype(np.int64)
    waiting = [np.array([first, 0, 0, last], np.int64) for first, last in zip(edges, edges[1:])]
    largest = int(np.diff(fixed[5]).max())
    room = max(_ROOM, largest)

    def run(state: np.ndarray):
        a, b = np.empty(room, np.int64), np.empty(room, np.int64)
        found = int(_join(*fixed, state, a, b))
        return a[:found].copy(), b[:found].copy()

    while waiting:
        now = waiting[:threads]
        for pairs in pool.map(run, now):
            if len(pairs[0]):
                yield pairs
        waiting = [state for state in now if state[0] < state[3]] + waiting[threads:]


def _parts(radius: int, others: int, own: int, same: bool) -> int:
    """Into how many parts hashes are cut: what is estimated to take least time."""

    def cost(parts: int) -> float:
        widths = _widths(parts)
        if max(widths) > _WIDEST:
            return math.inf
        total = 0.0
        for width, reach in zip(widths, _reach(radius, parts)):
            probes = sum(math.comb(width, bits) for bits in range(int(reach) + 1))
            buckets = 2**width
            total += (
                2 * buckets + min(own, buckets) * probes * 2 + own * probes * others / buckets * (0.5 if same else 1)
            )
        return total

    return min(range(2, 17), key=cost)


def _widths(parts: int) -> list[int]:
    return [BITS // parts + (part < BITS % parts) for part in range(parts)]


def _reach(radius: int, parts: int) -> np.ndarray:
    """In how many bits each part may differ: r = parts * most + rest, so `rest` + 1 parts reach `most`, the others one
    less; -1: a part that need not be looked at."""
    most, rest = divmod(radius, parts)
    return np.array([most if part <= rest else most - 1 for part in range(parts)], np.int64)


def _flips(width: int, reach: int) -> Iterator[int]:
    """All numbers of at most `reach` ones among `width` bits."""
    for ones in range(reach + 1):
        for places in combinations(range(width), ones):
            yield sum(1 << place for place in places)


@intrinsic
def _ones(context, value):
    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@compiled(void(types.Array(uint64, 1, "C", readonly=True), uint64[::1], uint64[::1]))
def _dealt(hashes, deal, out):
    """Bit deal[k] of each hash becomes its bit k."""
    for i in range(len(hashes)):
        value = uint64(0)
        for k in range(64):
            value |= ((hashes[i] >> deal[k]) & uint64(1)) << uint64(k)
        out[i] = value


def _sorted(hashes: np.ndarray, start: np.uint64, mask: np.uint64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hashes by bucket, their numbers, where each bucket begins)."""
    firsts = np.zeros(int(mask) + 2, np.int64)
    values, numbers = np.empty_like(hashes), np.empty(len(hashes), np.int64)
    _sort(hashes, start, mask, firsts, values, numbers)
    return values, numbers, firsts


@compiled(void(uint64[::1], uint64, uint64, int64[::1], uint64[::1], int64[::1]))
def _sort(hashes, start, mask, firsts, values, numbers):
    for value in hashes:
        firsts[int64((value >> start) & mask) + 1] += 1
    for bucket in range(1, len(firsts)):
        firsts[bucket] += firsts[bucket - 1]
    ends = firsts[:-1].copy()
    for i in range(len(hashes)):
        bucket = int64((hashes[i] >> start) & mask)
        values[ends[bucket]] = hashes[i]
        numbers[ends[bucket]] = i
        ends[bucket] += 1


_HASHES, _NUMBERS = uint64[::1], int64[::1]
_TABLE = (_HASHES, _NUMBERS, _NUMBERS)


@compiled(
    int64(*_TABLE, *_TABLE, _NUMBERS, boolean, int64, int64, _HASHES, _HASHES, _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS)
)
def _join(
    a_values, a_numbers, a_firsts, b_values, b_numbers, b_firsts, flips, same, radius, part, starts, masks, reach,
    state, out_a, out_b,
):  # fmt: skip
    """Pairs from the place that `state` (bucket, flip, row within the bucket, end) says on, until the room is full or
    the end reached; their number."""
    found, bucket, flip, row = 0, state[0], state[1], state[2]
    while bucket < state[3]:
        begin, end = a_firsts[bucket], a_firsts[bucket + 1]
        if begin == end:
            flip = len(flips)
        while flip < len(flips):
            other = bucket ^ flips[flip]
            if not (same and other < bucket):
                first, last = b_firsts[other], b_firsts[other + 1]
                while first < last and begin + row < end:
                    if found + last - first > len(out_a):
                        state[0], state[1], state[2] = bucket, flip, row
                        return found
                    at = begin + row
                    value = a_values[at]
                    for against in range(at + 1 if same and other == bucket else first, last):
                        differing = value ^ b_values[against]
                        if int64(_ones(differing)) <= radius:
                            new = True
                            for before in range(part):
                                inside = (differing >> starts[before]) & masks[before]
                                if int64(_ones(inside)) <= reach[before]:
                                    new = False
                            if new:
                                one, two = a_numbers[at], b_numbers[against]
                                if same and one > two:
                                    one, two = two, one
                                out_a[found], out_b[found] = one, two
                                found += 1
                    row += 1
            flip, row = flip + 1, 0
        bucket, flip = bucket + 1, 0
    state[0] = bucket
    return found
