"""The ledger of measurements: one line of JSON a row in ``benchmarks/results/<name>.jsonl``, never rewritten.

A row says what was measured and with what: time, hardware, versions, commit, command line and the resolved settings.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.train.engine.run_directory import environment

RESULTS = Path(__file__).parent / "results"
RUN = secrets.token_hex(4)  # rows of one process can be compared


def append(name: str, row: dict[str, Any], packages: tuple[str, ...] = (), folder: Path = RESULTS) -> None:
    """Adds a row to a ledger; `packages` are those whose versions it depends on, besides the project's own."""
    facts = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"), 1)
    facts["packages"] |= {package: metadata.version(package) for package in packages}
    facts["command"] = [Path(word).name if os.path.isabs(word) else word for word in facts["command"]]
    facts |= {"run": RUN, "processor": processor(), "load": os.getloadavg()[0]}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **row, **facts}) + "\n")


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option that every benchmark has."""
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the ledger (%(default)s)")


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """The figure `name` of repeated measurements, their median, with the 20th and 80th percentile."""
    p20, median, p80 = np.quantile(values, [0.2, 0.5, 0.8]).tolist()
    return {key: float(f"{value:.5g}") for key, value in {name: median, "p20": p20, "p80": p80}.items()}


def read(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows of a ledger, oldest first; none where there is no such ledger."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def processor() -> str:
    """The model of this machine's processor, as the system names it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
