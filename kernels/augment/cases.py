"""The arguments every implementation of augment is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import itertools

import torch

from ..registry import Case
from .table import parameter_table


def draw(count: int, size: int, *, blur: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0), chance: float = 0.3):
    """(pixels, table): random bytes and SimCLR's ranges; the orders are the 24 permutations in turn."""
    orders = list(itertools.islice(itertools.cycle(itertools.permutations(range(4))), count))
    factors = torch.rand(count, 4) * torch.tensor([1.6, 1.6, 1.6, 0.4]) + torch.tensor([0.2, 0.2, 0.2, -0.2])
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8), parameter_table(
        jitter=factors,
        order=torch.tensor(orders).view(count, 4),
        gray=torch.rand(count) < chance,
        sigma=torch.where(torch.rand(count) < blur, sigma[0] + torch.rand(count) * (sigma[1] - sigma[0]), 0.0),
        solarize=torch.rand(count) < chance,
        flip=torch.rand(count) < 0.5,
    )


def _case(id: str, count: int, size: int, *, jittered: bool = True, **options) -> Case:
    def arguments():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(30)
            pixels, table = draw(count, size)
        if not jittered:
            table[:, 4:8] = -1
        defaults = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "sigma_max": 2.0, "patch_size": 0}
        return (pixels, table), {**defaults, **options}

    return Case(id, arguments)


CASES = (
    _case("s16-bf16", 6, 16, dtype=torch.bfloat16),
    _case("s10-all-orders", 24, 10, sigma_max=0.0),
    _case("s12", 6, 12),
    _case("s13-odd-fp16", 4, 13, dtype=torch.float16),
    _case("s9-one-view", 1, 9),
    _case("s8-no-jitter", 3, 8, jittered=False, sigma_max=0.7),
    _case("s12-gray-first-mean", 6, 12, gray_first=True, gray_weights="mean"),
    _case("s12-patches", 3, 12, patch_size=4),
    _case("s12-patches-bf16", 3, 12, patch_size=3, dtype=torch.bfloat16),
    _case("s40-tiles", 2, 40, patch_size=8, dtype=torch.float16),
    _case("s20-fours-fp16", 3, 20, dtype=torch.float16),
    _case("s1", 3, 1, sigma_max=0.0),
)
