"""What an encoder said of a data set, as sections of its page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from ..look import page
from ..look.pictures import gallery
from .cards import GROUPS, PAIRS, Pictures, about_groups, cards, copied, group_cards, images, pair_cards, shown
from .findings import Findings
from .neighbours import OTHER, OWN

_NEAREST = 2  # neighbours beside an image whose label is doubtful


def encoder_sections(findings: Findings, show: Pictures) -> Iterator[str]:
    """Images of other sets, near duplicates, doubtful labels."""
    found = findings.meaning
    by, rule = f"by {found.asked.encoder.name}", f"of a cosine of {found.asked.cosine:g} or more"
    for other, pairs in zip(findings.overlaps, found.pairs):
        yield _overlap(findings, other, pairs, by, rule, show)
    yield _groups(findings, by, rule, show)
    if findings.source.classes is not None:
        yield _labels(findings, by, show)


def _overlap(findings: Findings, other, pairs: np.ndarray, by: str, rule: str, show: Pictures) -> str:
    name = f"Also in {other.source.name}, {by}"
    if not len(pairs):
        return page.section(name, "", f"No pair {rule}.")
    note = f"{len(np.unique(pairs[:, 1])):,} of its {len(other.source):,} images have a neighbour here {rule}."
    body = copied("not embedding_leaked") + pair_cards(findings.source, other.source, pairs, show)
    return page.section(name, body, note + shown(len(pairs), PAIRS))


def _groups(findings: Findings, by: str, rule: str, show: Pictures) -> str:
    groups = findings.meaning.groups
    if not groups:
        return page.section(f"Near duplicates, {by}", "", f"No neighbours {rule}.")
    body = copied("not embedding_duplicate") + group_cards(findings, groups, "embedding_duplicate", show)
    return page.section(f"Near duplicates, {by}", body, f"Neighbours {rule}. {about_groups(groups)}")


def _labels(findings: Findings, by: str, show: Pictures) -> str:
    source, doubts = findings.source, findings.meaning.doubts
    rule = f"less than {OWN:.0%} of the neighbours' votes are for the own class, and {OTHER:.0%} or more for another"
    if not doubts:
        return page.section(f"Doubtful labels, {by}", "", f"There is no image of which {rule}.")
    made = []
    for doubt in doubts[:GROUPS]:
        figures = [show.figure(source, doubt.image, f"is {findings.class_of(doubt.image)}")]
        figures += [show.figure(source, i, findings.class_of(i) or "no label") for i in doubt.nearest[:_NEAREST]]
        said = f"<p>{doubt.share:.0%} of the votes for {escape(source.classes[doubt.label])}</p>"
        made.append(f"<div>{gallery(figures)}{said}</div>")
    note = f"{images(len(doubts))} of which {rule}. Beside each are its nearest."
    return page.section(
        f"Doubtful labels, {by}", copied("not label_doubtful") + cards(made), note + shown(len(doubts), GROUPS)
    )
