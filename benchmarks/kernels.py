"""Every operator against PyTorch and its rivals on one GPU in ten minutes: ``python -m headrace.benchmarks.kernels``.

First all implementations are checked, a process per operator, which also fills Triton's cache; then each operator gets
its share of what time is left, attention most. Every row is appended to a .jsonl file in ``--out`` and flushed, so that
nothing is lost when the machine is; what there was no time for is listed as such. ``--tiny`` tries the machinery on a
CPU; ``--table`` prints the recorded rows of an earlier run as Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import itertools
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from headrace.kernels import bench, operator, operator_names, records
from headrace.kernels.check import check
from headrace.kernels.commands import table
from headrace.kernels.registry import Implementation, Operator

RESULTS = Path(__file__).parent / "results"
WEIGHT = {"window_attention": 4, "segment_attention": 4, "biased_attention": 4, "augment": 3}  # of the time; others 1
RESERVE = 0.07  # of the time, for the report and for a contender that started just in time


class Deadline:
    """The end of the run and, before it, of the stage under way."""

    def __init__(self, minutes: float) -> None:
        self.start = time.monotonic()
        self.end = self.stage_end = self.start + 60 * minutes * (1 - RESERVE)

    def stage(self, share: float) -> None:
        """Give the next stage a share of what is left."""
        now = time.monotonic()
        self.stage_end = now + share * max(0.0, self.end - now)

    def left(self) -> float:
        return max(0.0, self.stage_end - time.monotonic())


def header(device: str) -> dict[str, Any]:
    limits = bench.ceilings(device)
    facts = {
        "gpu": records.device_name(device),
        "torch": torch.__version__,
        "triton": records.triton_version(),
        "copy_tbps": limits.bytes_per_second / 1e12,
        "gemm_tflops": limits.flops_per_second / 1e12,
        "commit": _said("git", "-C", str(RESULTS), "rev-parse", "--short", "HEAD"),
        "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }
    if device == "cuda":
        facts["driver, clock"] = _said("nvidia-smi", "--query-gpu=driver_version,clocks.sm", "--format=csv,noheader")
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def _said(*command: str) -> str:
    """What a command prints; empty where there is no such command."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, encoding="utf-8").stdout.strip()


def check_one(name: str, device: str) -> list[dict[str, Any]]:
    """What `check` says of an operator's own kernels, of the reference on a CPU: a count for each, and the failures."""
    found = []
    for implementation in [fast.name for fast in operator(name).fast] if device == "cuda" else ["reference"]:
        results = check(name, implementation, device)
        failures = [result._asdict() for result in results if result.passed is False]
        passed = sum(result.passed is True for result in results)
        found += [{"op": name, "impl": implementation, "passed": passed, "failed": len(failures)}, *failures]
    return found


def checks(names: Sequence[str], device: str, deadline: Deadline) -> Iterator[dict[str, Any]]:
    """Rows of `check_one`, a process per operator. Whoever is not done in time is ended and reported."""
    with multiprocessing.get_context("spawn").Pool(min(len(names), 14)) as pool:
        results = {name: pool.apply_async(check_one, (name, device)) for name in names}
        for name, result in results.items():
            try:
                yield from result.get(deadline.left())
            except multiprocessing.TimeoutError:
                yield {"op": name, "passed": 0, "failed": 0, "note": "out of time"}
            except Exception as error:  # one operator's crash must not end the run
                yield {"op": name, "passed": 0, "failed": 1, "note": f"{type(error).__name__}: {error}"}


def order(op: Operator, device: str) -> list[Implementation]:
    """What is compared, ours first and `compiled`, whose compilation takes longest, last."""
    standard = {implementation.name: implementation for implementation in bench.contenders(op, (), device)}
    last = [standard.pop(name) for name in ("reference", "compiled")]
    return [*standard.values(), *last]


def timings(op: Operator, device: str, deadline: Deadline) -> Iterator[bench.Row]:
    """Rows of every workload and contender that there is time for, and a row for each that there is none for."""
    for case in bench.workloads(op, device):
        contenders, note = order(op, device), "out of time"
        if deadline.left():
            in_time = itertools.takewhile(lambda _: deadline.left() > 0, contenders)
            started = []
            try:
                for row in bench.bench(op, case, in_time, device):
                    started.append(row.impl)
                    yield row
            except Exception as error:  # arguments that do not fit into memory, say
                note = f"{type(error).__name__}: {error}"
            contenders = [contender for contender in contenders if contender.name not in started]
        for contender in contenders:
            yield bench.Row(op.name, contender.name, case.id, "", "", bench.FORWARD, note=note)


def run(names: Sequence[str], device: str, minutes: float, file: TextIO) -> list[bench.Row]:
    deadline = Deadline(minutes)

    def write(kind: str, row: dict[str, Any]) -> None:
        file.write(json.dumps({"kind": kind, **row}) + "\n")
        file.flush()

    write("header", header(device))
    deadline.stage(0.5)  # at the most: they end when all is compiled and checked, and leave the rest to the timings
    for row in checks(names, device, deadline):
        write("check", row)
        if row.get("failed") or row.get("note"):
            print(f"check: {row['op']}: {row.get('failed', '')} failed {row.get('note', '')}".strip())
    rows: list[bench.Row] = []
    names = sorted(names, key=lambda name: -WEIGHT.get(name, 1))
    for position, name in enumerate(names):
        left = sum(WEIGHT.get(other, 1) for other in names[position:])
        deadline.stage(WEIGHT.get(name, 1) / left)
        for row in timings(operator(name), device, deadline):
            write("time", dataclasses.asdict(row))
            rows.append(row)
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def markdown(lines: Sequence[str]) -> str:
    """The rows of a .jsonl as a table: training's direction of each workload, rivals by name."""
    found = [json.loads(line) for line in lines]
    facts = next(row for row in found if row["kind"] == "header")
    times = [row for row in found if row["kind"] == "time" and row["us_p50"] is not None]
    both = {(row["op"], row["workload"]) for row in times if row["dir"] == bench.BOTH}
    shown = [row for row in times if (row["dir"] == bench.BOTH) == ((row["op"], row["workload"]) in both)]
    out = [
        f"{facts['gpu']}, PyTorch {facts['torch']}, Triton {facts['triton']}; copies {facts['copy_tbps']:.2f} TB/s, "
        f"multiplies at {facts['gemm_tflops']:.4g} TFLOP/s. Microseconds, median.",
        "",
        "| operator | workload | direction | triton | of roofline | reference | compiled | best other |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for (op, workload), group in itertools.groupby(shown, key=lambda row: (row["op"], row["workload"])):
        by_name = {row["impl"]: row for row in group}
        time_of = lambda name: f"{by_name[name]['us_p50']:.0f}" if name in by_name else ""  # noqa: B023, E731
        others = [row for name, row in by_name.items() if name not in ("triton", "reference", "compiled")]
        best = min(others, key=lambda row: row["us_p50"], default=None)
        fraction = by_name.get("triton", {}).get("frac_roofline")
        cells = (
            op,
            workload,
            next(iter(by_name.values()))["dir"],
            time_of("triton"),
            "" if fraction is None else f"{fraction:.0%}",
            time_of("reference"),
            time_of("compiled"),
            f"{best['us_p50']:.0f} {best['impl']}" if best else "",
        )
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.kernels", description=__doc__.split(":")[0])
    parser.add_argument("--minutes", type=float, default=10, help="the run ends before that")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the .jsonl file")
    parser.add_argument("--ops", nargs="+", choices=operator_names(), default=operator_names())
    parser.add_argument("--tiny", action="store_true", help="a self-test on the CPU; its times say nothing")
    parser.add_argument("--table", type=Path, metavar="JSONL", help="print the rows of that file as Markdown and end")
    args = parser.parse_args(argv)
    if args.table:
        print(markdown(args.table.read_text(encoding="utf-8").splitlines()))
        return 0
    if not args.tiny and not torch.cuda.is_available():
        print("benchmarks.kernels: there is no GPU here; --tiny tries the machinery on the CPU", file=sys.stderr)
        return 2
    device = "cpu" if args.tiny else "cuda"
    name = re.sub(r"\W+", "-", records.device_name(device)).strip("-").lower()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"kernels-{name}-{time.strftime('%Y%m%d-%H%M', time.gmtime())}.jsonl"
    # A kernel that hangs must not hold the machine.
    faulthandler.dump_traceback_later(60 * args.minutes, exit=True, file=sys.__stderr__)
    with path.open("a", encoding="utf-8") as file:
        rows = run(args.ops, device, args.minutes, file)
    faulthandler.cancel_dump_traceback_later()
    shown = [row for row in rows if row.dir == bench.BOTH or not operator(row.op).gradients]
    print(table(bench.HEADER, [bench.cells(row, rows) for row in shown[:60]]))
    print(f"{len(rows)} rows in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
