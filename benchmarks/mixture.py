"""Several sets in one order: what it costs, and that kills do not change it: ``python -m headrace.benchmarks.mixture``.

order   three sets of 10^9 samples beside one, at batches of 64..65,536: CPU time of a step's ids, in turn
plan    CPU time of ``headrace plan`` for 10^7 samples in shards with a filter and weights, that of imports beside it
ledger  what of a step's CPU time the ledger takes: the losses of single samples and writing them down
kills   a run over the two sets of ``--data``, killed five times (SIGKILL) and continued on other numbers of processes,
        and on the same: ids, passes, views and masks of each step, and the encoder's weights, beside those of the run
        that nothing happens to

Rows of the first three go to the ledger ``mixture.jsonl``. Ends with 1 where three sets take more than twice the time
of one, a plan more than a second beside imports, a ledger more than 1 % of a step, or a run that was killed is another.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from headrace.errors import UserError, run_command
from headrace.models.algorithm import Progress
from headrace.models.algorithms import make_algorithm
from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.plan.columns import folder_beside
from headrace.pipelines.plan.mixture import MixedOrder, Part
from headrace.train.engine.distributed import ALONE
from headrace.train.engine.optim import Schedules, build_optimizer
from headrace.train.engine.step import Stepper
from headrace.train.ledger import Ledger
from headrace.train.recipe.recipe import load_recipe, smoke_images

from . import processes
from .record import add_out, append, spread
from .scaling import write_index

PARTS = ("order", "plan", "ledger", "kills")
BATCHES = (64, 256, 1024, 4096, 16_384, 65_536)
_LIMITS = {"order": ("ratio", 2.0), "plan": ("seconds", 1.0), "ledger": ("of_a_step", 0.01)}
SHARES = (0.5, 0.3, 0.2)
_KILLS = (3, 6, 9, 13, 17)  # steps before which a process is killed
_STEPS, _BATCH = 20, 8  # those of --smoke


def order(samples: int, repeat: int) -> Iterator[dict]:
    """Rows by batch: microseconds of CPU for the ids of a step, of one set and of three, and their ratio."""
    for batch in BATCHES:
        parts = tuple(Part(str(number), samples, ((0, share),)) for number, share in enumerate(SHARES))
        orders, steps = (Order(samples, batch), MixedOrder(parts, batch)), max(4, 20_000 // batch)
        times = np.empty((repeat, 2))
        for turn in range(repeat):
            for column, one in enumerate(orders):
                began = time.process_time()
                for step in range(turn * steps, (turn + 1) * steps):
                    one.ids(step)
                times[turn, column] = (time.process_time() - began) / steps * 1e6
        row = {"job": "order", "contender": f"batches of {batch:,}", **spread("ratio", times[:, 1] / times[:, 0])}
        row |= {"one_set_us": round(float(np.median(times[:, 0])), 1), "batch": batch}
        yield row | {"three_sets_us": round(float(np.median(times[:, 1])), 1), "samples": samples}


def plan(samples: int, repeat: int) -> Iterator[dict]:
    """A row: CPU seconds of the command, of its imports, and of the rest."""
    with tempfile.TemporaryDirectory(prefix="headrace-mixture-") as name:
        folder = Path(name, "shards")
        folder.mkdir()
        write_index(folder, samples)
        folder_beside(folder).mkdir()
        for column, seed in (("blur", 0), ("quality", 1)):
            np.save(folder_beside(folder) / f"{column}.npy", np.random.default_rng(seed).random(samples, np.float32))
        first = {"source": str(folder), "where": "width >= 160 and blur < 0.4", "weight": "quality", "share": 0.7}
        sets = {"a": first, "b": {"source": str(folder), "weight": 0.3}}
        words = [f"data.train.{key}.{k}={v}" for key, own in sets.items() for k, v in own.items()]
        command = [sys.executable, "-m", "headrace.cli", "plan", "mae_vit-tiny", *words]
        imports = [sys.executable, "-c", "import headrace.tools.plan, headrace.models.algorithms.mae"]
        seconds = np.array([[_cpu(command), _cpu(imports)] for _ in range(repeat)])
    row = {"job": "plan", "contender": f"{samples:,} samples", **spread("seconds", seconds[:, 0] - seconds[:, 1])}
    yield row | {
        "whole_s": round(float(np.median(seconds[:, 0])), 3),
        "imports_s": round(float(np.median(seconds[:, 1])), 3),
    }


def _cpu(command: Sequence[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ledger(recipe: str, batch: int, repeat: int) -> Iterator[dict]:
    """A row: what of a step's CPU time goes into the ledger, which is written at each step."""
    built = load_recipe(recipe, ["train.device=cpu", f"train.batch_size={batch}"])
    source, algorithm, spent = smoke_images(), make_algorithm(built.algorithm), [0.0]
    reading = Order(len(source), batch)

    def timed(work: Callable) -> Callable:
        def run(*given):
            began = time.process_time()
            result = work(*given)
            spent[0] += time.process_time() - began
            return result

        return run

    with tempfile.TemporaryDirectory(prefix="headrace-mixture-") as name:
        kept = Ledger(Path(name, "ledger"), len(source), ALONE)
        schedules = Schedules(built.optim, batch, 1000, reading.steps_per_epoch)
        optimizer = build_optimizer(algorithm, built.optim)
        stepper = Stepper(algorithm, algorithm, optimizer, schedules, notes=[timed(kept.add)])
        stepper._of_samples = timed(stepper._of_samples)
        with closing(make_loader(source, algorithm.inputs(), reading, kind="memory")) as loader:
            drawn = next(loader)
        shares, whole = [], []
        for turn in range(repeat + 1):
            began, spent[0] = time.process_time(), 0.0
            stepper(drawn, Progress(turn, 1000, reading.steps_per_epoch))
            timed(kept.flush)()
            if turn:  # the first warms up
                whole.append(time.process_time() - began)
                shares.append(spent[0] / whole[-1])
    row = {"job": "ledger", "contender": f"{recipe}, {batch} images", **spread("of_a_step", shares)}
    yield row | {"step_ms": round(float(np.median(whole)) * 1e3, 1)}


def kills(data: Sequence[str], recipe: str, overrides: Sequence[str]) -> Iterator[dict]:
    """A row for the run killed on other numbers of processes, and one for that on one process."""
    with tempfile.TemporaryDirectory(prefix="headrace-mixture-") as name:
        whole, undisturbed = _killed(Path(name, "whole"), [1], data, recipe, overrides)
        for worlds in ([1, 2, 4, 2, 4, 1], [1] * (len(_KILLS) + 1)):
            ours, found = _killed(Path(name, f"killed-{max(worlds)}"), worlds, data, recipe, overrides)
            steps = [step for step in range(_STEPS) if any(rows != undisturbed[step][0] for rows in found[step])]
            apart = max(float(np.abs(ours[key] - whole[key]).max()) for key in whole)
            size = max(float(np.abs(values).max()) for values in whole.values())
            row = {"job": "kills", "contender": f"{len(_KILLS)} kills on {'-'.join(map(str, worlds))} processes"}
            row |= {"steps": _STEPS, "steps_read_again": sum(len(rows) - 1 for rows in found.values())}
            yield row | {"steps_that_differ": len(steps), "weights_apart": apart, "largest_weight": size}


def _killed(
    folder: Path, worlds: Sequence[int], data: Sequence[str], recipe: str, overrides: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[int, list[list]]]:
    """(weights of the encoder; by step what was read, as often as it was) of a run that is killed between `worlds`."""
    folder.mkdir()
    sets = [f"data.train.{name}.{key}={value}" for name, own in _sets(data).items() for key, value in own.items()]
    options = {"train.out": folder / "run", "train.ledger": "true", "train.device": "cpu", "train.log_every": 2}
    options |= {"train.save_every": 2, "data.mix.pure": 0.2, "data.mix.epoch": 5 * _BATCH}
    words = [str(Path(__file__).with_name("recorded.py")), recipe, "--smoke", *overrides, *sets]
    words += [f"{key}={value}" for key, value in options.items()]
    here, found = os.getcwd(), {step: [] for step in range(_STEPS)}
    for number, world in enumerate(worlds):
        fault = ("signal", _KILLS[number], world - 1, "SIGKILL") if number < len(worlds) - 1 else None
        attempt = folder / str(number)
        attempt.mkdir()
        os.chdir(attempt)
        try:
            codes = processes.finish(processes.start(words, attempt / "log", world=world, fault=fault), timeout=400)
        finally:
            os.chdir(here)
        if (fault is None) != (codes == [0] * world):
            log = (attempt / "log").read_text(encoding="utf-8")
            raise UserError(f"mixture: {world} processes ended with {codes}:\n{log[-2000:]}")
        texts = [file.read_text(encoding="utf-8") for file in sorted(attempt.glob("*.jsonl"))]
        lines = [[json.loads(line) for line in text.splitlines()] for text in texts]
        for parts in zip(*lines):  # a step that not all had begun when one was killed is left out
            found[parts[0][0]].append([row for _, rows in parts for row in rows])
    return load_file(folder / "run" / "encoder.safetensors"), found


def _sets(data: Sequence[str]) -> dict[str, dict]:
    first = {
        "source": data[0],
        "weight": "ledger_rank",
        "share": 0.6,
        "where": "ledger_visits < 2 or ledger_rank < 0.9",
    }
    return {"first": first, "second": {"source": data[1], "weight": 0.4}}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.mixture", description=__doc__.split(":")[0])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the recipe for kills")
    parser.add_argument("--data", nargs=2, metavar=("A", "B"), help="two sources of images, for kills")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--recipe", default="mae_vit-tiny", help="for ledger and kills (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images of a step, for ledger (%(default)s)")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--samples", type=int, default=10**9, help="of each set, for order (%(default)s)")
    add_out(parser)
    args = parser.parse_intermixed_args(argv)
    if args.data is None and "kills" in args.parts:
        raise UserError("mixture: --data: kills need two sources of images; or give --parts order plan")
    parts = {
        "order": lambda: order(args.samples, args.repeat),
        "plan": lambda: plan(10**7, max(1, args.repeat // 3)),
        "ledger": lambda: ledger(args.recipe, args.batch, 3 * args.repeat),
        "kills": lambda: kills(args.data, args.recipe, args.overrides),
    }
    beyond = []
    for part in args.parts:
        for row in parts[part]():
            figures = ", ".join(f"{key} {value:,}" for key, value in row.items() if isinstance(value, int | float))
            print(f"{row['job']:<8} {row['contender']:<36} {figures}", flush=True)
            if part == "kills":
                bad = row["steps_that_differ"] or (max(_processes(row)) == 1 and row["weights_apart"])
            else:
                append("mixture", row, folder=args.out)
                bad = row[_LIMITS[part][0]] > _LIMITS[part][1]
            beyond += [row["contender"]] if bad else []
    if beyond:
        print(f"mixture: beyond the limits: {', '.join(beyond)}")
    return 1 if beyond else 0


def _processes(row: dict) -> list[int]:
    return [int(number) for number in row["contender"].split()[3].split("-")]


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
