"""Augmentation on the device: uint8 crops and their drawn parameters -> finished views.

Order of operations: colour jitter (each sample's four parts in its own order, clamped to [0, 1] in between), grayscale
(before the jitter with `gray_first`), Gaussian blur, solarise, horizontal flip, normalise. Contrast blends with the
mean luma of the image as it stands at that point; hue turns through HSV. Semantics of torchvision's float tensors.

`reference.py` says it in plain PyTorch; `triton_impl.py` does it in two launches, four with a blur;
`interleaved.py` has how its threads read and write colours of neighbouring pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import UserError
from ..registry import Choice, Cost, Implementation, Operator, ShapeClass, without_triton
from . import cases, reference
from .reference import blur_taps
from .table import COLUMNS, parameter_table

__all__ = ["augment", "blur_taps", "parameter_table"]


def augment(
    pixels: Tensor,
    table: Tensor,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    sigma_max: float = 0.0,
    gray_weights: str = "luma",
    gray_first: bool = False,
    patch_size: int = 0,
    dtype: torch.dtype = torch.float32,
    impl: Choice | None = None,
) -> Tensor:
    """Finished views of `dtype`.

    Args:
        pixels: (N, S, S, 3) uint8, contiguous; or (N, S, S, C) uint16, of which contrast blends with each channel's own
            mean unless there are three, and whose table asks for nothing that has a meaning for colours alone. Of these
            the reference is the one implementation.
        table: (N, 12) float32 of `parameter_table`, contiguous; a float64 one gives a float64 result (reference only).
        mean, std: of values in [0, 1], per channel.
        sigma_max: the widest blur in pixels, which fixes the window (`blur_taps`); 0: no sample is blurred.
        gray_weights: "luma" (ITU-R 601) or "mean" (a third each) for grayscale; contrast and saturation take luma.
        gray_first: grayscale comes before the jitter.
        patch_size: 0 for images; p for patches, which divides S.
        dtype: float32, bfloat16 or float16.
        impl: implementation to use for this call; None leaves it to `headrace.kernels`.

    Returns:
        (N, C, S, S) in channels-last memory, or with `patch_size` (N, S/p * S/p, p*p*3): patches row by row, inside a
        patch row, column, channel, the channel fastest.

    Raises:
        UserError: arguments that do not fit together, or an implementation that cannot run them.
    """
    _check(pixels, table, sigma_max, gray_weights, patch_size)
    if pixels.dtype != torch.uint8:
        if impl not in (None, "reference"):
            raise UserError(f"augment: pixels of {pixels.dtype} are for the reference alone, not for {impl!r}")
        impl = "reference"
    return OPERATOR(
        pixels,
        table,
        mean=mean,
        std=std,
        sigma_max=sigma_max,
        gray_weights=gray_weights,
        gray_first=gray_first,
        patch_size=patch_size,
        dtype=dtype,
        impl=impl,
    )


def _check(pixels: Tensor, table: Tensor, sigma_max: float, gray_weights: str, patch_size: int) -> None:
    square = pixels.dim() == 4 and pixels.shape[1] == pixels.shape[2]
    if not square or not (pixels.dtype == torch.uint8 and pixels.shape[3] == 3 or pixels.dtype == torch.uint16):
        raise UserError(
            f"augment: pixels is {pixels.dtype} {tuple(pixels.shape)}, it must be torch.uint8 (N, S, S, 3) or "
            "torch.uint16 (N, S, S, C)"
        )
    if table.shape != (len(pixels), len(COLUMNS)):
        raise UserError(
            f"augment: table is {tuple(table.shape)}, {len(pixels)} crops need {(len(pixels), len(COLUMNS))}; "
            "parameter_table makes it"
        )
    size = pixels.shape[1]
    if sigma_max > 0 and blur_taps(sigma_max) // 2 >= size:
        raise UserError(
            f"augment: a blur of up to {sigma_max} px reaches {blur_taps(sigma_max) // 2} px to either side, more than "
            f"a view of {size} px can reflect; lower the blur or enlarge the view"
        )
    if gray_weights not in ("luma", "mean"):
        raise UserError(f"augment: gray_weights is 'luma' or 'mean', not {gray_weights!r}")
    if patch_size and size % patch_size:
        raise UserError(f"augment: patch_size {patch_size} does not divide views of {size} px")


def _shape_class(
    pixels: Tensor, table: Tensor, *, dtype: torch.dtype = torch.float32, patch_size: int = 0, **options
) -> ShapeClass:
    wide = table.dtype == torch.float64
    return pixels.device.type, torch.float64 if wide else dtype, pixels.shape[1], patch_size


def _cost(
    pixels: Tensor, table: Tensor, *, dtype: torch.dtype = torch.float32, sigma_max: float = 0.0, **options
) -> Cost:
    """Crops read once, views written once; about 100 operations a pixel and 12 per tap of the blurred ones."""
    area = pixels.shape[1] * pixels.shape[2]
    blurred = int((table[:, COLUMNS.index("sigma")] > 0).sum()) if sigma_max else 0
    return Cost(
        bytes=pixels.numel() * (1 + dtype.itemsize) + table.numel() * table.element_size(),
        flops=area * (100 * len(pixels) + 12 * blur_taps(sigma_max) * blurred),
    )


def _triton_supports(device: str, dtype: torch.dtype, size: int, patch_size: int) -> str | None:
    if missing := without_triton(device):
        return missing
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, the views shall be {dtype}"
    if device == "cpu" and dtype == torch.bfloat16:
        return "Triton's interpreter truncates to bfloat16 where a GPU rounds"
    return None


OPERATOR = Operator(
    name="augment",
    doc="colour jitter, grayscale, blur, solarise, flip and normalise of uint8 crops",
    reference=reference.augment,
    shape_class=_shape_class,
    size_names=("size", "patch_size"),
    gradients=(),
    cases=cases.CASES,
    cost=_cost,
    batched=("pixels", "table"),
    fast=(Implementation("triton", f"{__name__}.triton_impl:augment", _triton_supports),),
)
