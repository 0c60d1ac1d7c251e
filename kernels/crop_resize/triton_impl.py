"""Crop and resize in Triton, of RGB (`rgb_kernel`) or planes (`plane_kernel`): all crops of a batch in one launch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from ...errors import UserError
from ..aot import Build
from ..tiles import tile
from .plane_kernel import plane_kernel
from .reference import RADIUS
from .rgb_kernel import crop_kernel

CANDIDATES = {
    kernel: [
        {"ROWS": rows, "COLUMNS": columns, "num_warps": warps}
        for rows in (4, 8, 16)
        for columns, warps in ((32, 1), (64, 1), (64, 2), (128, 4))
    ]
    for kernel in ("crop", "planes")
}


def _default(size: int, kind: str) -> dict[str, int]:
    """One warp, or two for planes; threads have all rows of a column or two, so that none waits for another before the
    last step."""
    if size <= 32:
        return {"ROWS": 8, "COLUMNS": 32, "num_warps": 1}
    return {"ROWS": 8, "COLUMNS": 64, "num_warps": 1} if kind == "crop" else {"ROWS": 8, "COLUMNS": 128, "num_warps": 2}


def _in_words(images: Tensor) -> Tensor:
    """The images where their last word lies in memory as a whole: the same tensor, or a copy."""
    storage = images.untyped_storage().nbytes()
    missing = -(images.storage_offset() + images.numel()) % 4
    if images.storage_offset() + images.numel() + missing <= storage:
        return images
    return torch.nn.functional.pad(images.flatten(), (0, -images.numel() % 4))


def crop_resize(
    images: Tensor,
    offsets: Tensor,
    widths: Tensor,
    boxes: Tensor,
    heights: Tensor | None = None,
    *,
    size: int,
    interpolation: str = "bilinear",
    antialias: bool = True,
) -> Tensor:
    """Arguments and result of `headrace.kernels.crop_resize.crop_resize`, without Lanczos."""
    if not all(tensor.is_contiguous() for tensor in (images, offsets, widths, boxes)):
        raise UserError("crop_resize: its tensors must be contiguous; call .contiguous() where they are made")
    crops = images.new_empty((len(boxes), size, size, 3))
    images = _in_words(images)
    if len(boxes):
        wide = size % 16 == 0
        kind = "crop" if heights is None else "planes"
        options = tile("crop_resize", f"{kind} s{size} {interpolation}", _default(size, kind))
        tiles = triton.cdiv(size, options["ROWS"]) * triton.cdiv(size, options["COLUMNS"])
        options |= {"SIZE": size, "RADIUS": RADIUS[interpolation], "WIDE": wide}
        out, grid = crops.flatten().view(torch.int32) if wide else crops, (len(boxes) * tiles,)
        with torch.cuda.device_of(images):
            if heights is None:
                crop_kernel[grid](images, offsets, widths, boxes, out, ANTIALIAS=antialias, **options)
            else:
                plane_kernel[grid](images, offsets, widths, heights.contiguous(), boxes, out, **options)
    return crops


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: crops of photographs, of CIFAR's images, plain ones, of planes."""
    for kind, size, interpolation in (
        ("", 224, "bilinear"),
        ("", 224, "bicubic"),
        ("", 32, "bilinear"),
        (" plain", 192, "bilinear"),
        (" plain", 224, "bicubic"),
        (" planes", 224, "bilinear"),
        (" planes", 96, "bicubic"),
    ):
        planes = kind == " planes"
        own = _default(size, "planes" if planes else "crop")
        constants = {"SIZE": size, "RADIUS": RADIUS[interpolation], "WIDE": True}
        constants |= {key: own[key] for key in ("ROWS", "COLUMNS")}
        types = {"images": "*u8", "offsets": "*i64", "widths": "*i32", "boxes": "*i32", "crops": "*i32"}
        yield Build(
            name=f"crop s{size} {interpolation}{kind}",
            kernel=plane_kernel if planes else crop_kernel,
            types=types | {"heights": "*i32"} if planes else types,
            constants=constants if planes else constants | {"ANTIALIAS": not kind},
            aligned=(*types, "heights") if planes else tuple(types),
            warps=own["num_warps"],
        )
