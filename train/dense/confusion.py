"""How well masks of classes agree."""

from __future__ import annotations

import torch


def confusion(predicted: torch.Tensor, truth: torch.Tensor, classes: int) -> torch.Tensor:
    """(classes, classes) int64: pixels by true class (row) and predicted class. Both are (H, W), in [0, classes) where
    they count; pixels whose truth lies outside do not."""
    counts = truth < classes
    pairs = truth[counts].long() * classes + predicted[counts].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def segmentation_figures(matrix: torch.Tensor) -> dict[str, float]:
    """mIoU, mAcc and aAcc in [0, 1] of a confusion matrix. The means are over the classes that there are: for mIoU in
    the truth or among the predictions, for mAcc in the truth."""
    matrix = matrix.double()
    right, true, found = matrix.diag(), matrix.sum(1), matrix.sum(0)
    return {
        "mIoU": (right / (true + found - right)).nanmean().item(),
        "mAcc": (right / true).nanmean().item(),
        "aAcc": (right.sum() / true.sum()).item(),
    }


def class_ious(matrix: torch.Tensor) -> list[float | None]:
    """Intersection over union of each class, None for one that is nowhere."""
    matrix = matrix.double()
    ious = matrix.diag() / (matrix.sum(1) + matrix.sum(0) - matrix.diag())
    return [None if iou != iou else iou for iou in ious.tolist()]
