"""The arguments every implementation of cross_correlation is held to."""

from __future__ import annotations

import torch

from ..registry import Case


def _case(
    id: str, samples: int, width: int, *, weight: float = 0.0051, dtype: torch.dtype = torch.float32, noise: float = 0.5
) -> Case:
    """Two noisy versions of the same embedding, standardised."""

    def arguments():
        generator = torch.Generator().manual_seed(80)
        clean = torch.randn(samples, width, generator=generator)
        views = (clean + noise * torch.randn(samples, width, generator=generator) for _ in range(2))
        a, b = ((view - view.mean(0)) / view.std(0, correction=0) for view in views)
        return (a.to(dtype), b.to(dtype)), {"weight": weight}

    return Case(id, arguments)


CASES = (
    _case("few-samples", 24, 200),
    _case("few-samples-bf16", 24, 200, dtype=torch.bfloat16),
    _case("few-samples-fp16", 12, 64, dtype=torch.float16),
    _case("heavy-weight", 16, 40, weight=1.0),
    _case("no-weight", 9, 33, weight=0.0),
    _case("one-view-twice", 10, 50, noise=0.0),
    _case("many-samples", 90, 30),
    _case("square", 32, 32),
)
