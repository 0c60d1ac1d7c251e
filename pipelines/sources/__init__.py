"""What images are stored in; every source satisfies `spec.ByteSource`.

folder.py   image files at any depth             shards.py   WebDataset tars, with our index or without
tar.py      tar headers, read and written         writer.py   worker processes that write shards
subset.py   some samples of another source
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UserError
from .folder import FolderSource, image_files
from .shards import ShardSource, read_manifest, tars_in

if TYPE_CHECKING:
    from ..spec import ByteSource


def open_source(path: str | os.PathLike) -> ByteSource:
    """The source at `path`: a folder of shards, any folder of tars, one tar, or a folder of images.

    Raises `UserError` where there is none, and where a folder holds both tars and images.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path}: does not exist{_nearest(path)}")
    if path.is_file():
        if path.suffix != ".tar":
            raise UserError(f"{path}: neither a folder nor a .tar; give a folder of images or of tars")
        return ShardSource(path)
    if not path.is_dir():
        raise UserError(f"{path}: neither a folder nor a file; give a folder of images or of tars")
    if read_manifest(path) is not None:
        return ShardSource(path)
    if tars_in(path):
        if image := next(image_files(path), None):
            name = image.decode("utf-8", "backslashreplace")
            raise UserError(f"{path}: holds tars, and images such as {name}; name the tar or the folder you mean")
        return ShardSource(path)
    return FolderSource(path)


def _nearest(path: Path) -> str:
    """A hint: the name most like the first missing part of `path`."""
    while not path.parent.exists():
        path = path.parent
    siblings = os.listdir(path.parent) if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else f": no {path.name!r} in {path.parent.resolve()}"
