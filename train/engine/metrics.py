"""What a run says while it runs: a live line on a terminal, a log line elsewhere, and metrics.jsonl always."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .trackers import Tracker

_TRACKED = ("loss", "lr", "images_per_s", "data_wait")
_COLUMNS = ("loss {loss:.4f}", "lr {lr:.2e}", "{images_per_s:,.0f} img/s", "data wait {data_wait:.1%}")


def describe(row: dict) -> str:
    """One row of metrics for a person."""
    parts = [text.format(**row) for text in _COLUMNS]
    parts += [f"{name} {value:.4g}" for name, value in row.get("metrics", {}).items()]
    if "skipped" in row:
        parts.append(f"{row['skipped']} steps left out, their gradient was not finite")
    return " · ".join(parts + [f"ETA {duration(row['eta_s'])}"])


def duration(seconds: float) -> str:
    """1:02:03 or 2:03"""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class MetricsLog:
    """Appends rows to ``metrics.jsonl`` and shows them; does nothing on ranks other than the first.

    Rows of steps from `first_step` on are removed at the start: a resumed run writes them again.
    """

    def __init__(
        self, folder: Path, first_step: int, total_steps: int, enabled: bool, trackers: Sequence[Tracker] = ()
    ) -> None:
        self._enabled, self._total, self._trackers = enabled, total_steps, trackers
        if not enabled:
            return
        path = folder / "metrics.jsonl"
        kept = (
            [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= first_step]
            if path.exists()
            else []
        )
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = open(path, "a", encoding="utf-8", buffering=1)
        self._progress = None
        if sys.stdout.isatty():
            columns = (
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
            )
            self._progress = Progress(*columns, console=Console(soft_wrap=True))
            self._task = self._progress.add_task("starting", total=total_steps, completed=first_step)
            self._progress.start()

    def row(self, row: dict) -> None:
        if not self._enabled:
            return
        self._file.write(json.dumps(row) + "\n")
        for tracker in self._trackers:
            tracker(row["step"], {key: row[key] for key in _TRACKED} | row.get("metrics", {}))
        if self._progress:
            self._progress.update(self._task, completed=row["step"], description=describe(row))
        else:
            print(f"step {row['step']}/{self._total} · {describe(row)}", flush=True)

    def warn(self, text: str | None) -> None:
        """Something to be read by a person, on a line of its own."""
        if self._enabled and text:
            print(f"headrace: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._enabled and not self._file.closed:
            self._file.close()
            for tracker in self._trackers:
                tracker.close()
            if self._progress:
                self._progress.stop()


def _step(line: str) -> float:
    """The step of a row; a line cut short by a kill counts as infinitely late."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_metrics(folder: Path) -> list[dict]:
    """All complete rows of a run, in order."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if _step(line) != float("inf")]
