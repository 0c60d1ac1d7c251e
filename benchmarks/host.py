"""What a call of an operator costs the host, beside another build: ``python -m headrace.benchmarks.host``.

Microseconds of Python and of PyTorch's own code until everything is launched, with Triton's launches counted and left
out, so that no GPU is needed: of a forward without gradients, of a step, forward and backward, and of a step where
the operator makes its choice. Builds live side by side in processes of their own and take turns. ``--against``
is the parent folder of another checkout named headrace.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import headrace
from headrace.errors import UserError, run_command

from .record import add_out, append, spread

_WORKER = Path(__file__).with_name("host_worker.py")
OPERATORS = ("window_attention", "segment_attention", "biased_attention", "patch_loss", "info_nce", "prototype_ce",
             "token_mix", "token_select", "sinkhorn", "hog")  # fmt: skip
PHASES = ("forward", "step", "chosen")


class Build:
    """A process of one build that measures an operator when it is told to."""

    def __init__(self, folder: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        environment |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
        self._process = subprocess.Popen([sys.executable, str(_WORKER)], env=environment, **pipes)
        self._answer()

    def turn(self, operator: str, steps: int) -> dict[str, float]:
        print(operator, steps, file=self._process.stdin, flush=True)
        return json.loads(self._answer())

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise UserError("host: a process that measures ended; see above")
        return line

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def measure(operator: str, builds: dict[str, Build], steps: int, repeat: int) -> dict:
    """A row: each phase of each build, and how many times longer the other build takes, turn by turn."""
    turns = [{name: build.turn(operator, steps) for name, build in builds.items()} for _ in range(repeat)]
    row: dict = {"operator": operator, "steps": steps, "turns": repeat}
    for phase in PHASES:
        if phase not in turns[0]["this"]:
            continue
        for name in builds:
            own = row.setdefault(name, {})
            launches = turns[0][name][f"{phase}_launches"]
            own[phase] = {"launches": launches, **spread("us", [turn[name][phase] for turn in turns])}
        if "other" in builds:
            ratios = [turn["other"][phase] / turn["this"][phase] for turn in turns]
            row.setdefault("ratio", {})[phase] = spread("times", ratios)
    return row


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.host", description=__doc__.split(":")[0])
    parser.add_argument("op", nargs="*", help=f"operators ({' '.join(OPERATORS)})")
    parser.add_argument("--against", type=Path, help="the parent folder of another checkout named headrace")
    parser.add_argument("--steps", type=int, default=300, help="of a turn (%(default)s)")
    parser.add_argument("--repeat", type=int, default=9, help="turns (%(default)s)")
    add_out(parser)
    args = parser.parse_args(argv)
    if unknown := set(args.op) - set(OPERATORS):
        raise UserError(f"host: {', '.join(sorted(unknown))} is none of {', '.join(OPERATORS)}")
    if args.against and not (args.against / "headrace" / "__init__.py").exists():
        raise UserError(f"host: --against: {args.against} holds no checkout named headrace")
    builds = {"this": Build(Path(headrace.__file__).parents[1])}
    try:
        if args.against:
            builds["other"] = Build(args.against)
        for operator in args.op or OPERATORS:
            row = measure(operator, builds, args.steps, args.repeat)
            append("host", row, packages=("triton",), folder=args.out)
            for phase in PHASES:
                if phase in row["this"]:
                    took = ", ".join(f"{name} {row[name][phase]['us']:.0f} us" for name in builds)
                    launches = row["this"][phase]["launches"]
                    times = f", {row['ratio'][phase]['times']:.2f} times" if args.against else ""
                    print(f"{operator:18} {phase:8} {took}{times}; {launches} launches of Triton's", flush=True)
    finally:
        for build in builds.values():
            build.close()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
