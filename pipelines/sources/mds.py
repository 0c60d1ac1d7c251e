"""MDS, the shards of MosaicML's streaming: read without it, where they are not compressed. Version 2 of the format.

index.json   {version, shards: [{column_names, column_encodings, column_sizes, raw_data: {basename, bytes}, ...}]}
shard.*.mds  see chunks.py; the sizes at the head of a sample are those of columns without a size of their own
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...errors import UserError
from .chunks import INDEX_JSON, ChunkSource, Rows, chosen, inside, located, read_index, taken

VERSION = 2
_ENCODED = ("jpeg", "png", "bytes")  # of a column: the bytes of a file
_WHOLE = {"int": "<i8", **{f"{sign}int{8 * n}": f"<{sign or 'i'}{n}" for sign in ("", "u") for n in (1, 2, 4, 8)}}


class MdsSource(ChunkSource):
    """The images in a folder of MDS: in the column `image`, by default the one so called or the only one of bytes.

    `label` is a column of whole numbers, by default ``label``, ``class``, ``cls``, ``target`` or ``y``. Raises
    `UserError`.
    """

    def __init__(self, path: str | os.PathLike, *, image: str = "", label: str = "") -> None:
        folder = Path(path)
        shards = read_index(folder, "shards")["shards"]
        try:
            files = [inside(folder, shard["raw_data"]["basename"]) for shard in shards]
            kinds = {shard["version"] for shard in shards} | {shard["format"] for shard in shards}
            packed = next((shard["compression"] for shard in shards if shard["compression"]), None)
            names, encodings, sizes = (shards[0][f"column_{what}"] for what in ("names", "encodings", "sizes"))
            columns = dict(zip(names, encodings, strict=True))
            fixed = {name: size or None for name, size in zip(names, sizes, strict=True)}
            alike = all(shard["column_names"] == names and shard["column_encodings"] == encodings for shard in shards)
        except (LookupError, TypeError, ValueError, AttributeError) as fault:
            raise UserError(f"{folder / INDEX_JSON}: cannot be read ({fault!r}); copy it again") from None
        if kinds != {VERSION, "mds"} or not alike:
            raise UserError(f"{folder}: no shards of MDS, version {VERSION}, with the same columns; write them anew")
        if packed and not all(file.exists() for file in files):
            raise UserError(f"{folder}: compressed with {packed}; write it without, or shard what its own reader reads")
        encoded = [name for name, kind in columns.items() if kind in _ENCODED]
        numbers = [name for name, kind in columns.items() if kind in _WHOLE]
        image, label = chosen(str(path), encoded, numbers, image, label)

        def rows(pages: np.ndarray) -> Rows:
            starts, sizes = located(pages, fixed)
            labels = taken(pages, starts[label], _WHOLE[columns[label]])[:, 0].astype(np.int64) if label else -1
            return Rows(starts[image], sizes[image], labels)

        super().__init__(str(path), files, rows, label)
