"""Paths as they are typed after an option: where to read and where to write; and a file written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .errors import UserError


def place(text: str) -> Path:
    """A path; a tilde at its beginning is the home directory, which no shell puts in for ``--out=~/x``."""
    return Path(text).expanduser()


def new_file(text: str) -> Path:
    """The path of a file that a command will write. Raises `UserError`, before hours of work, if it cannot be."""
    path = place(text)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    _require_writable(path, path if path.exists() else _nearest(path.parent))
    return path


def new_folder(text: str) -> Path:
    """The path of a folder that a command will write into. Raises `UserError` if it cannot be."""
    path = place(text)
    _require_writable(path, _nearest(path))
    return path


def write_file(path: Path, data: bytes) -> None:
    """Writes a file that appears complete and durable, or not at all."""
    if path.exists() and not path.is_file():  # a pipe or a device, which nothing may take the place of
        path.write_bytes(data)
        return
    partial = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _nearest(folder: Path) -> Path:
    """The folder itself, or the one above it that exists."""
    return next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))


def _require_writable(path: Path, there: Path) -> None:
    if there.is_dir() or there == path and not there.is_dir():
        fault = None if os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)) else errno.EACCES
        if fault and os.statvfs(there).f_flag & os.ST_RDONLY:
            fault = errno.EROFS
    else:
        fault = errno.ENOTDIR
    if fault:
        where = "" if there == path else f" in {there}"
        raise UserError(f"{path}: cannot be written{where} ({os.strerror(fault)}); give another place")
