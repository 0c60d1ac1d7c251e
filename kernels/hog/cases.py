"""The arguments every implementation of hog is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch

from ..registry import Case


def _case(
    id: str,
    size: tuple[int, int],
    *,
    batch: int = 1,
    channels: int = 3,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    flat: bool = False,
) -> Case:
    """`flat` makes the image constant but for one edge along a row, one along a column, of both signs."""

    def arguments():
        generator = torch.Generator().manual_seed(90)
        images = torch.randn(batch, channels, *size, generator=generator)
        if flat:
            images = torch.zeros_like(images)
            images[..., :5, :] = 1.0
            images[..., 12:, :] = 2.0
            images[..., 9:11] += 1.0
        images = images.to(dtype)
        return (images.to(memory_format=torch.channels_last) if channels_last else images,), {}

    return Case(id, arguments)


CASES = (
    _case("two-by-two", (32, 32), batch=2),
    _case("bf16", (32, 16), dtype=torch.bfloat16),
    _case("fp16", (16, 32), dtype=torch.float16),
    _case("contiguous", (16, 48), channels_last=False),
    _case("one-channel", (16, 16), channels=1),
    _case("flat-with-edges", (16, 32), flat=True),
)
