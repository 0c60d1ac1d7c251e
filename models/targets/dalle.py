"""The image encoder of DALL-E's discrete VAE (Ramesh et al., arXiv 2102.12092): the visual words of BEiT and CAE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .frozen import Frozen, Weights

WORDS = 8192
STRIDE = 8  # pixels on the side of a word
_GROUPS = 4  # of two blocks; the first three halve the resolution


class DalleEncoder(Frozen):
    """`words`: images (B, 3, 8 h, 8 w) -> (B, h * w) int64 in 0..8191, row by row. 53.8 M parameters.

    Values are to be 0.8 v + 0.1 of pixels v in [0, 1]: a view with mean -0.125 and deviation 1.25.
    """

    source = "save the state_dict of encoder.pkl (github.com/openai/DALL-E), or take OpenMMLab's dalle_encoder.pth"

    def __init__(self, weights: Weights, width: int = 256) -> None:
        super().__init__()
        self.input = nn.Conv2d(3, width, 7, padding=3)
        blocks, channels = [], width
        for group in range(_GROUPS):
            for _ in range(2):
                blocks.append(_Block(channels, width << group, gain=1 / (2 * _GROUPS) ** 2))
                channels = width << group
        self.blocks = nn.ModuleList(blocks)
        self.output = nn.Conv2d(channels, WORDS, 1)
        self.load(weights, _names)

    @torch.no_grad()
    def words(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, enabled=False):
            x = self.input(images.float())
            for number, block in enumerate(self.blocks):
                if number and number % 2 == 0:
                    x = F.max_pool2d(x, 2)
                x = block(x)
            return self.output(F.relu(x)).argmax(1).flatten(1)


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, gain: float) -> None:
        super().__init__()
        hidden, self.gain = width // 4, gain
        self.id = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()
        shapes = ((channels, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, width, 1))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, size, padding=size // 2) for i, o, size in shapes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = x
        for conv in self.convs:
            residual = conv(F.relu(residual))
        return self.id(x) + self.gain * residual


def _names(state: dict) -> dict:
    """OpenAI's names, which OpenMMLab kept: blocks.group_1.block_1.res_path.conv_1.w and the like."""
    renamed = {}
    for name, tensor in state.items():
        parts = name.removeprefix("encoder.").split(".")
        kind = {"w": "weight", "b": "bias"}.get(parts[-1], parts[-1])
        if parts[0] != "blocks" or parts[1] not in ("input", "output", *(f"group_{g + 1}" for g in range(_GROUPS))):
            renamed[name] = tensor  # reported as unknown
        elif parts[1] in ("input", "output"):
            renamed[f"{parts[1]}.{kind}"] = tensor
        else:
            block = 2 * (int(parts[1].removeprefix("group_")) - 1) + int(parts[2].removeprefix("block_")) - 1
            inner = "id" if parts[3] == "id_path" else f"convs.{int(parts[4].removeprefix('conv_')) - 1}"
            renamed[f"blocks.{block}.{inner}.{kind}"] = tensor
    return renamed
