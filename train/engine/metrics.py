"""What a run says while it runs: a live line on a terminal, a log line elsewhere, and metrics.jsonl always."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from ...errors import UserError
from .run_directory import write_whole
from .trackers import Tracker

NEWLINE = b"\n"
_TRACKED = ("loss", "lr", "images_per_s", "data_wait")
_SHOWN_SETS = 4  # whose losses the console shows; more are in the file
_COLUMNS = ("loss {loss:.4f}", "lr {lr:.2e}", "{images_per_s:,.0f} img/s", "data wait {data_wait:.1%}")


def describe(row: dict) -> str:
    """One row of metrics for a person."""
    parts = [text.format(**row) for text in _COLUMNS]
    parts += [f"{name} {value:.4g}" for name, value in row.get("metrics", {}).items()]
    losses = [f"{name} {own['loss']:.4g}" for name, own in row.get("sets", {}).items() if "loss" in own]
    parts += [f"loss of {', '.join(losses)}"] if 0 < len(losses) <= _SHOWN_SETS else []
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

    Nothing here ends a run: rows that cannot be written wait until they can, a tracker that fails is left out from then
    on, and what a console cannot take is lost.
    """

    def __init__(
        self, folder: Path, first_step: int, total_steps: int, enabled: bool, trackers: Sequence[Tracker] = ()
    ) -> None:
        self._enabled, self._total, self._trackers = enabled, total_steps, list(trackers)
        if not enabled:
            return
        path = folder / "metrics.jsonl"
        try:
            self._file = open(path, "ab+", buffering=0)
            _cut(self._file, first_step)
        except OSError as fault:
            raise UserError(f"{path}: cannot be written ({fault.strerror}); choose another train.out") from None
        self._waiting, self._told = b"", False  # what is not in the file yet, and whether that was said
        self._progress = None
        if sys.stdout.isatty():
            from rich.console import Console  # 0.1 s of a core, which logs do not need
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
            )
            self._progress = Progress(*columns, console=Console(soft_wrap=True))
            self._task = self._progress.add_task("starting", total=total_steps, completed=first_step)
            with suppress(OSError):
                self._progress.start()

    def row(self, row: dict) -> None:
        if not self._enabled:
            return
        self._waiting += json.dumps(row).encode() + b"\n"
        self._write()
        of_sets = {f"sets/{name}/{key}": v for name, own in row.get("sets", {}).items() for key, v in own.items()}
        for tracker in list(self._trackers):
            try:
                tracker(row["step"], {key: row[key] for key in _TRACKED} | row.get("metrics", {}) | of_sets)
            except Exception as fault:  # of another library: whatever it is, the run does not need it
                self._trackers.remove(tracker)
                self.warn(f"train.trackers: {type(tracker).__name__} failed ({fault}) and is left out from now on")
        with suppress(OSError):
            if self._progress:
                self._progress.update(self._task, completed=row["step"], description=describe(row))
        if not self._progress:
            say(f"step {row['step']}/{self._total} · {describe(row)}")

    def _write(self) -> None:
        """In append mode and unbuffered, so that a row that a full disk cut in two goes on where it was cut."""
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as fault:
            if not self._told:
                self.warn(f"{self._file.name}: cannot be written ({fault.strerror}); the run goes on, its rows wait")
            self._told = True

    def warn(self, text: str | None) -> None:
        """Something to be read by a person, on a line of its own."""
        if self._enabled and text:
            say(f"headrace: {text}", sys.stderr)

    def close(self) -> None:
        if not self._enabled or self._file.closed:
            return
        self._write()
        if self._waiting:
            self.warn(
                f"{self._file.name}: its last {self._waiting.count(NEWLINE)} rows are lost, they could not be written"
            )
        self._file.close()
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception as fault:
                self.warn(f"train.trackers: {type(tracker).__name__} did not end well ({fault})")
        with suppress(OSError):
            if self._progress:
                self._progress.stop()


def say(text: str, stream: TextIO | None = None) -> None:
    """A line on the console, or nowhere if that has gone: neither a closed terminal nor a full disk ends a run."""
    with suppress(OSError):
        print(text, file=stream or sys.stdout, flush=True)


def _cut(file: BinaryIO, first_step: int) -> None:
    """Ends a log before its first row of a step after `first_step`, in place, which takes no space."""
    file.seek(0)
    kept = 0
    for line in file.read().splitlines(keepends=True):
        if not line.endswith(NEWLINE) or _step(line) > first_step:
            break
        kept += len(line)
    file.truncate(kept)


def renumber(folder: Path, count: Callable[[int], int]) -> None:
    """Gives every row the step that `count` makes of its own: the run goes on with steps of another size."""
    path = folder / "metrics.jsonl"
    if path.exists():
        rows = [row | {"step": count(row["step"])} for row in read_metrics(folder)]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _step(line: str | bytes) -> float:
    """The step of a row; a line cut short by a kill counts as infinitely late."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_metrics(folder: Path) -> list[dict]:
    """All complete rows of a run, in order."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if _step(line) != float("inf")]
