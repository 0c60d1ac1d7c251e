"""All that a run directory says of its run, however much of it there is."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...pipelines.loaders.quarantine import QUARANTINE_FILE
from ...schema.yaml_nodes import Node, parse
from ...train.engine.checkpoint import checkpoints
from ...train.engine.run_directory import ENCODER_FILE
from .run_logs import Log, read_log
from .timing import elapsed

# how figures of evaluations begin
_SCORES = ("top", "mAP", "AP", "mIoU", "mAcc", "aAcc", "share", "held-out", "accuracy")
_COLLAPSED = 0.01  # of `spread`, as in train.interval


@dataclass(frozen=True)
class Setting:
    value: str
    origin: str  # "command line", "default", "configs/x.yaml:12"


@dataclass(frozen=True)
class Record:
    """What was found; what was not is empty, and named in `missing`."""

    folder: Path
    log: Log | None = None
    settings: dict[str, Setting] = field(default_factory=dict)  # by dotted key
    starts: list[dict] = field(default_factory=list)  # the environment of each start
    quarantine: list[dict] = field(default_factory=list)
    checkpoints: list[Path] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)  # of evaluations of this run's encoder
    has_encoder: bool = False  # which the last step leaves
    missing: list[str] = field(default_factory=list)

    def value(self, key: str) -> str | None:
        """What the recipe says, as text; None where that is nothing."""
        found = self.settings.get(key)
        return None if found is None or found.value == "null" else found.value

    @property
    def steps(self) -> int:
        """Taken, as far as they were logged."""
        return int(self.log.rows[-1]["step"]) if self.log else 0

    @property
    def total_steps(self) -> int | None:
        limit = self.value("train.max_steps")
        if limit is not None and limit.isdecimal():
            return int(limit)
        for row in reversed(self.log.rows if self.log else []):
            if "eta_s" in row and row.get("time"):
                return round(row["step"] + row["eta_s"] / row["time"])
        return None

    @property
    def state(self) -> str:
        of = f" of {self.total_steps:,}" if self.total_steps else ""
        finished = self.has_encoder and self.steps >= (self.total_steps or 0)
        return f"{'finished' if finished else 'not finished'}, step {self.steps:,}{of}"

    @property
    def hours(self) -> float | None:
        return elapsed(self.log.rows)[-1] if self.log and "time" in self.log.keys else None

    @property
    def bad_images(self) -> int:
        """How many images others stood in for: the entry of a stream's lost shard is about many."""
        counts: dict[object, int] = {}
        for entry in self.quarantine:
            missing, index = entry.get("missing"), str(entry.get("index"))
            counts[index] = max(counts.get(index, 1), missing if isinstance(missing, int) else 1)
        return sum(counts.values())

    def values(self, key: str) -> np.ndarray:
        """A figure's finite values in the order of steps; empty where it was not logged."""
        found = self.log.series(key)[1] if self.log and key in self.log.keys else []
        return np.array([value for value in found if np.isfinite(value)])

    def warnings(self) -> list[str]:
        """What a person should look at."""
        found = list(self.missing)
        if self.log:
            left_out = sum(row.get("skipped", 0) for row in self.log.rows)
            if left_out:
                found.append(f"{int(left_out):,} steps were left out: their loss or gradient was not finite.")
            losses = self.log.series("loss")[1] if "loss" in self.log.keys else []
            if losses and not np.isfinite(losses[-1]):
                found.append("The last loss is not finite.")
            spread = [row["spread"] < _COLLAPSED for row in self.log.rows if "spread" in row]
            if any(all(spread[i : i + 3]) for i in range(len(spread) - 2)):
                found.append("The embeddings of different images were all but the same: the training collapsed.")
        wait = self.values("data_wait")
        if wait.size and np.median(wait) > 0.1:
            found.append(
                f"Half of the time, {np.median(wait):.0%} or more of a step was waiting for data: headrace doctor."
            )
        if self.quarantine:
            found.append(f"Images that could not be decoded and were replaced by others: {self.bad_images:,}.")
        found += [
            f"{path.name} is left of a batch whose loss was not finite."
            for path in sorted(self.folder.glob("not-finite-*.pt"))
        ]
        found += [
            f"{path.name} is no complete checkpoint." for path in self.checkpoints if not zipfile.is_zipfile(path)
        ]
        for key in ("headrace", "commit", "device"):
            kinds = list(dict.fromkeys(str(start.get(key)) for start in self.starts))
            if len(kinds) > 1:
                found.append(f"The run was continued with another {key}: {', '.join(kinds)}.")
        return found


def read_record(folder: Path, results: Path | None = None) -> Record:
    """A run directory; `results`: the file that evaluations of its encoder were written to.

    Raises `UserError` only for what is no run directory at all.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run directory")
    missing: list[str] = []
    settings = _settings(folder / "config.yaml", missing)
    try:
        log = read_log(folder / "metrics.jsonl")
    except UserError as fault:
        log = None
        missing.append(f"No curves: {fault}")
    starts = _json_lines(folder / "environment.jsonl", missing)
    bad = _json_lines(folder / QUARANTINE_FILE, missing) if (folder / QUARANTINE_FILE).exists() else []
    saved = checkpoints(folder)
    if not (settings or log or starts or saved):
        raise UserError(f"{folder}: is no run directory: it has neither config.yaml nor metrics.jsonl nor checkpoints")
    if not saved:
        missing.append("No checkpoint has been written.")
    scores = _scores(results, folder) if results is not None else {}
    encoder = (folder / ENCODER_FILE).exists()
    return Record(folder, log, settings, starts, bad, saved, scores, encoder, missing)


def _settings(file: Path, missing: list[str]) -> dict[str, Setting]:
    """The resolved recipe, whose lines end with the origins of their values."""
    try:
        text = file.read_text(encoding="utf-8")
        tree = parse(text, lambda line: f"{file.name}:{line}")
    except (OSError, UnicodeDecodeError, UserError) as fault:
        missing.append(f"No configuration: {str(fault).splitlines()[0]}")
        return {}
    origins = [line.rpartition("  # ")[2] if "  # " in line else "" for line in text.split("\n")]
    return {
        key: Setting(_text(node), origins[int(node.origin.rpartition(":")[2]) - 1]) for key, node in _leaves(tree, "")
    }


def _leaves(node: Node, key: str) -> Iterator[tuple[str, Node]]:
    """Values by dotted key, but for mappings, and lists with mappings in them, which are gone into."""
    if isinstance(node.value, dict) and node.value:
        for name, child in node.value.items():
            yield from _leaves(child, f"{key}.{name}" if key else name)
    elif isinstance(node.value, list) and any(isinstance(item.value, dict) for item in node.value):
        for number, child in enumerate(node.value):
            yield from _leaves(child, f"{key}[{number}]")
    else:
        yield key, node


def _text(node: Node) -> str:
    if isinstance(node.value, list):
        return f"[{', '.join(map(_text, node.value))}]"
    return node.value if isinstance(node.value, str) else "{}" if node.value == {} else str(node)


def _json_lines(file: Path, missing: list[str]) -> list[dict]:
    try:
        texts = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as fault:
        missing.append(f"{file.name} cannot be read: {fault.strerror}.")
        return []
    found, damaged = [], 0
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            found.append(line)
        else:
            damaged += 1
    if damaged:
        missing.append(f"{damaged} lines of {file.name} are damaged.")
    return found


def _scores(results: Path, folder: Path) -> dict[str, float]:
    """Figures of the evaluations whose encoder lies in the run directory; of equal ones the last counts."""
    if not results.exists():
        return {}
    found, place = {}, folder.resolve()
    for row in _json_lines(results, []):
        encoder = row.get("encoder")
        name = encoder.get("name") if isinstance(encoder, dict) else None
        if not isinstance(name, str) or not Path(name).resolve().is_relative_to(place):
            continue
        data = row.get("data") if isinstance(row.get("data"), dict) else {}
        on = data.get("val") or data.get("voc") or data.get("cue conflict")
        title = f"{row.get('protocol')} on {on}" if on else str(row.get("protocol"))
        figures = row.get("figures")
        if isinstance(figures, dict) and isinstance(figures.get("rows"), list):  # of detect and segment
            figures = figures["rows"]
        for entry in figures if isinstance(figures, list) else [figures]:
            if isinstance(entry, dict):
                found |= _entry(title, entry, named=isinstance(figures, list))
    return found


def _entry(title: str, entry: dict, named: bool) -> dict[str, float]:
    """The scores of one set of figures; `named` by the other scalars, where there are several sets."""
    scores = {k: v for k, v in entry.items() if k.startswith(_SCORES) and isinstance(v, (int, float))}
    rest = [f"{k} {v}" for k, v in entry.items() if k not in scores and isinstance(v, (int, float, str))]
    return {", ".join([title, *(rest if named else []), key]): float(value) for key, value in scores.items()}
