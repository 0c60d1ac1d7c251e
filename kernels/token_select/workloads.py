"""The sizes of token_select in training, for benchmarks."""

from __future__ import annotations

import torch

from ..registry import Case


def _workload(id: str, batch: int, width: int) -> Case:
    """A quarter of 196 places is visible; one class token."""

    def arguments():
        tokens = torch.randn(batch, 1 + 49, width, dtype=torch.bfloat16)
        restore = torch.rand(batch, 196).argsort(1)
        return (tokens, torch.randn(width), torch.randn(196, width), restore), {"prefix": 1}

    return Case(id, arguments)


WORKLOADS = (_workload("MAE B=512", 512, 512), _workload("MAE B=128", 128, 512))
