"""What becomes of a run that something happens to: ``python -m headrace.benchmarks.faults [--cycles 200]``.

Every fault is done to a small MAE run on JPEGs, on the CPU; then the same command is given again until the run is done,
and its final weights are compared with those of an undisturbed run, bit by bit. The table in docs/reliability.md is
what this prints; ``--write`` puts it there. ``--cycles`` kills a run with SIGKILL that often, at random instants.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import headrace
from headrace.benchmarks import processes
from headrace.errors import run_command
from headrace.train.engine import checkpoint

PAGE = Path(headrace.__file__).parent / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
STEPS, EVERY = 20, 5
TINY = [
    "mae_vit-tiny",
    "algorithm.view.size=32",
    "algorithm.backbone={name: vit_tiny, patch_size: 8, width: 24, depth: 2, heads: 2}",
    "algorithm.decoder={width: 16, depth: 1, heads: 2}",
    "train.batch_size=8",
    "train.device=cpu",
    "train.log_every=1",
    "data.threads=1",
]


@dataclass
class Row:
    """One line of the table."""

    fault: str
    happened: str  # what the run did
    seconds: float  # from the start of the disturbed run to its end
    lost: int  # steps that were taken twice
    same: bool  # final weights equal those of the undisturbed run


class Bench:
    """Runs in a folder, with one set of images and one undisturbed run for each number of processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._whole = folder, {}
        self.images = folder / "images"
        write_images(self.images, 48)

    def arguments(self, name: str, *overrides: str, steps: int = STEPS, images: Path | None = None) -> list[str]:
        given = [f"data.train={images or self.images}", f"train.out={self.folder / name}", f"train.max_steps={steps}"]
        return [*TINY, *given, f"train.save_every={EVERY}", *overrides]

    def run(self, name: str, *overrides: str, **options) -> list[int]:
        return processes.run(self.arguments(name, *overrides), self.folder / f"{name}.log", **options)

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return checkpoint.newest(self.folder / name)[1]["model"]

    def said(self, name: str) -> str:
        """The last line of the run that is meant for its user."""
        lines = (self.folder / f"{name}.log").read_text(encoding="utf-8").splitlines()
        lines = [line.removeprefix("headrace: ") for line in lines if line.startswith("headrace: ")]
        return lines[-1] if lines else ""

    def whole(self, world: int = 1) -> dict[str, torch.Tensor]:
        name = f"whole-{world}-{len(list(self.folder.iterdir()))}"
        if world not in self._whole:
            assert self.run(name, world=world) == [0] * world, (self.folder / f"{name}.log").read_text(encoding="utf-8")
            self._whole[world] = self.weights(name)
        return self._whole[world]

    def disturbed(
        self,
        title: str,
        name: str,
        fault: tuple | None,
        *overrides: str,
        world: int = 1,
        between: Callable | None = None,
    ) -> Row:
        """Runs with the fault, does `between(folder)`, and gives the same command again if the run is not done."""
        whole, began = self.whole(world), time.perf_counter()
        codes = self.run(name, *overrides, world=world, fault=fault)
        seconds = time.perf_counter() - began
        reached = _step(self.folder / name)
        if between is not None:
            between(self.folder / name)
        done, lost = reached == STEPS and between is None, 0
        happened = (
            f"went on to the end, exit code {codes[0]}" if done else f"ended with {' and '.join(map(str, codes))}"
        )
        if said := self.said(name):
            happened += f": *{said}*"
        if not done:
            lost = max(0, (fault[1] if fault else reached) - _step(self.folder / name))
            assert self.run(name, *overrides, world=world) == [0] * world, self.said(name)
            happened += "; the same command finished it, started once more"
        return Row(title, happened.replace(f"{self.folder}/", ""), seconds, lost, _same(self.weights(name), whole))


def _step(folder: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = checkpoint.newest(folder)
    return found[1]["step"] if found else 0


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(folder / f"{index:02}.jpg")


def table(bench: Bench) -> list[Row]:
    """Every fault once."""

    def cut_short(folder: Path) -> None:
        newest = checkpoint.checkpoints(folder)[-1]
        newest.write_bytes(newest.read_bytes()[:3000])

    def flip_a_bit(folder: Path) -> None:
        newest = checkpoint.checkpoints(folder)[-1]
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)

    def damage(folder: Path) -> None:
        victim = sorted(bench.images.glob("*.jpg"))[7]
        victim.write_bytes(victim.read_bytes()[:200])

    row = bench.disturbed
    rows = [
        row("SIGTERM", "term", ("signal", 12, 0, "SIGTERM")),
        row("SIGUSR1 to one of two processes", "usr1", ("signal", 12, 1, "SIGUSR1"), world=2),
        row("SIGKILL of the trainer", "kill", ("signal", 12, 0, "SIGKILL")),
        row("SIGKILL of one of two processes", "kill-rank", ("signal", 12, 1, "SIGKILL"), world=2),
        row("one of two processes hangs, train.timeout=3", "hang", ("hang", 12, 1, 6), "train.timeout=3", world=2),
        row("a loader thread fails", "loader", ("read", 12, 0)),
        row("disk full during a checkpoint", "disk", ("full", 9, 0)),
        row("newest checkpoint cut short", "short", ("signal", 12, 0, "SIGKILL"), between=cut_short),
        row("a bit of it flipped", "bit", ("signal", 12, 0, "SIGKILL"), between=flip_a_bit),
        row("NaN in one sample", "nan", ("nan", 12, 0)),
        row("data 2 s late", "slow", ("late", 12, 0, 2.0)),
        row("clock set forward by an hour", "forward", ("clock", 12, 0, 3600.0)),
        row("clock set back by an hour", "back", ("clock", 12, 0, -3600.0)),
        _two_runs(bench),
    ]
    # last, for the images stay as it leaves them: what is compared is a killed run with an undisturbed one on them
    damage(bench.images)
    bench._whole.clear()
    rows.append(row("a damaged image, then SIGKILL", "image", ("signal", 12, 0, "SIGKILL"), "data.max_bad=0.1"))
    return rows


def _two_runs(bench: Bench) -> Row:
    whole = bench.whole()
    log = bench.folder / "two.log"
    first = processes.start(bench.arguments("two"), log, fault=("late", 12, 0, 2.0))
    while not (bench.folder / "two" / "metrics.jsonl").exists():
        time.sleep(0.01)
    began = time.perf_counter()
    codes = processes.run(bench.arguments("two"), bench.folder / "second.log")
    seconds = time.perf_counter() - began
    assert processes.finish(first) == [0]
    happened = f"the second ended with {codes[0]}: *{bench.said('second')}*".replace(f"{bench.folder}/", "")
    return Row("two runs in one directory", happened, seconds, 0, _same(bench.weights("two"), whole))


def cycles(bench: Bench, count: int, seed: int = 0) -> tuple[int, int, float, bool]:
    """(kills, steps of the run, seconds, final weights equal): SIGKILL at random instants, the same command each time.

    A kill comes up to 10 ms after a step that lies 1 to 12 steps behind the newest checkpoint, so that some hit a
    checkpoint while it is written.
    """
    rng, steps = random.Random(seed), 5 * count + EVERY
    assert processes.run(bench.arguments("long", steps=steps), bench.folder / "long.log") == [0]
    began, kills = time.perf_counter(), 0
    while _step(bench.folder / "cycled") < steps:
        at = _step(bench.folder / "cycled") + rng.randint(1, 12) - 1
        fault = ("kill", at, 0, rng.uniform(0, 0.01)) if kills < count else None
        code = processes.run(bench.arguments("cycled", steps=steps), bench.folder / "cycled.log", fault=fault)[0]
        assert code in (0, -9), (bench.folder / "cycled.log").read_text(encoding="utf-8")[-2000:]
        kills += code == -9
    return kills, steps, time.perf_counter() - began, _same(bench.weights("long"), bench.weights("cycled"))


def render(rows: list[Row]) -> str:
    lines = ["| fault | what the run did | s | steps lost | final weights |", "|---|---|---|---|---|"]
    for row in rows:
        same = "the same bits" if row.same else "others"
        happened = re.sub(r" \((process \d|Read error|Timed out)[^)]*\)", "", row.happened)  # addresses, host names
        lines.append(f"| {row.fault} | {happened} | {row.seconds:.1f} | {row.lost} | {same} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Faults done to a small run, and what became of it.")
    parser.add_argument("--cycles", type=int, default=0, help="also kill and resume a run so often")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        cycled = cycles(bench, arguments.cycles) if arguments.cycles else None
        text = render(table(bench))
    if cycled:
        kills, steps, seconds, same = cycled
        text += (
            f"\n\n{kills} kills with SIGKILL at random instants of one run of {steps:,} steps, {seconds:.0f} s: final "
        )
        text += f"weights {'are the same bits as' if same else 'DIFFER from'} those of the undisturbed run."
    print(text)
    if arguments.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
