"""Images as files in a folder, at any depth, of any size and format that Pillow reads."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..images.formats import IMAGE_SUFFIXES, passed_over
from .files import FileSource, text

_SUFFIXES = frozenset(suffix.encode() for suffix in IMAGE_SUFFIXES)


def image_files(root: Path, others: Counter[str] | None = None) -> Iterator[bytes]:
    """Relative posix paths of the images under `root`, in no particular order; other files are counted by suffix.

    Hidden names (macOS's ``._x`` among them) are passed over. Links are followed, but not into a folder that they lie
    in; a link to nothing counts as an image, so that somebody hears of it.
    """
    top = os.stat(root)
    pending = [(b"", ((top.st_dev, top.st_ino),))]
    while pending:
        folder, ancestors = pending.pop()
        try:
            with os.scandir(os.path.join(os.fsencode(root), folder)) as entries:
                for entry in entries:
                    if entry.name.startswith(b"."):
                        continue
                    if entry.is_dir():
                        status = entry.stat()
                        identity = (status.st_dev, status.st_ino)
                        if identity not in ancestors:
                            pending.append((folder + entry.name + b"/", (*ancestors, identity)))
                        continue
                    suffix = os.path.splitext(entry.name)[1].lower()
                    if suffix in _SUFFIXES and (entry.is_file() or not os.path.exists(entry.path)):
                        yield folder + entry.name
                    elif others is not None:
                        others[suffix.decode("utf-8", "backslashreplace") or "without a suffix"] += 1
        except OSError as fault:
            where = root / os.fsdecode(folder)
            raise UserError(f"{where}: cannot be read ({fault.strerror}); check its access rights") from None


class FolderSource(FileSource):
    """The images under `root`, sorted bytewise by relative path.

    The names of the first-level folders are the classes where at least two of them hold images and no image lies
    beside them; otherwise there are no labels. `label_source` says which: "folder" or "none".

    Raises `UserError` for a folder without an image. `read` raises `OSError` for a file that has gone since.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        others: Counter[str] = Counter()
        paths = sorted(image_files(Path(root), others))
        if not paths:
            found = passed_over(others) if others else "it is empty, hidden files aside"
            raise UserError(f"{root}: no image in this folder: {found}; images end in {' '.join(IMAGE_SUFFIXES)}")
        folders = {path.partition(b"/")[0] for path in paths if b"/" in path}
        if len(folders) < 2 or not all(b"/" in path for path in paths):
            super().__init__(root, paths)
            return
        rank = {folder: number for number, folder in enumerate(sorted(folders))}
        labels = np.fromiter((rank[path.partition(b"/")[0]] for path in paths), np.int32, len(paths))
        super().__init__(root, paths, labels, [text(folder) for folder in rank], "folder")
