"""Samples as one HTML file that needs nothing else: pictures are data URIs, there is no script and no request."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from .samples import Sample, Tile, crop_color

_STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --soft: #5b636b; --ground: #f6f7f8; --card: #fff; --line: #d9dde1; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8ea; --soft: #9aa3ab; --ground: #121416; --card: #1b1e21; --line: #31363b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1280px; padding: 1.25rem 1rem 3rem; background: var(--ground); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0 0 .5rem; font-size: 1.4rem; }
header dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0 0 1.5rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
article { margin-bottom: 1rem; padding: .9rem 1rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
h2 { margin: 0; font-size: 1rem; overflow-wrap: anywhere; }
article > p { margin: 0 0 .8rem; color: var(--soft); font-size: .87rem; }
article > div { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(224px, 45%), 1fr)); gap: 1rem; }
figure { margin: 0; }
figure > svg, figure > img { display: block; width: 100%; max-width: 384px; height: auto; }
figure > img { border: 3px solid var(--crop); }
figcaption { margin-top: .35rem; font-size: .82rem; }
figcaption ul { margin: 0; padding: 0; list-style: none; color: var(--soft); }
rect { fill: none; vector-effect: non-scaling-stroke; }
rect.edge { stroke: #000; stroke-width: 5; }
rect.crop { stroke-width: 3; }
@media (max-width: 480px) { body { padding: .8rem .6rem 2rem; } article { padding: .7rem; }
  article > div { gap: .7rem; } article > div > :first-child { grid-column: 1 / -1; } }
"""


def render_page(samples: Sequence[Sample], facts: dict[str, str]) -> str:
    """The page: `facts` (name -> text) on top, then an article for each sample."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    articles = "\n".join(_article(sample) for sample in samples)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>What training sees</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>What training sees</h1>\n<dl>{rows}</dl>\n</header>\n<main>\n{articles}\n</main>\n"
        "</body>\n</html>\n"
    )


def _article(sample: Sample) -> str:
    figures = "\n".join([_whole(sample), *(_tile(tile) for tile in sample.tiles)])
    head = f"<h2>{escape(sample.key)}</h2>\n<p>{escape(sample.facts)}</p>"
    return f"<article>\n{head}\n<div>\n{figures}\n</div>\n</article>"


def _whole(sample: Sample) -> str:
    """The whole image with outlines in its own pixels; a dark edge keeps them visible on bright photos."""
    size = f'width="{sample.width}" height="{sample.height}"'
    outlines = []
    for number, (left, top, width, height) in enumerate(sample.boxes):
        box = f'x="{left}" y="{top}" width="{width}" height="{height}"'
        outlines.append(f'<rect class="edge" {box}/><rect class="crop" stroke="{crop_color(number)}" {box}/>')
    picture = f'<image href="{_data_uri(sample.whole, "JPEG", quality=90)}" {size}/>'
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
        f'<figure style="--crop: {crop_color(tile.crop)}"><img src="{_data_uri(tile.pixels, "PNG")}" alt="{title}" '
        f'width="{width}" height="{height}"><figcaption><strong>{title}</strong><ul>{lines}</ul></figcaption></figure>'
    )


def _data_uri(pixels: np.ndarray, kind: str, **options) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
