"""The sizes of cross_correlation in training, for benchmarks."""

from __future__ import annotations

import torch

from ..registry import Case


def _workload(id: str, samples: int, width: int) -> Case:
    def arguments():
        clean = torch.randn(samples, width)
        views = (clean + 0.5 * torch.randn(samples, width) for _ in range(2))
        a, b = ((view - view.mean(0)) / view.std(0, correction=0) for view in views)
        return (a, b), {"weight": 0.0051}

    return Case(id, arguments)


WORKLOADS = (_workload("Barlow Twins 2048 x 8192", 2048, 8192), _workload("Barlow Twins 256 x 8192", 256, 8192))
