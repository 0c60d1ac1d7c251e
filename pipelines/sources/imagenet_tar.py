"""ImageNet's own archives, read where they lie: only tar headers are scanned, images are views of one memory map.

ILSVRC2012_img_train.tar   1,000 tars ``<wnid>.tar``, each with the images of one class
ILSVRC2012_img_val.tar     50,000 images side by side; so is the archive of test
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..images.formats import image_suffixes, passed_over
from .mapped import INDEX, MappedSource
from .tar import BLOCK, members, name_in


class ImageNetTar(MappedSource):
    """The images of one archive, in the order and under the names that they have in unpacked folders."""

    def __init__(
        self, archive: Path, index: np.ndarray, classes: list[str] | None, label_source: str, others: Counter[str]
    ) -> None:
        self.notes = [f"passed over: {passed_over(others)}"] if others else []
        if not len(index):
            found = passed_over(others) if others else "it is empty"
            raise UserError(f"{archive}: no image in it: {found}; images end in {' '.join(image_suffixes())}")
        super().__init__(str(archive), [archive], [archive.stat().st_size], index, classes, label_source)

    def key(self, index: int) -> str:
        """``<wnid>/<file>`` in train, whose archive holds a tar a class; elsewhere the file's name."""
        _, offset, _, label, *_ = self.index[index].item()
        name = name_in(self._map(0)[offset - BLOCK : offset].tobytes())
        return f"{self.classes[label]}/{name}" if self.label_source == "folder" else name


def holds_tars(archive: Path) -> bool:
    """Whether the first file in a tar is a tar itself, by its name. False for what is no tar."""
    try:
        with open(archive, "rb", buffering=0) as file:
            return next(members(file.fileno()), ("", 0, 0))[0].endswith(".tar")
    except (OSError, ValueError):  # whoever opens it says why
        return False


def split_of(archive: Path) -> str:
    """train, val or test, by what the archive holds."""
    if holds_tars(archive):
        return "train"
    with _reading(archive) as descriptor:
        name, *_ = next(members(descriptor), ("", 0, 0))
    return "test" if "_test_" in name else "val"


def open_train(archive: Path, wanted: set[bytes] | None) -> ImageNetTar:
    """Every image, labelled with the rank of its wnid, or those whose file names are `wanted`.

    Raises `UserError` for damage, with the inner tar's name, and for wanted images that are not there.
    """
    others: Counter[str] = Counter()
    with _reading(archive) as descriptor:
        inner = []
        for name, at, size in members(descriptor):
            base = os.path.basename(name)
            if base.endswith(".tar"):
                inner.append((base.removesuffix(".tar"), at, at + size))
            elif not base.startswith("."):
                others[os.path.splitext(base)[1].lower() or "without a suffix"] += 1
        names = [wnid for wnid, *_ in inner]
        if len(set(names)) < len(names):
            raise UserError(f"{archive}: two tars of one name in it; copy it again")
        inner.sort(key=lambda tar: f"{tar[0]}/")  # the order of the unpacked paths
        with ThreadPoolExecutor(16) as threads:  # a cold disk answers many at once
            rows = list(threads.map(lambda tar: _inner_rows(archive, descriptor, *tar, wanted), inner))
    classes = sorted(wnid for (wnid, *_), (_, images, _) in zip(inner, rows, strict=True) if images)
    rank = {wnid: label for label, wnid in enumerate(classes)}
    for (wnid, *_), (found, _, passed) in zip(inner, rows, strict=True):
        found["label"] = rank.get(wnid, -1)
        others.update(passed)
    index = np.concatenate([found for found, *_ in rows]) if rows else np.empty(0, INDEX)
    if wanted is not None and len(index) < len(wanted):
        raise UserError(f"{archive}: {len(wanted) - len(index):,} images of the list are not in it; is it complete?")
    return ImageNetTar(archive, index, classes, "folder", others)


def _inner_rows(
    archive: Path, descriptor: int, wnid: str, begin: int, end: int, wanted: set[bytes] | None
) -> tuple[np.ndarray, int, Counter[str]]:
    """Rows of INDEX of the (wanted) images in one inner tar, by name; how many images it holds, and what else."""
    others: Counter[str] = Counter()
    try:
        images = _images(descriptor, others, begin, end)
    except ValueError as fault:
        raise UserError(f"{archive}: {wnid}.tar in it: {fault}; copy it again") from None
    rows = [(0, at, size, -1, 0, 0) for name, at, size in images if wanted is None or name in wanted]
    return np.array(rows, INDEX), len(images), others


def open_flat(archive: Path, label_of: Callable[[str], int] | None, classes: list[str] | None) -> ImageNetTar:
    """Every image by name; `label_of` tells a file name's label, None: there are no labels."""
    others: Counter[str] = Counter()
    with _reading(archive) as descriptor:
        images = _images(descriptor, others)
    label = (lambda name: -1) if label_of is None else (lambda name: label_of(os.fsdecode(name)))
    rows = [(0, at, size, label(name), 0, 0) for name, at, size in images]
    return ImageNetTar(archive, np.array(rows, INDEX), classes, "none" if label_of is None else "list", others)


def _images(
    descriptor: int, others: Counter[str], begin: int = 0, end: int | None = None
) -> list[tuple[bytes, int, int]]:
    """(name, offset, size) of every image in a tar, by name; `others` counts the rest, but for hidden ones."""
    found, suffixes = [], image_suffixes()
    for name, at, size in members(descriptor, begin, end):
        base = name.rpartition("/")[2]
        suffix = os.path.splitext(base)[1].lower()
        if base.startswith("."):
            continue
        if suffix in suffixes:
            found.append((os.fsencode(name), at, size))
        else:
            others[suffix or "without a suffix"] += 1
    return sorted(found)


@contextmanager
def _reading(archive: Path) -> Iterator[int]:
    """A descriptor; damage found meanwhile becomes a `UserError`."""
    try:
        with open(archive, "rb", buffering=0) as file:
            yield file.fileno()
    except ValueError as fault:  # `TarError`, or nonsense in a pax record
        raise UserError(f"{archive}: {fault}; copy it again") from None
    except OSError as fault:
        raise UserError(f"{archive}: cannot be read ({fault.strerror}); check its access rights") from None
