"""k-means, PCA whitening and cluster surgery on the device, over the rows that the ranks share among themselves.

Every rank ends with the same centroids; sums are exact up to rounding for any number of ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from ..errors import UserError
from ..kernels.ranks import world_size
from .distributed import rank


def _total(x: torch.Tensor) -> torch.Tensor:
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows divided by their length plus 1e-10, which leaves zero rows zero."""
    return x / (x.norm(dim=1, keepdim=True) + 1e-10)


def pca_whiten(x: torch.Tensor, components: int) -> torch.Tensor:
    """This rank's rows (n, D) -> (n, components): the leading principal components of all rows, each of variance 1.

    Components without variance come out as zeros. Raises `UserError` when there are fewer than `components` dimensions.
    """
    if components > x.shape[1]:
        raise UserError(f"algorithm.components: {components} principal components of {x.shape[1]} features")
    count = _total(x.new_tensor(len(x)))
    x = x - _total(x.sum(0)) / count
    covariance = _total(x.T @ x).double() / count
    variance, directions = torch.linalg.eigh(covariance)
    variance, directions = variance[-components:].flip(0), directions[:, -components:].flip(1)
    scale = torch.where(variance > 1e-7 * variance[0], variance.clamp(min=1e-30).rsqrt(), 0.0)
    return x @ (directions * scale).to(x.dtype)


def nearest(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """(n,) int64: index of the nearest centroid (k, D) of each row (n, D)."""
    chunk = max(1, 2**26 // len(centroids))  # 256 MB of distances at a time
    half_norms = centroids.square().sum(1) / 2
    return torch.cat([(part @ centroids.T - half_norms).argmax(1) for part in x.split(chunk)])


def cluster_sums(x: torch.Tensor, labels: torch.Tensor, clusters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums (k, D) and counts (k,) float of the rows of each cluster, over all ranks' rows."""
    sums = x.new_zeros(clusters, x.shape[1]).index_add_(0, labels, x)
    counts = x.new_zeros(clusters).index_add_(0, labels, x.new_ones(len(x)))
    return _total(sums), _total(counts)


def kmeans(x: torch.Tensor, clusters: int, seed: int, iterations: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Lloyd's algorithm from random rows: labels (n,) int64 of this rank's rows x (n, D), and centroids (clusters, D).

    `x` is rows rank, rank + W, rank + 2 W, ... of the whole, so that the start is the same for any number of ranks. A
    cluster that loses all its members is put beside one of the largest, which it then shares with it.
    """
    total = int(_total(torch.tensor([len(x)], device=x.device)))
    if clusters > total:
        raise UserError(f"algorithm.clusters: {clusters} clusters for {total} images")
    start = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:clusters].to(x.device)
    own = start % world_size() == rank()
    centroids = x.new_zeros(clusters, x.shape[1])
    centroids[own] = x[start[own] // world_size()]
    centroids = _total(centroids)
    for _ in range(iterations):
        sums, counts = cluster_sums(x, nearest(x, centroids), clusters)
        centroids = _split_for_empty(sums / counts.clamp(min=1)[:, None], counts)
        if world_size() > 1:
            dist.broadcast(centroids, src=0)  # sums of floats may differ in the last bit from rank to rank
    return nearest(x, centroids), centroids


def _split_for_empty(centroids: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The e-th empty cluster and the e-th largest one move to either side of the latter's centroid, as in faiss."""
    empty = (counts == 0).nonzero().flatten()
    large = counts.topk(len(empty)).indices
    sign = 1 - 2 * (torch.arange(centroids.shape[1], device=centroids.device) % 2)
    centroids[empty] = centroids[large] * (1 + sign / 1024)
    centroids[large] *= 1 - sign / 1024
    return centroids


def cluster_sizes(labels: torch.Tensor, clusters: int) -> torch.Tensor:
    """(clusters,) float32 counts, without waiting for the device."""
    return torch.zeros(clusters, device=labels.device).index_add_(0, labels, torch.ones_like(labels, dtype=torch.float))


def members(labels: torch.Tensor, cluster: torch.Tensor, capacity: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `capacity` samples of a cluster (a 0-dimensional index): ids (capacity,) and which of them are real.

    The shape does not depend on the cluster's size, so nothing waits for the device.
    """
    inside = labels == cluster
    place = torch.where(inside, inside.cumsum(0) - 1, capacity).clamp(max=capacity)
    ids = labels.new_zeros(capacity + 1).scatter_(0, place, torch.arange(len(labels), device=labels.device))
    return ids[:-1], torch.arange(capacity, device=labels.device) < inside.sum()


def bisect(x: torch.Tensor, real: torch.Tensor, iterations: int = 20) -> torch.Tensor:
    """(n,) bool: which of the `real` rows (n, D) form the second of two clusters, by 2-means from two far-apart rows.

    Every other row, should 2-means leave a side empty. Never a row that is not real.
    """
    weight = real.to(x.dtype)
    mean = (x * weight[:, None]).sum(0) / weight.sum().clamp(min=1)
    first = x.index_select(0, ((x - mean).square().sum(1) * weight).argmax().view(1))
    second = x.index_select(0, ((x - first).square().sum(1) * weight).argmax().view(1))
    for _ in range(iterations):
        side = ((x - second).square().sum(1) < (x - first).square().sum(1)) & real
        a, b = weight * ~side, weight * side
        first = ((a @ x) / a.sum().clamp(min=1))[None]
        second = ((b @ x) / b.sum().clamp(min=1))[None]
    degenerate = (side.sum() == 0) | (side.sum() == real.sum())
    return torch.where(degenerate, real & (torch.arange(len(x), device=x.device) % 2 == 1), side)
