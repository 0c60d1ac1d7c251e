"""Measurements of a set on disk: ``<table>/.know``, in the folder of columns that a data plan reads.

about.json        what was measured: version, number of images, a digest of the set, rules of decoding
000012.npz        a block of rows and thumbnails, there when it is complete; any process may have made it
measured.npy      (N,) of `MEASURED`            thumbs.npy      (N, 32, 32) uint8
inside_of.npy     (M,) int64, images with bars  inner.npy       (M, 32, 32) uint8 of what is inside of them
bad.json          [[image, reason], ...]; written last, so that it says that the others are complete
"""

from __future__ import annotations

import errno
import io
import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...errors import UserError
from ...places import write_file
from ..identity import identity
from ..images.decode import DecodeError
from ..images.rules import rules
from ..workers import REPORT_SECONDS, require_part
from .groups import Pictures
from .hashes import SIDE
from .measure import MEASURED, Measurement, add_hashes, measure, unreadable

if TYPE_CHECKING:
    from ..spec import ByteSource

FOLDER = ".know"  # hidden: not one of the columns
AGAINST = "against.json"  # in it: [{data, about, found}, ...], other sets, and how many of their images are in this
_VERSION = 2
_LEAST, _MOST = 64, 4096  # images of a block: a set of a few thousand has some for each process, one of 10^8 no million


@dataclass
class Block:
    """Measurements of some images, in their order."""

    rows: list[np.void]
    thumbs: list[np.ndarray]
    inside_of: list[int]  # places in the block
    inner: list[np.ndarray]
    bad: list[tuple[int, str]]

    @classmethod
    def empty(cls) -> Block:
        return cls([], [], [], [], [])

    def add(self, found: Measurement) -> None:
        if found.inner is not None:
            self.inside_of.append(len(self.rows))
            self.inner.append(found.inner)
        self.rows.append(found.row)
        self.thumbs.append(found.thumb)

    def add_bad(self, size: int, reason: str) -> None:
        self.bad.append((len(self.rows), reason))
        self.rows.append(unreadable(size))
        self.thumbs.append(np.zeros((SIDE, SIDE), np.uint8))

    def packed(self) -> bytes:
        """The bytes of its file."""
        thumbs = _stacked(self.thumbs)
        rows = np.array(self.rows, MEASURED)
        add_hashes(rows, thumbs)
        buffer, bad = io.BytesIO(), json.dumps(self.bad)
        inside = {"inside_of": np.array(self.inside_of, np.int64), "inner": _stacked(self.inner)}
        np.savez(buffer, rows=rows, thumbs=thumbs, bad=np.array(bad), **inside)
        return buffer.getvalue()


class Measured(NamedTuple):
    """A set that is measured to its end."""

    rows: np.ndarray  # (N,) of MEASURED, memory-mapped
    pictures: Pictures  # memory-mapped
    bad: list[tuple[int, str]]  # image, reason


@dataclass
class Store:
    """Measurements in `folder`, the table's. Pickled to the workers.

    Raises `UserError` where the folder holds those of another set.
    """

    folder: Path
    source: ByteSource

    @property
    def place(self) -> Path:
        return self.folder / FOLDER

    def begin(self) -> None:
        """Makes the folder, or checks that the one it finds is about the same set."""
        ours = about(self.source)
        try:
            theirs = json.loads((self.place / "about.json").read_bytes())
        except FileNotFoundError:
            self.place.mkdir(parents=True, exist_ok=True)
            write_file(self.place / "about.json", json.dumps(ours, indent=1).encode())
            return
        except ValueError as fault:
            raise UserError(f"{self.place}/about.json: cannot be read ({fault}); delete {self.place}") from None
        if theirs != ours:
            differing = ", ".join(key for key in ours if theirs.get(key) != ours[key])
            raise UserError(
                f"{self.folder}: holds measurements of another set, or of {self.source.name} as it was ({differing} "
                f"differ); delete {self.place}, or choose another folder"
            )

    def jobs(self, part: tuple[int, int] = (0, 1)) -> list[range]:
        """The images of the blocks of this part that are still to be measured; none of a set that is complete."""
        require_part(part)
        if self.complete:
            return []
        return [block for block in self._blocks()[part[0] :: part[1]] if not self._file(block).exists()]

    @property
    def complete(self) -> bool:
        return (self.place / "bad.json").exists()

    def write(self, job: range, report: Callable[[int], None]) -> list[tuple[int, str]]:
        """Measures a block: see `workers.Worker`. An image that is none has a row all the same."""
        block, seen, told = Block.empty(), 0, time.monotonic()
        for index in job:
            data = b""
            try:
                data = self.source.read(index)
                block.add(measure(data))
            except (OSError, DecodeError) as fault:
                block.add_bad(len(data), getattr(fault, "strerror", None) or str(fault))
            seen += 1
            if time.monotonic() - told > REPORT_SECONDS:
                report(seen)
                seen, told = 0, time.monotonic()
        report(seen)
        write_file(self._file(job), block.packed())
        return [(job[place], reason) for place, reason in block.bad]

    def finish(self) -> Measured | None:
        """The whole set, its blocks put together if that was not done yet; None while blocks are missing."""
        if not self.complete:
            files = [self._file(block) for block in self._blocks()]
            if not all(file.exists() for file in files):
                return None if not self.complete else self.finish()  # another process may have done it just now
            try:
                put_together(self.place, files, len(self.source))
            except FileNotFoundError:  # another process was faster, and takes away what both have read
                if not self.complete:
                    raise
            for file in files:
                file.unlink(missing_ok=True)
        return load(self.folder)

    def _blocks(self) -> list[range]:
        count = len(self.source)
        size = min(max(count // 64, _LEAST), _MOST)
        return [range(at, min(at + size, count)) for at in range(0, count, size)]

    def _file(self, block: range) -> Path:
        return self.place / f"{block.start:012d}.npz"


def about(source: ByteSource) -> dict:
    """What measurements of a set are made of: equal for two sources that give the same ones."""
    told = {key: value for key, value in identity(source).items() if key in ("images", "sizes", "contents")}
    return {"version": _VERSION, **told} | ({"rules": rules().unusual} if rules().unusual else {})


def put_together(place: Path, files: Iterable[Path], count: int) -> None:
    """Blocks, in the order of the set -> the arrays of a complete set. Every step can be repeated."""
    rows, bad, inside_of, inner, at = np.empty(count, MEASURED), [], [], [], 0
    partial = place / f"thumbs.{uuid.uuid4().hex}.partial"  # of this process: another one's would be emptied under it
    try:
        thumbs = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, SIDE, SIDE))
        for file in files:
            with np.load(file) as block:
                end = at + len(block["rows"])
                rows[at:end], thumbs[at:end] = block["rows"], block["thumbs"]
                bad += [(at + where, reason) for where, reason in json.loads(str(block["bad"]))]
                inside_of.append(block["inside_of"] + at)
                inner.append(block["inner"])
                at = end
        if at != count:  # whoever was faster takes blocks away
            raise FileNotFoundError(errno.ENOENT, "blocks are missing", str(place))
        thumbs.flush()
        del thumbs
        partial.replace(place / "thumbs.npy")
    finally:
        partial.unlink(missing_ok=True)
    write_array(place / "measured.npy", rows)
    write_array(place / "inside_of.npy", np.concatenate([np.empty(0, np.int64), *inside_of]))
    write_array(place / "inner.npy", np.concatenate([np.empty((0, SIDE, SIDE), np.uint8), *inner]))
    write_file(place / "bad.json", json.dumps(bad).encode())


def load(folder: Path) -> Measured:
    """A complete set of measurements. Raises `UserError` for damaged ones."""
    place = folder / FOLDER
    try:
        rows, thumbs, inner = (
            np.load(place / f"{name}.npy", mmap_mode="r") for name in ("measured", "thumbs", "inner")
        )
        inside_of = np.load(place / "inside_of.npy")
        bad = [(index, reason) for index, reason in json.loads((place / "bad.json").read_bytes())]
        if rows.dtype != MEASURED or len(rows) != len(thumbs) or len(inner) != len(inside_of):
            raise ValueError("files that do not fit together")
    except (OSError, ValueError, EOFError) as fault:
        raise UserError(
            f"{place}: damaged measurements ({fault}); delete this folder, they are then made anew"
        ) from None
    return Measured(rows, Pictures(thumbs, inner, inside_of), bad)


def write_array(file: Path, values: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(values))
    write_file(file, buffer.getvalue())


def _stacked(thumbs: list[np.ndarray]) -> np.ndarray:
    return np.stack(thumbs) if thumbs else np.empty((0, SIDE, SIDE), np.uint8)
