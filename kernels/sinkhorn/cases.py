"""The arguments every implementation of sinkhorn is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..registry import Case


def _case(
    id: str,
    samples: int,
    prototypes: int,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
) -> Case:
    """Cosines of random vectors in 16 dimensions, times `scale`."""

    def arguments():
        generator = torch.Generator().manual_seed(50)
        samples_, prototypes_ = (
            F.normalize(torch.randn(count, 16, generator=generator), dim=1) for count in (samples, prototypes)
        )
        return ((scale * samples_ @ prototypes_.T).to(dtype),), {"epsilon": epsilon, "iterations": iterations}

    return Case(id, arguments)


CASES = (
    _case("cosines", 18, 150),
    _case("cosines-bf16", 6, 150, dtype=torch.bfloat16),
    _case("cosines-fp16", 10, 70, dtype=torch.float16),
    _case("more-samples-than-prototypes", 50, 7),
    _case("one-iteration", 9, 40, iterations=1),
    _case("one-sample", 1, 30),
    _case("warm", 20, 33, epsilon=0.5, iterations=5),
    _case("many-prototypes", 2, 1100),
    # In float32 exp of these alone is infinite; with the largest subtracted, some prototypes end with no weight.
    _case("large-scores", 12, 20, scale=8.0),
)
