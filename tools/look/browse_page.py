"""Samples as a page to look through."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from . import page
from .samples import Sample, Tile, crop_color

SAMPLES_STYLE = """
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(224px, 45%), 1fr)); gap: 1rem; }
.tiles svg, .tiles img { display: block; width: 100%; max-width: 384px; height: auto; }
.tiles img { border: 3px solid var(--crop); }
.tiles ul { margin: 0; padding: 0; list-style: none; color: var(--soft); }
.tiles rect { fill: none; vector-effect: non-scaling-stroke; }
.tiles .edge { stroke: #000; stroke-width: 5; }
.tiles .crop { stroke-width: 3; }
@media (max-width: 480px) { .tiles { gap: .7rem; } .tiles > :first-child { grid-column: 1 / -1; } }
"""


def render_page(samples: Sequence[Sample], facts: dict[str, str]) -> str:
    """The page: `facts` (name -> text) on top, then an article for each sample."""
    return page.render("What training sees", facts, samples_html(samples), SAMPLES_STYLE)


def samples_html(samples: Sequence[Sample]) -> str:
    """An article for each sample, for a page with `SAMPLES_STYLE`."""
    return "\n".join(_article(sample) for sample in samples)


def _article(sample: Sample) -> str:
    figures = "\n".join([_whole(sample), *(_tile(tile) for tile in sample.tiles)])
    return page.section(sample.key, f'<div class="tiles">\n{figures}\n</div>', sample.facts)


def _whole(sample: Sample) -> str:
    """The whole image with outlines in its own pixels; a dark edge keeps them visible on bright photos."""
    size = f'width="{sample.width}" height="{sample.height}"'
    outlines = []
    for number, (left, top, width, height) in enumerate(sample.boxes):
        box = f'x="{left}" y="{top}" width="{width}" height="{height}"'
        outlines.append(f'<rect class="edge" {box}/><rect class="crop" stroke="{crop_color(number)}" {box}/>')
    picture = f'<image href="{page.data_uri(sample.whole, "JPEG", quality=90)}" {size}/>'
    label = "whole image with its crops outlined"
    return (
        f'<figure><svg viewBox="0 0 {sample.width} {sample.height}" role="img" aria-label="{label}">{picture}'
        f"{''.join(outlines)}</svg><figcaption><strong>whole image</strong></figcaption></figure>"
    )


def _tile(tile: Tile) -> str:
    height, width = tile.pixels.shape[:2]
    lines = "".join(f"<li>{escape(line)}</li>" for line in tile.lines)
    title = escape(tile.title)
    return (  # PNG: what is looked at is what is trained on, to the grey level
        f'<figure style="--crop: {crop_color(tile.crop)}"><img src="{page.data_uri(tile.pixels, "PNG")}" alt="{title}" '
        f'width="{width}" height="{height}"><figcaption><strong>{title}</strong><ul>{lines}</ul></figcaption></figure>'
    )
