"""The arguments every implementation of info_nce is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..registry import Case


def _queue(
    id: str, rows: int, queue: int, width: int, *, temperature: float = 0.2, dtype: torch.dtype = torch.float32
) -> Case:
    """Keys resemble their rows, negatives do not."""

    def arguments():
        generator = torch.Generator().manual_seed(30)
        q = F.normalize(torch.randn(rows, width, generator=generator), dim=1)
        keys = F.normalize(q + 0.5 * torch.randn(rows, width, generator=generator) / width**0.5, dim=1)
        negatives = F.normalize(torch.randn(queue, width, generator=generator), dim=1)
        return (q.to(dtype), negatives.to(dtype), None, None, keys.to(dtype)), {"temperature": temperature}

    return Case(id, arguments)


def _batch(
    id: str,
    rows: int,
    columns: int,
    width: int,
    *,
    first: int = 0,
    exclude: bool = True,
    temperature: float = 0.1,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Row i is column `first` + i, and its positive the column half the rows further on."""

    def arguments():
        generator = torch.Generator().manual_seed(31)
        everything = F.normalize(torch.randn(columns, width, generator=generator), dim=1)
        own = torch.arange(rows)
        positive = first + (own + rows // 2) % rows
        leave_out = first + own if exclude else None
        q = everything[first : first + rows].clone()
        return (q.to(dtype), everything.to(dtype), positive, leave_out, None), {"temperature": temperature}

    return Case(id, arguments)


_HALF, _BF16 = torch.float16, torch.bfloat16

CASES = (
    _queue("queue-d128-bf16", 6, 70, 128, dtype=_BF16),
    _batch("batch-d128-bf16", 8, 24, 128, dtype=_BF16),
    _queue("queue-d128", 6, 70, 128),
    _queue("queue-d32-fp16", 40, 150, 32, dtype=_HALF),
    _queue("queue-odd-width", 5, 33, 24, temperature=0.07),
    _queue("queue-one-negative", 3, 1, 16),
    _queue("queue-cold", 7, 90, 16, temperature=0.02),
    _batch("batch-d32", 14, 14, 32),
    _batch("batch-of-three-ranks", 36, 108, 16, first=36),
    _batch("batch-fp16", 12, 24, 32, first=12, dtype=_HALF),
    _batch("batch-keeps-all", 10, 20, 24, exclude=False, temperature=1.0),
    _batch("batch-one-pair", 2, 2, 16),
)
