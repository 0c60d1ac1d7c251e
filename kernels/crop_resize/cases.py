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
    sizes = torch.randint(sides[0], sides[1] + 1, (count, 2), device="cpu")
    lengths = 3 * sizes.prod(1)
    total = int(lengths.sum())
    whole = -(-(before + total) // 4) * 4  # as the loader has them: the last word is all theirs
    images = torch.empty(whole, dtype=torch.uint8)[before : before + total]
    images.copy_(torch.randint(0, 256, (total,), dtype=torch.uint8))
    extent = smallest + (torch.rand(count, 2, device="cpu") * (sizes - smallest + 1)).long()
    corner = (torch.rand(count, 2, device="cpu") * (sizes - extent + 1)).long()
    boxes = torch.cat([corner.flip(1), extent.flip(1)], dim=1).to(torch.int32)
    small = (lengths.cumsum(0) - lengths, sizes[:, 1].to(torch.int32), boxes)
    return images, *(tensor.to(images.device) for tensor in small)


def _case(
    id: str, seed: int, count: int, sides: tuple[int, int], smallest: int = 1, *, before: int = 0, **options
) -> Case:
    def arguments():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return draw(count, sides, smallest, before=before), options

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
    _case("s6-lanczos", 0, 2, (8, 20), size=6, interpolation="lanczos", antialias=True),
)
