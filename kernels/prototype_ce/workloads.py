"""The sizes of prototype_ce in training, for benchmarks."""

from __future__ import annotations

import torch

from ..registry import Case


def _workload(id: str, crops: int, batch: int, prototypes: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    def arguments():
        student = 0.3 * torch.randn(crops, batch, prototypes)
        teacher = 0.3 * torch.randn(2, batch, prototypes)
        options = {"student_temperature": 0.1, "teacher_temperature": 0.04}
        return (student.to(dtype), teacher.to(dtype), 0.1 * torch.randn(prototypes)), options

    return Case(id, arguments)


def _patches(id: str, rows: int, prototypes: int) -> Case:
    """Masked patches of 128 crops of 224 px, their weights as in iBOT."""

    def arguments():
        student, teacher = (0.3 * torch.randn(1, rows, prototypes).to(torch.bfloat16) for _ in range(2))
        options = {"student_temperature": 0.1, "teacher_temperature": 0.04, "pairs": "same"}
        return (student, teacher, 0.1 * torch.randn(prototypes), torch.full((rows,), 1 / rows)), options

    return Case(id, arguments)


WORKLOADS = (
    _workload("DINO B=64, 10 crops", 10, 64, 65536),
    _workload("DINO B=64, 10 crops, float32", 10, 64, 65536, torch.float32),  # as its recipes train
    _workload("DINO B=64, 2 crops", 2, 64, 65536),
    _patches("DINOv2 patches, B=64", 3771, 65536),
)
# Microseconds on an H200, forward and backward.
TARGETS = {"DINO B=64, 10 crops": (80, 40)}
