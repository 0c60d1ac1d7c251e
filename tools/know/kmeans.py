"""k-means on any number of points, a block at a time: Lloyd's iterations from a k-means++ start, exact distances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

_SAMPLE = 32  # points for each centroid that the start is drawn from, where there are more
_NUMBERS = 1 << 26  # distances that are held at a time: 256 MiB


class Clusters(NamedTuple):
    """`centroids` (k, D) float32; for each point the nearest one (N,) int64, and its squared distance (N,) float32."""

    centroids: torch.Tensor
    nearest: torch.Tensor
    distances: torch.Tensor


def kmeans(points: torch.Tensor, k: int, *, seed: int, iterations: int = 20) -> Clusters:
    """Clusters of points (N, D), which may be memory-mapped; a function of the points and the seed on one machine.

    A centroid that loses all of its points goes to the point that is farthest from its own. Ends early where nothing
    moves any more. `k` beyond the number of points is that number.
    """
    k = min(k, len(points))
    generator = torch.Generator().manual_seed(seed)
    centroids = _start(points, k, generator)
    before = None
    for _ in range(iterations):
        found = assigned(points, centroids)
        if before is not None and torch.equal(found.nearest, before):
            break
        before = found.nearest
        centroids = _means(points, found, k)
    return assigned(points, centroids)


def assigned(points: torch.Tensor, centroids: torch.Tensor) -> Clusters:
    """The nearest of the given centroids to each point."""
    nearest = torch.empty(len(points), dtype=torch.int64)
    distances = torch.empty(len(points))
    squares = centroids.square().sum(1)
    for own, block in _blocks(points, len(centroids)):
        away = torch.addmm(squares, block, centroids.T, alpha=-2)
        least, nearest[own] = away.min(1)
        distances[own] = (least + block.square().sum(1)).clamp(min=0)
    return Clusters(centroids, nearest, distances)


def _start(points: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    """k-means++ (Arthur, Vassilvitskii 2007): each further one in proportion to its squared distance from these."""
    chosen = torch.randperm(len(points), generator=generator)[: k * _SAMPLE].sort().values
    sample = points[chosen].float()
    first = int(torch.randint(len(sample), (1,), generator=generator))
    starts, away = [first], (sample - sample[first]).square().sum(1)
    for draw in torch.rand(k - 1, generator=generator, dtype=torch.float64).tolist():
        edges = away.double().cumsum(0)
        place = int(torch.searchsorted(edges, draw * float(edges[-1]), right=True).clamp(max=len(sample) - 1))
        starts.append(place)
        away = torch.minimum(away, (sample - sample[place]).square().sum(1))
    return sample[starts]


def _means(points: torch.Tensor, found: Clusters, k: int) -> torch.Tensor:
    sums, counts = torch.zeros(k, points.shape[1], dtype=torch.float64), found.nearest.bincount(minlength=k)
    for own, block in _blocks(points, k):
        sums.index_add_(0, found.nearest[own], block.double())
    centroids = (sums / counts.clamp(min=1)[:, None]).float()
    if len(empty := (counts == 0).nonzero()[:, 0]):
        centroids[empty] = points[found.distances.topk(len(empty)).indices.sort().values].float()
    return centroids


def _blocks(points: torch.Tensor, k: int) -> Iterator[tuple[slice, torch.Tensor]]:
    size = max(1, _NUMBERS // max(k, points.shape[1]))
    for at in range(0, len(points), size):
        own = slice(at, at + size)
        yield own, points[own].float()
