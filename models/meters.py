"""Meters that need no labels: whether an encoder works, by how its features are spread (docs/meters.md).

All are computed on the CPU in float64, of at most 256 rows, and only where a run logs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .algorithm import StepOutput

_ROWS = 256
_FROM, _TO = 3, 100  # the eigenvalues that the slope is fitted to, counted from 1
_WITHIN = 1e-4  # of LiDAR: added to the variance within images, as a share of the whole variance


def meters(output: StepOutput) -> dict[str, float]:
    """What can be said of a step's output: the figures of `of_features`, `lidar` and `patch_spread`.

    One is left out where the step has nothing to compute it of, or where a value is not finite.
    """
    found: dict[str, float] = {}
    if output.embedding is not None and len(output.embedding) > 1:
        found |= of_features(output.embedding)
    if output.views is not None and min(output.views.shape[:2]) > 1:
        found["lidar"] = lidar(output.views)
    if output.patches is not None and output.patches.shape[1] > 1:
        found["patch_spread"] = patch_spread(output.patches)
    return {name: value for name, value in found.items() if value == value}


def of_features(embedding: Tensor) -> dict[str, float]:
    """How different the features (B, D) of different images are; empty where one is not finite.

    ``spread``: standard deviation of the unit-length rows, times sqrt(D): 0 when all are equal, 1 when their
    directions are random (SimSiam, arXiv 2011.10566, section 4.1).
    ``rank``: exp of the entropy of the singular values' shares, the number of directions in use (RankMe, arXiv
    2210.02885, of the centred unit-length rows).
    ``alpha``: how fast the variances along principal axes fall, as the power of their number: the slope of log variance
    over log number for axes 3 to 100 (alpha-ReQ, arXiv 2202.05808); NaN for fewer than four of them.
    """
    rows = F.normalize(_host(embedding[:_ROWS]), dim=1)
    if not rows.isfinite().all():
        return {}
    centred = rows - rows.mean(0)
    spread = centred.square().mean(0).sqrt().mean() * rows.shape[1] ** 0.5
    variances = torch.linalg.eigvalsh(centred @ centred.T).clamp(min=0).flip(0)[: rows.shape[1]]
    singular = variances.sqrt()
    share = singular / singular.sum().clamp(min=1e-300)
    rank = torch.special.entr(share).sum().exp()
    return {"spread": spread.item(), "rank": rank.item(), "alpha": _slope(variances)}


def _slope(variances: Tensor) -> float:
    """-d log variance / d log number, by least squares. variances: from the largest down."""
    kept = variances[: int((variances > 1e-12 * variances[:1]).sum())][_FROM - 1 : _TO]
    if len(kept) < 4:
        return float("nan")
    x = torch.arange(_FROM, _FROM + len(kept), dtype=kept.dtype).log()
    x, y = x - x.mean(), kept.log() - kept.log().mean()
    return -(x @ y / (x @ x)).item()


def lidar(views: Tensor) -> float:
    """LiDAR (arXiv 2312.04000) of views (V, B, D): exp of the entropy of the eigenvalues' shares of Sw^-1/2 Sb Sw^-1/2.

    Sb is the covariance of the images' means, Sw that of their views around them plus 1e-4 of the total variance on its
    diagonal: how many directions tell images apart in spite of augmentation. Only matrices of B and V B rows are made,
    by Woodbury's identity. NaN where a value is not finite or nothing varies.
    """
    x = _host(views[:, : max(2, _ROWS // len(views))])
    means = x.mean(0)
    within, between = (x - means).flatten(0, 1) / (x.shape[0] * x.shape[1]) ** 0.5, means - means.mean(0)
    between = between / len(between) ** 0.5
    total = (within.square().sum() + between.square().sum()) / x.shape[2]
    if not total.isfinite() or total <= 0:
        return float("nan")
    delta = _WITHIN * total
    cross = within @ between.T
    inner = within @ within.T + delta * torch.eye(len(within), dtype=x.dtype)
    product = (between @ between.T - cross.T @ torch.linalg.solve(inner, cross)) / delta
    values = torch.linalg.eigvalsh(product).clamp(min=0)
    return torch.special.entr(values / values.sum().clamp(min=1e-300)).sum().exp().item()


def patch_spread(patches: Tensor) -> float:
    """As ``spread``, of the patches (B, N, D) within each image, the mean over images; NaN where one is not finite."""
    rows = F.normalize(_host(patches[:16]), dim=2)
    return ((rows - rows.mean(1, keepdim=True)).square().mean(1).sqrt().mean() * rows.shape[2] ** 0.5).item()


def _host(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)
