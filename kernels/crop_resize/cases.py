"""The arguments every implementation of crop_resize is held to. Small enough for Triton's interpreter.

The answer is bytes, and float32 sums may fall on the other side of a rounding than float64's. The seeds are such that
no value comes nearer than `MARGIN` to one, in either pass; a test looks after it.
"""

from __future__ import annotations

import torch

from ..registry import Case

MARGIN = 1.5e-4  # grey levels; float32 sums of a few dozen taps are within 5e-5


def draw(count: int, sides: tuple[int, int], smallest: int = 1, *, before: int = 0) -> tuple[torch.Tensor, ...]:
    """(images, offsets, widths, boxes): `count` images with sides in the range, at so many bytes from the beginning of
    their memory; no box is below `smallest`."""
    sizes, boxes, images = _drawn(count, sides, smallest, before)
    lengths = 3 * sizes.prod(1)
    small = (lengths.cumsum(0) - lengths, sizes[:, 1].to(torch.int32), boxes)
    return images, *(tensor.to(images.device) for tensor in small)


def draw_planes(count: int, sides: tuple[int, int], smallest: int = 1, *, before: int = 0) -> tuple[torch.Tensor, ...]:
    """(images, offsets, widths, boxes, heights), as `draw`, of planes: each its luma, Cb and Cr."""
    sizes, boxes, images = _drawn(count, sides, smallest, before)
    luma, chroma = sizes.prod(1), ((sizes + 1) // 2).prod(1)
    lengths = torch.stack([luma, chroma, chroma], 1)
    ends = lengths.flatten().cumsum(0).view(-1, 3)
    heights, widths = (side.to(torch.int32) for side in sizes.unbind(1))
    images = images[: int(ends[-1, -1])]
    return images, *(tensor.to(images.device) for tensor in (ends - lengths, widths, boxes, heights))


def _drawn(count: int, sides: tuple[int, int], smallest: int, before: int) -> tuple[torch.Tensor, ...]:
    """(height, width) of images and boxes in them, on the CPU; noise, three bytes a pixel."""
    sizes = torch.randint(sides[0], sides[1] + 1, (count, 2), device="cpu")
    total = int(3 * sizes.prod(1).sum())
    whole = -(-(before + total) // 4) * 4  # as the loader has them: the last word is all theirs
    images = torch.empty(whole, dtype=torch.uint8)[before : before + total]
    images.copy_(torch.randint(0, 256, (total,), dtype=torch.uint8))
    extent = smallest + (torch.rand(count, 2, device="cpu") * (sizes - smallest + 1)).long()
    corner = (torch.rand(count, 2, device="cpu") * (sizes - extent + 1)).long()
    return sizes, torch.cat([corner.flip(1), extent.flip(1)], dim=1).to(torch.int32), images


def _case(
    id: str, seed: int, count: int, sides: tuple[int, int], smallest: int = 1, *, before: int = 0, planes: bool = False,
    **options
) -> Case:  # fmt: skip
    def arguments():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return (draw_planes if planes else draw)(count, sides, smallest, before=before), options

    return Case(id, arguments)


CASES = (
    _case("s16-bilinear", 0, 2, (16, 30), 12, size=16, interpolation="bilinear", antialias=True),
    _case("s9-bicubic", 2, 2, (12, 20), size=9, interpolation="bicubic", antialias=True),
    _case("s8-larger", 0, 3, (3, 7), size=8, interpolation="bilinear", antialias=True),
    _case("s8-from-odd-byte", 0, 3, (3, 7), before=3, size=8, interpolation="bicubic", antialias=True),
    _case("s7-one-pixel", 0, 2, (1, 1), size=7, interpolation="bicubic", antialias=True),
    _case("s1", 0, 2, (2, 4), size=1, interpolation="bilinear", antialias=True),
    _case("s12-strips", 0, 2, (1, 12), size=12, interpolation="bicubic", antialias=True),
    _case("s10-plain-bilinear", 0, 2, (8, 30), size=10, interpolation="bilinear", antialias=False),
    _case("s10-plain-bicubic", 0, 2, (8, 30), size=10, interpolation="bicubic", antialias=False),
    _case("s16-planes", 1, 1, (16, 30), 12, planes=True, size=16, interpolation="bilinear"),
    _case("s9-planes-bicubic", 0, 2, (3, 20), planes=True, size=9, interpolation="bicubic"),
    _case("s8-planes-larger", 0, 2, (1, 7), before=3, planes=True, size=8, interpolation="bilinear"),
    _case("s6-lanczos", 0, 2, (8, 20), size=6, interpolation="lanczos", antialias=True),
)
