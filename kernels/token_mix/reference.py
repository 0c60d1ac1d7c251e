"""Token mixing in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def result_dtype(x: Tensor, positions: Tensor | None) -> torch.dtype:
    return x.dtype if positions is None else torch.promote_types(x.dtype, positions.dtype)


def token_mix(x: Tensor, positions: Tensor | None, mask: Tensor, *, halve: bool) -> Tensor:
    """x (B, N, D), mask (1, N): the partner's tokens where masked, of all images or of the first half of them."""
    mixed = torch.where(mask[..., None], x.flip(0), x)
    mixed = mixed[: len(x) // 2] if halve else mixed
    return mixed if positions is None else mixed + positions
