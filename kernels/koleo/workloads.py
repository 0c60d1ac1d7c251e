"""The sizes of koleo in training, for benchmarks."""

from __future__ import annotations

import torch

from ..registry import Case


def _workload(id: str, rows: int, width: int, group: int | None) -> Case:
    return Case(id, lambda: ((torch.randn(rows, width),), {"group": group or rows}))


WORKLOADS = (
    _workload("DINOv2 ViT-L, B=64", 64, 1024, None),
    _workload("DINOv3 7B, 4096 rows in groups of 16", 4096, 4096, 16),
    _workload("one group of 16384", 16384, 1024, None),
)
