"""What is known of each sample of a source, as columns: by itself, beside its images, in the user's tables.

A table is a CSV file, a parquet file (needs pyarrow), or a folder. In a file, the column ``key`` says which sample a
row is about: the source's key of it, or the end of that behind a ``/``. A folder holds ``NAME.npy``, a value for each
sample in the order of the source, and files of both kinds; its ``images.json`` says which images the .npy are about.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UserError
from ...outside import nearest
from ...places import write_file
from ..sources import resolve
from ..sources.folder import COLUMNS as FOLDER

if TYPE_CHECKING:
    from ..spec import ByteSource

IMAGES = "images.json"  # of a folder of columns: {"images": N, "names": 12 hexadecimal digits}
OWN = ("key", "label", "class_name", "width", "height", "bytes")  # what sources know by themselves
_LOOKED_AT = 1024  # keys that tell sources apart


def folder_beside(name: str | os.PathLike) -> Path:
    """Where the columns of the source of that name lie: ``columns`` in its folder; of a file, ``FILE.columns``."""
    place = Path(resolve(os.fspath(name))[1]).expanduser()
    return place / FOLDER if place.is_dir() else place.with_name(f"{place.name}.{FOLDER}")


def images_of(source: ByteSource) -> dict[str, int | str]:
    """What `IMAGES` says of a source: how many images it has, and a digest of 1,024 of their keys, evenly spread."""
    some = np.unique(np.linspace(0, len(source) - 1, min(len(source), _LOOKED_AT)).round().astype(np.int64))
    keys = "\n".join(source.key(index) for index in some.tolist())
    return {"images": len(source), "names": hashlib.sha256(keys.encode("utf-8", "surrogatepass")).hexdigest()[:12]}


def write_columns(folder: Path, source: ByteSource, columns: Mapping[str, np.ndarray]) -> None:
    """Writes columns (N,) in the order of the source into a folder; others that lie there stay.

    Each file is there whole or not at all. Raises `UserError` where it cannot be written, or `folder` holds columns of
    other images.
    """
    own = images_of(source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_images(folder, source, str(folder))
        for name, values in columns.items():
            if values.shape != (len(source),):
                raise ValueError(f"{name}: {values.shape} values for {len(source)} images")
            buffer = io.BytesIO()
            np.save(buffer, values, allow_pickle=False)
            write_file(folder / f"{name}.npy", buffer.getvalue())
        write_file(folder / IMAGES, json.dumps(own).encode() + b"\n")
    except OSError as fault:
        raise UserError(
            f"{folder}: cannot be written ({fault.strerror}); free some space, or change its rights"
        ) from None


def _check_images(folder: Path, source: ByteSource, where: str) -> None:
    """Raises `UserError` for a folder whose columns are about other images, as far as it says."""
    if not (folder / IMAGES).exists():
        return
    try:
        said = json.loads((folder / IMAGES).read_text("utf-8"))
        count, names = int(said["images"]), str(said["names"])
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UserError(f"{where}: {folder / IMAGES}: cannot be read ({fault}); make the columns anew") from None
    own = images_of(source)
    if (count, names) != (own["images"], own["names"]):
        raise UserError(
            f"{where}: {folder}: its columns are about {count:,} images, {source.name} has {own['images']:,}"
            f"{' of other names' if count == own['images'] else ''}; make them anew, or remove the folder"
        )


class Columns:
    """The columns of `source` by name, read when they are asked for. Raises `UserError`, which begins with `where`."""

    def __init__(self, source: ByteSource, table: str | None, where: str, name: str | None = None) -> None:
        """`table`: of the user's; `name`: what the source was opened as, beside which more may lie."""
        self._source, self._where = source, where
        self._tables: list[_Folder | _File] = []
        self._read: dict[str, str] = {}  # of what was asked of tables: name -> where it is from, how much is known
        if table is not None:
            path = Path(table).expanduser()
            if not path.exists():
                raise UserError(f"{where}.table: {table} does not exist; give a .csv, a .parquet, or a folder of .npy")
            self._tables += _tables(path, source, f"{where}.table")
            if not any(table.names for table in self._tables):
                raise UserError(f"{where}.table: {table} holds no column: no NAME.npy, .csv or .parquet")
        try:
            beside = folder_beside(source.name if name is None else name)
        except UserError:  # nothing that lies anywhere
            return
        if beside.is_dir():
            self._tables += _tables(beside, source, where)

    def names(self) -> list[str]:
        return [*OWN, *(name for table in self._tables for name in table.names if name != "key")]

    def said(self) -> tuple[str, ...]:
        """What was read from tables, in words: ``blur: photos/columns (20 of 24 known)``."""
        return tuple(f"{name}: {text}" for name, text in self._read.items())

    def __call__(self, name: str) -> np.ndarray:
        """(N,) numbers, yes or no, or texts; of samples that a table does not have NaN, the others masked."""
        for table in self._tables:
            if name in table.names and name != "key":
                values = _without_objects(table.column(name, self._source))
                if values.dtype.kind not in "biufU":
                    raise UserError(
                        f"{self._where}: {name}: holds {values.dtype}; give numbers, yes or no (bool), or texts (str)"
                    )
                gaps = np.ma.getmaskarray(values)
                known = len(values) - int((gaps | np.isnan(values) if values.dtype.kind == "f" else gaps).sum())
                part = "" if known == len(values) else f" ({known:,} of {len(values):,} known)"
                self._read[name] = f"{table.path}{part}"
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
                return np.array([*classes, ""])[np.where(values < 0, len(classes), values)]
        if name in ("width", "height", "bytes") and not values.all():
            raise UserError(
                f"{self._where}: {name}: {source.name} does not say it of {(values == 0).sum():,} images; "
                "shard the set, which measures it, or give a table"
            )
        return values


def _tables(path: Path, source: ByteSource, where: str) -> list[_Folder | _File]:
    """Of a file, or of a folder and the files in it."""
    if not path.is_dir():
        return [_File(path, where)]
    _check_images(path, source, where)
    return [_Folder(path, where), *(_File(file, where) for file in sorted(path.iterdir()) if file.suffix in _FILES)]


_FILES = (".csv", ".parquet")


class _Folder:
    def __init__(self, path: Path, where: str) -> None:
        self.path, self._where = path, where
        self.names = sorted(file.stem for file in path.glob("*.npy"))

    def column(self, name: str, source: ByteSource) -> np.ndarray:
        file = self.path / f"{name}.npy"
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
        self.path, self._where = path, where
        self._rows = self._read()
        self.names = sorted(self._rows)
        if "key" not in self._rows:
            raise UserError(f"{where}: {path}: has no column 'key', which says what sample a row is about")
        self._places: np.ndarray | None = None

    def _read(self) -> dict[str, np.ndarray]:
        try:
            if self.path.suffix.lower() == ".parquet":
                from pyarrow import parquet  # an extra of the package

                found = parquet.read_table(self.path)
                self._once(found.column_names)
                return {name: found.column(name).to_numpy() for name in found.column_names}
            with open(self.path, encoding="utf-8-sig", newline="") as file:
                lines = list(csv.reader(file))
        except ImportError:
            raise UserError(f"{self._where}: {self.path}: needs pyarrow: pip install 'headrace[tables]'") from None
        except (OSError, ValueError, csv.Error) as fault:
            reason = " ".join(str(fault).split())
            raise UserError(f"{self._where}: {self.path}: cannot be read ({reason})") from None
        header, rows = lines[0] if lines else [], lines[1:]
        self._once(header)
        for number, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise UserError(f"{self._where}: {self.path}:{number}: {len(row)} values for {len(header)} columns")
        return {name: _typed([row[i] for row in rows], name == "key") for i, name in enumerate(header)}

    def _once(self, names: list[str]) -> None:
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{self._where}: {self.path}: two columns are called {twice[0]!r}; rename one")

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
                raise UserError(f"{self._where}: {self.path}: two rows for the key {key!r}")
        keys = [source.key(i) for i in range(len(source))]
        places = np.array([rows.get(key, -1) for key in keys], np.int64)
        by_name: dict[int, str] = {}
        for sample in np.flatnonzero(places < 0).tolist():
            key = keys[sample]
            row = places[sample] = rows.get(key.rpartition("/")[2], -1)
            if row >= 0 and by_name.setdefault(row, key) != key:
                raise UserError(
                    f"{self._where}: {self.path}: the key {key.rpartition('/')[2]!r} is the name of several images, "
                    f"such as {by_name[row]} and {key}; give whole keys"
                )
        if (places < 0).all():
            raise UserError(
                f"{self._where}: {self.path}: no row is about a sample of {source.name}: its keys are such as "
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
