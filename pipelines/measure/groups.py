"""Which images are nearly the same: hashes say which might be, thumbnails whether they are.

An image is looked for as it is, in the seven other ways in which a square lies on itself, cut by a few percent at all
sides or at two, and without the uniform bars around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...cores import cores
from .hamming import near_pairs
from .hashes import ORIENTATIONS, WHOLE, coefficients, dct_hash_of, oriented
from .likeness import LEAST_CONTRAST, likeness, same_picture

RADIUS = 10  # bits in which hashes of near duplicates may differ
_AT_ONCE = 1 << 14  # thumbnails that are hashed, or pairs that are compared, at a time
_FEW = 512  # pairs that a thread compares at a time
_ROUNDS = 8  # in which images of one hash are compared with the first of them that is left


class Variant(NamedTuple):
    """A way of looking at an image: a part of it (`hashes.WHOLE`), lying in one of eight ways."""

    orientation: tuple[int, int, int] = ORIENTATIONS[0]
    part: tuple[float, float, float, float] = WHOLE


AS_IT_IS = Variant()
TURNS = tuple(Variant(orientation) for orientation in ORIENTATIONS[1:])
_CUT = -0.05  # of each side; 5 % at one end move the middle by half of that
CUTS = (
    Variant(part=(-0.06, 0.0, -0.06, 0.0)),
    *(Variant(part=(_CUT, across, _CUT, down)) for across in (-0.8, 0.8) for down in (-0.8, 0.8)),
)


@dataclass(frozen=True)
class Pictures:
    """Thumbnails of a set: `thumbs` (N, 32, 32) of whole images, memory-mapped or not, and `inner` (M, 32, 32) of what
    is inside of the bars of some of them, whose numbers are `inside_of` (M,), ascending."""

    thumbs: np.ndarray
    inner: np.ndarray
    inside_of: np.ndarray

    @classmethod
    def of(cls, thumbs: np.ndarray) -> Pictures:
        return cls(thumbs, np.empty((0, *thumbs.shape[1:]), np.uint8), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.thumbs) + len(self.inner)

    def owner(self, items: np.ndarray) -> np.ndarray:
        """The image of each item; items are the whole images, then the insides."""
        whole = items < len(self.thumbs)
        owners = items.copy()
        owners[~whole] = self.inside_of[items[~whole] - len(self.thumbs)]
        return owners

    def inside(self, items: np.ndarray) -> np.ndarray:
        """The item that is inside of the bars of each one, -1 for what has none and for what is such an inside."""
        place = np.searchsorted(self.inside_of, items)
        found = np.append(self.inside_of, -1)[place] == items
        return np.where(found, place + len(self.thumbs), -1)

    def __getitem__(self, items: np.ndarray) -> np.ndarray:
        whole = items < len(self.thumbs)
        found = np.empty((len(items), *self.thumbs.shape[1:]), np.uint8)
        found[whole] = self.thumbs[items[whole]]
        found[~whole] = self.inner[items[~whole] - len(self.thumbs)]
        return found

    def hashed(self, items: np.ndarray, part: tuple[float, float, float, float]) -> Callable[[tuple], np.ndarray]:
        """Orientation -> hashes (I,) of a part of some items."""
        low = np.empty((len(items), 8, 8), np.float32)
        for at in range(0, len(items), _AT_ONCE):
            low[at : at + _AT_ONCE] = coefficients(self[items[at : at + _AT_ONCE]], part)

        def hashes(orientation: tuple[int, int, int]) -> np.ndarray:
            found = np.empty(len(items), np.uint64)
            for at in range(0, len(items), _AT_ONCE):
                found[at : at + _AT_ONCE] = dct_hash_of(low[at : at + _AT_ONCE], orientation)
            return found

        return hashes

    def items(self) -> np.ndarray:
        """Those that show anything: of images of one colour, a hash says nothing."""
        shown = [
            at + np.flatnonzero(self[np.arange(at, min(at + _AT_ONCE, len(self)))].std((1, 2)) >= LEAST_CONTRAST)
            for at in range(0, len(self), _AT_ONCE)
        ]
        return np.concatenate(shown) if shown else np.empty(0, np.int64)


class Union:
    """Sets of numbers below `count` that grow together (Tarjan 1975)."""

    def __init__(self, count: int) -> None:
        self._above = np.arange(count)

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        """(P,) the smallest number of each one's set."""
        found = self._above[numbers]
        while True:
            higher = self._above[found]
            if np.array_equal(higher, found):
                break
            found = higher
        self._above[numbers] = found
        return found

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        for one, two in zip(a.tolist(), b.tolist()):
            one, two = self._root(one), self._root(two)
            self._above[max(one, two)] = min(one, two)

    def _root(self, number: int) -> int:
        while (above := self._above[number]) != number:
            self._above[number] = self._above[above]
            number = above
        return int(number)

    def groups(self) -> np.ndarray:
        """(count,) int64: -1 for a number that is alone, else the number of its group, counted by first members."""
        roots = self.roots(np.arange(len(self._above)))
        first, group, size = np.unique(roots, return_inverse=True, return_counts=True)
        numbers = np.where(size > 1, np.cumsum(size > 1) - 1, -1)
        return numbers[group] if len(first) else np.empty(0, np.int64)


def duplicate_groups(
    pictures: Pictures,
    *,
    radius: int = RADIUS,
    variants: tuple[Variant, ...] = (*TURNS, *CUTS),
    threads: int | None = None,
) -> np.ndarray:
    """(N,) int64: for each image of `pictures` the number of its group of near duplicates, -1 where it has none.

    Two images are in one group if a chain of `same_picture`s leads from one to the other. Exact within `radius`: no
    pair of hashes that differ in so few bits goes unseen. Takes some 400 bytes an image beside the thumbnails.
    """
    union = Union(len(pictures.thumbs))
    with ThreadPoolExecutor(threads or cores()) as pool:
        items = _without_equals(pictures, union, pool)
        as_it_is = pictures.hashed(items, WHOLE)
        hashes = as_it_is(ORIENTATIONS[0])
        for variant in (AS_IT_IS, *variants):
            if variant.part == WHOLE:
                queries = None if variant == AS_IT_IS else as_it_is(variant.orientation)
            else:
                queries = pictures.hashed(items, variant.part)(variant.orientation)
            for a, b in near_pairs(hashes, radius, queries, threads):
                for one, two in _compared(pictures, pictures, items[a], items[b], variant, pool, union):
                    union.join(one, two)
    return union.groups()


def kept_of(groups: np.ndarray, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N,) bool: the image of each group (N,) to keep, the one of most pixels, of these the one of most bytes, of these
    the first; every image that has no group (-1). `rows` are of `MEASURED`, or its columns."""
    order = preferred(rows)
    order = order[np.argsort(groups[order], kind="stable")]
    kept = groups < 0
    own = order[groups[order] >= 0]
    _, first = np.unique(groups[own], return_index=True)
    kept[own[first]] = True
    return kept


def preferred(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N,) int64: all images, those first that are rather kept: of most pixels, of most bytes, first in the set."""
    pixels = rows["width"].astype(np.int64) * rows["height"]
    return np.lexsort((-rows["bytes"], -pixels))


def members(groups: np.ndarray) -> list[np.ndarray]:
    """The images of each group, by its number."""
    order = np.argsort(groups, kind="stable")
    order = order[groups[order] >= 0]
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(order) else []


def images_in_both(
    first: Pictures,
    second: Pictures,
    *,
    radius: int = RADIUS,
    variants: tuple[Variant, ...] = (*TURNS, *CUTS),
    threads: int | None = None,
) -> np.ndarray:
    """(P, 2) int64, sorted: each image of `first` beside each one of `second` that shows the same picture.

    Cuts are looked for in both directions: the one in the first may be the cut one, or the one in the second.
    """
    found = [np.empty((0, 2), np.int64)]
    with ThreadPoolExecutor(threads or cores()) as pool:
        for one, two, turned in ((first, second, False), (second, first, True)):
            mine, theirs = one.items(), two.items()
            hashes = two.hashed(theirs, WHOLE)(ORIENTATIONS[0])
            for variant in (AS_IT_IS, *variants):
                if turned and variant.part == WHOLE:  # seen from the other side already
                    continue
                queries = one.hashed(mine, variant.part)(variant.orientation)
                for a, b in near_pairs(hashes, radius, queries, threads):
                    for pair in _compared(one, two, mine[a], theirs[b], variant, pool):
                        found.append(np.stack(pair[::-1] if turned else pair, 1))
    return np.unique(np.concatenate(found), axis=0)


def _without_equals(pictures: Pictures, union: Union, pool: ThreadPoolExecutor) -> np.ndarray:
    """The items, but for those whose hash and picture an earlier one has: these are joined. So a picture that is there
    a hundred thousand times costs as many comparisons, and not their square."""
    items = pictures.items()
    hashes = pictures.hashed(items, WHOLE)(ORIENTATIONS[0])
    left, done = np.arange(len(items)), [np.empty(0, np.int64)]
    for _ in range(_ROUNDS):
        _, first, run, size = np.unique(hashes[left], return_index=True, return_inverse=True, return_counts=True)
        leader = left[first][run]
        done.append(np.unique(left[first]))
        others = left != leader
        pairs = [part[others] for part in (leader, left)]
        same = np.zeros(len(left), bool)
        equal = _verdicts(pictures, pictures, items[pairs[0]], items[pairs[1]], AS_IT_IS, pool)
        same[others] = equal
        union.join(*(pictures.owner(items[part[equal]]) for part in pairs))
        left = left[others & ~same]
        if not len(left):
            break
    return items[np.sort(np.concatenate([*done, left]))]


def _compared(
    first: Pictures,
    second: Pictures,
    a: np.ndarray,
    b: np.ndarray,
    variant: Variant,
    pool: ThreadPoolExecutor,
    union: Union | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (a, b), some at a time, of those items that show the same, but for those that `union` has together."""
    for at in range(0, len(a), _AT_ONCE):
        one, two = a[at : at + _AT_ONCE], b[at : at + _AT_ONCE]
        if union is not None:
            new = union.roots(first.owner(one)) != union.roots(first.owner(two))
            one, two = one[new], two[new]
        same = _verdicts(first, second, one, two, variant, pool)
        yield first.owner(one[same]), second.owner(two[same])


def _verdicts(first: Pictures, second: Pictures, a: np.ndarray, b: np.ndarray, variant: Variant, pool) -> np.ndarray:
    """(P,) bool: whether items b of `second` show what items a of `first` do, looked at in that way.

    Frames are alike, whatever they frame: of two whole images with bars, the insides decide.
    """

    def alike(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return same_picture(likeness(second[two], oriented(first[one], variant.orientation), variant.part))

    def part(at: int) -> np.ndarray:
        one, two = a[at : at + _FEW], b[at : at + _FEW]
        same = alike(one, two)
        inside = first.inside(one), second.inside(two)
        framed = np.flatnonzero(same & (inside[0] >= 0) & (inside[1] >= 0))
        same[framed] = alike(inside[0][framed], inside[1][framed])
        return same

    return np.concatenate([np.empty(0, bool), *pool.map(part, range(0, len(a), _FEW))])
