"""The sizes of patch_loss in training, for benchmarks."""

from __future__ import annotations

import torch

from ..registry import Case


def _workload(id: str, batch: int, size: int, patch_size: int, hidden: float, absolute: bool = False) -> Case:
    def arguments():
        patches, values = (size // patch_size) ** 2, patch_size * patch_size * 3
        images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
        # A decoder gives one more token, the class token, which is cut off.
        prediction = torch.randn(batch, patches + 1, values).to(torch.bfloat16)[:, 1:]
        chance = torch.rand(batch, patches)
        mask = chance <= chance.kthvalue(int(hidden * patches), dim=1, keepdim=True).values
        options = {"patch_size": patch_size, "normalize": not absolute, "absolute": absolute, "eps": 1e-6}
        return (images, prediction, mask), options

    return Case(id, arguments)


WORKLOADS = (
    _workload("MAE B=512", 512, 224, 16, 0.75),
    _workload("MAE B=128", 128, 224, 16, 0.75),
    _workload("SimMIM B=128", 128, 192, 32, 0.6, absolute=True),
)
