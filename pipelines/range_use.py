"""How much of their range the images of a set use: 12-bit measurements in 16-bit files would become 16 grey levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .images import deep
from .images.budget import reserve
from .images.decode import open_image, read_samples
from .images.jpeg import MAGIC
from .images.rules import rules

if TYPE_CHECKING:
    from .spec import ByteSource

_LOOKED_AT, _DECODED = 64, 16  # images, evenly spread; of those with more than eight bits
_SMALL = 1 / 4  # of the range: 14 bits in 16


def small_range(source: ByteSource) -> str | None:
    """A sentence for a set whose images of more than eight bits use a quarter of their range or less; None for others,
    where `rules().range` says what the values mean, and of deep images."""
    if rules().range != "full" or rules().channels is not None:  # of sixteen bits, all 65,536 levels stay
        return None
    groups: dict[tuple[float, float], list[tuple[float, float]]] = {}
    some = range(0, len(source), max(1, len(source) // _LOOKED_AT))
    if callable(glance := getattr(source, "glance", None)):
        glance(images=some)
    for index in some:
        try:
            if (samples := _deep(source.read(index))) is not None:
                groups.setdefault((samples.low, samples.high), []).append(samples.used())
        except Exception:  # whatever is wrong there, the loader says it when it comes to this image
            continue
        if sum(map(len, groups.values())) == _DECODED:
            break
    for (low, high), used in groups.items():
        least, most = min(one[0] for one in used), max(one[1] for one in used)
        share = (most - least) / (high - low)
        if share <= _SMALL:
            return (
                f"{source.name}: values of its images of more than eight bits run from {least:g} to {most:g} of "
                f"{low:g}..{high:g}, which leaves {max(1, round(share * 256))} of 256 grey levels; "
                "say what they mean with data.range=[low,high], or data.range=percentile"
            )
    return None


def _deep(data) -> deep.Samples | None:
    """The samples of an image that has more than eight bits."""
    if not hasattr(data, "dtype") or data.ndim != 1 or bytes(data[:3]) == MAGIC:
        return None
    encoded = bytes(data)
    image = open_image(encoded)
    colour = image.mode in ("RGB", "RGBA") and bool(image.tile) and "16" in str(image.tile[0][3])
    with reserve(image.width * image.height):
        if image.format != "PPM" and not colour and image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
            return None
        samples = read_samples(image, encoded)
    if isinstance(samples, np.ndarray):  # Pillow gives the upper bytes of colour
        return deep.Samples(samples, 0, 255) if colour else None
    return samples if samples.high > 255 or samples.values.dtype.kind == "f" else None
