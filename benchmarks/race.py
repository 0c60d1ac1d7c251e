"""Whole training steps by headrace and by what people would use instead: ``python -m headrace.benchmarks.race``.

The same method, backbone, batch, image size, strengths of augmentation and precision (fp32), from the same folder of
images; the systems are in `racers/`. Before a heat everybody's number of trained parameters, the loss of a first step
and the mean and spread of the views are held to ours; who differs does not race. Each turn is a process of its own, in
turn, `--repeat` times: `--warm` steps, then `--seconds` of steps. Figures: images per second, CPU microseconds an image
of all its processes, the share of the time that the loop waits for data, and the peak of memory of all its processes
together, shared pages once. Rates of learning are all but zero, so that every step does the same work.

Where peers race, `--ceilings` race a second time without data, by the same step on one batch: rows called "..., model
only", with the shares of its time that are convolutions, matrix products and so on.

``--beside N`` keeps N processes busy all the while, as on a machine that is shared. Appends rows to the ledger
``race.jsonl``; docs/race.md is made of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headrace.cores import cores
from headrace.errors import UserError, run_command

from .racers import MODEL_ONLY, SYSTEMS
from .record import add_out, append, spread

if TYPE_CHECKING:
    from .racers.heat import Racer

_BUSY = "while True: pass"
_LIKE = {
    "parameters": 0.002,
    "loss": 0.15,
    "mean": 0.12,
    "spread": 0.12,
}  # how far a peer may be from us; other draws of weights differ by as much in loss
_LOOK, _LOSSES = 512, 12  # images whose views are compared, steps whose losses are: SimCLR's differ by a fifth each
_TICK = 0.2  # seconds between two looks at memory


def turn(
    job: str, name: str, data: Path, workers: int, warm: int, seconds: float, look: int = 0, model_only: bool = False
) -> dict:
    """One turn of one system, in this process; of `look` images, if any, what it is compared by instead."""
    import torch

    from headrace.train.recipe.recipe import load_recipe

    from .loaders import cpu_seconds
    from .racers.ceiling import shares, without_data
    from .racers.heat import JOBS, Heat

    torch.manual_seed(0)
    own = JOBS[job]
    fixed = [f"train.batch_size={own.batch}", "train.precision=fp32", *own.changes]
    racer = SYSTEMS[name].load(own.method)(Heat(own, load_recipe(own.recipe, fixed), data, workers))
    racer = without_data(racer) if model_only else racer
    with closing(racer.batches):
        if look:
            return first_steps(racer, -(-look // own.batch))
        for _ in range(warm):
            racer.step(next(racer.batches))
        began, cpu, steps, waited = time.perf_counter(), cpu_seconds(), 0, 0.0
        while (took := time.perf_counter() - began) < seconds or not steps:
            asked = time.perf_counter()
            batch = next(racer.batches)
            waited += time.perf_counter() - asked
            racer.step(batch)
            steps += 1
        images = steps * own.batch
        cpu = 1e6 * (cpu_seconds() - cpu) / images
        parts = {"shares": shares(racer)} if model_only else {}
    return {"images_per_second": images / took, "cpu_us_per_image": cpu, "data_wait": waited / took} | parts


def first_steps(racer: Racer, batches: int) -> dict:
    """What racers are compared by: mean and spread of the views of some batches, the mean loss of the first twelve."""
    import torch

    sums, losses, shapes = np.zeros(3), [], set()
    for n in range(batches):
        batch = next(racer.batches)
        views = racer.views(batch)
        shapes |= {tuple(view.shape) for view in views}
        values = torch.cat([view.flatten() for view in views]).double()
        sums += (len(values), values.sum().item(), values.square().sum().item())
        losses += [racer.step(batch).item()] if n < _LOSSES else []
    mean = sums[1] / sums[0]
    spread = float(np.sqrt(sums[2] / sums[0] - mean**2))
    loss = statistics.fmean(losses)
    return {"parameters": racer.parameters, "shapes": sorted(shapes), "mean": mean, "spread": spread, "loss": loss}


def in_process(arguments: Sequence[str]) -> dict:
    """A turn in a process of its own; its figures, and its peak of memory in megabytes."""
    command = [sys.executable, "-m", "headrace.benchmarks.race", "--turn", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(_TICK):
            peak[0] = max(peak[0], megabytes(child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = child.communicate()
    ended.set()
    watcher.join()
    if child.returncode:
        raise RuntimeError(next(iter(err.strip().splitlines()[-1:]), f"exit code {child.returncode}"))
    return json.loads(out.splitlines()[-1]) | {"peak_mb": peak[0]}


def megabytes(pid: int) -> float:
    """Memory of a process and its descendants: their proportional share of every page."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    total = 0.0
    for each in family:
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        total += sum(float(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1.024e-3


def unlike(found: dict, ours: dict) -> str:
    """In what a peer's first step is another than ours; empty: in nothing."""
    if found["shapes"] != ours["shapes"]:
        return f"its views are {found['shapes']}, ours {ours['shapes']}"
    for key, most in _LIKE.items():
        scale = abs(ours[key]) if key in ("parameters", "loss") else 1.0
        if abs(found[key] - ours[key]) > most * scale:
            return f"{key}: {found[key]:.6g}, ours {ours[key]:.6g}"
    return ""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    running = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def heat(job: str, names: Sequence[str], args: argparse.Namespace, data: Path) -> list[dict]:
    """Rows of everybody who takes part in one job."""
    common = ["--jobs", job, "--data-32", str(data), "--data-224", str(data), "--workers", str(args.workers)]
    first, racing = {}, []
    for name in names:
        try:
            first[name] = in_process([name, *common, "--look", str(_LOOK)])
        except RuntimeError as fault:  # a library that fails must not end the comparison
            print(f"skipped: {job}: {name}: {fault}", flush=True)
            continue
        fault = unlike(first[name], first["headrace"]) if "headrace" in first else "headrace itself failed"
        print(f"skipped: {job}: {name}: {fault}" if fault else f"{job}: {name} is like ours", flush=True)
        racing += [] if fault else [name]
    timed = [*common, "--warm", str(args.warm), "--seconds", str(args.seconds)]
    ceilings = [name for name in args.ceilings if name in racing and len(racing) > 1 and not args.beside]
    turns: dict[str, list[dict]] = {name: [] for name in [*racing, *(name + MODEL_ONLY for name in ceilings)]}
    with busy(args.beside):
        for _ in range(args.repeat):
            for each, own in turns.items():
                name = each.removesuffix(MODEL_ONLY)
                own.append(in_process([name, *timed, *(["--model-only"] if name != each else [])]))
    rows = []
    for name, own in turns.items():
        median = lambda key: statistics.median(turn[key] for turn in own)  # noqa: B023, E731
        row = {"job": f"{job}-beside-{args.beside}" if args.beside else job, "contender": name}
        row |= spread("images_per_second", [turn["images_per_second"] for turn in own])
        row |= {"cpu_us_per_image": round(median("cpu_us_per_image"), 1), "data_wait": round(median("data_wait"), 4)}
        row |= {"peak_mb": round(max(turn["peak_mb"] for turn in own), 1)}
        row |= {key: first[name.removesuffix(MODEL_ONLY)][key] for key in ("parameters", "loss", "mean", "spread")}
        if parts := [turn["shares"] for turn in own if "shares" in turn]:
            row["shares"] = {key: round(statistics.median(each[key] for each in parts), 4) for key in parts[0]}
        rows.append(row)
    return rows


def table(rows: Sequence[dict]) -> str:
    lines = ["| | images/s (p20-p80) | ours over it | CPU us an image | waiting | peak MB |", "|---|" + "---:|" * 5]
    ours = rows[0]["images_per_second"]
    for row in rows:
        rate = f"{row['images_per_second']:,.1f} ({row['p20']:,.1f}-{row['p80']:,.1f})"
        over = "" if row is rows[0] else f"{ours / row['images_per_second']:.2f} x"
        cells = (row["contender"], rate, over, f"{row['cpu_us_per_image']:,.0f}")
        lines.append(f"| {' | '.join(cells)} | {row['data_wait']:.0%} | {row['peak_mb']:,.0f} |")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    from .racers.heat import JOBS

    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.race", description=__doc__.split(":")[0])
    parser.add_argument("--data-32", type=Path, help="images of 32 px in folders of classes")
    parser.add_argument("--data-224", type=Path, help="photos in folders of classes")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--ceilings", nargs="*", choices=SYSTEMS, default=["headrace", "lightly"], help="without data")
    parser.add_argument("--seconds", type=float, default=10.0, help="of one turn")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each system")
    parser.add_argument("--warm", type=int, default=3, help="steps before the clock starts")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--beside", type=int, default=0, metavar="N", help="processes that are busy all the while")
    parser.add_argument("--turn", metavar="SYSTEM", help="one turn in this process; prints its figures as JSON")
    parser.add_argument("--look", type=int, default=0, metavar="N", help="a turn that only looks at N images")
    parser.add_argument("--model-only", action="store_true", help="of a turn: one batch again and again, no data")
    add_out(parser)
    args = parser.parse_args(argv)
    data = {32: args.data_32, 224: args.data_224}
    if args.turn:
        job = args.jobs[0]
        how = (args.workers, args.warm, args.seconds, args.look, args.model_only)
        print(json.dumps(turn(job, args.turn, data[JOBS[job].side], *how)))
        return 0
    for side in sorted({JOBS[job].side for job in args.jobs}):
        if data[side] is None or not data[side].is_dir():
            raise UserError(f"race: --data-{side}: {data[side] or 'missing'}: a folder of images in folders of classes")
    names = ["headrace", *(name for name in args.systems if name != "headrace")]
    for name in [name for name in names if SYSTEMS[name].missing]:
        print(f"skipped: {name}: {SYSTEMS[name].package} is not installed; pip install 'headrace[peers,parity]'")
        names.remove(name)
    for job in args.jobs:
        own = JOBS[job]
        rows = heat(job, [name for name in names if own.method in SYSTEMS[name].methods], args, data[own.side])
        config = {"batch": own.batch, "workers": args.workers, "seconds": args.seconds, "repeat": args.repeat}
        config |= {"warm": args.warm, "beside": args.beside, "recipe": own.recipe, "changes": own.changes}
        config |= {"title": own.title}
        for row in rows:
            system = SYSTEMS[row["contender"].removesuffix(MODEL_ONLY)]
            extra = {"differences": system.differences} if system.differences else {}
            append("race", row | extra | {"config": config}, (system.distribution,), folder=args.out)
        print(f"{own.title}, batch {own.batch}\n{table(rows)}\n", flush=True) if rows else None
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
