"""A low-rank matrix that learns beside a given one (LoRA, Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

_ORIGINAL = re.compile(r"(.*)\.parametrizations\.weight\.original")


class LowRank(nn.Module):
    """W -> W + (alpha / rank) B A, as a parametrization. B starts at 0, so the first step sees W."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.register_buffer("gain", torch.tensor(alpha / rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return _sum(weight, self.gain, self.up, self.down)


def _sum(weight: Tensor, gain: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return weight + gain.to(weight.dtype) * (up @ down)


def merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state with the products added to the weights, under the names of a model without them."""
    found = {}
    for name, value in state.items():
        match = _ORIGINAL.fullmatch(name)
        if match and f"{match[1]}.parametrizations.weight.0.up" in state:
            gain, up, down = (state[f"{match[1]}.parametrizations.weight.0.{part}"] for part in ("gain", "up", "down"))
            found[f"{match[1]}.weight"] = _sum(value, gain, up, down)
        elif ".parametrizations.weight.0." not in name:
            found[name] = value
    return found
