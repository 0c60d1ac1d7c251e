"""The ledger of measurements: one line of JSON a row in ``benchmarks/results/<name>.jsonl``, never rewritten.

A row says what was measured and with what: time, hardware, versions, commit, command line and the resolved settings.
"""

from __future__ import annotations

import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from headrace.train.run_directory import environment

RESULTS = Path(__file__).parent / "results"


def append(name: str, row: dict[str, Any], packages: tuple[str, ...] = (), folder: Path = RESULTS) -> None:
    """Adds a row to a ledger; `packages` are those whose versions it depends on, besides the project's own."""
    facts = environment(torch.device("cuda" if torch.cuda.is_available() else "cpu"), 1)
    facts["packages"] |= {package: metadata.version(package) for package in packages}
    facts["command"] = [Path(word).name if os.path.isabs(word) else word for word in facts["command"]]
    facts |= {"processor": _processor(), "load": os.getloadavg()[0]}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.jsonl", "a") as file:
        file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **row, **facts}) + "\n")


def read(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows of a ledger, oldest first; none where there is no such ledger."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
