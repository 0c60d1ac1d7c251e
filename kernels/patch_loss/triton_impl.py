"""Patch loss in Triton: one program per patch; its pixels pass through registers once, and nothing is gathered.

The forward writes each patch's share of the loss and, for hidden patches, prediction - target (of absolute errors: its
sign), which is dloss/dprediction up to one scalar. The backward multiplies by that scalar and fills visible patches
with zeros. The scalar is applied there and in float32, because 2/(n*p*p*C) is 3e-8 for a batch of 512 and would vanish
in float16. Sums have a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..aot import Build
from ..compiled import custom
from ..recompute import no_second_gradient
from ..tiles import tile


@triton.jit(do_not_specialize=["patches", "columns"])
def _forward_kernel(
    images,
    image_b,
    image_c,
    image_y,
    image_x,
    prediction,
    prediction_b,
    prediction_l,
    prediction_v,
    hidden,
    hidden_b,
    hidden_l,
    loss,
    error,
    patches,
    columns,
    eps,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ABSOLUTE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    # 64 bit from here on: 2048 images of 224x224 hold 3.1e8 values, 16384 of them more than an int32 can count.
    b = (program // patches).to(tl.int64)
    i = (program % patches).to(tl.int64)
    if tl.load(hidden + b * hidden_b + i * hidden_l):
        VALUES: tl.constexpr = PATCH * PATCH * CHANNELS
        value = tl.arange(0, BLOCK)
        inside = value < VALUES
        corner = images + b * image_b + (i // columns) * PATCH * image_y + (i % columns) * PATCH * image_x
        if CHANNELS_LAST:
            # A row of the patch is PATCH*CHANNELS neighbours in memory: the compiler sees it and loads vectors.
            pixel = corner + value // (PATCH * CHANNELS) * image_y + value % (PATCH * CHANNELS)
        else:
            y, x, c = value // (PATCH * CHANNELS), value // CHANNELS % PATCH, value % CHANNELS
            pixel = corner + y * image_y + x * image_x + c * image_c
        target = tl.load(pixel, mask=inside, other=0.0).to(tl.float32)
        if NORMALIZE:
            # Measured from one of its own pixels first: then the mean is rounded like the patch's contrast, not like
            # its brightness. At a mean of 300 and a deviation of 1 the gradient's error falls from 1.1e-5 to 4e-8.
            target = tl.where(inside, target - tl.load(corner).to(tl.float32), 0.0)
            target = tl.where(inside, target - tl.sum(target, 0) / VALUES, 0.0)
            variance = tl.sum(target * target, 0) / (VALUES - 1)
            target = target / tl.sqrt(variance + eps)
        guess = tl.load(prediction + b * prediction_b + i * prediction_l + value * prediction_v, mask=inside, other=0.0)
        difference = guess.to(tl.float32) - target
        if ABSOLUTE:
            tl.store(loss + program, tl.sum(tl.abs(difference), 0))
            difference = (difference > 0).to(tl.float32) - (difference < 0).to(tl.float32)
        else:
            tl.store(loss + program, tl.sum(difference * difference, 0))
        offset = program.to(tl.int64) * VALUES
        tl.store(error + offset + value, difference.to(error.dtype.element_ty), mask=inside)
    else:
        tl.store(loss + program, 0.0)


@triton.jit(do_not_specialize=["patches"])
def _backward_kernel(
    error, hidden, hidden_b, hidden_l, factor, gradient, patches, VALUES: tl.constexpr, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    value = tl.arange(0, BLOCK)
    inside = value < VALUES
    offset = program.to(tl.int64) * VALUES
    result = tl.zeros((BLOCK,), tl.float32)
    b = (program // patches).to(tl.int64)
    i = (program % patches).to(tl.int64)
    if tl.load(hidden + b * hidden_b + i * hidden_l):
        result = tl.load(error + offset + value, mask=inside, other=0.0).to(tl.float32) * tl.load(factor)
    tl.store(gradient + offset + value, result.to(gradient.dtype.element_ty), mask=inside)


CANDIDATES = {kernel: [{"num_warps": warps} for warps in (1, 2, 4, 8, 16)] for kernel in ("forward", "backward")}


def _block_and_warps(values: int) -> tuple[int, int]:
    # One warp a patch of 16x16: its sums need no shared memory and no barrier, 504 instructions where four warps have
    # 340 each.
    block = triton.next_power_of_2(values)
    return block, min(8, max(1, block // 1024))


def _tile(kernel: str, values: int) -> dict[str, int]:
    block, warps = _block_and_warps(values)
    return {"BLOCK": block, **tile("patch_loss", f"{kernel} {block}", {"num_warps": warps})}


@custom("patch_loss")
def _forward(
    images: Tensor, prediction: Tensor, hidden: Tensor, patch_size: int, normalize: bool, absolute: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """-> loss (); prediction - target (B, L, p*p*C) or its sign, not written where visible; a value's weight ()."""
    batch, patches, values = prediction.shape
    channels = images.shape[1]
    partial = torch.empty(batch * patches, dtype=torch.float32, device=prediction.device)
    error = prediction.new_empty(prediction.shape)
    with torch.cuda.device_of(prediction):
        _forward_kernel[(batch * patches,)](
            images,
            *images.stride(),
            prediction,
            *prediction.stride(),
            hidden,
            *hidden.stride(),
            partial,
            error,
            patches,
            images.shape[3] // patch_size,
            eps,
            CHANNELS=channels,
            PATCH=patch_size,
            NORMALIZE=normalize,
            ABSOLUTE=absolute,
            CHANNELS_LAST=images.stride(1) == 1 and images.stride(3) == channels,
            **_tile("forward", values),
        )
    weight = (hidden.sum().clamp(min=1) * values).to(torch.float32).reciprocal()
    return partial.sum() * weight, error, weight


@_forward.register_fake
def _(images, prediction, hidden, patch_size, normalize, absolute, eps):
    scalar = prediction.new_empty((), dtype=torch.float32)
    return scalar, prediction.new_empty(prediction.shape), torch.empty_like(scalar)


@custom("patch_loss_backward")
def _backward(error: Tensor, hidden: Tensor, factor: Tensor) -> Tensor:
    """error * factor where hidden, 0 elsewhere; `factor` is a float32 scalar."""
    batch, patches, values = error.shape
    gradient = torch.empty_like(error)
    with torch.cuda.device_of(error):
        _backward_kernel[(batch * patches,)](
            error, hidden, *hidden.stride(), factor, gradient, patches, VALUES=values, **_tile("backward", values)
        )
    return gradient


@_backward.register_fake
def _(error, hidden, factor):
    return torch.empty_like(error)


_backward.register_autograd(no_second_gradient("patch_loss"))


def _save(ctx, inputs, output):
    _, error, weight = output
    ctx.save_for_backward(error, inputs[2], weight)
    ctx.factor = 1 if inputs[5] else 2
    ctx.set_materialize_grads(False)  # else autograd makes zeros the size of the prediction for an output nobody sees


def _differentiate(ctx, grad_loss, grad_error, grad_weight):
    error, hidden, weight = ctx.saved_tensors
    return None, _backward(error, hidden, ctx.factor * grad_loss * weight), None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def patch_loss(
    images: Tensor,
    prediction: Tensor,
    hidden: Tensor,
    *,
    patch_size: int,
    normalize: bool = True,
    absolute: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """Arguments and result of `headrace.kernels.patch_loss.patch_loss`, without float64."""
    return _forward(images, prediction, hidden, patch_size, normalize, absolute, eps)[0]


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: the kernels as training with channels-last images launches them."""
    sizes = ((16, "bf16"), (16, "fp32"), (14, "bf16"), (8, "bf16"), (4, "fp16"), (32, "bf16"), (32, "fp32"))
    for patch_size, dtype in sizes:
        absolute = (patch_size, dtype) == (32, "fp32")  # SimMIM's
        values = patch_size * patch_size * 3
        block, warps = _block_and_warps(values)
        strides = () if values % 16 else ("prediction_b", "prediction_l")
        yield Build(
            name=f"forward p{patch_size} {dtype}",
            kernel=_forward_kernel,
            types={
                "images": f"*{dtype}",
                "prediction": f"*{dtype}",
                "hidden": "*i1",
                "loss": "*fp32",
                "error": f"*{dtype}",
                "eps": "fp32",
            },
            constants={
                "image_c": 1,
                "prediction_v": 1,
                "hidden_l": 1,
                "CHANNELS": 3,
                "PATCH": patch_size,
                "NORMALIZE": not absolute,
                "ABSOLUTE": absolute,
                "CHANNELS_LAST": True,
                "BLOCK": block,
            },
            aligned=("images", "image_b", "image_y", "prediction", "loss", "error", *strides),
            warps=warps,
        )
        yield Build(
            name=f"backward p{patch_size} {dtype}",
            kernel=_backward_kernel,
            types={"error": f"*{dtype}", "hidden": "*i1", "factor": "*fp32", "gradient": f"*{dtype}"},
            constants={"hidden_l": 1, "VALUES": values, "BLOCK": block},
            aligned=("error", "gradient"),
            warps=warps,
        )
