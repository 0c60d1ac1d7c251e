"""Images in, one WebDataset tar with its DALI index out.

Of the 105 us that an image of 110 kB takes, 65 are SHA-256, 20 the copy out of the page cache and 15 the copy back into
it: images are read right into the buffer that is hashed and written, next to the header made for them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ...errors import UserError
from ...places import write_file
from ..images import jpeg
from ..images.decode import DecodeError
from ..images.encode import Encoding
from ..images.formats import image_suffixes
from ..measure.measure import measure
from ..measure.store import Block
from ..sources import tar
from ..sources.shards import INDEX
from ..workers import REPORT_SECONDS
from .workspace import Workspace

if TYPE_CHECKING:
    from ..spec import ByteSource

_BUFFER = 2 << 20  # bytes; between 1 and 16 MiB the speed is the same
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@dataclass
class ShardJob:
    """One shard to write."""

    number: int
    start: int  # position of its first image in the data set
    ids: np.ndarray  # (images,) int64: of the source
    sizes: np.ndarray  # (images,) int64: encoded bytes when the run was planned; -1: could not be asked


@dataclass
class ShardWriter:
    """What all shards of a run have in common. Pickled to the workers."""

    source: ByteSource
    workspace: Workspace
    encoding: Encoding
    skip_bad: bool
    measured: bool = False  # figures of every image, too

    def write(self, job: ShardJob, report: Callable[[int], None]) -> list[tuple[int, str]]:
        """Writes a shard and its record; `report` hears how many images were dealt with since.

        Returns position and reason of the images that are none. Without `skip_bad`, the first of them ends the writing,
        the rest is only checked, and the shard stays unfinished. The `.idx` is DALI's text format v1.2: the number of
        samples, then for each sample ``extension offset size name`` of all its members in one line.

        Raises `OSError` when the shard cannot be written, `UserError` when the source changes meanwhile or another
        process writes this shard.
        """
        with _lock(self.workspace.file(job.number, "lock")):
            if self.workspace.finished(job.number):  # by the process that held the lock
                report(len(job.ids))
                return []
            rows, lines, bad, block = [], [], [], Block.empty()
            encoding = replace(self.encoding, verify=False) if self.measured else self.encoding  # measuring decodes
            seen, told = 0, time.monotonic()
            images = zip(job.ids.tolist(), job.sizes.tolist(), strict=True)
            with _TarFile(self.workspace.file(job.number, "tar")) as archive:
                for position, (index, size) in enumerate(images, job.start):
                    seen += 1
                    if time.monotonic() - told > REPORT_SECONDS:
                        report(seen)
                        seen, told = 0, time.monotonic()
                    room = archive.room(max(size, 0) + 1)  # one byte more than planned: a file that grew shows
                    try:
                        data, height, width = encoding.apply(self._read(index, size, room))
                        if self.measured:
                            block.add(measure(data))
                    except (OSError, DecodeError) as fault:
                        bad.append((position, getattr(fault, "strerror", None) or str(fault)))
                        continue
                    if bad and not self.skip_bad:
                        continue
                    name, label = self.source.key(index), self.source.label(index)
                    key, extension = member_name(position, name, data)
                    start = archive.add(f"{key}.{extension}", data)
                    line = f"{extension} {start} {len(data)} {key}.{extension}"
                    if label >= 0:
                        text = b"%d" % label
                        line += f" cls {archive.add(f'{key}.cls', text)} {len(text)} {key}.cls"
                    rows.append((job.number, start, len(data), label, height, width))
                    lines.append(line + "\n")
                report(seen)
                if not bad or self.skip_bad:
                    size, digest = archive.finish()
                    index = f"v1.2 {len(rows)}\n" + "".join(lines)
                    if self.measured:
                        write_file(self.workspace.file(job.number, "npz"), block.packed())
                    self.workspace.finish_shard(job.number, np.array(rows, INDEX), index, size, digest, bad)
            return bad

    def _read(self, index: int, size: int, room: memoryview):
        """The image's bytes; those of a file in `room`. `UserError` if they are not `size`, as planned."""
        try:
            if callable(getattr(self.source, "path", None)):
                found = 0
                with open(self.source.path(index), "rb", buffering=0) as file:
                    while count := file.readinto(room[found:]):
                        found += count
                data = room[:found]
            else:
                data = self.source.read(index)
        except OSError as fault:
            if size < 0 or fault.errno not in _GONE:
                raise
            raise UserError(f"{self._where(index)}: gone since the run began; {_CHANGED}") from None
        if len(data) != size:
            raise UserError(f"{self._where(index)}: no longer as large as when the run began; {_CHANGED}")
        if len(data) >> 32:
            raise DecodeError("larger than 4 GiB")
        return data

    def _where(self, index: int) -> str:
        return f"{self.source.name}: {self.source.key(index)}"


_CHANGED = "put it back and run the same again, which keeps the finished shards, or delete the output and start over"


def member_name(position: int, name: str, data) -> tuple[str, str]:
    """Key and extension of an image in a tar: no dots in the key, and both together within ustar's 100 bytes.

    The extension is ``jpg`` for JPEGs, else that of `name`, else one that readers know for the format.
    """
    stem, suffix = os.path.splitext(name.rpartition("/")[2])
    suffix = suffix.lower().replace("jpeg", "jpg")
    if bytes(data[:3]) == jpeg.MAGIC:
        suffix = ".jpg"
    elif suffix not in image_suffixes():
        with Image.open(io.BytesIO(data)) as image:
            known = Image.registered_extensions()
            suffix = next((s for s in image_suffixes() if known.get(s) == image.format), f".{image.format.lower()}")
    return f"{position:08d}_{re.sub(r'[^A-Za-z0-9_-]', '_', stem)[:80]}", suffix[1:]


class _TarFile:
    """A tar that is written, and hashed, two megabytes at a time. Complete after `finish`."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb", buffering=0)
        self._buffer, self._filled, self._flushed = memoryview(bytearray(_BUFFER)), 0, 0
        self._digest = hashlib.sha256()

    def __enter__(self) -> _TarFile:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def room(self, size: int) -> memoryview:
        """Where the data of the next member will lie: `size` bytes, behind the place of its header."""
        needed = tar.BLOCK + size + tar.BLOCK
        if self._filled + needed > len(self._buffer):
            self._flush()
            if needed > len(self._buffer):
                self._buffer = memoryview(bytearray(needed))
        start = self._filled + tar.BLOCK
        return self._buffer[start : start + size]

    def add(self, name: str, data) -> int:
        """Appends a member and returns the offset of its data. `data` may lie in `room` already."""
        size = len(data)
        room = self.room(size)
        if getattr(data, "obj", None) is not room.obj:
            room[:] = data
        start = self._filled + tar.BLOCK
        self._buffer[self._filled : start] = tar.header(name, size)
        self._filled = start + size + tar.padding(size)
        self._buffer[start + size : self._filled] = bytes(tar.padding(size))
        return self._flushed + start

    def finish(self) -> tuple[int, str]:
        """Closes the archive and makes it durable; its bytes and SHA-256."""
        self._flush()
        self._buffer[: len(tar.END)], self._filled = tar.END, len(tar.END)
        self._flush()
        os.fsync(self._file.fileno())
        return self._flushed, self._digest.hexdigest()

    def _flush(self) -> None:
        filled = self._buffer[: self._filled]
        self._digest.update(filled)
        while filled:
            filled = filled[self._file.write(filled) :]
        self._flushed, self._filled = self._flushed + self._filled, 0


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds `path` against other processes until the body, or this process, ends."""
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            words = "another run is writing here; wait for it, or choose another folder"
            raise UserError(f"{path.parent.parent}: {words}") from None
        except OSError:  # some network disks know no locks; there, nothing but the user keeps two runs apart
            pass
        yield
