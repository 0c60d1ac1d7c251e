"""The sizes of gram_loss in training, for benchmarks."""

from __future__ import annotations

import torch

from ..registry import Case


def _workload(id: str, images: int, patches: int, width: int) -> Case:
    def arguments():
        return (torch.randn(images, patches, width), torch.randn(images, patches, width)), {"negatives": True}

    return Case(id, arguments)


WORKLOADS = (
    _workload("DINOv3 7B, 2 x 16 crops of 256 px", 32, 256, 4096),
    _workload("DINOv3 7B, 2 x 8 crops of 768 px", 16, 2304, 4096),
)
