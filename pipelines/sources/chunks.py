"""Files of samples whose fields lie one behind the other, as MDS and LitData write them: where the images are in them.

A file begins with the number of its samples and the position of each and of the end of the last, all uint32 in little
endian. A sample begins with the sizes of those of its fields that have none of their own, and goes on with the fields.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from .lists import HIGHEST_LABEL
from .lookup import choice, image_field
from .mapped import INDEX, MappedSource

INDEX_JSON = "index.json"
_LABELS = ("label", "class", "cls", "target", "y")  # fields of whole numbers that are taken for labels, in this order


class Rows(NamedTuple):
    """Of the samples of one file: where the images begin, their bytes, and labels, -1 for none."""

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray | int


class ChunkSource(MappedSource):
    """The images of `files`, which ``rows_of(bytes of a file)`` finds; `label`: the field of the labels, or empty.

    Raises `UserError` for a file that is not there, or not as it should be (a `ValueError` of `rows_of`).
    """

    def __init__(self, name: str, files: Sequence[Path], rows_of: Callable[[np.ndarray], Rows], label: str) -> None:
        parts, sizes = [], []
        for number, file in enumerate(files):
            try:
                with open(file, "rb") as opened:
                    pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
                pages.madvise(mmap.MADV_RANDOM)  # a few bytes of each sample are read, and not what lies around them
                rows = rows_of(np.frombuffer(pages, np.uint8))
                if (rows.offsets + rows.sizes > len(pages)).any():
                    raise ValueError("images that reach past its end")
            except (OSError, ValueError, IndexError) as fault:
                raise UserError(f"{file}: cannot be read ({fault}); copy it again") from None
            part = np.zeros(len(rows.offsets), INDEX)
            part["shard"], part["label"] = number, rows.labels
            part["offset"], part["size"] = rows.offsets, rows.sizes
            parts.append(part)
            sizes.append(len(pages))
        index = np.concatenate(parts) if parts else np.zeros(0, INDEX)
        if not len(index):
            raise UserError(f"{name}: no sample in its {len(files)} files; give another folder")
        classes = None
        if label:
            low, high = int(index["label"].min()), int(index["label"].max())
            if low < -1 or high > HIGHEST_LABEL:
                raise UserError(f"{name}: {label}: {low} to {high}, classes are 0 to {HIGHEST_LABEL:,}, -1 is none")
            classes = [str(number) for number in range(high + 1)]
        super().__init__(name, files, sizes, index, classes, f"field {label}" if label else "none")
        self._firsts = np.searchsorted(index["shard"], range(len(files)))

    def key(self, index: int) -> str:
        """``file/sample``, counted in its file."""
        shard = int(self.index["shard"][index])
        return f"{self._files[shard].name}/{index - int(self._firsts[shard]):06d}"


def read_index(folder: Path, wanted: str) -> dict:
    """What `index.json` in a folder says, which must have the key `wanted`. Raises `UserError`."""
    file = folder / INDEX_JSON
    try:
        found = json.loads(file.read_bytes())
        if isinstance(found, dict) and wanted in found:
            return found
        fault = f"it has no {wanted}"
    except FileNotFoundError:
        raise UserError(f"{folder}: no {INDEX_JSON} in it; give the folder that holds it") from None
    except (OSError, ValueError) as problem:
        fault = str(problem)
    raise UserError(f"{file}: cannot be read ({fault}); copy it again")


def inside(folder: Path, name: object) -> Path:
    """A file that an index names. Raises `ValueError` for one that lies elsewhere."""
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise ValueError(f"{name!r} is no file beside it")
    return folder / name


def chosen(name: str, images: Sequence[str], numbers: Sequence[str], image: str, label: str) -> tuple[str, str]:
    """(image field, label field or empty) of those that may be them. Raises `UserError` where there is no telling."""
    image = image_field(name, "field of images", "fields of encoded images", image, images, images)
    if label:
        choice(name, "field of whole numbers", label, numbers)
    return image, label or next((one for one in _LABELS if one in numbers), "")


def located(pages: np.ndarray, fixed: Mapping[str, int | None]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """For each field where it begins in each sample, and its bytes.

    `fixed`: all fields in order, with the bytes of those whose size no sample says. Raises `ValueError` where positions
    and sizes do not fit together.
    """
    count = int(pages[:4].view("<u4")[0])
    ends = pages[4 : 4 * (count + 2)].view("<u4").astype(np.int64)
    if len(ends) != count + 1 or ends[-1] > len(pages) or (np.diff(ends) < 0).any():
        raise ValueError("its table of samples is damaged")
    free = [field for field, size in fixed.items() if size is None]
    head = taken(pages, ends[:-1], "<u4", len(free)).astype(np.int64)
    starts, sizes, at = {}, {}, ends[:-1] + 4 * len(free)
    for field, size in fixed.items():
        sizes[field] = head[:, free.index(field)] if size is None else np.full(count, size)
        starts[field], at = at, at + sizes[field]
    if (at != ends[1:]).any():
        raise ValueError("sizes of fields do not add up to their samples")
    return starts, sizes


def taken(pages: np.ndarray, starts: np.ndarray, kind: str, count: int = 1) -> np.ndarray:
    """(samples, count) numbers of a type, which lie at `starts`."""
    width = np.dtype(kind).itemsize * count
    if len(starts) and starts.max() + width > len(pages):
        raise ValueError("cut short")
    return np.ascontiguousarray(pages[starts[:, None] + np.arange(width)]).view(kind)
