"""Images in WebDataset tars: ours, with an index of every sample, or anybody's, whose headers are read instead.

train-000000.tar ...   <key>.jpg and, with labels, <key>.cls (the class index in ASCII)
train-000000.idx ...   DALI's index of one tar, for its own reader; not used here
index.npy              (samples,) of `INDEX`
dataset.json           {format, version, samples, bytes, classes, label_source, seed,
                        shards: [{name, samples, bytes, sha256}], skipped: [{path, reason}]}
"""

from __future__ import annotations

import json
import mmap
import os
import re
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..decode import IMAGE_SUFFIXES
from .tar import BLOCK, members, name_in

FORMAT, VERSION = "headrace-shards", 1
MANIFEST, INDEX_FILE = "dataset.json", "index.npy"
UNFINISHED = ".sharding"  # the folder inside a data set that is still being written
INDEX = np.dtype(
    [
        ("shard", "<u4"),
        ("offset", "<u8"),  # of the image's bytes in the tar
        ("size", "<u4"),  # in bytes
        ("label", "<i4"),  # -1: none
        ("height", "<u4"),  # of the upright image in pixels; 0: unknown
        ("width", "<u4"),
    ]
)
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
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError) as fault:
        raise UserError(f"{file}: cannot be read ({fault}); copy it again or shard again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None
    if manifest["version"] != VERSION:
        raise UserError(
            f"{file}: shards of version {manifest['version']}, this headrace reads version {VERSION}; "
            "use the headrace that wrote them, or shard again"
        )
    return manifest


class ShardSource:
    """The images of a folder of tars or of one tar. Memory-mapped: `read` gives a read-only view and copies nothing.

    In tars without our index, a sample is a run of members with the same name up to the first dot; its image is the
    first member with an image suffix, its label the `.cls` member. Names in tars are never used as paths.

    Raises `UserError` for damaged, missing or truncated shards. Pickles without its maps.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.name = str(path)
        self._root = Path(path)
        self._maps: dict[int, np.ndarray] = {}
        manifest = read_manifest(self._root) if self._root.is_dir() else None
        self._indexed = manifest is not None
        if manifest is not None:
            self._tars = [self._root / shard["name"] for shard in manifest["shards"]]
            self._bytes = [shard["bytes"] for shard in manifest["shards"]]
            self.classes, self.label_source = manifest["classes"], manifest["label_source"]
            self._check_sizes()
            self.index = self._load_index()
            self._check_index(manifest["samples"])
        else:
            self._tars = tars_in(self._root) if self._root.is_dir() else [self._root]
            self._bytes = [tar.stat().st_size for tar in self._tars]
            self.index = _scan(self._tars)
            if not len(self.index):
                raise UserError(f"{path}: no member of its tars is an image; images end in {' '.join(IMAGE_SUFFIXES)}")
            highest = int(self.index["label"].max())
            self.classes = None if highest < 0 else [str(label) for label in range(highest + 1)]
            self.label_source = "none" if self.classes is None else "cls"
        _allow_open_files(len(self._tars))

    def _check_sizes(self) -> None:
        missing = [tar.name for tar in self._tars if not tar.exists()]
        if missing:
            raise UserError(f"{self._root}: {len(missing)} shard(s) missing: {', '.join(missing[:3])}; copy them again")
        for tar, expected in zip(self._tars, self._bytes, strict=True):
            if (found := tar.stat().st_size) != expected:
                raise UserError(f"{tar}: {found:,} bytes instead of {expected:,}; copy it again")

    def _load_index(self) -> np.ndarray:
        file = self._root / INDEX_FILE
        try:
            return np.asarray(np.load(file, mmap_mode="r"))
        except (OSError, ValueError) as fault:
            raise UserError(f"{file}: cannot be read ({fault}); copy it again or shard again") from None

    def _check_index(self, samples: int) -> None:
        index = self.index
        if index.dtype != INDEX or index.shape != (samples,) or not samples:
            raise UserError(f"{self._root}: {INDEX_FILE} and {MANIFEST} do not match; copy both, or shard again")
        known = index["shard"].max() < len(self._tars)
        if not known or (index["offset"] + index["size"] > np.array(self._bytes, "u8")[index["shard"]]).any():
            raise UserError(f"{self._root}: {INDEX_FILE} points past the end of a shard; copy it again, or shard again")

    def __len__(self) -> int:
        return len(self.index)

    def _map(self, shard: int) -> np.ndarray:
        pages = self._maps.get(shard)
        if pages is None:  # two threads may both map it once; either map is as good
            with open(self._tars[shard], "rb") as file:
                pages = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            if len(pages) != self._bytes[shard]:
                raise OSError(f"{self._tars[shard]}: its size has changed since the data set was opened")
            self._maps[shard] = pages
        return pages

    def read(self, index: int) -> np.ndarray:
        """The image's bytes, 1-D uint8: a view of the map, valid as long as somebody holds it."""
        shard, offset, size, *_ = self.index[index].item()
        return self._map(shard)[offset : offset + size]

    def label(self, index: int) -> int:
        return int(self.index["label"][index])

    def key(self, index: int) -> str:
        """``<tar>/<member>``, read from the member's header."""
        shard, offset, *_ = self.index[index].item()
        return f"{self._tars[shard].name}/{name_in(self._map(shard)[offset - BLOCK : offset].tobytes())}"

    def size(self, index: int) -> tuple[int, int] | None:
        *_, height, width = self.index[index].item()
        return (height, width) if height else None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_maps": {}, "index": None if self._indexed else self.index}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self._indexed:
            self.index = self._load_index()
        _allow_open_files(len(self._tars))


def _scan(tars: list[Path]) -> np.ndarray:
    """The rows of `INDEX` that the headers of `tars` tell; threads, because a cold disk answers many at once."""
    with ThreadPoolExecutor(16) as threads:
        samples = list(threads.map(_scan_one, range(len(tars)), tars))
    return np.concatenate([np.array(rows, INDEX) for rows in samples]) if samples else np.empty(0, INDEX)


def _scan_one(shard: int, tar: Path) -> list[tuple[int, ...]]:
    rows: list[tuple[int, ...]] = []
    current, image, label = None, None, -1
    try:
        with open(tar, "rb", buffering=0) as file:
            for name, offset, size in members(file.fileno()):
                folder, _, base = name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if not stem or not dot:
                    continue
                if (folder, stem) != current:
                    if image:
                        rows.append((shard, *image, label, 0, 0))
                    current, image, label = (folder, stem), None, -1
                if image is None and f".{suffix.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES:
                    image = (offset, size)
                elif suffix.lower() == "cls":
                    label = _class(os.pread(file.fileno(), size, offset), f"{tar}: {name}")
    except ValueError as fault:  # `TarError`, or nonsense in a pax record
        raise UserError(f"{tar}: {fault}; copy it again") from None
    except OSError as fault:
        raise UserError(f"{tar}: cannot be read ({fault.strerror})") from None
    if image:
        rows.append((shard, *image, label, 0, 0))
    return rows


def _class(text: bytes, where: str) -> int:
    match = _CLASS.fullmatch(text)
    if match is None:
        raise UserError(f"{where} holds {text[:40]!r}; a class is a number of up to six digits, write that or no .cls")
    return int(match[1])


def _allow_open_files(maps: int) -> None:
    """Every map holds a descriptor until Python 3.13, and 1,024 is a common soft limit: the hard one is ours to use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = maps + 512  # the rest of the process wants some, too
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UserError(f"{maps:,} shards, but only {hard:,} files may be open: raise `ulimit -Hn`, or use larger ones")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
