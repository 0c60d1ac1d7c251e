"""Images in a column of parquet files, as Hugging Face's data sets have them: read a row group at a time.

The image column is one of bytes, or of structs {bytes, path}; the label column one of whole numbers or of texts. Which
they are, the features tell that Hugging Face writes into the schema, else types and names, else options.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .lookup import choice, image_field

_HELD = 1 << 30  # bytes of row groups that were read last
_SPLIT = re.compile(r"(.+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.parquet")  # of files that Hugging Face's tools write


class ParquetSource:
    """The images of the parquet files in a folder, at any depth, or of one file: by file name, and in it by row.

    `image`, `label`: names of columns; `split`: of ``train-00000-of-00002.parquet`` that is ``train``. A sample's
    neighbours are its row group, so that ``data.block=shard`` reads each row group once an epoch, or nearly.

    Raises `UserError` for what cannot be read, and where there is no telling what to read.
    """

    notes: Sequence[str] = ()

    def __init__(self, path: str | os.PathLike, *, image: str = "", label: str = "", split: str = "") -> None:
        root = Path(path)
        found = [root] if root.is_file() else sorted(p for p in root.rglob("*.parquet") if not _hidden(p, root))
        self._root = root.parent if root.is_file() else root
        names = [file.relative_to(self._root).as_posix() for file in found]
        self._begin(str(path), names, image, label, split)

    def _begin(self, name: str, names: Sequence[str], image: str, label: str, split: str) -> None:
        try:
            import pyarrow.parquet  # noqa: F401 (an extra of the package)
        except ImportError:
            raise UserError(f"{name}: needs the extra [tables]: pip install 'headrace[tables]', or pyarrow") from None
        if not names:
            raise UserError(f"{name}: no .parquet file in it; give a folder of such files, or one of them")
        self.name, self.files = name, _of_split(name, names, split)
        self._make()
        groups, labels, self.classes = [], [], None
        for number, file in enumerate(self.files):
            try:
                opened = self._file(number)
                if not number:
                    self._image, self._label, named = _columns(name, opened.schema_arrow, image, label)
                kind = _kind(opened.schema_arrow, self._image)
                if kind is None:
                    raise ValueError(f"no column {self._image!r} of images in it")
                meta = opened.metadata
                groups += [(number, group, meta.row_group(group).num_rows) for group in range(meta.num_row_groups)]
                if self._label:
                    labels += opened.read(columns=[self._label]).column(0).to_pylist()
            except (OSError, ValueError, KeyError) as fault:  # Arrow's own errors are of these
                raise UserError(f"{name}: {file}: cannot be read ({_line(fault)}); download it again") from None
        rows = np.array(groups, np.int64).reshape(-1, 3)
        self._groups, self._starts = rows[:, :2], np.concatenate([[0], rows[:, 2].cumsum()])
        if not len(self):
            raise UserError(f"{name}: no row in its {len(self.files)} files; give another folder")
        self._labels = None
        if self._label:
            self._labels, self.classes = _numbered(f"{name}: column {self._label}", labels, named)
        self.label_source = "none" if self.classes is None else f"column {self._label}"

    def _make(self) -> None:
        self._opened: dict[int, Any] = {}
        self._lock, self._last, self._size = threading.Lock(), OrderedDict(), 0

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_opened", "_lock", "_last", "_size")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._make()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _place(self, index: int) -> tuple[int, int]:
        """(row group, row in it)."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, index - int(self._starts[group])

    def read(self, index: int) -> np.ndarray:
        """The image's bytes, 1-D uint8. Raises `OSError` for a row without an image, and files that have changed."""
        group, row = self._place(index)
        data, paths = self._rows(group)
        value = data[row]
        if value.is_valid:
            return np.frombuffer(value.as_buffer(), np.uint8)
        return self._beside(None if paths is None else paths[row].as_py())

    def _beside(self, path: str | None) -> np.ndarray:
        """The image in a file that a row names instead."""
        if not path or path.startswith("/") or ".." in path.split("/"):
            raise OSError(f"no image in its row{f', and {path!r} is no path inside the folder' if path else ''}")
        return np.frombuffer((self._root / path).read_bytes(), np.uint8)

    def _rows(self, group: int) -> tuple[Any, Any]:
        """The bytes of a row group's images as Arrow has them, and their paths or None."""
        with self._lock:
            if (held := self._last.get(group)) is not None:
                self._last.move_to_end(group)
                return held
            number, inside = self._groups[group].tolist()
            try:
                column = self._file(number).read_row_group(inside, columns=[self._image]).column(0).combine_chunks()
            except ValueError as fault:
                raise OSError(f"{self.files[number]}: row group {inside}: {_line(fault)}") from None
            column = column.chunk(0) if hasattr(column, "chunk") else column
            struct = hasattr(column, "field")
            fields = [column.type.field(n).name for n in range(column.type.num_fields)] if struct else []
            data = column.field("bytes") if struct else column
            held = data, column.field("path") if "path" in fields else None
            self._last[group], self._size = held, self._size + data.nbytes
            while self._size > _HELD and len(self._last) > 1:
                _, (oldest, _) = self._last.popitem(last=False)
                self._size -= oldest.nbytes
            return held

    def _file(self, number: int):
        """An open file; called with the lock held, or before anybody else knows this source."""
        if number not in self._opened:
            from pyarrow.parquet import ParquetFile

            self._opened[number] = ParquetFile(self._root / self.files[number], memory_map=True)
        return self._opened[number]

    def label(self, index: int) -> int:
        return -1 if self._labels is None else int(self._labels[index])

    def key(self, index: int) -> str:
        """``file.parquet/row``, the row counted in its file."""
        file, row = self.place(index)
        return f"{file}/{row:06d}"

    def place(self, index: int) -> tuple[str, int]:
        """(file, row in it)."""
        group, _ = self._place(index)
        number = int(self._groups[group, 0])
        first = int(np.searchsorted(self._groups[:, 0], number))
        return self.files[number], index - int(self._starts[first])

    def neighbours(self, index: int) -> tuple[int, int]:
        """(first, last): the samples [first, last) lie in one row group."""
        group, _ = self._place(index)
        return int(self._starts[group]), int(self._starts[group + 1])

    def size(self, index: int) -> None:
        return None


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _of_split(name: str, names: Sequence[str], split: str) -> list[str]:
    found: dict[str, list[str]] = {}
    for one in names:
        match = _SPLIT.fullmatch(one.rpartition("/")[2])
        found.setdefault(match[1] if match else "", []).append(one)
    if split:
        return found[choice(name, "split", split, [one for one in found if one])]
    if len(found) > 1:
        splits = ", ".join(sorted(one for one in found if one))
        raise UserError(f"{name}: holds the splits {splits}; choose one, as in ?split={next(filter(None, found))}")
    return list(names)


def _kind(schema, column: str) -> str | None:
    """Whether a column can hold images: "bytes" or "struct"; None where it cannot, or is not there."""
    import pyarrow.types as types

    if column not in schema.names:
        return None
    kind = schema.field(column).type
    if types.is_struct(kind):
        fields = [kind.field(n) for n in range(kind.num_fields)]
        return "struct" if any(f.name == "bytes" and _binary(f.type) for f in fields) else None
    return "bytes" if _binary(kind) else None


def _binary(kind) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _columns(name: str, schema, image: str, label: str) -> tuple[str, str, list[str] | None]:
    """(image column, label column or empty, names of the classes if the schema has them)."""
    import pyarrow.types as types

    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        features = {}
    features = {key: one for key, one in features.items() if isinstance(one, dict)}
    images = [column for column in schema.names if _kind(schema, column)]
    told = [column for column in images if features.get(column, {}).get("_type") == "Image"] or images
    image = image_field(name, "column of images", "columns of images", image, told, images)
    whole = [f.name for f in schema if types.is_integer(f.type) or types.is_string(f.type)]
    classes = [column for column in whole if features.get(column, {}).get("_type") == "ClassLabel"]
    if label:
        choice(name, "column of labels", label, whole)
    elif "label" in whole or len(classes) == 1:
        label = "label" if "label" in whole else classes[0]
    names = features.get(label, {}).get("names")
    return image, label, names if isinstance(names, list) and all(isinstance(one, str) for one in names) else None


def _numbered(where: str, labels: list, named: list[str] | None) -> tuple[np.ndarray, list[str]]:
    """Class numbers, -1 for none, and the names of the classes; texts are numbered in sorted order."""
    if any(isinstance(one, str) for one in labels):
        classes = sorted({one for one in labels if one is not None})
        number = {one: at for at, one in enumerate(classes)}
        return np.array([-1 if one is None else number[one] for one in labels], np.int32), classes
    values = np.array([-1 if one is None else one for one in labels], np.int64)
    most = len(named) if named else 1_000_000
    if values.min() < -1 or values.max() >= most:
        raise UserError(f"{where}: {values.min()} to {values.max()}, classes are 0 to {most - 1:,}, -1 is none")
    return values.astype(np.int32), named or [str(one) for one in range(int(values.max()) + 1)]


def _line(fault: Exception) -> str:
    return " ".join(str(fault).split())[:200] or type(fault).__name__
