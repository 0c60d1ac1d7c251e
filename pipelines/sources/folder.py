"""Images as files in a folder, at any depth, of any size and format that Pillow reads."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..images.formats import image_suffixes, passed_over
from .files import FileSource, text

COLUMNS = "columns"  # a folder beside images: what is known of them, see pipelines/plan/columns.py
_HIDDEN = "hidden with an image's suffix"
_TRAIN = re.compile(rb"train", re.IGNORECASE)
_SPLIT = re.compile(
    rb"(train(ing|val)?|val(id(ation)?)?|test(ing)?|eval(uation)?|dev|unlabell?ed|extra)"
    rb"([-_ ]?(set|data|images?|\d+))*",
    re.IGNORECASE,
)


def image_files(root: Path, others: Counter[str] | None = None) -> Iterator[bytes]:
    """Relative posix paths of the images under `root`, in no particular order; other files are counted by suffix.

    Hidden names (macOS's ``._x`` among them) are passed over, and counted where they end as images. Links are followed,
    but not into a folder that they lie in; a link to nothing counts as an image, so that somebody hears of it.
    """
    top, suffixes = os.stat(root), frozenset(suffix.encode() for suffix in image_suffixes())
    pending = [(b"", ((top.st_dev, top.st_ino),))]
    while pending:
        folder, ancestors = pending.pop()
        try:
            with os.scandir(os.path.join(os.fsencode(root), folder)) as entries:
                for entry in entries:
                    if entry.name.startswith(b"."):
                        if others is not None and os.path.splitext(entry.name)[1].lower() in suffixes:
                            others[_HIDDEN] += 1
                        continue
                    if entry.is_dir():
                        status = entry.stat()
                        identity = (status.st_dev, status.st_ino)
                        if identity not in ancestors:
                            pending.append((folder + entry.name + b"/", (*ancestors, identity)))
                        continue
                    suffix = os.path.splitext(entry.name)[1].lower()
                    if suffix == b".npy" and folder == COLUMNS.encode() + b"/":
                        continue
                    if suffix in suffixes and (entry.is_file() or not os.path.exists(entry.path)):
                        yield folder + entry.name
                    elif others is not None and folder != COLUMNS.encode() + b"/":
                        others[suffix.decode("utf-8", "backslashreplace") or "without a suffix"] += 1
        except OSError as fault:
            where = root / os.fsdecode(folder)
            raise UserError(f"{where}: cannot be read ({fault.strerror}); check its access rights") from None


def images_under(root: Path, remedy: str = "") -> tuple[list[bytes], list[str]]:
    """`image_files` sorted bytewise, and sentences on the files that are passed over.

    Raises `UserError` for a folder without an image, and says what it holds instead, and the `remedy`.
    """
    others: Counter[str] = Counter()
    paths = sorted(image_files(root, others))
    if not paths:
        found = passed_over(others) if others else "it is empty, hidden files aside"
        remedy = remedy or f"images end in {' '.join(image_suffixes())}"
        raise UserError(f"{root}: no image in this folder: {found}; {remedy}")
    return paths, [f"passed over: {passed_over(others)}"] if others else []


class FolderSource(FileSource):
    """The images under `root`, sorted bytewise by relative path.

    The names of the first-level folders are the classes where at least two of them hold images, no image lies beside
    them, and they are not called as splits are (train, val ...); otherwise there are no labels, and `notes` says why.
    `label_source` says which: "folder" or "none".

    Raises `UserError` for a folder without an image. `read` raises `OSError` for a file that has gone since.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        paths, notes = images_under(Path(root))
        top = os.path.commonprefix([paths[0], paths[-1]]).rpartition(b"/")
        top = top[0] + top[1]  # the folder that everything lies in: b"", or one that ends with a slash
        first = (path[len(top) :].partition(b"/") for path in paths)
        counts = Counter(name if slash else b"" for name, slash, _ in first)
        beside = counts.pop(b"", 0)
        folders = sorted(counts)
        self._splits = (top, folders) if _are_splits(folders) else None
        if top or beside or len(folders) < 2 or self._splits:
            notes += _why_no_labels(Path(root), top, folders, beside, self._splits is not None)
            super().__init__(root, paths, notes=notes)
            return
        rank = {folder: number for number, folder in enumerate(folders)}
        labels = np.fromiter((rank[path.partition(b"/")[0]] for path in paths), np.int32, len(paths))
        super().__init__(root, paths, labels, [text(folder) for folder in folders], "folder", notes)

    def refuse_splits(self) -> None:
        """Raises `UserError` for a folder whose folders are training images and images to validate with."""
        if self._splits is not None:
            top, folders = self._splits
            train = next(folder for folder in folders if _TRAIN.match(folder))
            named, part = _some([top + folder for folder in folders]), self.root / os.fsdecode(top + train)
            remedy = f"give one of them, such as {part}, or folder:{self.root} for all, without labels"
            raise UserError(f"{self.root}: holds {named}, which are splits and not classes; {remedy}")


def _are_splits(folders: list[bytes]) -> bool:
    """Whether folders are the splits of a set: training images, others, and nothing else."""
    training = sum(_TRAIN.match(folder) is not None for folder in folders)
    return 0 < training < len(folders) and all(_SPLIT.fullmatch(folder) for folder in folders)


def _why_no_labels(root: Path, top: bytes, folders: list[bytes], beside: int, splits: bool) -> list[str]:
    if splits:
        return [f"no labels: {_some([top + folder for folder in folders])} are splits and not classes"]
    if top and len(folders) > 1 and not beside:
        give = f"its {len(folders):,} folders are classes where you give {root / os.fsdecode(top)}"
        return [f"no labels: all images lie in {text(top)}; {give}"]
    if top and not folders:
        return [f"no labels: all images lie in {text(top)}, and one folder makes no classes"]
    if folders and beside:
        lie = "1 image lies" if beside == 1 else f"{beside:,} images lie"
        return [f"no labels: {lie} beside the folders {_some(folders)}, which would be classes alone"]
    return []


def _some(folders: list[bytes]) -> str:
    return ", ".join(text(folder) for folder in folders[:3]) + (" ..." if len(folders) > 3 else "")
