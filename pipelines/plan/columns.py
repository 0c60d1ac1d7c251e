"""What is known of each sample of a source, as columns: by the source itself, beside its shards, in the user's tables.

A table is a CSV file, a parquet file (needs pyarrow), or a folder of ``NAME.npy`` in the order of the source. In a
file, the column ``key`` says which sample a row is about: the source's key of it, or the end of that behind a ``/``.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UserError
from ...outside import nearest

if TYPE_CHECKING:
    from ..spec import ByteSource

FOLDER = "columns"  # beside shards: a folder of .npy
OWN = ("key", "label", "class_name", "width", "height", "bytes")  # what sources know by themselves


class Columns:
    """The columns of `source` by name, read when they are asked for. Raises `UserError`, which begins with `where`."""

    def __init__(self, source: ByteSource, table: str | None, where: str) -> None:
        self._source, self._where = source, where
        self._tables: list[_Folder | _File] = []
        if table is not None:
            path = Path(table).expanduser()
            if not path.exists():
                raise UserError(f"{where}.table: {table} does not exist; give a .csv, a .parquet, or a folder of .npy")
            self._tables.append(_Folder(path, f"{where}.table") if path.is_dir() else _File(path, f"{where}.table"))
        beside = Path(source.name).expanduser() / FOLDER
        if beside.is_dir():
            self._tables.append(_Folder(beside, where))

    def names(self) -> list[str]:
        return [*OWN, *(name for table in self._tables for name in table.names if name != "key")]

    def __call__(self, name: str) -> np.ndarray:
        """(N,) numbers, yes or no, or texts; of samples that a table does not have NaN, the others masked."""
        for table in self._tables:
            if name in table.names and name != "key":
                values = _without_objects(table.column(name, self._source))
                if values.dtype.kind not in "biufU":
                    raise UserError(
                        f"{self._where}: {name}: holds {values.dtype}; give numbers, yes or no (bool), or texts (str)"
                    )
                return values
        if name not in OWN:
            raise UserError(f"{self._where}: no column {name!r}{nearest(name, self.names())}")
        return self._own(name)

    def _own(self, name: str) -> np.ndarray:
        source = self._source
        index = getattr(source, "index", None)  # of shards: all at once
        field = {"label": "label", "width": "width", "height": "height", "bytes": "size"}.get(name)
        if field and isinstance(index, np.ndarray) and index.dtype.names and field in index.dtype.names:
            values = np.array(index[field])
        elif name == "bytes":
            values = np.array([source.extent(i)[2] if hasattr(source, "extent") else 0 for i in range(len(source))])
        elif name in ("width", "height"):
            sizes = (source.size(i) for i in range(len(source)))
            values = np.array([0 if size is None else size[name == "width"] for size in sizes])
        elif name == "key":
            return np.array([source.key(i) for i in range(len(source))])
        else:
            values = np.array([source.label(i) for i in range(len(source))])
            if name == "class_name":
                classes = source.classes or []
                return np.array([classes[label] if label >= 0 else "" for label in values])
        if name in ("width", "height", "bytes") and not values.all():
            raise UserError(
                f"{self._where}: {name}: {source.name} does not say it of {(values == 0).sum():,} images; "
                "shard the set, which measures it, or give a table"
            )
        return values


class _Folder:
    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where
        self.names = sorted(file.stem for file in path.glob("*.npy"))

    def column(self, name: str, source: ByteSource) -> np.ndarray:
        file = self._path / f"{name}.npy"
        try:
            values = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as fault:
            raise UserError(f"{self._where}: {file}: cannot be read ({fault})") from None
        if values.shape != (len(source),):
            raise UserError(
                f"{self._where}: {file}: has shape {values.shape}, the set {len(source):,} images; make it anew"
            )
        return values


class _File:
    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where
        self._rows = self._read()
        self.names = sorted(self._rows)
        if "key" not in self._rows:
            raise UserError(f"{where}: {path}: has no column 'key', which says what sample a row is about")
        self._places: np.ndarray | None = None

    def _read(self) -> dict[str, np.ndarray]:
        try:
            if self._path.suffix == ".parquet":
                from pyarrow import parquet  # an extra of the package

                found = parquet.read_table(self._path)
                return {name: found.column(name).to_numpy() for name in found.column_names}
            with open(self._path, encoding="utf-8-sig", newline="") as file:
                header, *rows = csv.reader(file)
        except ImportError:
            raise UserError(f"{self._where}: {self._path}: needs pyarrow: pip install 'headrace[tables]'") from None
        except (OSError, ValueError, csv.Error) as fault:
            raise UserError(f"{self._where}: {self._path}: cannot be read ({fault})") from None
        for number, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise UserError(f"{self._where}: {self._path}:{number}: {len(row)} values for {len(header)} columns")
        return {name: _typed([row[i] for row in rows], name == "key") for i, name in enumerate(header)}

    def column(self, name: str, source: ByteSource) -> np.ndarray:
        if self._places is None:
            self._places = self._found(source)
        values, known = self._rows[name], self._places >= 0
        if known.all():
            return values[self._places]
        filled = values[np.maximum(self._places, 0)]
        if values.dtype.kind not in "iuf":
            return np.ma.masked_array(filled, ~known)
        return np.where(known, filled, np.nan)

    def _found(self, source: ByteSource) -> np.ndarray:
        """(N,) the row of each sample, -1 for none. Raises `UserError` if no row is about any sample."""
        rows: dict[str, int] = {}
        for row, key in enumerate(self._rows["key"].tolist()):
            if rows.setdefault(str(key), row) != row:
                raise UserError(f"{self._where}: {self._path}: two rows for the key {key!r}")
        keys = [source.key(i) for i in range(len(source))]
        places = np.array([rows.get(key, rows.get(key.rpartition("/")[2], -1)) for key in keys], np.int64)
        if (places < 0).all():
            raise UserError(
                f"{self._where}: {self._path}: no row is about a sample of {source.name}: its keys are such as "
                f"{keys[0]!r}, the table's {next(iter(rows), '')!r}"
            )
        return places


def _without_objects(values: np.ndarray) -> np.ndarray:
    """Texts, or yes and no, with gaps, as parquet's columns come: masked where there is None."""
    if values.dtype.kind != "O":
        return values
    data, gaps = np.ma.getdata(values), np.ma.getmaskarray(values)
    gaps = gaps | np.array([value is None for value in data.tolist()])
    kinds = {type(value) for value in data[~gaps].tolist()}
    if kinds not in ({str}, {bool}):
        return values
    kind = kinds.pop()
    filled = np.array([kind() if gap else value for value, gap in zip(data.tolist(), gaps.tolist())])
    return np.ma.masked_array(filled, gaps)


def _typed(texts: list[str], text: bool) -> np.ndarray:
    """Numbers where all are (empty: NaN), yes or no for true and false, else texts."""
    if text:
        return np.array(texts)
    if texts and all(value.lower() in ("true", "false") for value in texts):
        return np.array([value.lower() == "true" for value in texts])
    try:
        return np.array([float(value) if value else np.nan for value in texts])
    except ValueError:
        return np.array(texts)
