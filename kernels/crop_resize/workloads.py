"""The sizes of crop_resize in training, for benchmarks."""

from __future__ import annotations

from ..registry import Case
from .cases import draw, draw_planes


def _workload(id: str, crops: int, sides: tuple[int, int], size: int, interpolation: str, drawn=draw) -> Case:
    def arguments():
        options = {"size": size, "interpolation": interpolation, "antialias": True}
        return drawn(crops, sides, sides[0] // 3), options

    return Case(id, arguments)


WORKLOADS = (
    _workload("photographs B=256", 256, (375, 500), 224, "bilinear"),
    _workload("photographs B=256, bicubic", 256, (375, 500), 224, "bicubic"),
    _workload("CIFAR 2x512", 1024, (32, 32), 32, "bilinear"),
    _workload("planes B=256", 256, (375, 500), 224, "bilinear", draw_planes),
    _workload("planes B=256, bicubic", 256, (375, 500), 224, "bicubic", draw_planes),
)
# Microseconds on an H200: with augment's 0.8 a view 1.4 a view, 2.2 where the crop is bicubic.
TARGETS = {
    "photographs B=256": (154,),
    "photographs B=256, bicubic": (358,),
    "CIFAR 2x512": (8,),
    "planes B=256": (154,),  # as much as RGB
    "planes B=256, bicubic": (358,),
}
