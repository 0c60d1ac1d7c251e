"""Chunks of LitData: read without it, where they are neither compressed nor encrypted.

index.json    {chunks: [{filename, ...}], config: {data_format, data_spec, compression, encryption, item_loader, ...}}
chunk-*.bin   see chunks.py, all fields with their sizes at the head of a sample; or, of dictionaries of bytes and
              numbers, all positions alike, and at the end an Arrow file of the rows, its length in uint32, `_MARK`
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import UserError
from .chunks import INDEX_JSON, ChunkSource, Rows, chosen, inside, located, read_index, taken

_ENCODED = ("jpeg", "bytes", "image", "file")  # kinds of fields that are the bytes of a file
_MARK = b"LDARW01\0"


class LitDataSource(ChunkSource):
    """The images in a folder of LitData: in the field `image`, by default the one so called or the only one of bytes.

    Fields of tuples are called 0, 1 ..., nested ones ``outer.inner``. `label` is a field of whole numbers, by default
    ``label``, ``class``, ``cls``, ``target`` or ``y``. Raises `UserError`.
    """

    def __init__(self, path: str | os.PathLike, *, image: str = "", label: str = "") -> None:
        folder = Path(path)
        index = read_index(folder, "chunks")
        try:
            config = index["config"]
            files = [inside(folder, chunk["filename"]) for chunk in index["chunks"]]
            fields = dict(zip(_leaves(json.loads(config["data_spec"])[1]), config["data_format"], strict=True))
            odd = [
                f"{key} {config[key]}" for key in ("compression", "ipc_compression", "encryption") if config.get(key)
            ]
            if config.get("item_loader", "PyTreeLoader") != "PyTreeLoader":
                odd.append(f"a {config['item_loader']}")
        except (LookupError, TypeError, ValueError, AttributeError) as fault:
            raise UserError(f"{folder / INDEX_JSON}: cannot be read ({fault!r}); copy it again") from None
        if odd:
            raise UserError(f"{folder}: written with {odd[0]}; write it without, or shard what its own reader reads")
        encoded = [name for name, kind in fields.items() if kind.partition(":")[0] in _ENCODED]
        image, label = chosen(str(path), encoded, [n for n, kind in fields.items() if kind == "int"], image, label)

        def rows(pages: np.ndarray) -> Rows:
            if pages[4:8].tobytes() == pages[8:12].tobytes() and pages[-len(_MARK) :].tobytes() == _MARK:
                return _arrow_rows(str(path), pages, image, label)
            starts, sizes = located(pages, dict.fromkeys(fields))
            labels = taken(pages, starts[label], "<i8")[:, 0] if label else -1
            return Rows(starts[image], sizes[image], labels)

        super().__init__(str(path), files, rows, label)


def _leaves(spec: dict, name: str = "") -> Iterator[str]:
    """The names of the fields of a tree of samples."""
    if spec["type"] is None:
        yield name or "0"
        return
    children = spec["children_spec"]
    names = json.loads(spec["context"]) if spec["type"].endswith("dict") else range(len(children))
    for inner, child in zip(names, children, strict=True):
        yield from _leaves(child, f"{name}.{inner}" if name else str(inner))


def _arrow_rows(name: str, pages: np.ndarray, image: str, label: str) -> Rows:
    try:
        import pyarrow as pa
    except ImportError:
        raise UserError(f"{name}: needs the extra [tables]: pip install 'headrace[tables]', or pyarrow") from None
    end = len(pages) - len(_MARK) - 4
    start = end - int(pages[end : end + 4].view("<u4")[0])
    table = pa.ipc.open_file(pa.py_buffer(pages[start:end])).read_all()
    column, labels = table.column(image), -1
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)) or column.null_count:
        raise ValueError(f"{image} is a column of {column.type}, with {column.null_count} rows of none")
    offsets, sizes = [], []
    for part in column.chunks:  # which refer to the map, as nothing is compressed
        ends = np.frombuffer(part.buffers()[1], "<i8" if pa.types.is_large_binary(part.type) else "<i4")
        ends = ends[part.offset : part.offset + len(part) + 1].astype(np.int64)
        offsets.append(ends[:-1] + part.buffers()[2].address - pages.ctypes.data)
        sizes.append(np.diff(ends))
    if label:
        labels = table.column(label).to_numpy()
    return Rows(np.concatenate(offsets), np.concatenate(sizes), labels)
