"""Whether our loader has become slower: ``python -m headrace.benchmarks.gate``, exit code 1 if it has.

Ours and one peer, torchvision v2 as a user would write it, make the same views of the same generated photos in this
process, one worker each, in turn. The figure is a ratio of both from the same minute, of CPU time per image: what else
runs on a machine stretches wall time at random, CPU time hardly, and what is left of it meets both. It is compared with
the ratio in the ledger ``gate.jsonl``: the median of the last day on which this processor was measured, else the lowest
of those of other processors.

A job fails if its ratio is more than 15 % below the recorded one, and more than the spread: the best fifth of this
run's turns must lie below the worst fifth of the recorded ones. A failure is measured once more, with twice the turns,
and counts if it is found again: with other work on the machine, one run in some hundreds has a bad minute, and two in
a row are then as good as impossible, while a slower loader is slower every time.

``--record`` appends what is measured to the ledger instead of comparing. ``--handicap 0.25`` makes ours slower by that
share, to see the gate fail. The loop's overhead takes longer to measure than fits here: see overhead.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from headrace.errors import UserError, run_command
from headrace.pipelines.views.recipes import VIEWS

from .jobs import JOBS, Job
from .record import add_out, append, processor, read, spread

GATED = ("mae", "two-views")  # decoding and cropping; colours and blur
OURS, PEER = "headrace cpu", "torchvision v2"
_SECONDS = 0.6  # of CPU time a turn, after `_WARM` batches that are not counted
_BATCH, _WARM, _TURNS, _IMAGES = 16, 3, 12, 96
_ALLOWED = 0.15


def photos(folder: Path, count: int = _IMAGES) -> Path:
    """JPEGs of 500 x 375 px and about 90 kB whose spectrum falls as that of photos does; the same on every machine."""
    across, down = np.meshgrid(np.fft.rfftfreq(500), np.fft.fftfreq(375))
    falling = 1 / np.maximum(np.hypot(across, down), 1 / 500) ** 1.2
    for index in range(count):
        rng = np.random.default_rng(index)
        planes = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(3, 375, 500))) * falling, (375, 500))
        planes = planes[:1] + 0.3 * planes[1:].mean(0) + 0.3 * planes  # colours go together
        planes = (planes - planes.mean()) / planes.std() * 50 + 120 + rng.uniform(-30, 30, (3, 1, 1))
        path = folder / "photos" / f"{index:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(planes.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(path, quality=92)
    return folder


def turn(batches: Iterator, seconds: float = _SECONDS, handicap: float = 0.0) -> float:
    """CPU microseconds per image of this process over `seconds` of CPU time; ends the iterator."""
    with closing(batches):
        for _ in range(_WARM):
            next(batches)
        began, images = time.process_time(), 0
        while (spent := time.process_time() - began) < seconds:
            next(batches)
            images += _BATCH
        while time.process_time() - began < spent * (1 + handicap):
            pass
        return 1e6 * (time.process_time() - began) / images


def measure(folder: Path, name: str, turns: int, handicap: float = 0.0) -> dict:
    """How many times the CPU time of ours the peer takes for a job: median and spread over turns in turn."""
    recipe, _ = JOBS[name]
    job = Job(folder, VIEWS[recipe], 1, _BATCH, folder)
    wrong = job.check([OURS])
    if wrong:
        raise AssertionError(f"{name}: {wrong}")
    costs: dict[str, list[float]] = {OURS: [], PEER: []}
    for number in range(turns + 1):
        for contender in costs:
            job.workers = 1 if contender == OURS else 0  # the peer's work is done in this process, too
            torch.manual_seed(number)
            own = handicap if contender == OURS else 0.0
            costs[contender].append(turn(job.start(contender), handicap=own))
    ours, theirs = (np.array(costs[contender][1:]) for contender in costs)  # the first turn warms up
    figures = spread("ratio", theirs / ours) | {"us_per_image": {OURS: np.median(ours), PEER: np.median(theirs)}}
    figures["us_per_image"] = {contender: round(float(us), 1) for contender, us in figures["us_per_image"].items()}
    return {"job": name, "peer": PEER, **figures, "turns": turns}


def recorded(rows: Sequence[dict], name: str, own_processor: str) -> dict | None:
    """What a job is compared with: `ratio`, `p20`, `p80`, medians of the `rows` of one `processor` and `day`."""
    days: dict[str, list[dict]] = {}  # processor -> the rows of the last day on which it was measured
    for row in rows:
        if row["job"] == name and row["peer"] == PEER:
            own = days.setdefault(row["processor"], [])
            if own and own[-1]["time"][:10] != row["time"][:10]:
                own.clear()
            own.append(row)
    figures = {
        kind: {key: float(np.median([row[key] for row in own])) for key in ("ratio", "p20", "p80")}
        | {"processor": kind, "day": own[-1]["time"][:10], "rows": len(own)}
        for kind, own in days.items()
    }
    return figures.get(own_processor) or min(figures.values(), key=lambda row: row["ratio"], default=None)


def slower(found: dict, before: dict) -> bool:
    """Whether a ratio has fallen by more than is allowed, and by more than the spread."""
    return found["ratio"] < (1 - _ALLOWED) * before["ratio"] and found["p80"] < before["p20"]


def verdict(found: dict, before: dict) -> str:
    change = found["ratio"] / before["ratio"] - 1
    figures = f"{found['ratio']:.2f} x {PEER} ({found['p20']:.2f}-{found['p80']:.2f})"
    when = f"{before['day']}, {before['processor']}"
    return f"{found['job']:<10} {figures}, recorded {before['ratio']:.2f} ({when}): {change:+.1%}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.gate", description=__doc__.split(":")[0])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(GATED))
    parser.add_argument("--turns", type=int, default=_TURNS, help="of each contender (%(default)s)")
    parser.add_argument("--record", action="store_true", help="append to the ledger instead of comparing with it")
    parser.add_argument("--handicap", type=float, default=0.0, help="make ours slower by this share")
    add_out(parser)
    args = parser.parse_args(argv)
    rows, failed = read("gate", args.out), []
    with tempfile.TemporaryDirectory(prefix="headrace-gate-") as folder:
        data = photos(Path(folder))
        for name in args.jobs:
            before = recorded(rows, name, processor())
            if before is None and not args.record:
                raise UserError(f"gate: {args.out}/gate.jsonl has no row of {name}; measure one with --record")
            found = measure(data, name, args.turns, args.handicap)
            if args.record:
                append("gate", found, folder=args.out)
                print(f"{name:<10} {found['ratio']:.2f} x {PEER} ({found['p20']:.2f}-{found['p80']:.2f}), recorded")
                continue
            print(verdict(found, before), flush=True)
            if slower(found, before):
                print(f"{name:<10} once more, with twice the turns", flush=True)
                found = measure(data, name, 2 * args.turns, args.handicap)
                print(verdict(found, before), flush=True)
                if slower(found, before):
                    failed.append(name)
    if failed:
        print(f"gate: slower by more than {_ALLOWED:.0%} than recorded: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
