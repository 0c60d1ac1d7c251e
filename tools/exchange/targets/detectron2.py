"""detectron2's pickles of numpy arrays, which are ResNets."""

from __future__ import annotations

import torch


def names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's names of a ResNet -> detectron2's."""
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[-1] == "num_batches_tracked":
            continue
        stage = parts.pop(0) if parts[0].startswith("layer") else None
        text = ".".join(parts).replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        for number in "123":
            text = text.replace(f"bn{number}.", f"conv{number}.norm.")
        renamed[f"res{int(stage[-1]) + 1}.{text}" if stage else f"stem.{text}"] = tensor
    return renamed
