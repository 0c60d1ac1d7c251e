"""Every pair within so many bits, against the distances of all pairs."""

import numpy as np
import pytest

from headrace.pipelines.measure import hamming
from headrace.pipelines.measure.hamming import near_pairs


def near_hashes(count, seed=0, shift=0):
    """Half of them differ from another one in 0 to 20 bits; with `shift` the upper bits are equal for all."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 1 << 64, count, dtype=np.uint64) >> np.uint64(shift)
    for place in range(count // 2):
        value = hashes[rng.integers(count)]
        for bit in rng.choice(64 - shift, rng.integers(21), replace=False):
            value ^= np.uint64(1) << np.uint64(bit)
        hashes[place] = value
    return hashes


def told(pairs):
    found = [pair for a, b in pairs for pair in zip(a.tolist(), b.tolist())]
    assert len(set(found)) == len(found)  # each once
    return set(found)


def by_distance(hashes, queries, radius):
    distances = np.bitwise_count(queries[:, None] ^ hashes[None])
    return set(zip(*(part.tolist() for part in np.nonzero(distances <= radius))))


@pytest.mark.parametrize("radius", [0, 1, 4, 7, 10, 13, 20, 40])
@pytest.mark.parametrize("shift", [0, 40])
def test_all_pairs_and_no_other(radius, shift):
    hashes = near_hashes(600, shift=shift)
    wanted = {(a, b) for a, b in by_distance(hashes, hashes, radius) if a < b}
    assert told(near_pairs(hashes, radius)) == wanted
    assert len(wanted) > 5
    assert told(near_pairs(hashes, radius, hashes[::7])) == by_distance(hashes, hashes[::7], radius)


def test_more_pairs_than_there_is_room_for(monkeypatch):
    """Equal hashes: 79,800 pairs through room for 500."""
    monkeypatch.setattr(hamming, "_ROOM", 500)
    hashes = np.concatenate([np.full(400, 12345, np.uint64), near_hashes(200)])
    parts = list(near_pairs(hashes, 3, threads=2))
    assert max(len(a) for a, _ in parts) <= 500
    assert told(parts) == {(a, b) for a, b in by_distance(hashes, hashes, 3) if a < b}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_hashes(count):
    assert told(near_pairs(np.zeros(count, np.uint64), 10)) == ({(0, 1)} if count == 2 else set())


def test_any_number_of_threads_finds_the_same():
    hashes = near_hashes(3000)
    assert told(near_pairs(hashes, 10, threads=3)) == told(near_pairs(hashes, 10, threads=1))


def test_a_radius_that_is_none():
    with pytest.raises(ValueError, match="0 to 63 bits"):
        list(near_pairs(np.zeros(3, np.uint64), 64))


@pytest.mark.parametrize("parts", [3, 4, 7])
@pytest.mark.parametrize("radius", [0, 2, 5, 10, 11])
def test_what_parts_may_differ_in_is_enough_and_no_more(parts, radius):
    """Pigeonhole: sums of reach + 1 are radius + 1, so one part is within its reach, and of less reach none need be."""
    reach = hamming._reach(radius, parts)
    assert (reach + 1).sum() == radius + 1 and reach.max() - reach.min() <= 1
