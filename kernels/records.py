"""What is known about implementations on this machine: the last check and the last benchmark of each.

Kept under ``$HEADRACE_CACHE/kernels`` (default ``~/.cache/headrace/kernels``), one small JSON file per operator,
implementation and device. A record counts only for the sources, PyTorch and Triton that it was made with; deleting the
folder loses nothing but measurements.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

import torch

from ..errors import UserError

CACHE = "HEADRACE_CACHE"


def cache_folder() -> Path:
    """Where records and tuned tiles are kept; need not exist."""
    home = os.path.expanduser("~")  # stays as it is for a user without one, such as a foreign id in a container
    own = Path(home, ".cache", "headrace") if os.path.isabs(home) else Path(gettempdir(), f"headrace-{os.getuid()}")
    return Path(os.environ.get(CACHE) or own) / "kernels"


def write(path: Path, content: Any) -> None:
    """Write JSON under the cache folder, whole or not at all. Raises `UserError` where that is not possible."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"kernels: cannot write {path}: {error.strerror}; name another folder in {CACHE}") from error


def read(path: Path) -> Any:
    """The JSON at that path, None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def device_name(device_type: str) -> str:
    """The device that records are about, such as "NVIDIA H200"."""
    return torch.cuda.get_device_name() if device_type == "cuda" and torch.cuda.is_available() else device_type


@cache
def triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


class Subject(NamedTuple):
    """What a record is about, and what it was made with."""

    op: str
    implementation: str
    source: str  # hash
    torch: str
    triton: str
    device: str

    def path(self, kind: str) -> Path:
        slug = re.sub(r"[^\w.-]+", "-", f"{self.implementation}--{self.device}")
        return cache_folder() / kind / self.op / f"{slug}.json"


def subject(op: str, implementation: str, function: Callable | None, device_type: str) -> Subject | None:
    """What is to be recorded about an implementation of `op`.

    Args:
        function: the user's; None for a built-in implementation.

    Returns:
        None for a function whose source is nowhere to be read: it could change unseen.
    """
    files = sorted((Path(__file__).parent / op).glob("*.py"))
    if function is not None:
        function = inspect.unwrap(function)
        try:
            files.append(Path(inspect.getfile(function)))
        except TypeError:
            return None
        if not files[-1].is_file():
            return None
        implementation = f"{function.__module__}:{function.__qualname__}"
    times = tuple((str(file), file.stat().st_mtime_ns) for file in files)
    return Subject(op, implementation, _digest(times), torch.__version__, triton_version(), device_name(device_type))


@cache
def _digest(files: tuple[tuple[str, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, _ in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]


class Parity(NamedTuple):
    """Outcome of a check; `failed` tells what was wrong and is empty when nothing was."""

    passed: int
    failed: str


def record_parity(about: Subject, parity: Parity) -> None:
    write(about.path("parity"), {**about._asdict(), **parity._asdict()})


def parity(about: Subject | None) -> Parity | None:
    """The outcome of the last check of these very sources with these versions on this device."""
    found = about and _about(about, "parity")
    return Parity(found["passed"], found["failed"]) if found else None


def record_benchmark(about: Subject, summary: str) -> None:
    write(about.path("benchmark"), {**about._asdict(), "summary": summary})


def benchmark(about: Subject | None) -> str:
    """The last benchmark in a few words; empty when there is none of these sources on this device."""
    found = about and _about(about, "benchmark")
    return found["summary"] if found else ""


def _about(about: Subject, kind: str) -> dict[str, Any] | None:
    found = read(about.path(kind))
    return found if isinstance(found, dict) and found.items() >= about._asdict().items() else None
