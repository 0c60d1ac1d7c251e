"""Views from pixels beside shards, from JPEGs, by another build: ``python -m headrace.benchmarks.pixels --data TARS``.

The same photos, jobs, threads and batch, in processes that live side by side and take turns of `--seconds`, `--repeat`
times: images/s and CPU time an image, medians with the 20th and 80th percentile, and both against decoding by the build
in `--against`, the parent folder of another checkout named headrace (without it: by this one). CPU time suffers less
than the rate from whatever else the machine does. ``--cold``: the system is asked to forget all files before every
turn, which reads each file once at most.

Beforehand the pixels are made, which is measured against decoding alone, in turns of their own (job ``making``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import headrace
from headrace.cores import cores
from headrace.errors import UserError, run_command
from headrace.pipelines.pixels.command import write_pixels
from headrace.pipelines.pixels.layout import Request, sidecar_of
from headrace.pipelines.sources import open_source
from headrace.pipelines.views.cut import decode_fast

from .record import add_out, append, spread

JOBS = ("mae", "two-views", "multicrop", "eval", "crop", "two-crops")
_FORMATS = ("rgb", "yuv420")
_WORKER = Path(__file__).with_name("pixels_worker.py")


class Contender:
    """A process of one build that makes batches of one job, when it is told to; it calls `first` before all else."""

    def __init__(
        self, build: Path, data: Path, job: str, kind: str, args: argparse.Namespace, first: Callable | None = None
    ) -> None:
        command = [sys.executable, str(_WORKER), str(data), job, kind, str(args.workers), str(args.batch)]
        own = {"PYTHONPATH": str(build), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
        self._process = subprocess.Popen(command, env=os.environ | own, preexec_fn=first, **pipes)
        self.pid = self._process.pid
        self._answer()

    def turn(self, seconds: float, most: int) -> tuple[float, float]:
        """(images per second, CPU microseconds per image) of a turn that ends after `most` images, if given."""
        print(seconds, most, file=self._process.stdin, flush=True)
        found = json.loads(self._answer())
        return found["rate"], found["cpu"]

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"pixels: the process of {self._process.args[2:5]} ended; see above")
        return line

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def forget(folders: Sequence[Path]) -> None:
    """Asks the system to drop all files of these folders from its page cache."""
    for path in {path.resolve() for folder in folders for path in folder.iterdir() if path.is_file()}:
        with open(path, "rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def making(folders: dict[str, Path], args: argparse.Namespace) -> None:
    """How fast pixels are made beside decoding alone, both by `args.workers` threads."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("decode only", *_FORMATS)}
    source = open_source(folders["jpeg"])

    def decoded() -> None:
        with ThreadPoolExecutor(args.workers) as threads:
            list(threads.map(lambda index: decode_fast(source.read(index)).shape, range(len(source))))

    def made(form: str) -> None:
        for tar in folders[form].glob("*.tar"):
            sidecar_of(tar).unlink(missing_ok=True)
        write_pixels(folders[form], Request(form), workers=args.workers, progress=False)

    for _ in range(args.repeat):
        for name, runs in found.items():
            began, cpu = time.perf_counter(), time.process_time()
            decoded() if name == "decode only" else made(name)
            spent = time.process_time() - cpu
            runs.append((len(source) / (time.perf_counter() - began), 1e6 * spent / len(source)))
    record("making", found, "decode only", args)


def record(
    job: str,
    found: dict[str, list[tuple[float, float]]],
    base: str,
    args: argparse.Namespace,
    facts: dict[str, dict[str, object]] | None = None,
) -> None:
    """A row and a line for each contender, with what else is known of it in `facts`."""
    rates, costs = ({name: spread(key, [run[at] for run in runs]) for name, runs in found.items()}
                    for at, key in enumerate(("images_per_second", "cpu_us_per_image")))  # fmt: skip
    config = {"workers": args.workers, "batch": args.batch, "seconds": args.seconds, "repeat": args.repeat}
    for name in found:
        rate, cost = rates[name], costs[name]["cpu_us_per_image"]
        ratios = {
            "times_the_rate": round(rate["images_per_second"] / rates[base]["images_per_second"], 3),
            "times_less_cpu": round(costs[base]["cpu_us_per_image"] / cost, 3),
        }
        more = (facts or {}).get(name, {})
        row = {"job": job, "contender": name, **rate, "cpu_us_per_image": cost, **ratios, **more}
        append("pixels", row | {"config": config | {"base": base}}, folder=args.out)
        line = f"{job:14} {name:16} {rate['images_per_second']:8,.0f} images/s {cost:8,.0f} us"
        print(f"{line}  {' '.join(f'{value:.2f} {key}' for key, value in ratios.items())}", *more.items(), flush=True)


def compare(job: str, folders: dict[str, Path], args: argparse.Namespace, cold: bool) -> None:
    """All contenders at one job, in turn."""
    here, then = Path(headrace.__file__).parent.parent, args.against
    wanted = {"then, jpeg": (then, "jpeg", "cpu"), "then, memory": (then, "jpeg", "memory")} if then else {}
    wanted |= {"jpeg": (here, "jpeg", "cpu")} | {form: (here, form, "cpu") for form in _FORMATS}
    if cold:
        wanted.pop("then, memory", None)
    contenders = {name: Contender(build, folders[at], job, kind, args) for name, (build, at, kind) in wanted.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    most = len(open_source(folders["jpeg"])) // 2 if cold else 0
    try:
        for _ in range(args.repeat):
            for name, contender in contenders.items():
                if cold:
                    forget(list(folders.values()))
                found[name].append(contender.turn(args.seconds, most))
    finally:
        for contender in contenders.values():
            contender.close()
    record(f"{job}-cold" if cold else job, found, next(iter(found)), args)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.pixels", description=__doc__.split(":")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of tars of photos")
    parser.add_argument("--against", type=Path, help="the parent folder of another checkout named headrace")
    parser.add_argument("--jobs", type=lambda text: text.split(","), default=JOBS, help=",".join(JOBS))
    parser.add_argument("--workers", type=int, default=cores(), help="threads (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn (%(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="turns (%(default)s)")
    parser.add_argument("--cold", action="store_true", help="measure from the disk, too")
    add_out(parser)
    args = parser.parse_args(argv)
    if unknown := set(args.jobs) - {*JOBS, "making"}:
        raise UserError(f"pixels: --jobs: {', '.join(sorted(unknown))} is none of {', '.join((*JOBS, 'making'))}")
    if args.against and not (args.against / "headrace" / "__init__.py").exists():
        raise UserError(f"pixels: --against: {args.against} holds no checkout named headrace")
    with tempfile.TemporaryDirectory(prefix="headrace-pixels-", dir=args.data.resolve().parent) as scratch:
        folders = {name: Path(scratch) / name for name in ("jpeg", *_FORMATS)}
        for name, folder in folders.items():
            folder.mkdir()
            for tar in args.data.glob("*.tar"):
                (folder / tar.name).symlink_to(tar.resolve())
            if name in _FORMATS:
                write_pixels(folder, Request(name), workers=args.workers, progress=False)
        if "making" in args.jobs or args.jobs == JOBS:
            making(folders, args)
        for job in args.jobs:
            for cold in (False, True) if args.cold and job in JOBS[:4] else (False,):
                if job != "making":
                    compare(job, folders, args, cold)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
