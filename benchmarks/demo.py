"""What ``headrace demo`` prints and how long it takes: ``python -m headrace.benchmarks.demo``.

A row in the ledger ``demo.jsonl``: accuracies in percent by encoder, the seconds of the whole journey.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from headrace.errors import run_command
from headrace.tools import demo

from .record import add_out, append


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.demo", description=__doc__.split(":")[0])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the demo's recipe")
    add_out(parser)
    args = parser.parse_intermixed_args(argv)
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
        began = time.perf_counter()
        demo.main(["--out", folder, *args.overrides])
        seconds = round(time.perf_counter() - began, 1)
        found = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    figures = {name: round(100 * share, 2) for name, share in found["figures"].items()}
    row = {"job": "demo", "contender": found["measure"], **figures, "seconds": seconds}
    append("demo", row | {"config": {"recipe": demo.RECIPE, "overrides": args.overrides}}, folder=args.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
