"""The arguments every implementation of prototype_ce is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch

from ..registry import Case


def _case(
    id: str,
    crops: int,
    teachers: int,
    batch: int,
    prototypes: int,
    *,
    dtype: torch.dtype = torch.float32,
    teacher_dtype: torch.dtype | None = None,
    center: bool = True,
    distribution: bool = False,
    scale: float = 0.3,
    pairs: str = "crossed",
    weighted: bool = False,
) -> Case:
    """Logits are cosines as a rule: `scale` is their deviation. A distribution need not sum to one exactly."""

    def arguments():
        generator = torch.Generator().manual_seed(40)
        student = scale * torch.randn(crops, batch, prototypes, generator=generator)
        teacher = scale * torch.randn(teachers, batch, prototypes, generator=generator)
        middle = 0.1 * torch.randn(prototypes, generator=generator) if center and not distribution else None
        if distribution:
            teacher = (teacher / 0.05).softmax(-1) * 1.01
        options = {"student_temperature": 0.1, "teacher_temperature": None if distribution else 0.04, "pairs": pairs}
        weights = torch.rand(batch, generator=generator) / batch if weighted else None
        return (student.to(dtype), teacher.to(teacher_dtype or dtype), middle, weights), options

    return Case(id, arguments)


_HALF, _BF16 = torch.float16, torch.bfloat16

CASES = (
    _case("dino-bf16", 10, 2, 2, 300, dtype=_BF16),
    _case("dino", 10, 2, 2, 300),
    _case("dino-fp16", 4, 2, 3, 700, dtype=_HALF),
    _case("dino-mixed", 4, 2, 2, 65, dtype=_HALF, teacher_dtype=torch.float32),
    _case("dino-no-center", 2, 2, 1, 33, center=False),
    _case("dino-many-prototypes", 3, 2, 1, 4208),
    _case("dino-two-stretches", 3, 2, 8, 1500),
    _case("swav", 8, 2, 2, 40, distribution=True),
    _case("one-teacher", 3, 1, 4, 17),
    _case("large-logits", 3, 2, 2, 50, scale=30.0),
    _case("patches", 1, 1, 7, 70, pairs="same", weighted=True),
    _case("patches-assigned", 2, 2, 5, 33, pairs="same", weighted=True, distribution=True),
    _case("patches-fp16", 1, 1, 6, 40, dtype=_HALF, pairs="same", weighted=True),
    _case("local-crops", 4, 2, 3, 45, pairs="all"),
    _case("patches-long", 2, 2, 3, 2100, pairs="same", weighted=True),
)
