"""The sizes of sinkhorn in training, for benchmarks."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from ..registry import Case


def _workload(id: str, samples: int, prototypes: int) -> Case:
    def arguments():
        scores = normalize(torch.randn(samples, 128), dim=1) @ normalize(torch.randn(prototypes, 128), dim=1).T
        return (scores,), {"epsilon": 0.05, "iterations": 3}

    return Case(id, arguments)


WORKLOADS = (
    _workload("SwAV 4160 x 3000", 4160, 3000),
    _workload("DINOv2 128 x 65536", 128, 65536),
    _workload("DINOv2 4096 x 65536", 4096, 65536),
)
