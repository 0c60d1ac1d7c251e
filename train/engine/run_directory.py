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
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

import headrace

from ... import kernels
from ...cores import cores
from ...errors import UserError

LOCK = ".lock"
CONFIG_FILE = "config.yaml"
ENCODER_FILE = "encoder.safetensors"  # what a finished run leaves: it is there if, and only if, the run has ended
_PACKAGES = ("torch", "torchvision", "triton", "numpy", "pillow", "simplejpeg", "nvidia-dali-cuda130", "webdataset")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run directory for this process; the lock ends with the process, however that ends.

    Raises `UserError` if another process has it, and for a folder that cannot be written to.
    """
    try:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+", encoding="utf-8")
    except OSError as fault:
        raise UserError(f"{folder}: cannot be written ({fault.strerror}); choose another train.out") from None
    with file:
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
        with suppress(OSError):  # what it says is for people
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
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
    """One line of ``environment.jsonl`` for each start of the run. Raises `UserError` where it cannot be written."""
    append_line(folder / "environment.jsonl", json.dumps(environment(device, world)))


def append_line(file: Path, text: str) -> None:
    """A line at the end of a file of lines, whole or not at all; what a kill has cut short there is ended first.

    Raises `UserError` where it cannot be written.
    """
    try:
        with open(file, "ab+", buffering=0) as out:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(out, fcntl.LOCK_EX)
            end = out.seek(0, os.SEEK_END)
            torn = end > 0 and os.pread(out.fileno(), 1, end - 1) != b"\n"
            data, written = b"\n" * torn + text.encode() + b"\n", 0
            try:
                while written < len(data):
                    written += out.write(data[written:])
            except OSError:
                os.ftruncate(out.fileno(), end)
                raise
    except OSError as fault:
        raise UserError(f"{file}: cannot be written ({fault.strerror}); free some space or change train.out")


def write_whole(file: Path, data: bytes) -> None:
    """A file that appears under its name when it is complete and on disk; until then an older one stays.

    Raises `UserError` where it cannot be written.
    """
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        with open(temporary, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    except OSError as fault:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written ({fault.strerror}); free some space or change train.out")


def write_encoder(folder: Path, weights: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """The encoder alone: the last thing that a run leaves. For `metadata` see `checkpoint.encoder_metadata`."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    write_whole(folder / ENCODER_FILE, save(tensors, metadata=metadata))


def has_ended(folder: Path) -> bool:
    """Whether a run left its encoder, all of it."""
    try:
        with safe_open(folder / ENCODER_FILE, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


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
