"""What is in a data set, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ...pipelines.measure.measure import COLUMNS
from ..look import page
from ..look.pictures import PICTURES_STYLE, gallery, picture_html
from .findings import Findings, Overlap
from .histograms import HISTOGRAM_STYLE, histogram, short
from .rules import Rule

_GROUPS, _MEMBERS, _PAIRS = 40, 8, 40  # shown of each
_WORST, _BAD = 12, 100
KNOW_STYLE = """
.copy { display: block; margin: .5rem 0; padding: .55rem .7rem; background: var(--ground); border-radius: 4px;
  border: 1px solid var(--line); font: .87rem/1.5 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; user-select: all; }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: .8rem;
  margin-top: .6rem; }
.groups > div { padding: .5rem .6rem 0; border: 1px solid var(--line); border-radius: 6px; }
.groups .pictures { margin-bottom: .6rem; }
.rule { margin-top: 1.2rem; }
.rule > p { margin: .1rem 0 .4rem; color: var(--soft); font-size: .87rem; }
"""


def render_know(findings: Findings, table: Path | None, pictures: bool = True) -> str:
    """The page; without `pictures` keys and figures alone. `table`: where the columns lie, if not beside the images."""
    source = findings.source
    extra = int(findings.columns["duplicate"].sum())
    facts = {
        "images": f"{len(source):,}" + (f" in {len(source.classes):,} classes" if source.classes else ""),
        "bytes": f"{int(findings.columns['bytes'].sum()) / 1e6:,.1f} MB",
        "unreadable": f"{len(findings.measured.bad):,}",
        "near duplicates": f"{len(findings.groups):,} groups, {extra:,} images more than needed",
        "unusual": f"{int(findings.columns['outlier'].sum()):,}",
        "columns": "beside the images" if table is None else str(table),
    }
    for other in findings.overlaps:
        facts[f"in {other.source.name}"] = f"{other.theirs:,} of its {len(other.source):,} images"
    show = _Pictures(pictures)
    parts = [
        _recipe(findings, table),
        *(_overlap(source, other, show) for other in findings.overlaps),
        _groups(findings, show),
        _labels(findings, show),
        _rules(findings, show),
        _histograms(findings),
        _unreadable(findings),
    ]
    style = PICTURES_STYLE + HISTOGRAM_STYLE + KNOW_STYLE
    return page.render(f"What is in {source.name}", facts, "\n".join(filter(None, parts)), style)


class _Pictures:
    def __init__(self, shown: bool) -> None:
        self._shown = shown

    def figure(self, source, index: int, said: str) -> tuple[str, str, str]:
        return picture_html(source, index) if self._shown else "", source.key(index), said


def copied(text: str) -> str:
    """A line that one click marks, ready to copy."""
    return f'<code class="copy">{escape(text)}</code>'


def _recipe(findings: Findings, table: Path | None) -> str:
    if not findings.where:
        return page.section("What to leave out", "", "Nothing was found that ought to be left out.")
    lines = ["data:", "  train:", "    own:", f"      source: {findings.source.name}"]
    lines += [] if table is None else [f"      table: {table}"]
    lines.append(f'      where: "{findings.where}"')
    note = "In a recipe; one click marks it all. Each section below has the part of the filter that it is about."
    return page.section("What to leave out", copied("\n".join(lines)), note)


def _groups(findings: Findings, show: _Pictures) -> str:
    if not findings.groups:
        return page.section("Near duplicates", "", "There are none.")
    largest = sorted(findings.groups, key=lambda group: (-len(group), group[0]))[:_GROUPS]
    duplicate, columns = findings.columns["duplicate"], findings.columns
    cards = []
    for group in largest:
        ordered = sorted(group.tolist(), key=lambda index: (bool(duplicate[index]), index))
        figures = [show.figure(findings.source, i, _size(columns, i, bool(duplicate[i]))) for i in ordered[:_MEMBERS]]
        more = f"<p>and {len(group) - _MEMBERS:,} more</p>" if len(group) > _MEMBERS else ""
        cards.append(f"<div>{gallery(figures)}{more}</div>")
    sizes = np.array([len(group) for group in findings.groups])
    note = (
        f"{len(sizes):,} groups of {sizes.sum():,} images, the largest of {sizes.max():,}. The first of each is kept: "
        f"most pixels, then most bytes, then first in the set." + _of(len(sizes), _GROUPS, "the largest")
    )
    return page.section("Near duplicates", copied("not duplicate") + _cards(cards), note)


def _overlap(source, other: Overlap, show: _Pictures) -> str:
    name = f"Also in {other.source.name}"
    if not len(other.pairs):
        return page.section(name, "", "None of its images is here.")
    cards = []
    for ours, theirs in other.pairs[:_PAIRS].tolist():
        figures = [show.figure(source, ours, "here"), show.figure(other.source, theirs, "there")]
        cards.append(f"<div>{gallery(figures)}</div>")
    note = f"{other.theirs:,} of its {len(other.source):,} images are here, or nearly." + _of(len(other.pairs), _PAIRS)
    return page.section(name, copied("not leaked") + _cards(cards), note)


def _labels(findings: Findings, show: _Pictures) -> str:
    if findings.source.classes is None:
        return ""
    few = ", ".join(f"{name} ({count:,})" for name, count in findings.few) or "none"
    note = f"Classes of less than a tenth of the median's images: {few}. "
    if not findings.conflicts:
        return page.section("Labels", "", note + "No group of near duplicates has several classes.")
    cards = []
    for group in findings.conflicts[:_GROUPS]:
        figures = [
            show.figure(findings.source, i, findings.class_of(i) or "no label") for i in group[:_MEMBERS].tolist()
        ]
        cards.append(f"<div>{gallery(figures)}</div>")
    note += f"{len(findings.conflicts):,} groups of near duplicates have several classes." + _of(
        len(findings.conflicts), _GROUPS
    )
    return page.section("Labels", copied("not label_conflict") + _cards(cards), note)


def _rules(findings: Findings, show: _Pictures) -> str:
    held = [(rule, rows) for rule, rows in findings.rules if len(rows)]
    if not held:
        return page.section("Unusual images", "", "No rule found any.")
    body = "\n".join(_rule(findings, rule, rows, show) for rule, rows in held)
    note = "The worst of each kind. A rule is a filter; change its number to taste."
    return page.section("Unusual images", copied("not outlier") + body, note)


def _rule(findings: Findings, rule: Rule, rows: np.ndarray, show: _Pictures) -> str:
    value = findings.columns[rule.column]
    figures = [show.figure(findings.source, int(i), f"{rule.column} {short(value[i])}") for i in rows[:_WORST]]
    said = f"{len(rows):,} images: {rule.why}."
    return (
        f'<div class="rule"><h3>{escape(rule.name)}</h3><p>{escape(said)}</p>'
        f"{copied(f'not ({rule.where})')}{gallery(figures)}</div>"
    )


def _histograms(findings: Findings) -> str:
    names = [name for name in COLUMNS if name not in ("readable", "dct_hash", "block_hash")]
    readable = findings.columns["readable"]
    drawn = [histogram(name, COLUMNS[name], findings.columns[name][readable]) for name in names]
    note = "Of readable images; what is beyond the last hundredth at either end is in the outermost bars."
    return page.section("Columns", f'<div class="histograms">\n{"".join(drawn)}\n</div>', note)


def _unreadable(findings: Findings) -> str:
    bad = findings.measured.bad
    if not bad:
        return ""
    rows = [(findings.source.key(index), reason) for index, reason in bad[:_BAD]]
    note = f"{len(bad):,} images cannot be decoded." + _of(len(bad), _BAD, "the first")
    return page.section("Unreadable images", copied("readable") + page.table(("key", "reason"), rows), note)


def _size(columns: dict[str, np.ndarray], index: int, duplicate: bool) -> str:
    size = f"{columns['width'][index]:,} x {columns['height'][index]:,}, {columns['bytes'][index] / 1e3:,.1f} kB"
    return size if duplicate else f"kept: {size}"


def _of(count: int, most: int, which: str = "the first") -> str:
    return f" Shown: {which} {most}." if count > most else ""


def _cards(cards: Sequence[str]) -> str:
    return '<div class="groups">\n' + "\n".join(cards) + "\n</div>"
