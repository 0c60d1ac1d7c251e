"""Cards of pictures side by side: what the sections of the page about a data set are made of."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from ...pipelines.spec import ByteSource
from ..look.pictures import gallery, picture_html
from .findings import Findings

GROUPS, MOST, PAIRS = 40, 8, 40  # shown: groups, images of each, pairs
CARDS_STYLE = """
.copy { display: block; margin: .5rem 0; padding: .55rem .7rem; background: var(--ground); border-radius: 4px;
  border: 1px solid var(--line); font: .87rem/1.5 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; user-select: all; }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: .8rem;
  margin-top: .6rem; }
.groups > div { padding: .5rem .6rem 0; border: 1px solid var(--line); border-radius: 6px; }
.groups .pictures { grid-template-columns: repeat(auto-fit, minmax(112px, 1fr)); margin-bottom: .6rem; }
.rule { margin-top: 1.2rem; }
.rule > p { margin: .1rem 0 .4rem; color: var(--soft); font-size: .87rem; }
"""


class Pictures:
    """Figures of images for `gallery`, with pictures or without."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown

    def figure(self, source, index: int, said: str) -> tuple[str, str, str]:
        return picture_html(source, index) if self._shown else "", source.key(index), said


def copied(text: str) -> str:
    """A line that one click marks, ready to copy."""
    return f'<code class="copy">{escape(text)}</code>'


def about_groups(groups: Sequence[np.ndarray]) -> str:
    sizes = np.array([len(group) for group in groups])
    return (
        f"{len(sizes):,} groups of {sizes.sum():,} images, the largest of {sizes.max():,}. The first of each is kept: "
        f"most pixels, then most bytes, then first in the set." + shown(len(sizes), GROUPS, "the largest")
    )


def group_cards(findings: Findings, groups: Sequence[np.ndarray], column: str, show: Pictures) -> str:
    """The largest groups; `column` holds for the images of each that are not kept."""
    extra, made = findings.columns[column], []
    for group in sorted(groups, key=lambda group: (-len(group), group[0]))[:GROUPS]:
        ordered = sorted(group.tolist(), key=lambda index: (bool(extra[index]), index))
        figures = [show.figure(findings.source, i, _size(findings.columns, i, bool(extra[i]))) for i in ordered[:MOST]]
        more = f"<p>and {len(group) - MOST:,} more</p>" if len(group) > MOST else ""
        made.append(f"<div>{gallery(figures)}{more}</div>")
    return cards(made)


def pair_cards(source: ByteSource, other: ByteSource, pairs: np.ndarray, show: Pictures) -> str:
    """The first pairs (P, 2) of an image of each source."""
    made = []
    for ours, theirs in pairs[:PAIRS].tolist():
        figures = [show.figure(source, ours, "here"), show.figure(other, theirs, "there")]
        made.append(f"<div>{gallery(figures)}</div>")
    return cards(made)


def _size(columns: dict[str, np.ndarray], index: int, duplicate: bool) -> str:
    size = f"{columns['width'][index]:,} x {columns['height'][index]:,}, {columns['bytes'][index] / 1e3:,.1f} kB"
    return size if duplicate else f"kept: {size}"


def images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def shown(count: int, most: int, which: str = "the first") -> str:
    return f" Shown: {which} {most}." if count > most else ""


def cards(made: Sequence[str]) -> str:
    return '<div class="groups">\n' + "\n".join(made) + "\n</div>"
