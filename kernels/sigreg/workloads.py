"""The sizes of sigreg in training, for benchmarks."""

from __future__ import annotations

import torch

from ..registry import Case


def _workload(id: str, views: int, samples: int, slices: int) -> Case:
    def arguments():
        return (torch.randn(views, samples, slices),), {"points": 17, "t_max": 3.0}

    return Case(id, arguments)


WORKLOADS = (
    _workload("LeJEPA 4 x 256 x 256", 4, 256, 256),
    _workload("LeJEPA 8 x 512 x 1024", 8, 512, 1024),
)
