"""The arguments every implementation of sigreg is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch

from ..registry import Case


def _case(
    id: str,
    views: int,
    samples: int,
    slices: int,
    *,
    points: int = 17,
    t_max: float = 3.0,
    scale: float = 1.3,
    shift: float = 0.2,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Normal samples of another mean and deviation than 0 and 1."""

    def arguments():
        generator = torch.Generator().manual_seed(90)
        y = shift + scale * torch.randn(views, samples, slices, generator=generator)
        return (y.to(dtype),), {"points": points, "t_max": t_max}

    return Case(id, arguments)


CASES = (
    _case("two-views", 2, 24, 32),
    _case("two-views-bf16", 2, 24, 32, dtype=torch.bfloat16),
    _case("odd-fp16", 1, 13, 5, dtype=torch.float16),
    _case("many-samples", 1, 150, 3),
    _case("one-sample", 3, 1, 17),
    _case("few-points", 2, 9, 20, points=6, t_max=5.0),
    _case("many-points", 1, 10, 4, points=40),
    _case("far-away", 2, 20, 8, scale=30.0, shift=50.0),
    _case("collapsed", 1, 16, 8, scale=0.0, shift=0.0),
)
