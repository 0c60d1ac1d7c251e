"""Samples that cannot be read or decoded: which, where, why, what stands in for them, and when there are too many.

Whether a sample is bad is a function of its bytes, so substitutes do not depend on when, where or in which process the
damage was found. The file is therefore a report and a shortcut, never state that a resumed run would need.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import ProcessError
from ..sources.stream import StreamSource
from ..spec import ByteSource

MAX_BAD = 0.01  # the share of a source's samples that may be bad, where nothing else is said
QUARANTINE_FILE = "quarantine.jsonl"  # in the run directory; a line: {index, shard, key, offset, reason}


class Quarantine:
    """The known bad samples of `source`: index -> reason. Safe to use from several threads.

    With `path`, every sample is appended there once, and what other processes append counts here, too: a line is one
    `write` in append mode under a lock of the file. (Where a file system has no locks, a sample may appear twice.)
    Lines that are there at the start count, unless the data set has another sample in that place by now.

    A line may stand for several images, those of a lost shard of a stream, and says so: {..., missing}.

    More than `max_bad`, a share of the source (though one sample is always let pass), raise `UserError`, which calls
    the share `setting`.
    """

    def __init__(
        self,
        source: ByteSource,
        max_bad: float = MAX_BAD,
        path: Path | None = None,
        setting: str = "data.max_bad",
    ) -> None:
        self._source, self.path, self._setting = source, path, setting
        self._limit = max(1, int(max_bad * len(source) + 1e-9))  # 0.29 of 100 are 29
        self._reasons: dict[int, str] = {}
        self._missing: dict[int, int] = {}  # images that an entry stands for, where these are several
        self._read_to = 0  # bytes of the file
        self._lock = threading.Lock()
        self.refresh()
        self._check()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        """Images, however many entries they have."""
        return len(self._reasons) + sum(self._missing.values()) - len(self._missing)

    def __contains__(self, index: int) -> bool:
        return index in self._reasons

    def lines(self, count: int) -> list[str]:
        """The first `count` as "key: reason"."""
        with self._lock:
            first = list(self._reasons.items())[:count]
        return [f"{self.where(index)['key']}: {reason}" for index, reason in first]

    def indices(self) -> list[int]:
        """The samples that are set aside."""
        with self._lock:
            return list(self._reasons)

    def known(self) -> dict[int, str]:
        """ "key: reason" of all, by index."""
        with self._lock:
            found = dict(self._reasons)
        return {index: f"{self.where(index)['key']}: {reason}" for index, reason in found.items()}

    def where(self, index: int) -> dict:
        """{index, shard, key, offset}; shard and offset are None where the source has no such thing."""
        shard, offset = self._source.place(index) if callable(getattr(self._source, "place", None)) else (None, None)
        try:
            key = self._source.key(index)
        except (OSError, ValueError):  # the name lies in the tar itself, and that is gone
            key = f"{shard}@{offset}"
        return {"index": index, "shard": shard, "key": key, "offset": offset}

    def add(self, index: int, reason: str, images: int = 1) -> None:
        """Sets a sample aside, or `images` under one number. Raises `UserError` when there are too many."""
        reason = " ".join(reason.split()) or "no reason given"
        with self._lock, self._open() as file:
            self._read(file)
            if index not in self._reasons or images > self._missing.get(index, 1):
                self._note(index, reason, images)
                if file is not None:
                    record = self.where(index) | {"reason": reason} | ({"missing": images} if images > 1 else {})
                    line = json.dumps(record) + "\n"
                    self._read_to += self._append(file, line.encode())
        self._check()

    def refresh(self) -> None:
        """Reads what other processes have found since."""
        if self.path is not None and self.path.exists():
            with self._lock, self._open() as file:
                self._read(file)

    def candidates(self, index: int) -> Iterator[int]:
        """`index` and then what may stand in for it, in the order of preference; every sample of the source once.

        First the samples behind it in its shard, cyclically; when the whole shard is bad, those of the next shards,
        each from the same relative place on, so that the substitutes of a lost shard are not all one image.
        """
        yield index  # of most nothing else is asked, and to look for its shard takes 4 us
        first, last = self._neighbours(index)
        position, size, seen = index - first, last - first, 0
        while seen < len(self._source):
            start = position * (last - first) // size
            yield from range(first + start + (not seen), last)
            yield from range(first, first + start)
            seen += last - first
            first, last = self._neighbours(last % len(self._source))

    def _neighbours(self, index: int) -> tuple[int, int]:
        if hasattr(self._source, "neighbours"):
            return self._source.neighbours(index)
        return 0, len(self._source)

    @contextmanager
    def _open(self) -> Iterator[int | None]:
        if self.path is None:
            yield None
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as fault:
            self._unwritten(fault)
            yield None
            return
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass  # a file system without locks
            yield file
        finally:
            os.close(file)

    def _append(self, file: int, data: bytes) -> int:
        """How many bytes were written: all of `data`, or none where there is no space for it."""
        end = os.fstat(file).st_size
        try:
            if (written := os.write(file, data)) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return written
        except OSError as fault:
            with suppress(OSError):
                os.ftruncate(file, end)
            self._unwritten(fault)
            return 0

    def _unwritten(self, fault: OSError) -> None:
        """The file is a report and a shortcut: that there is none is no reason to end a run."""
        reason = f"{self.path}: cannot be written ({fault.strerror}); bad images are replaced all the same"
        warnings.warn(reason, stacklevel=2)

    def _read(self, file: int | None) -> None:
        """Takes in the complete lines from `_read_to` on; a line that cannot be understood is passed over."""
        if file is None:
            return
        data = os.pread(file, max(0, os.fstat(file).st_size - self._read_to), self._read_to)
        end = data.rfind(b"\n") + 1
        if end < len(data):  # a kill or a full disk has cut the last line: what follows shall start on a new one
            end = len(data) + 1 if self._append(file, b"\n") else end
        self._read_to += end
        for line in data.splitlines():
            try:
                record = json.loads(line)
                index, reason = int(record["index"]), str(record["reason"])
                found = {key: record[key] for key in ("index", "shard", "key", "offset")}
                images = int(record.get("missing", 1))
            except (ValueError, KeyError, TypeError):
                continue
            if self._is_ours(found) and (index not in self._reasons or images > self._missing.get(index, 1)):
                self._note(index, reason, images)

    def _note(self, index: int, reason: str, images: int) -> None:
        self._reasons[index] = reason
        if images > 1:
            self._missing[index] = images

    def _is_ours(self, found: dict) -> bool:
        """Whether a line is about this source: another set may have left it."""
        if isinstance(self._source, StreamSource):  # which has names, and no positions
            return self._source.recall(found["index"], found["key"])
        return 0 <= found["index"] < len(self._source) and found == self.where(found["index"])

    def _check(self) -> None:
        self.check(len(self), self.lines(3))

    def check(self, count: int, lines: Sequence[str]) -> None:
        """Raises `UserError` for `count` bad samples, of which `lines` tells some, if that is too many."""
        if count <= self._limit:
            return
        known, repair = "", "repair the data set"
        if self.path is not None:
            known, repair = f"; all of them are in {self.path}", f"{repair} (and delete that file)"
        raise ProcessError(
            f"{self._source.name}: {count:,} of {len(self._source):,} images cannot be read or decoded, more than "
            f"the {self._limit:,} that {self._setting} allows: {'; '.join(lines[:3])}{known}; "
            f"{repair}, or raise {self._setting}"
        )
