"""Small pictures of a source on a page, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import numpy as np
from PIL import Image

from ...errors import UserError
from ...pipelines.images.decode import DecodeError, decode
from ...pipelines.spec import ByteSource
from . import page

PICTURES_STYLE = """
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: .8rem;
  margin: .4rem 0 1rem; }
.pictures img { display: block; width: 100%; height: 112px; object-fit: contain; }
.pictures figcaption { overflow-wrap: anywhere; }
.pictures figcaption div { color: var(--soft); }
h3 { margin: .8rem 0 0; font-size: .95rem; }
"""


def picture_html(source: ByteSource, index: int, side: int = 128) -> str:
    """An image whose longer side is at most `side` pixels, or in its place why it cannot be shown."""
    try:
        image = Image.fromarray(decode(source.read(index)))
    except (OSError, DecodeError, UserError) as fault:
        return f"<p>{escape(str(fault))}</p>"
    image.thumbnail((side, side))
    return f'<img src="{page.data_uri(np.asarray(image), "JPEG", quality=85)}" alt="{escape(source.key(index))}">'


def gallery(figures: Iterable[tuple[str, str, str]]) -> str:
    """Figures (picture as HTML, caption, and what is said below it) side by side, for a page with `PICTURES_STYLE`."""
    cells = [
        f"<figure>{picture}<figcaption>{escape(caption)}<div>{escape(said)}</div></figcaption></figure>"
        for picture, caption, said in figures
    ]
    return '<div class="pictures">\n' + "\n".join(cells) + "\n</div>"
