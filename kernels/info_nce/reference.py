"""InfoNCE in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    rows: Tensor,
    columns: Tensor,
    positive: Tensor | None,
    exclude: Tensor | None,
    keys: Tensor | None,
    *,
    temperature: float,
) -> Tensor:
    """Mean cross-entropy of rows (B, D) against columns (N, D); exactly one of `positive` (B,) and `keys` (B, D).

    `keys` add one column of its own to each row, the right one; they get no gradient.
    """
    similarity, right = similarities(rows, columns, positive, exclude, keys, temperature=temperature)
    return F.cross_entropy(similarity, right, reduction="sum") / max(len(rows), 1)


def similarities(
    rows: Tensor,
    columns: Tensor,
    positive: Tensor | None,
    exclude: Tensor | None,
    keys: Tensor | None,
    *,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Logits (B, N), or (B, 1 + N) with `keys`, and each row's right column (B,). Arguments as for `info_nce`."""
    precision = torch.promote_types(rows.dtype, torch.float32)
    rows, columns = rows.to(precision), columns.to(precision)
    similarity = rows @ columns.T / temperature
    if exclude is not None:
        similarity = similarity.scatter(1, exclude[:, None], float("-inf"))
    if keys is not None:
        own = (rows * keys.detach().to(precision)).sum(1, keepdim=True) / temperature
        similarity = torch.cat([own, similarity], dim=1)
        positive = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    return similarity, positive
