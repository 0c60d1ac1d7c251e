"""The run directory: one run at a time, and what it was made with."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch

import headrace

from ... import kernels
from ...cores import cores
from ...errors import UserError

LOCK = ".lock"
ENCODER_FILE = "encoder.safetensors"  # what a finished run leaves: it is there if, and only if, the run has ended
_PACKAGES = ("torch", "torchvision", "triton", "numpy", "pillow", "simplejpeg", "nvidia-dali-cuda130", "webdataset")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run directory for this process; the lock ends with the process, however that ends.

    Raises `UserError` if another process has it.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as fault:
        raise UserError(f"{folder}: cannot be written ({fault.strerror}); choose another train.out") from None
    with open(folder / LOCK, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder}: another run writes here ({file.read().strip()}); end it, or choose another train.out"
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            if new and [path.name for path in folder.iterdir()] == [LOCK]:  # nothing came of it
                shutil.rmtree(folder)


def environment(device: torch.device, world: int) -> dict:
    """Versions, hardware, commit, command line and kernels of this run."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    on_gpu = device.type == "cuda"
    return {
        "headrace": headrace.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": versions,
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if on_gpu else None,
        "processes": world,
        "cores": cores(),
        "command": sys.argv,
        "kernels": {row.op: f"{row.chosen} ({row.why})" for row in kernels.report(device.type)},
    }


def write_environment(folder: Path, device: torch.device, world: int) -> None:
    """One line of ``environment.jsonl`` for each start of the run."""
    with open(folder / "environment.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(environment(device, world)) + "\n")


def _commit() -> str | None:
    """Of the source tree, with a + behind it where files differ from that; None outside of git."""
    root = Path(headrace.__file__).parent
    try:
        options = {"cwd": root, "capture_output": True, "encoding": "utf-8", "timeout": 10, "check": True}
        top, commit = subprocess.run(["git", "rev-parse", "--show-toplevel", "HEAD"], **options).stdout.split()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **options).stdout
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return None if Path(top) != root.resolve() else commit + ("+" if changed else "")
