"""Clusters of clusters, and what is drawn from them evenly (Vo et al., arXiv 2405.15613), written from the paper.

k-means puts more centroids where there are more points. Clustering its centroids, and then theirs, spreads the upper
levels ever more evenly over what there is; so does running it again on the few points nearest to each centroid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .kmeans import Clusters, assigned, kmeans

RESAMPLED = 5  # points nearest to each centroid, of which the next centroids are made


@dataclass(frozen=True)
class Hierarchy:
    """`parents`: for each level, from the points up, the cluster that each thing below belongs to."""

    parents: list[np.ndarray]

    def paths(self) -> np.ndarray:
        """(N, levels) int64: the clusters of each point, from the leaf up."""
        found = [self.parents[0]]
        for parent in self.parents[1:]:
            found.append(parent[found[-1]])
        return np.stack(found, 1)


def build(points: torch.Tensor, levels: Sequence[int], *, seed: int, rounds: int = 10) -> Hierarchy:
    """Clusters points (N, D) into `levels[0]` clusters, these into `levels[1]`, and so on; each level is made anew
    `rounds` times from the `RESAMPLED` points nearest to each of its centroids."""
    parents, below = [], points
    for number, count in enumerate(levels):
        found = kmeans(below, count, seed=seed + number)
        for turn in range(rounds):
            chosen = _nearest_few(found)
            if len(chosen) <= len(found.centroids):
                break
            again = kmeans(below[chosen], count, seed=seed + 1000 * (turn + 1) + number)
            found = assigned(below, again.centroids)
        used, inverse = found.nearest.unique(return_inverse=True)  # a centroid may have no point of the whole
        parents.append(inverse.numpy())
        below = found.centroids[used]
    return Hierarchy(parents)


def balanced(hierarchy: Hierarchy, count: int, *, seed: int) -> np.ndarray:
    """(count,) int64, sorted: points, drawn as evenly over the clusters of each level as they have points.

    From the top down each cluster is given min(cut, its points), with the largest cut that does not give too many; what
    remains is one more for some that have more, by chance. Within a leaf points are drawn by chance.
    """
    rng = np.random.default_rng(seed)
    paths = hierarchy.paths()
    chosen: list[np.ndarray] = []

    def give(points: np.ndarray, level: int, share: int) -> None:
        if level < 0:
            chosen.append(rng.permutation(points)[:share])
            return
        order = np.argsort(paths[points, level], kind="stable")
        edges = np.flatnonzero(np.diff(paths[points[order], level])) + 1
        groups = np.split(points[order], edges)
        for group, part in zip(groups, cut(np.array([len(group) for group in groups]), share, rng).tolist()):
            if part:
                give(group, level - 1, part)

    give(np.arange(len(paths)), paths.shape[1] - 1, min(count, len(paths)))
    return np.sort(np.concatenate(chosen))


def cut(sizes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(G,) int64 that add up to `count`: how many of each group of these sizes, as equal as the sizes allow."""
    low, high = 0, int(sizes.max())
    while low < high:  # the largest cut that does not give too many
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= count else (low, middle - 1)
    parts = np.minimum(sizes, low)
    more = np.flatnonzero(sizes > low)
    parts[rng.permutation(more)[: count - int(parts.sum())]] += 1
    return parts


def weights(hierarchy: Hierarchy, count: int) -> np.ndarray:
    """(N,) float32 in (0, 1]: the chance of each point to be among `count` that are drawn so, in expectation."""
    paths = hierarchy.paths()
    found = np.empty(len(paths), np.float32)

    def give(points: np.ndarray, level: int, share: float) -> None:
        if level < 0:
            found[points] = share / len(points)
            return
        order = np.argsort(paths[points, level], kind="stable")
        groups = np.split(points[order], np.flatnonzero(np.diff(paths[points[order], level])) + 1)
        sizes = np.array([len(group) for group in groups], np.float64)
        for group, part in zip(groups, _levelled(sizes, share)):
            give(group, level - 1, part)

    give(np.arange(len(paths)), paths.shape[1] - 1, float(min(count, len(paths))))
    return found


def _levelled(sizes: np.ndarray, share: float) -> np.ndarray:
    """min(cut, size) with the one cut, no whole number, at which they add up to `share`."""
    ordered = np.sort(sizes)
    below = np.concatenate([[0], np.cumsum(ordered)[:-1]])
    cuts = (share - below) / np.arange(len(sizes), 0, -1)  # if all smaller ones are given in full
    return np.minimum(sizes, cuts[np.argmax(cuts <= ordered)] if (cuts <= ordered).any() else ordered[-1])


def _nearest_few(found: Clusters) -> torch.Tensor:
    """The numbers of the `RESAMPLED` nearest points of each cluster, ascending."""
    order = torch.from_numpy(np.lexsort((found.distances.numpy(), found.nearest.numpy())))
    counts = found.nearest.bincount(minlength=len(found.centroids))
    first = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)[:-1]])
    rank = torch.arange(len(order)) - first[found.nearest[order]]
    return order[rank < RESAMPLED].sort().values
