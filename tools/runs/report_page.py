"""What a run directory says, as a page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch

from ...train.engine.metrics import read_metrics
from ..look import page
from ..look.browse_page import SAMPLES_STYLE, samples_html
from ..look.pictures import PICTURES_STYLE
from ..look.reconstruct import Restoration
from ..look.samples import Sample
from .charts import Chart, to_svg
from .run_figures import charts, figures, scores
from .run_record import Record

REPORT_STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(360px, 100%), 1fr)); gap: .5rem 1.5rem;
  margin-top: .5rem; }
.charts svg { display: block; width: 100%; height: auto; max-width: 560px; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: .8rem 1rem;
  margin: .7rem 0 0; }
.figures dt { font-size: .8rem; }
.figures dd { font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(540px, 100%), 1fr)); gap: 0 1rem; }
.samples .tiles { grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: .8rem; }
.rows { display: grid; gap: .35rem .5rem; align-items: center; }
.rows img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.rows p { margin: .3rem 0 0; font-size: .82rem; color: var(--soft); grid-column: 1 / -1; }
.warnings { margin: .4rem 0 0; padding: 0; list-style: none; }
.warnings li { margin: .35rem 0; padding: .45rem .7rem; border-left: 4px solid var(--warn);
  background: var(--warn-ground); border-radius: 4px; overflow-wrap: anywhere; }
.fine { color: var(--good); }
details { margin-top: .7rem; }
summary { cursor: pointer; color: var(--soft); }
td:first-child { white-space: nowrap; }
.settings td { overflow-wrap: anywhere; }
.settings td:nth-child(3) { color: var(--soft); }
@media (max-width: 480px) { .figures { grid-template-columns: repeat(2, 1fr); } td:first-child { white-space: normal; }
  .settings tr, .settings td { display: block; } .settings td, .settings tr { border: 0; padding: 0; }
  .settings td:first-child { font-weight: 600; } .settings th { display: none; }
  .settings tr { padding: .3rem 0; border-bottom: 1px solid var(--line); } }
"""


def render_report(
    record: Record,
    samples: Sequence[Sample] | str,
    restored: Restoration | str,
    ledger: str = "",
) -> str:
    """The page. Where there are no samples or nothing is restored, a text says why; `ledger` is a section."""
    parts = [
        _warnings(record),
        _figures(record),
        _curves(record),
        _sets(record),
        _knn(record),
        _scores(record),
        _views(samples),
        _restored(restored),
        ledger,
    ]
    parts += [_settings(record), _environment(record), _quarantine(record), _checkpoints(record)]
    name = record.folder.resolve().name
    return page.render(
        f"Run {name}", _facts(record), "\n".join(filter(None, parts)), SAMPLES_STYLE + REPORT_STYLE + PICTURES_STYLE
    )


def charts_html(drawn: Sequence[Chart]) -> str:
    return f'<div class="charts">\n{"".join(to_svg(chart, n) for n, chart in enumerate(drawn))}\n</div>'


def _facts(record: Record) -> dict[str, str]:
    found = {"state": record.state, "folder": str(record.folder)}
    algorithm, backbone = (record.value(f"algorithm.{key}") for key in ("name", "backbone.name"))
    if algorithm:
        found["method"] = f"{algorithm} with {backbone}" if backbone else algorithm
    if record.value("data.train"):
        found["data"] = record.value("data.train")
    if record.value("train.batch_size"):
        found["batch"] = record.value("train.batch_size")
    last = record.starts[-1] if record.starts else {}
    if last:
        kind = "GPU" if last.get("cuda") else "CPU cores" if last.get("cores") != 1 else "CPU core"
        count = last.get("processes") if last.get("cuda") else last.get("cores")
        found["machine"] = f"{count} {kind}, {last.get('device')}"
    if (record.folder / "metrics.jsonl").exists():
        found["last row"] = _when(record.folder / "metrics.jsonl")
    return found


def _warnings(record: Record) -> str:
    found = record.warnings()
    if not found:
        return page.section("Warnings", '<p class="fine">None.</p>')
    return page.section(
        "Warnings", f'<ul class="warnings">{"".join(f"<li>{escape(text)}</li>" for text in found)}</ul>'
    )


def _figures(record: Record) -> str:
    if record.log is None:
        return ""
    items = [f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in figures(record).items()]
    note = "Speed, waiting and step time are medians over the rows of the log."
    return page.section("Figures", f'<dl class="figures">{"".join(items)}</dl>', note)


def _scores(record: Record) -> str:
    return page.section("Evaluations", page.table(("", "figure"), scores(record).items())) if record.scores else ""


def _curves(record: Record) -> str:
    if record.log is None:
        return page.section("Curves", "", "Nothing was logged.")
    return page.section(
        "Curves", charts_html(charts([record.log], [record.folder.name])), "Means over the logging interval."
    )


def _sets(record: Record) -> str:
    """Of a run over several sets: what it read of each, how that was learnt, what it waited for."""
    logged = read_metrics(record.folder) if (record.folder / "metrics.jsonl").exists() else []
    rows = [row["sets"] for row in logged if isinstance(row.get("sets"), dict)]
    if not rows:
        return ""
    images = {name: sum(row.get(name, {}).get("images", 0) for row in rows) for name in rows[-1]}
    total, cells = max(1, sum(images.values())), []
    for name, last in rows[-1].items():
        losses = [row[name]["loss"] for row in rows if "loss" in row.get(name, {})]
        waits = [row[name]["data_wait"] for row in rows if "data_wait" in row.get(name, {})]
        cells.append(
            (
                name,
                f"{images[name]:,}",
                f"{images[name] / total:.1%}",
                f"{losses[0]:.4g}" if losses else "",
                f"{losses[-1]:.4g}" if losses else "",
                f"{np.median(waits):.1%}" if waits else "",
                f"{last['bad']:,}" if "bad" in last else "",
            )
        )
    head = ("set", "images read", "share", "first loss", "last loss", "data wait", "bad images")
    note = "Losses are means over the logging interval; waiting is the median of its rows, shared out among the sets."
    return page.section("Sets", page.table(head, cells), note)


def _knn(record: Record) -> str:
    if record.log is None or "knn" not in record.log.keys:
        return ""
    rows, values = record.log.series("knn")
    cells = [
        (f"{row['step']:,.0f}", f"{row.get('epoch', 0) + 1:,.0f}", f"{value:.2%}") for row, value in zip(rows, values)
    ]
    return page.section("k-NN on the way", page.table(("after step", "epochs", "accuracy"), cells))


def _views(samples: Sequence[Sample] | str) -> str:
    if isinstance(samples, str):
        return page.section("Views and masks", "", samples)
    note = "The first samples of epoch 0, as training saw them: the whole image, its views, what was drawn for them."
    return page.section("Views and masks", "", note) + f'\n<div class="samples">{samples_html(samples)}</div>'


def _restored(restored: Restoration | str) -> str:
    if isinstance(restored, str):
        return page.section("Reconstructions", "", restored)
    return page.section("Reconstructions", rows_html(restored.rows), restored.note)


def rows_html(rows: dict[str, torch.Tensor]) -> str:
    """Rows of pictures (B, S, S, 3), one column a sample; on a narrow screen they scroll together."""
    count = len(next(iter(rows.values())))
    cells = []
    for name, images in rows.items():
        cells.append(f"<p>{escape(name)}</p>")
        for number, image in enumerate(images.numpy(), 1):
            height, width = image.shape[:2]
            label = escape(f"{name} {number}")
            uri = page.data_uri(image, "PNG")
            cells.append(f'<img src="{uri}" alt="{label}" width="{width}" height="{height}">')
    columns = f"grid-template-columns: repeat({count}, minmax(84px, 150px))"
    return f'<div class="scroll"><div class="rows" style="{columns}">\n{"".join(cells)}\n</div></div>'


def _settings(record: Record) -> str:
    if not record.settings:
        return ""
    rows = [(key, s.value, _short(s.origin)) for key, s in record.settings.items()]
    chosen = [row for row in rows if row[2] != "default"]
    head = ("key", "value", "from")
    rest = len(rows) - len(chosen)
    body = f'<div class="settings">{page.table(head, chosen)}</div>'
    body += f"<details><summary>all {len(rows)} values, {rest} of them at their defaults</summary>"
    body += f'<div class="settings">{page.table(head, rows)}</div></details>'
    return page.section("Configuration", body, "What is not at its default, and where it was set.")


def _short(origin: str) -> str:
    return "/".join(origin.split("/")[-2:])


def _environment(record: Record) -> str:
    if not record.starts:
        return page.section("Environment", "", "Not recorded.")
    parts = []
    for number, start in enumerate(record.starts, 1):
        packages, kernels = (
            start.get(key) if isinstance(start.get(key), dict) else {} for key in ("packages", "kernels")
        )
        chosen: dict[str, list[str]] = {}
        for operator, choice in kernels.items():
            chosen.setdefault(str(choice), []).append(str(operator))
        rows = [
            (key, _plain(start.get(key)))
            for key in ("headrace", "commit", "python", "device", "cuda", "processes", "cores")
        ]
        rows += [("packages", ", ".join(f"{name} {version}" for name, version in packages.items()))]
        rows += [(f"kernels: {choice}", ", ".join(names)) for choice, names in chosen.items()]
        rows += [("command", _plain(start.get("command")))]
        title = f"<details{' open' if number == len(record.starts) else ''}><summary>start {number}</summary>"
        parts.append(f'{title}<div class="settings">{page.table(("", ""), rows)}</div></details>')
    return page.section("Environment", "\n".join(parts))


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value)


def _quarantine(record: Record) -> str:
    if not record.quarantine:
        return page.section("Quarantine", "", "Every image that was needed could be decoded.")
    shown = record.quarantine[:200]
    rows = [[_plain(entry.get(key)) for key in ("index", "shard", "key", "reason")] for entry in shown]
    note = f"Images that others stood in for: {record.bad_images:,}"
    note += "; the first 200:" if len(record.quarantine) > 200 else "."
    return page.section("Quarantine", page.table(("sample", "shard", "key", "reason"), rows), note)


def _checkpoints(record: Record) -> str:
    if not record.checkpoints:
        return page.section("Checkpoints", "", "None.")
    files = record.checkpoints + [f for f in [record.folder / "encoder.safetensors"] if f.exists()]
    rows = [(f.name, f"{f.stat().st_size / 1e6:,.1f} MB", _when(f)) for f in files]
    return page.section("Checkpoints", page.table(("file", "size", "written"), rows))


def _when(file: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))
