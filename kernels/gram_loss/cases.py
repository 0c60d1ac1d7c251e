"""The arguments every implementation of gram_loss is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch

from ..registry import Case


def _case(
    id: str,
    images: int,
    patches: int,
    width: int,
    teacher: int | None = None,
    *,
    negatives: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """The teacher is the student and noise, as it is in training, unless it has another width."""

    def arguments():
        generator = torch.Generator().manual_seed(70)
        student = torch.randn(images, patches, width, generator=generator)
        noise = torch.randn(images, patches, teacher or width, generator=generator)
        other = student + 0.5 * noise if teacher is None else noise
        return (student.to(dtype), other.to(dtype)), {"negatives": negatives}

    return Case(id, arguments)


CASES = (
    _case("fp32", 2, 20, 40),
    _case("bf16", 2, 20, 40, dtype=torch.bfloat16),
    _case("fp16", 1, 16, 32, dtype=torch.float16),
    _case("without-negatives", 2, 18, 24, negatives=False),
    _case("several-tiles", 2, 70, 130),
    _case("several-tiles-without-negatives", 1, 45, 20, negatives=False),
    _case("a-wider-teacher", 2, 12, 16, 72),
    _case("two-patches", 3, 2, 8),
)
