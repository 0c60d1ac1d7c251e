"""Re-assembly of tokens in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor


def result_dtype(tokens: Tensor, mask_token: Tensor, positions: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(tokens.dtype, mask_token.dtype), positions.dtype)


def token_select(tokens: Tensor, mask_token: Tensor, positions: Tensor, restore: Tensor, *, prefix: int) -> Tensor:
    """Arguments and result of `headrace.kernels.token_select.token_select`."""
    tokens = tokens.to(result_dtype(tokens, mask_token, positions))
    front, visible = tokens[:, :prefix], tokens[:, prefix:]
    hidden = mask_token.to(tokens.dtype).expand(len(tokens), restore.shape[1] - visible.shape[1], -1)
    index = restore[:, :, None].expand(-1, -1, tokens.shape[2])
    return torch.cat([front, torch.cat([visible, hidden], dim=1).gather(1, index) + positions], dim=1)
