"""The sizes of prototype_ce in training, for benchmarks."""

from __future__ import annotations

import torch

from ..registry import Case


def _workload(id: str, crops: int, batch: int, prototypes: int) -> Case:
    def arguments():
        student = 0.3 * torch.randn(crops, batch, prototypes)
        teacher = 0.3 * torch.randn(2, batch, prototypes)
        options = {"student_temperature": 0.1, "teacher_temperature": 0.04}
        return (student.to(torch.bfloat16), teacher.to(torch.bfloat16), 0.1 * torch.randn(prototypes)), options

    return Case(id, arguments)


WORKLOADS = (_workload("DINO B=64, 10 crops", 10, 64, 65536), _workload("DINO B=64, 2 crops", 2, 64, 65536))
