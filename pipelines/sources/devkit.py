"""The development kit of ILSVRC 2012: what the images of the validation set show."""

from __future__ import annotations

import re
import tarfile
import zlib
from pathlib import Path

import numpy as np

from ...errors import UserError
from .matlab import read_matlab

_META, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_NAME = re.compile(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.\w+")


class Devkit:
    """``ILSVRC2012_devkit_t12.tar.gz``. Its class ids, 1 to 1000, are not in the order of the wnids; labels are.

    `wnids`: all of them, sorted. Raises `UserError` for a file that is damaged or something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            meta, truth = _extract(path, (_META, _TRUTH))
            synsets = read_matlab(meta)["synsets"]
            leaves = {int(s["ILSVRC2012_ID"][0]): s["WNID"] for s in synsets if int(s["num_children"][0]) == 0}
            self.wnids = sorted(leaves.values())
            rank = {wnid: label for label, wnid in enumerate(self.wnids)}
            self._labels = np.array([rank[leaves[int(number)]] for number in truth.split()], np.int32)
        except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError, KeyError, TypeError, IndexError) as fault:
            raise UserError(f"{path}: no readable devkit of ILSVRC 2012 ({fault}); download it again") from None

    def label(self, name: str) -> int:
        """The label of ``ILSVRC2012_val_<number>.JPEG``: the numbers count the lines of the ground truth from 1."""
        match = _NAME.fullmatch(name)
        if match is None or not 0 < int(match[1]) <= len(self._labels):
            raise UserError(
                f"{self._path}: no label for {name}, only for {len(self._labels):,} ILSVRC2012_val_<number>.JPEG"
            )
        return int(self._labels[int(match[1]) - 1])


def _extract(path: Path, names: tuple[str, ...]) -> list[bytes]:
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = next((name for name in names if member.name.endswith(name)), None)
            if name and member.isreg():
                found[name] = archive.extractfile(member).read()
    return [found[name] for name in names]
