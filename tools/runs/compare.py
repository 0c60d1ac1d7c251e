"""Runs side by side: ``headrace compare <run> <run> ...``: what was set differently, and what came of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from html import escape

from ...errors import UserError
from ...places import new_file, place, write_file
from ..columns import aligned
from ..look import page
from .curves import short_names
from .report_page import REPORT_STYLE, charts_html
from .run_figures import charts, figures, scores
from .run_record import Record, read_record

_NOTHING = "-"
_OWN = ("train.out", "description")  # differ without a difference
_ENVIRONMENT = ("headrace", "commit", "python", "device", "cuda", "processes", "cores")

Rows = dict[str, list[str]]  # name -> a text for each run


def differing_settings(records: Sequence[Record]) -> Rows:
    """Dotted keys whose values are not the same in all runs; a key that a run does not have has no value there."""
    keys = dict.fromkeys(key for record in records for key in record.settings if key not in _OWN)
    rows = {
        key: [record.settings[key].value if key in record.settings else _NOTHING for record in records] for key in keys
    }
    return {key: texts for key, texts in rows.items() if len(set(texts)) > 1}


def differing_environments(records: Sequence[Record]) -> Rows:
    """Of the last starts: versions, hardware and kernels that are not the same."""
    found: list[dict[str, str]] = []
    for record in records:
        last = record.starts[-1] if record.starts else {}
        flat = {key: str(last[key]) for key in _ENVIRONMENT if last.get(key) is not None}
        for group in ("packages", "kernels"):
            parts = last.get(group) if isinstance(last.get(group), dict) else {}
            flat |= {f"{group}.{name}": str(value) for name, value in parts.items()}
        found.append(flat)
    return {key: texts for key, texts in _together(found).items() if len(set(texts)) > 1}


def outcomes(records: Sequence[Record]) -> Rows:
    """Figures of the runs and of evaluations of their encoders."""
    return _together([figures(record) | scores(record) for record in records])


def _together(parts: Sequence[dict[str, str]]) -> Rows:
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: [part.get(key, _NOTHING) for part in parts] for key in keys}


def caveats(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    """What keeps figures from being compared, and what could not be read."""
    found = [f"{name}: {text}" for record, name in zip(records, names) for text in record.missing]
    for key, what in (
        ("algorithm.name", "Methods differ: their losses measure different things."),
        ("algorithm.normalize_pixels", "Targets differ: losses are not in the same scale."),
        ("train.batch_size", "Batches differ: equal steps have not seen equally many images."),
    ):
        if len({record.value(key) for record in records}) > 1:
            found.append(what)
    devices = {record.starts[-1].get("device") for record in records if record.starts}
    if len(devices) > 1:
        found.append("Machines differ: so does their speed.")
    return found


def render_comparison(records: Sequence[Record], names: Sequence[str]) -> str:
    parts = []
    if notes := caveats(records, names):
        items = "".join(f"<li>{escape(text)}</li>" for text in notes)
        parts.append(page.section("Before comparing", f'<ul class="warnings">{items}</ul>'))
    for title, rows in _tables(records):
        body = page.table(("", *names), [(key, *texts) for key, texts in rows.items()]) if rows else ""
        parts.append(page.section(title, body, "" if rows else "None."))
    logged = [(record.log, name) for record, name in zip(records, names) if record.log is not None]
    if logged:
        parts.append(page.section("Curves", charts_html(charts(*zip(*logged)))))
    facts = {name: f"{record.folder}: {record.state}" for name, record in zip(names, records)}
    return page.render(
        " and ".join(names) if len(names) == 2 else "Runs compared", facts, "\n".join(parts), REPORT_STYLE
    )


def _tables(records: Sequence[Record]) -> list[tuple[str, Rows]]:
    return [
        ("What came out", outcomes(records)),
        ("Settings that differ", differing_settings(records)),
        ("Environments that differ", differing_environments(records)),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace compare", description="Runs side by side: what was set differently, and what came of it."
    )
    parser.add_argument("runs", nargs="+", type=place, metavar="run", help="run directories, finished or not")
    parser.add_argument(
        "--html", type=new_file, metavar="FILE", help="write it as a page, too, with the curves overlaid"
    )
    parser.add_argument("--results", type=place, default="evaluation.jsonl", help="figures of evaluations to include")
    arguments = parser.parse_args(argv)
    if len(arguments.runs) < 2:
        raise UserError("compare: needs two runs or more; headrace report shows one")
    records = [read_record(run, arguments.results) for run in arguments.runs]
    names = short_names([str(run) for run in arguments.runs])
    for note in caveats(records, names):
        print(f"note: {note}")
    for title, rows in _tables(records):
        print(f"\n{title}" + ("" if rows else ": none"))
        if rows:
            print(
                "\n".join(f"  {line}" for line in aligned([("", *names), *((k, *texts) for k, texts in rows.items())]))
            )
    if arguments.html:
        try:
            arguments.html.parent.mkdir(parents=True, exist_ok=True)
            write_file(arguments.html, render_comparison(records, names).encode("utf-8", "replace"))
        except OSError as fault:
            raise UserError(f"--html: {arguments.html} cannot be written ({fault.strerror})") from None
        print(f"\n{arguments.html}")
    return 0
