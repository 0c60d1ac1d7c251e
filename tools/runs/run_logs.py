"""What runs have logged: those of headrace, MMEngine (MMSelfSup and MMPretrain 1.x) and MMCV (MMSelfSup 0.x)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from ...errors import UserError

_PLACE = ("step", "epoch", "iter", "mode", "eta_s")  # of a row, not a figure of it


@dataclass(frozen=True)
class Log:
    """Rows in the order of steps, each a flat mapping of names to numbers with a `step`, counted from 1.

    `epoch` and `time` (seconds of a step) are there where the log has them. A row of scores alone (accuracy after an
    epoch) has the step after which they were taken, and neither `time` nor `loss`.
    """

    name: str
    rows: list[dict[str, float]]

    @property
    def keys(self) -> list[str]:
        """Every figure that some row has."""
        return [key for key in dict.fromkeys(key for row in self.rows for key in row) if key not in _PLACE]

    def series(self, key: str) -> tuple[list[dict[str, float]], list[float]]:
        """The rows that have a figure, and its values. Raises `UserError` where none has."""
        rows = [row for row in self.rows if key in row]
        if not rows:
            raise UserError(f"{self.name}: logs no {key!r}; it has {', '.join(self.keys)}")
        return rows, [row[key] for row in rows]


def read_log(path: Path) -> Log:
    """The log of a run directory, a work directory of MMEngine or MMCV, or one file of JSON lines.

    What a resumed run wrote again counts, not what it replaced. Raises `UserError` where there is no such log.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a run directory or a log of JSON lines")
    files = _files(path)
    lines = [line for file in files for line in _lines(file)]
    rows = _own(files[0], lines) if any("images_per_s" in line for line in lines) else _foreign(lines)
    if not rows:
        raise UserError(f"{files[0]}: no row of it has a step or an iteration; it is no log of a training run")
    return Log(str(path), _last_written(rows))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / "metrics.jsonl").exists():
        return [path / "metrics.jsonl"]
    for pattern in ("vis_data/scalars.json", "*/vis_data/scalars.json", "*.log.json"):
        if found := sorted(path.glob(pattern)):  # several after a resume: their names begin with the time
            return found
    raise UserError(f"{path}: holds no metrics.jsonl, */vis_data/scalars.json or *.log.json; nothing was logged there")


def _lines(file: Path) -> list[dict]:
    """The objects of a file; lines that are cut short or none are passed over."""
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise UserError(f"{file}: cannot be read ({fault})") from None
    found = []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        found += [line] if isinstance(line, dict) else []
    if not found:
        raise UserError(f"{file}: has no JSON object on a line of its own; give metrics.jsonl or a *.json log")
    return found


def _numbers(line: dict) -> dict[str, float]:
    return {k: v for k, v in line.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def _own(file: Path, lines: list[dict]) -> list[dict[str, float]]:
    """Metrics beside the rest; `time` from images_per_s and the batch size in the config.yaml beside the file."""
    batch = _batch_size(file.with_name("config.yaml"))
    rows = []
    for line in lines:
        row = _numbers(line) | _numbers(line.get("metrics") or {})
        if batch and row.get("images_per_s", 0) > 0:
            row["time"] = batch / row["images_per_s"]
        rows += [row] if "step" in row else []
    return rows


def _batch_size(config: Path) -> int | None:
    try:
        return int(yaml.safe_load(config.read_text(encoding="utf-8"))["train"]["batch_size"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return None


def _foreign(lines: list[dict]) -> list[dict[str, float]]:
    """MMEngine counts `iter` from the start of the run, MMCV from that of the epoch, whose length it does not say:
    an epoch is taken to be as long as the last iteration logged of any."""
    trained = [line for line in lines if _is_training(line)]
    local = any(line.get("mode") == "train" for line in trained) and _restarts(trained)
    length = max((line["iter"] for line in trained), default=0) if local else 0
    rows, step, epoch = [], 0, None
    for line in lines:
        row = _numbers(line)
        if _is_training(line):
            step, epoch = row["iter"] + length * (row.get("epoch", 1) - 1 if local else 0), row.get("epoch")
        elif not (row.keys() - set(_PLACE)) or not ({"step", "iter", "epoch"} & row.keys()):
            continue  # a header
        else:
            row = {key: value for key, value in row.items() if key not in ("time", "data_time", "lr", "memory")}
            step = step or row.get("step", 0)  # a validation alone
        row["step"] = step
        if epoch is not None:
            row["epoch"] = epoch
        rows.append(row)
    return rows


def _is_training(line: dict) -> bool:
    known = isinstance(line.get("iter"), int) and line.get("mode", "train") == "train"
    return known and any(key == "lr" or "loss" in key for key in line)


def _restarts(trained: list[dict]) -> bool:
    """Whether iterations begin anew with an epoch; of a single epoch both ways of counting are one."""
    pairs = zip(trained, trained[1:])
    return any(b["iter"] <= a["iter"] and b.get("epoch", 1) > a.get("epoch", 1) for a, b in pairs)


def _last_written(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    kept: list[dict[str, float]] = []
    for row in rows:
        while kept and (kept[-1]["step"] > row["step"] or (kept[-1]["step"] == row["step"] and "time" in row)):
            kept.pop()
        kept.append(row)
    return kept


def epoch_length(rows: list[dict[str, float]]) -> int | None:
    """Steps of an epoch: the fewest with which every row falls into its epoch; exact if a row ends an epoch.

    headrace counts epochs from 0, MMEngine and MMCV from 1. None where no epoch is logged, or one only.
    """
    placed = [(row["step"], row["epoch"]) for row in rows if "epoch" in row]
    first = min((epoch for _, epoch in placed), default=0)
    if all(epoch == first for _, epoch in placed):
        return None
    return max(int((step - 1) // (epoch - first + 1)) for step, epoch in placed) + 1
