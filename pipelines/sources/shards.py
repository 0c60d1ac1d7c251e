"""Images in WebDataset tars: ours, with an index of every sample, or anybody's, whose headers are read instead.

train-000000.tar ...   <key>.jpg and, with labels, <key>.cls (the class index in ASCII)
train-000000.idx ...   DALI's index of one tar, for its own reader; not used here
index.npy              (samples,) of `INDEX`
dataset.json           {format, version, samples, bytes, classes, label_source, seed,
                        shards: [{name, samples, bytes, sha256}], skipped: [{path, reason}]}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from .mapped import INDEX, MappedSource
from .samples import SampleReader, label_of
from .tar import BLOCK, members, name_in

FORMAT, VERSION = "headrace-shards", 1
MANIFEST, INDEX_FILE = "dataset.json", "index.npy"
UNFINISHED = ".sharding"  # the folder inside a data set that is still being written
_ROWS = 1 << 18  # of the index that are checked at a time
_CLASS = re.compile(rb"\s*(-1|\d{1,6})\s*")


def tars_in(folder: Path) -> list[Path]:
    """The tars that lie directly in `folder`, by name; hidden ones are passed over."""
    return sorted(tar for tar in folder.glob("[!.]*.tar") if tar.is_file())


def read_manifest(folder: Path) -> dict | None:
    """What `dataset.json` says, or None where there is none of ours.

    Raises `UserError` for a data set that is still being written or was given up, or of another version.
    """
    file = folder / MANIFEST
    if not file.exists():
        if (folder / UNFINISHED).exists():
            raise UserError(f"{folder}: a data set whose sharding did not finish; run the same `headrace shard` again")
        return None
    try:
        return as_manifest(file.read_bytes(), file)
    except OSError as fault:
        raise UserError(f"{file}: cannot be read ({fault}); copy it again or shard again") from None


def as_manifest(data: bytes, file: str | os.PathLike) -> dict | None:
    """What the bytes of a `dataset.json` say, or None where it is none of ours. Raises `UserError` as above."""
    try:
        manifest = json.loads(data)
    except ValueError as fault:
        raise UserError(f"{file}: cannot be read ({fault}); copy it again or shard again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None
    if manifest["version"] != VERSION:
        raise UserError(
            f"{file}: shards of version {manifest['version']}, this headrace reads version {VERSION}; "
            "use the headrace that wrote them, or shard again"
        )
    return manifest


class Tar(NamedTuple):
    """One file of a `ShardSource`, whose samples are those behind the ones of the files before it."""

    path: Path
    samples: int
    sha256: str | None  # None: nobody has noted it
    image: str  # the suffix of the member that is read, empty for the first image


def check_index(name: str | os.PathLike, index: np.ndarray, samples: int, sizes: Sequence[int]) -> None:
    """Raises `UserError` where an index is not one of `samples` images in files of these sizes, in their order."""
    if index.dtype != INDEX or index.shape != (samples,) or not samples:
        raise UserError(f"{name}: {INDEX_FILE} and {MANIFEST} do not match; copy both, or shard again")
    ends = np.array(sizes, "u8")
    for start in range(0, samples, _ROWS):  # not at once: 300 MB of temporary arrays for ImageNet-21k
        rows = index[start : start + _ROWS + 1]  # and the next one, to see that shards are in order
        known = rows["shard"].max() < len(sizes) and (rows["shard"][:-1] <= rows["shard"][1:]).all()
        if not known or (rows["offset"] + rows["size"] > ends[rows["shard"]]).any():
            problem = f"{INDEX_FILE} points past the end of a shard, or back to an earlier one"
            raise UserError(f"{name}: {problem}; copy it again, or shard again")


class ShardSource(MappedSource):
    """The images of a folder of tars or of one tar. Memory-mapped: `read` gives a read-only view and copies nothing.

    In tars without our index, samples are those of `samples.py`; `image` is the suffix of the member to read, such as
    ``rgb.jpg``, by default the first that ends as an image. `notes` says what is passed over.

    Raises `UserError` for damaged, missing or truncated shards. Pickles without its maps.
    """

    notes: Sequence[str] = ()

    def __init__(self, path: str | os.PathLike, *, image: str = "") -> None:
        self.root, self._image = Path(path), image.lstrip(".").lower()
        manifest = read_manifest(self.root) if self.root.is_dir() else None
        self._indexed = manifest is not None
        if manifest is not None:
            if image:
                raise UserError(f"{path}: shards of headrace hold one image a sample; leave image={image} out")
            tars = [self.root / shard["name"] for shard in manifest["shards"]]
            sizes = [shard["bytes"] for shard in manifest["shards"]]
            self._check_sizes(tars, sizes)
            index = self._load_index()
            check_index(self.root, index, manifest["samples"], sizes)
            self._digests = [shard.get("sha256") for shard in manifest["shards"]]
            super().__init__(str(path), tars, sizes, index, manifest["classes"], manifest["label_source"])
            return
        tars = tars_in(self.root) if self.root.is_dir() else [self.root]
        sizes = [tar.stat().st_size for tar in tars]
        index, reader = _scan(tars, image)
        if fault := reader.fault():
            raise UserError(f"{path}: {fault}")
        self.notes = reader.notes()
        highest = int(index["label"].max())
        classes = None if highest < 0 else [str(label) for label in range(highest + 1)]
        super().__init__(str(path), tars, sizes, index, classes, "none" if classes is None else "cls")

    def _check_sizes(self, tars: list[Path], sizes: list[int]) -> None:
        missing = [tar.name for tar in tars if not tar.exists()]
        if missing:
            raise UserError(f"{self.root}: {len(missing)} shard(s) missing: {', '.join(missing[:3])}; copy them again")
        for tar, expected in zip(tars, sizes, strict=True):
            if (found := tar.stat().st_size) != expected:
                raise UserError(f"{tar}: {found:,} bytes instead of {expected:,}; copy it again")

    def _load_index(self) -> np.ndarray:
        file = self.root / INDEX_FILE
        try:
            return np.asarray(np.load(file, mmap_mode="r"))
        except (OSError, ValueError) as fault:
            raise UserError(f"{file}: cannot be read ({fault}); copy it again or shard again") from None

    def tars(self) -> list[Tar]:
        """What this source is made of."""
        counts = np.bincount(self.index["shard"], minlength=len(self._files)).tolist()
        digests = self._digests if self._indexed else [None] * len(counts)
        return [Tar(*one, self._image) for one in zip(self._files, counts, digests, strict=True)]

    def key(self, index: int) -> str:
        """``<tar>/<member>``, read from the member's header."""
        shard, offset, *_ = self.index[index].item()
        return f"{self._files[shard].name}/{name_in(self._map(shard)[offset - BLOCK : offset].tobytes())}"

    def __getstate__(self) -> dict:
        return super().__getstate__() | ({"index": None} if self._indexed else {})

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if self._indexed:
            self.index = self._load_index()


def _scan(tars: list[Path], wanted: str) -> tuple[np.ndarray, SampleReader]:
    """The rows of `INDEX` that the headers of `tars` tell; threads, because a cold disk answers many at once."""
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda shard: _scan_one(shard, tars[shard], wanted), range(len(tars))))
    everything = SampleReader(wanted)
    for _, reader in found:
        everything.add(reader)
    return np.concatenate([np.array(rows, INDEX) for rows, _ in found] or [np.empty(0, INDEX)]), everything


def _scan_one(shard: int, tar: Path, wanted: str) -> tuple[list[tuple[int, ...]], SampleReader]:
    rows: list[tuple[int, ...]] = []
    reader = SampleReader(wanted)
    try:
        with open(tar, "rb", buffering=0) as file:
            for sample in reader.samples(members(file.fileno())):
                label = -1
                if (part := label_of(sample)) is not None:
                    suffix, offset, size = part
                    label = _class(os.pread(file.fileno(), size, offset), f"{tar}: {sample.key}.{suffix}")
                if (image := reader.image(sample)) is not None:
                    rows.append((shard, *image[1:], label, 0, 0))
    except ValueError as fault:  # `TarError`, or nonsense in a pax record
        raise UserError(f"{tar}: {fault}; copy it again") from None
    except OSError as fault:
        raise UserError(f"{tar}: cannot be read ({fault.strerror})") from None
    return rows, reader


def _class(text: bytes, where: str) -> int:
    match = _CLASS.fullmatch(text)
    if match is None:
        raise UserError(f"{where} holds {text[:40]!r}; a class is a number of up to six digits, write that or no .cls")
    return int(match[1])
