"""The sizes of token_mix in training, for benchmarks."""

from __future__ import annotations

import torch

from ..registry import Case


def _workload(id: str, batch: int, side: int, width: int, halve: bool, dtype: torch.dtype = torch.bfloat16) -> Case:
    """MixMIM's mask of 7 x 7 cells on a map of `side` x `side` tokens; positions where images are mixed."""

    def arguments():
        x = torch.randn(batch, side * side, width, dtype=dtype)
        cells = (torch.randperm(49) < 24).view(1, 7, 7)
        mask = cells.repeat_interleave(side // 7, 1).repeat_interleave(side // 7, 2).flatten(1)
        return (x, None if halve else torch.randn(side * side, width), mask), {"halve": halve}

    return Case(id, arguments)


WORKLOADS = (
    _workload("MixMIM stage 1 B=128", 128, 56, 128, halve=False),
    _workload("MixMIM stage 1 B=128, float32", 128, 56, 128, False, torch.float32),  # a norm's output, as recipes train
    _workload("MixMIM prediction B=256", 256, 7, 3072, halve=True),
)
