"""The arguments every implementation of patch_loss is held to. Small enough for Triton's interpreter."""

from __future__ import annotations

import torch

from ..registry import Case


def _case(
    id: str,
    size: tuple[int, int],
    patch_size: int,
    *,
    batch: int = 2,
    hidden: float = 0.75,
    dtype: torch.dtype = torch.float32,
    pixels: torch.dtype = torch.float32,
    channels_last: bool = True,
    offset: float = 0.0,
    class_token: bool = False,
    normalize: bool = True,
    absolute: bool = False,
) -> Case:
    """`hidden` is the share of hidden patches; -1 hides exactly one. `offset` is added to all pixels."""

    def arguments():
        generator = torch.Generator().manual_seed(20)
        height, width = size
        patches, values = height // patch_size * (width // patch_size), patch_size * patch_size * 3
        images = (torch.randn(batch, 3, height, width, generator=generator) + offset).to(pixels)
        if channels_last:
            images = images.to(memory_format=torch.channels_last)
        prediction = torch.randn(batch, patches + class_token, values, generator=generator).to(dtype)[:, class_token:]
        chance = torch.rand(batch, patches, generator=generator)
        mask = chance == chance.max() if hidden < 0 else chance < hidden
        options = {"patch_size": patch_size, "normalize": normalize, "absolute": absolute, "eps": 1e-6}
        return (images, prediction, mask), options

    return Case(id, arguments)


_HALF, _BF16 = torch.float16, torch.bfloat16

CASES = (
    _case("p16-bf16", (48, 32), 16, dtype=_BF16),
    _case("p16-fp32", (48, 32), 16),
    _case("p16-fp16", (32, 48), 16, dtype=_HALF),
    _case("p16-bf16-pixels", (32, 32), 16, dtype=_BF16, pixels=_BF16),
    _case("p16-contiguous", (32, 48), 16, channels_last=False),
    _case("p16-class-token", (32, 48), 16, class_token=True),
    _case("p14-odd-grid", (42, 70), 14, batch=1),
    _case("p14-fp16", (28, 42), 14, dtype=_HALF),
    _case("p8-plain-pixels", (24, 40), 8, normalize=False),
    _case("p8-bf16", (24, 24), 8, dtype=_BF16),
    _case("p4-one-image", (20, 12), 4, batch=1),
    _case("p4-fp16-pixels", (12, 12), 4, batch=3, dtype=_HALF, pixels=_HALF),
    _case("p5-odd-patch", (15, 10), 5, channels_last=False),
    _case("p32", (64, 32), 32, batch=1),
    _case("p8-absolute", (24, 16), 8, normalize=False, absolute=True),
    _case("p32-absolute-fp16", (32, 64), 32, batch=1, normalize=False, absolute=True, dtype=_HALF),
    _case("p8-all-hidden", (16, 24), 8, hidden=1.0),
    _case("p8-one-hidden", (16, 24), 8, hidden=-1),
    _case("p8-none-hidden", (16, 24), 8, hidden=0.0),
    _case("p8-offset", (16, 24), 8, offset=300.0),
)
