"""The sizes of augment in training, for benchmarks."""

from __future__ import annotations

import torch

from ..registry import Case
from .cases import draw


def _workload(id: str, count: int, size: int, patch_size: int = 0) -> Case:
    """SimCLR's ranges, half of the views blurred."""

    def arguments():
        statistics = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
        return draw(count, size), {**statistics, "sigma_max": 2.0, "dtype": torch.bfloat16, "patch_size": patch_size}

    return Case(id, arguments)


WORKLOADS = (
    _workload("512 views of 224", 512, 224),
    _workload("1536 views of 96", 1536, 96),
    _workload("512 views of 224 in patches", 512, 224, patch_size=16),
)
TARGETS = {  # microseconds on an H200: 0.8 a view of 224
    "512 views of 224": (410,),
    "1536 views of 96": (226,),
    "512 views of 224 in patches": (410,),
}
