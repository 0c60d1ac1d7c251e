"""The sizes of hog in training, for benchmarks."""

from __future__ import annotations

import torch

from ..registry import Case


def _workload(id: str, batch: int) -> Case:
    def arguments():
        return (torch.randn(batch, 3, 224, 224).to(memory_format=torch.channels_last),), {}

    return Case(id, arguments)


WORKLOADS = (_workload("MaskFeat B=256", 256), _workload("MaskFeat B=64", 64))
TARGETS = {"MaskFeat B=256": (75,)}  # microseconds on an H200
