"""A source -> which of its images go into which shard: a function of the source and the options alone."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import __version__ as pillow_version
from PIL import features

from ...errors import UserError
from ..images.encode import Encoding
from ..images.rules import rules
from ..sources import tar

if TYPE_CHECKING:
    from ..spec import ByteSource

_LABEL_BYTES = 2 * tar.BLOCK  # a `.cls` member: its header and one padded block
_THREADS = 16  # network disks answer many at once
_TASK = 1024  # images that a thread takes at a time


@dataclass(frozen=True)
class ShardOptions:
    """What decides the bytes of a data set, besides its source. Raises `UserError` for values without a meaning."""

    shard_mb: int | None = 256  # MiB of a shard, at most; counted before `encoding`, in whole samples
    shard_samples: int | None = None  # images of a shard, instead
    prefix: str = "train"
    seed: int | None = 0  # of the shuffling; None keeps the source's order
    drop_duplicates: bool = False
    drop_near_duplicates: bool = False
    measure: bool = False  # figures and hashes of every image, as columns beside the shards
    encoding: Encoding = Encoding()

    def __post_init__(self) -> None:
        if (self.shard_mb is None) == (self.shard_samples is None):
            raise UserError("--shard-mb, --shard-samples: give one of the two")
        for name, value in (("--shard-mb", self.shard_mb), ("--shard-samples", self.shard_samples)):
            if value is not None and value < 1:
                raise UserError(f"{name}: must be at least 1, not {value}")
        if not self.prefix or not all(c.isascii() and (c.isalnum() or c in "_-") for c in self.prefix):
            raise UserError(f"--prefix: letters, digits, _ and - only, not {self.prefix!r}")
        if self.encoding.max_side is not None and self.encoding.max_side < 1:
            raise UserError(f"--max-side: must be at least 1 pixel, not {self.encoding.max_side}")
        if not 1 <= self.encoding.quality <= 95:
            raise UserError(f"--quality: must be 1..95, not {self.encoding.quality}")


@dataclass(frozen=True)
class Survey:
    """What a source looked like when a run began."""

    sizes: np.ndarray  # (images,) int64: encoded bytes; -1: the storage refused to say
    request: dict  # options and source in JSON: what must be equal for a run to continue another
    modified: str  # digest of the files' modification times, which a copy of the source need not keep


@dataclass(frozen=True)
class Plan:
    """Which images of a source go where."""

    order: np.ndarray  # (samples,) int64: ids of the source, shard after shard
    bounds: np.ndarray  # (shards + 1,) int64: where in `order` a shard begins, and where the last one ends
    bytes: np.ndarray  # (shards,) int64: of the tars, before encoding

    def __len__(self) -> int:
        return len(self.bytes)


def survey(source: ByteSource, options: ShardOptions) -> Survey:
    """Asks for the size and label of every image.

    A source may offer ``path(id)``, the image's own file, or else ``encoded_size(id)``, its length in bytes; from
    others every image is read once, which costs nothing where `read` gives a view of a map.
    """
    sizes, times = _sizes(source)
    labels = np.fromiter((source.label(i) for i in range(len(source))), np.int64, len(source))
    digest = hashlib.sha256(json.dumps(source.classes).encode() + sizes.tobytes() + labels.tobytes())
    if callable(
        getattr(source, "path", None)
    ):  # elsewhere a key may cost a read, and the order of the sizes says enough
        for index in range(len(source)):
            digest.update(source.key(index).encode("utf-8", "surrogateescape") + b"\0")
    request = asdict(options) | {"source": {"images": len(source), "sha256": digest.hexdigest()}}
    for name in ("drop_near_duplicates", "measure"):  # of data sets from before there was such a thing
        if not request[name]:
            del request[name]
    if options.encoding.max_side is None and not options.encoding.plain_jpeg:
        del request["encoding"]["quality"]  # nothing is encoded
    else:
        request["encoding"]["with"] = f"Pillow {pillow_version}, libjpeg {features.version('jpg')}"
    if rules().unusual:
        request["rules"] = json.loads(json.dumps(rules().unusual))
    return Survey(sizes, request, hashlib.sha256(times.tobytes()).hexdigest())


def make_plan(sizes: np.ndarray, kept: np.ndarray, labelled: bool, options: ShardOptions) -> Plan:
    """Shuffles the ids `kept` and cuts them into shards; `sizes` as in `Survey`."""
    order = kept
    if options.seed is not None:  # RandomState: its stream is frozen, so a seed means the same in every NumPy version
        order = kept[np.random.RandomState(options.seed).permutation(len(kept))]
    blocks = -(-np.maximum(sizes[order], 0) // tar.BLOCK)
    samples = (1 + blocks) * tar.BLOCK + (_LABEL_BYTES if labelled else 0)
    bounds = _bounds(samples, options)
    return Plan(order, bounds, np.add.reduceat(samples, bounds[:-1]) + len(tar.END))


def differences(ours: dict, theirs: dict, prefix: str = "") -> list[str]:
    """What two requests do not agree on, as ``seed is 0 there, 1 here``."""
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get(key), theirs.get(key)
        if here == there or key == "sha256":
            continue
        if isinstance(here, dict) and isinstance(there, dict):
            found += differences(here, there, f"{key}.")
        else:
            found.append(f"{prefix}{key} is {there} there, {here} here")
    if not found and ours != theirs:
        found = ["a name, a size or a class in the source has changed"]
    return found


def without_duplicates(source: ByteSource, sizes: np.ndarray) -> np.ndarray:
    """Ids whose bytes do not occur at a smaller id. Only images of equal size are read."""
    _, group, count = np.unique(sizes, return_inverse=True, return_counts=True)
    suspects = np.flatnonzero((count[group] > 1) & (sizes >= 0))

    def digest(index: int) -> bytes:
        try:
            return hashlib.sha256(source.read(index)).digest()
        except OSError:
            return b"%d" % index

    kept, seen = np.ones(len(sizes), bool), set()
    for index, value in zip(suspects, _in_threads(digest, suspects), strict=True):
        kept[index] = value not in seen
        seen.add(value)
    return np.flatnonzero(kept)


def _bounds(samples: np.ndarray, options: ShardOptions) -> np.ndarray:
    if options.shard_samples is not None:
        return np.append(np.arange(0, len(samples), options.shard_samples), len(samples))
    limit, ends = (options.shard_mb << 20) - len(tar.END), np.cumsum(samples)
    bounds = [0]
    while bounds[-1] < len(samples):
        before = ends[bounds[-1] - 1] if bounds[-1] else 0
        end = int(np.searchsorted(ends, before + limit, side="right"))
        bounds.append(max(end, bounds[-1] + 1))  # an image larger than a shard has one of its own
    return np.array(bounds)


def _sizes(source: ByteSource) -> tuple[np.ndarray, np.ndarray]:
    """Encoded bytes of every image, -1 where the storage refuses to say, and modification times in ns, 0: unknown."""

    def ask(index: int) -> tuple[int, int]:
        try:
            if callable(getattr(source, "path", None)):
                status = os.stat(source.path(index))
                return status.st_size, status.st_mtime_ns
            return (source.encoded_size(index) if hasattr(source, "encoded_size") else len(source.read(index))), 0
        except OSError:  # the worker that reads it says why
            return -1, 0

    found = np.array(list(_in_threads(ask, range(len(source)))), np.int64)
    return found[:, 0], found[:, 1]


def _in_threads(ask, ids):
    """``map(ask, ids)`` in threads, a few thousand ids at a time: a future for each would take more than the answer."""
    tasks = [ids[at : at + _TASK] for at in range(0, len(ids), _TASK)]
    with ThreadPoolExecutor(_THREADS) as threads:
        for answers in threads.map(lambda task: [ask(int(index)) for index in task], tasks):
            yield from answers
