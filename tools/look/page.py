"""The one HTML page that reports share: it needs nothing else. Pictures are inside; there is no script, no request."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --soft: #5b636b; --ground: #f6f7f8; --card: #fff; --line: #d9dde1;
  --warn: #9a5b00; --warn-ground: #fdf3e0; --good: #17703f;
  --series-0: #0b6bb5; --series-1: #c65500; --series-2: #12805c; --series-3: #a8428a; --series-4: #8a6d00;
  --series-5: #5a55c8; --series-6: #1e8ba3; --series-7: #6b6b6b; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8ea; --soft: #9aa3ab; --ground: #121416; --card: #1b1e21; --line: #31363b;
    --warn: #f0b95a; --warn-ground: #2b2312; --good: #63c48f;
    --series-0: #5cb3f5; --series-1: #ff9a57; --series-2: #4fd0a4; --series-3: #ea8fd0; --series-4: #e0c04a;
    --series-5: #a9a5ff; --series-6: #5fd0e6; --series-7: #b5b5b5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1280px; padding: 1.25rem 1rem 3rem; background: var(--ground); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0 0 .5rem; font-size: 1.4rem; overflow-wrap: anywhere; }
header dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0 0 1.5rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
article { margin-bottom: 1rem; padding: .9rem 1rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
h2 { margin: 0; font-size: 1rem; overflow-wrap: anywhere; }
article > p { margin: 0 0 .8rem; color: var(--soft); font-size: .87rem; }
figure { margin: 0; }
figcaption { margin-top: .35rem; font-size: .82rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
tr:last-child > td { border-bottom: 0; }
@media (max-width: 480px) { body { padding: .8rem .6rem 2rem; } article { padding: .7rem; }
  header dl { gap: .1rem .7rem; } }
"""


def render(title: str, facts: Mapping[str, str], body: str, style: str = "") -> str:
    """The page: `facts` (name -> text) on top, then `body`, which is HTML; `style` is what CSS it needs beside."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n<dl>{rows}</dl>\n</header>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def section(heading: str, body: str, note: str = "") -> str:
    """A card; `body` is HTML, heading and note are text."""
    said = f"<p>{escape(note)}</p>\n" if note else ""
    return f"<article>\n<h2>{escape(heading)}</h2>\n{said}{body}\n</article>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are text. It scrolls where the screen is narrower."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{top}</tr>\n{lines}</table></div>'


def data_uri(pixels: np.ndarray, kind: str, **options) -> str:
    """(H, W, 3) uint8 as the address of a picture; `kind`: PNG or JPEG, `options` as Pillow's `save` takes them."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
