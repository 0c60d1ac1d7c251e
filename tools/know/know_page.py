"""What is in a data set, as a page."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from ..look import page
from ..look.pictures import PICTURES_STYLE, gallery
from .cards import (
    CARDS_STYLE,
    GROUPS,
    MOST,
    PAIRS,
    Pictures,
    about_groups,
    cards,
    copied,
    group_cards,
    images,
    pair_cards,
    shown,
)
from .findings import Findings, Overlap
from .histograms import HISTOGRAM_STYLE, histogram, short
from .rules import Rule

_WORST, _BAD = 12, 100


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
    show, by_encoder = Pictures(pictures), ()
    if findings.meaning is not None:
        from .encoder_page import encoder_sections  # torch

        facts["encoder"], by_encoder = findings.meaning.asked.encoder.name, encoder_sections(findings, show)
    parts = [
        _recipe(findings, table),
        *(_overlap(source, other, show) for other in findings.overlaps),
        _groups(findings, show),
        _labels(findings, show),
        *by_encoder,
        _rules(findings, show),
        _histograms(findings),
        _unreadable(findings),
    ]
    style = PICTURES_STYLE + HISTOGRAM_STYLE + CARDS_STYLE
    return page.render(f"What is in {source.name}", facts, "\n".join(filter(None, parts)), style)


def _recipe(findings: Findings, table: Path | None) -> str:
    if not findings.where:
        return page.section("What to leave out", "", "Nothing was found that ought to be left out.")
    lines = ["data:", "  train:", "    own:", f"      source: {findings.source.name}"]
    lines += [] if table is None else [f"      table: {table}"]
    lines.append(f'      where: "{findings.where}"')
    note = "In a recipe; one click marks it all. Each section below has the part of the filter that it is about."
    return page.section("What to leave out", copied("\n".join(lines)), note)


def _groups(findings: Findings, show: Pictures) -> str:
    if not findings.groups:
        return page.section("Near duplicates", "", "There are none.")
    body = copied("not duplicate") + group_cards(findings, findings.groups, "duplicate", show)
    return page.section("Near duplicates", body, about_groups(findings.groups))


def _overlap(source, other: Overlap, show: Pictures) -> str:
    name = f"Also in {other.source.name}"
    if not len(other.pairs):
        return page.section(name, "", "None of its images is here.")
    note = f"{other.theirs:,} of its {len(other.source):,} images are here, or nearly." + shown(len(other.pairs), PAIRS)
    return page.section(name, copied("not leaked") + pair_cards(source, other.source, other.pairs, show), note)


def _labels(findings: Findings, show: Pictures) -> str:
    if findings.source.classes is None:
        return ""
    few = ", ".join(f"{name} ({count:,})" for name, count in findings.few) or "none"
    note = f"Classes of less than a tenth of the median's images: {few}. "
    if not findings.conflicts:
        return page.section("Labels", "", note + "No group of near duplicates has several classes.")
    made = []
    for group in findings.conflicts[:GROUPS]:
        figures = [show.figure(findings.source, i, findings.class_of(i) or "no label") for i in group[:MOST].tolist()]
        made.append(f"<div>{gallery(figures)}</div>")
    note += f"{len(findings.conflicts):,} groups of near duplicates have several classes." + shown(
        len(findings.conflicts), GROUPS
    )
    return page.section("Labels", copied("not label_conflict") + cards(made), note)


def _rules(findings: Findings, show: Pictures) -> str:
    held = [(rule, rows) for rule, rows in findings.rules if len(rows)]
    if not held:
        return page.section("Unusual images", "", "No rule found any.")
    body = "\n".join(_rule(findings, rule, rows, show) for rule, rows in held)
    note = "The worst of each kind. A rule is a filter; change its number to taste."
    return page.section("Unusual images", copied("not outlier") + body, note)


def _rule(findings: Findings, rule: Rule, rows: np.ndarray, show: Pictures) -> str:
    value = findings.columns[rule.column]
    figures = [show.figure(findings.source, int(i), f"{rule.column} {short(value[i])}") for i in rows[:_WORST]]
    said = f"{images(len(rows))}: {rule.why}."
    return (
        f'<div class="rule"><h3>{escape(rule.name)}</h3><p>{escape(said)}</p>'
        f"{copied(f'not ({rule.where})')}{gallery(figures)}</div>"
    )


def _histograms(findings: Findings) -> str:
    readable = findings.columns["readable"]
    drawn = [histogram(name, about, findings.columns[name][readable]) for name, about in findings.figures().items()]
    note = "Of readable images; what is beyond the last hundredth at either end is in the outermost bars."
    return page.section("Columns", f'<div class="histograms">\n{"".join(drawn)}\n</div>', note)


def _unreadable(findings: Findings) -> str:
    bad = findings.measured.bad
    if not bad:
        return ""
    rows = [(findings.source.key(index), reason) for index, reason in bad[:_BAD]]
    note = f"{len(bad):,} images cannot be decoded." + shown(len(bad), _BAD, "the first")
    return page.section("Unreadable images", copied("readable") + page.table(("key", "reason"), rows), note)
