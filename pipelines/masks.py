"""MaskSpec + (seed, epoch, ids) -> Mask, drawn on the device the batch lives on."""

from __future__ import annotations

import torch

from .rng import random_words
from .spec import Mask, RandomMask


def draw_mask(spec: RandomMask, seed: int, epoch: int, ids: torch.Tensor) -> Mask:
    """Masks for sample ids (B,) int64, on the device of `ids`; the same on every device.

    MAE's rule (arXiv 2111.06377, section 3): rank the patches by random noise and keep the first. Kept and hidden
    patches are each listed in raster order, which changes nothing for the encoder and makes its gathers local.
    """
    kept = spec.patches - spec.hidden
    noise = random_words(seed, "mask", epoch, ids, spec.patches)
    shuffled = noise.argsort(dim=1, stable=True)
    keep = shuffled[:, :kept].sort(dim=1).values
    hidden_ids = shuffled[:, kept:].sort(dim=1).values
    restore = torch.cat([keep, hidden_ids], dim=1).argsort(dim=1)
    hidden = torch.ones(ids.shape[0], spec.patches, dtype=torch.bool, device=ids.device).scatter_(1, keep, False)
    return Mask(hidden=hidden, keep=keep, restore=restore)
