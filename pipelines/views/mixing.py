"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a finished batch, for supervised fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..rng import stream_key


@dataclass(frozen=True)
class Mixing:
    """Every batch is mixed with one of the two, either with equal chances; a strength of 0 switches one off."""

    mixup: float = 0.8  # share ~ Beta(mixup, mixup)
    cutmix: float = 1.0
    smoothing: float = 0.1  # share of a label's weight that is spread over all classes

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0 or not 0 <= self.smoothing < 1:
            raise ValueError("mixup, cutmix, smoothing: strengths are not negative, smoothing lies in [0, 1)")


@dataclass(frozen=True)
class MixParams:
    """What was drawn for one batch."""

    partner: torch.Tensor  # (B,) int64: which sample each one is mixed with
    share: float  # of the sample itself; of the area with a box
    box: tuple[int, int, int, int] | None  # left, top, width, height of what comes from the partner; None: a blend


def draw_mix(mixing: Mixing, seed: int, step: int, rank: int, batch: int, size: int) -> MixParams | None:
    """What becomes of a rank's batch of `batch` images of `size` px at a global step; None if both are switched off."""
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(mixing, kind) > 0]
    if not kinds:
        return None
    bits = np.random.Philox(key=stream_key(seed, f"mix/{rank}", step) % 2**64)  # counter-based: nothing to save
    rng = np.random.Generator(bits)
    kind = kinds[rng.integers(len(kinds))]
    share = float(rng.beta(getattr(mixing, kind), getattr(mixing, kind)))
    partner = torch.from_numpy(rng.permutation(batch))
    if kind == "mixup":
        return MixParams(partner, share, None)
    half = size * math.sqrt(1 - share) / 2
    edges = []
    for centre in rng.uniform(0, size, 2).tolist():
        edges.append((max(0, round(centre - half)), min(size, round(centre + half))))
    (left, right), (top, bottom) = edges
    box = (left, top, right - left, bottom - top)
    return MixParams(partner, 1 - box[2] * box[3] / size**2, box)


def mix(
    images: torch.Tensor, labels: torch.Tensor, classes: int, mixing: Mixing, params: MixParams | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """images (B, 3, S, S) and labels (B,) int64 -> mixed images, and soft labels (B, classes) float32 that sum to 1.

    A sample without a label, -1, is mixed with none; its soft labels say nothing, and are not to be learned from.
    """
    soft = F.one_hot(labels.clamp(min=0), classes).float() * (1 - mixing.smoothing) + mixing.smoothing / classes
    if params is None:
        return images, soft
    partner = params.partner.to(images.device, non_blocking=True)
    alone = torch.arange(len(labels), device=images.device)
    partner = torch.where((labels >= 0) & (labels[partner] >= 0), partner, alone)
    if params.box is None:
        images = torch.lerp(images[partner], images, params.share)
    else:
        left, top, width, height = params.box
        inside = (..., slice(top, top + height), slice(left, left + width))
        mixed = images.clone()
        mixed[inside] = images[partner][inside]
        images = mixed
    return images, torch.lerp(soft[partner], soft, params.share)
