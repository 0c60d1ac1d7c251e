"""Annotation lists: a text file with an image path, and perhaps a label, in each line."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..images.formats import image_suffixes, why_not
from .files import FileSource, text
from .lookup import existing

HIGHEST_LABEL = 999_999  # as in the `.cls` members of shards; a longer number is some other column


class ListSource(FileSource):
    """The images of a list, in its order. A line is ``path label`` or ``path``; all lines are of the same kind.

    The label is what follows the last blank, so paths may hold blanks; -1 is no label. Empty lines are passed over.
    `root` is where the paths start, by default the list's own folder, and what they may not leave; a path that begins
    with ``../`` starts in the list's folder, whatever the root. `classes` is a file with a class name per line;
    without it, classes are called after their folders where these correspond one to one, without what all of these
    begin with, else by their numbers.

    Raises `UserError`, with the line, for anything else: mixed lines, paths that leave the root, unknown labels.
    """

    def __init__(self, path: str | os.PathLike, *, root: str = "", classes: str = "") -> None:
        file = Path(path)
        root = existing(root) if root else file.parent
        names = read_lines(existing(classes)) if classes else None
        paths, labels = read_list(file, root, len(names) if names else HIGHEST_LABEL + 1)
        if labels is None:
            super().__init__(root, paths)
        else:
            super().__init__(root, paths, labels, names or class_names(paths, labels), "list")
        self.name = str(file)
        check_first(self, file)


def read_lines(file: Path) -> list[str]:
    """The lines of a text file without surrounding blanks, empty ones passed over."""
    try:
        lines = (line.strip() for line in file.read_text("utf-8-sig").splitlines())
    except (OSError, ValueError) as fault:
        raise UserError(f"{file}: cannot be read ({fault}); give a text file in UTF-8") from None
    return [line for line in lines if line]


def read_list(file: Path, root: Path, classes: int = HIGHEST_LABEL + 1) -> tuple[list[bytes], np.ndarray | None]:
    """Paths relative to `root` and (N,) int32 labels below `classes`, or None where no line has one.

    Raises `UserError` with the line of the first fault, and for a list without a line.
    """
    try:
        lines = io.BytesIO(file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as fault:
        raise UserError(f"{file}: cannot be read ({fault.strerror}); give a text file") from None
    suffixes = tuple(suffix.encode() for suffix in image_suffixes())
    paths: list[bytes] = []
    labels: list[int] = []
    first = 0  # the number of the first line that is not empty
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line:
            continue
        path, *last = line.rsplit(None, 1)
        labelled = bool(last) and (last[0].isdigit() or last[0] == b"-1")
        path = path if labelled else line
        if not path.lower().endswith(suffixes):
            if (suffix := os.path.splitext(path)[1].lower()) and (why := why_not(text(suffix))):
                raise UserError(f"{file}:{number}: {text(path)!r} is no image that is read ({why})")
            kind = "'path' or 'path label', the path"
            raise UserError(f"{file}:{number}: {text(path)!r} is no image; a line is {kind} ending in .jpg, .png ...")
        first = first or number
        if paths and labelled != bool(labels):
            has, had = ("a label", "none") if labelled else ("no label", "one")
            raise UserError(f"{file}:{number}: {has}, but line {first} has {had}; give all lines a label, -1 for none")
        if labelled:
            labels.append(int(last[0]))
            if labels[-1] >= classes:
                end = classes - 1
                raise UserError(f"{file}:{number}: label {labels[-1]}, but labels end at {end}; mend the line")
        paths.append(path if _is_inside(path) else _made_relative(path, root, file, f"{file}:{number}"))
    if not paths:
        raise UserError(f"{file}: no line in it; give a list of image paths")
    return paths, np.array(labels, np.int32) if labels and max(labels) >= 0 else None


def _is_inside(path: bytes) -> bool:
    return not path.startswith(b"/") and b".." not in path and b"\0" not in path


def _made_relative(path: bytes, root: Path, file: Path, where: str) -> bytes:
    """A path that may lie outside `root` by its looks: relative to it, or `UserError`."""
    top = os.fsencode(os.path.abspath(root))
    if b"\0" in path:
        raise UserError(f"{where}: {text(path)!r} leaves {root}, as no path can hold a zero byte; mend the line")
    climbing = re.fullmatch(rb"((?:\./|/)*\.\./(?:\./|/|\.\./)*)(.*)", path, re.DOTALL)
    below = climbing[2] if climbing and not path.startswith(b"/") else path
    if b".." in below.split(b"/"):
        odd = "'..' behind the name of a folder, which may be a link to anywhere"
        raise UserError(f"{where}: {text(path)!r} leaves {root} for all that can be told: {odd}; write it without")
    if below is path:
        target, inside = os.path.normpath(os.path.join(top, path)), os.path.relpath(os.path.join(top, path), top)
    else:  # as the system walks: up from where the list really lies
        target = os.path.normpath(os.path.join(os.path.realpath(os.fsencode(file.parent)), path))
        inside = os.path.relpath(target, os.path.realpath(top))
    if inside.split(b"/")[0] == b"..":
        holder = text(os.path.commonpath([os.path.realpath(os.fsencode(file.parent)), os.path.dirname(target)]))
        holder = text(os.path.dirname(target)) if holder == "/" else holder
        raise UserError(f"{where}: {text(path)!r} leaves {root}; to allow it, give a root that holds it: root={holder}")
    return inside


def class_names(paths: list[bytes], labels: np.ndarray) -> list[str]:
    """A name for every label up to the highest: its folder, where folders and labels correspond one to one.

    What all folders begin with is no part of it: the classes of ``train/cat/1.jpg`` and ``val/cat/2.jpg`` are the same.
    """
    numbers = [str(number) for number in range(int(labels.max()) + 1)]
    folders: dict[int, bytes] = {}
    for path, label in zip(paths, labels.tolist(), strict=True):
        folder = path.rpartition(b"/")[0]
        if label >= 0 and folders.setdefault(label, folder) != folder:
            return numbers
    if b"" in folders.values() or len(set(folders.values())) < len(folders):
        return numbers
    parts = {label: folder.split(b"/") for label, folder in folders.items()}
    shared = len(os.path.commonprefix([*parts.values()]))
    names = {label: text(b"/".join(part[min(shared, len(part) - 1) :])) for label, part in parts.items()}
    return [names.get(label, number) for label, number in enumerate(numbers)]


def check_first(source: FileSource, where: Path) -> None:
    """Raises `UserError` if the first image is missing: then the paths of `where` start somewhere else."""
    if not os.path.exists(source.path(0)):
        raise UserError(f"{where}: {source.path(0)} does not exist; is the list for another folder?")
