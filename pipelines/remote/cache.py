"""Shards kept on this machine's disk: found by the checksum of their bytes, under a bound, by any number of processes.

<sha256>-<bytes>.tar    complete; its modification time is a function of the checksum: whoever else has written there
                        since is seen by it, and the bytes are proven anew. Its access time says when it was used last.
<sha256>-<bytes>.part   what has come so far, locked by the process that writes it; after a kill the next one continues
lock                    held while room is made

A file may be removed while others read it: what they have mapped stays until they let go of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

from ...errors import ProcessError, UserError

FOLDER, BOUND = "HEADRACE_CACHE", "HEADRACE_CACHE_GB"  # the variables
_SHARE = 0.8  # of what the disk has to give, where no bound is set
_CHUNK = 1 << 20  # bytes hashed at a time
_NAME = re.compile(r"[0-9a-f]{64}-(\d+)\.(tar|part)")


class Shard(NamedTuple):
    name: str  # in its folder
    bytes: int
    sha256: str


class ShardCache:
    """The shards in `folder`, by default ``$HEADRACE_CACHE/shards`` or ``~/.cache/headrace/shards``.

    `limit` in bytes, by default ``$HEADRACE_CACHE_GB``, or four fifths of what the disk has to give.
    """

    def __init__(self, folder: Path | None = None, limit: int | None = None) -> None:
        self.folder = _folder() if folder is None else folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                pass
        except OSError as fault:
            raise UserError(
                f"{self.folder}: no place for a cache ({fault.strerror}); name another in {FOLDER}"
            ) from None
        self.limit = _limit(self.folder, self._held()) if limit is None else limit

    def find(self, shard: Shard) -> Path | None:
        """The file of a shard that is there whole, from now on the one that was used last; else None."""
        file = self._file(shard, "tar")
        try:
            status = file.stat()
            if (status.st_size, status.st_mtime_ns) != (shard.bytes, _stamp(shard)) and not self._proven(file, shard):
                return None
            os.utime(file, ns=(time.time_ns(), _stamp(shard)))
        except FileNotFoundError:
            return None
        return file

    def _proven(self, file: Path, shard: Shard) -> bool:
        """Whether a file that somebody has touched still holds what it should; if not, it is removed."""
        with open(file, "rb") as opened:
            if digest(opened).hexdigest() == shard.sha256:
                return True
        file.unlink(missing_ok=True)
        return False

    @contextlib.contextmanager
    def writing(self, shard: Shard) -> Iterator[int | None]:
        """The descriptor of what has come so far of a shard, held against other processes; None where another holds it.

        Raises `UserError` where the file system has no locks.
        """
        file = self._file(shard, "part")
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ours = os.path.samestat(
                    os.fstat(descriptor), os.stat(file)
                )  # else another has just finished or removed it
            except (BlockingIOError, FileNotFoundError):
                ours = False
            except OSError as fault:
                raise UserError(f"{file}: cannot be locked ({fault.strerror}); name a local disk in {FOLDER}") from None
            yield descriptor if ours else None
        finally:
            os.close(descriptor)

    def arrived(self, shard: Shard) -> int:
        """How many bytes of a shard somebody has fetched so far."""
        try:
            return self._file(shard, "part").stat().st_size
        except FileNotFoundError:
            return 0

    def give_up(self, shard: Shard) -> None:
        """Removes what has come so far of a shard; for who holds it."""
        self._file(shard, "part").unlink(missing_ok=True)

    def complete(self, descriptor: int, shard: Shard) -> Path:
        """Gives the file behind `descriptor`, which holds all of a shard, its name."""
        os.fsync(descriptor)  # or a power failure could leave zeros under that name
        os.utime(descriptor, ns=(time.time_ns(), _stamp(shard)))
        file = self._file(shard, "tar")
        self._file(shard, "part").replace(file)
        return file

    def make_room(self, shard: Shard, keep: Collection[str], more: int = 0) -> bool:
        """Removes what was not used for longest until `shard`, whose `.part` is there, fits below the bound, or until
        `more` bytes are free; never what is in `keep` (checksums) or being written. Returns whether that was enough.
        """
        with self._alone():
            files = self._files()
            surplus = max(sum(size for _, size, _ in files) - self.limit, more)
            for _, size, file in sorted(files):
                if surplus <= 0:
                    break
                if file.name[:64] not in keep and file.name[:64] != shard.sha256 and self._remove(file):
                    surplus -= size
        return surplus <= 0

    def too_small(self) -> ProcessError:
        """Why nothing more is read."""
        return ProcessError(
            f"{self.folder}: a cache of {self.limit / 1e9:,.1f} GB, or its disk, cannot hold the shards "
            f"that are read at a time; raise {BOUND}, name a larger disk in {FOLDER}, or read with data.block=shard"
        )

    def keep_beside(self, name: str, data: bytes) -> None:
        """Writes a small file of another kind, whole or not at all."""
        partial = self.folder / f"{name}.{os.uname().nodename}.{os.getpid()}"
        partial.write_bytes(data)
        partial.replace(self.folder / name)

    # ----

    def _file(self, shard: Shard, kind: str) -> Path:
        return self.folder / f"{shard.sha256}-{shard.bytes}.{kind}"

    def _files(self) -> list[tuple[int, int, Path]]:
        """(last use in ns, bytes when it is whole, file) of every shard, begun ones among them."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if match := _NAME.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        used = status.st_atime_ns if match[2] == "tar" else status.st_mtime_ns
                        found.append((used, int(match[1]), Path(entry.path)))
        return found

    def _held(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _remove(self, file: Path) -> bool:
        """Whether it is gone: what is being written stays."""
        try:
            with open(file, "rb") as opened:
                if file.suffix == ".part":
                    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.folder / "lock", "a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as fault:
                raise UserError(
                    f"{file.name}: no lock to be had ({fault.strerror}); name a local disk in {FOLDER}"
                ) from None
            yield


def digest(opened) -> Any:
    """The hash of `hashlib` (SHA-256) of an open file from where it is up to its end."""
    total, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    while count := opened.readinto(buffer):
        total.update(buffer[:count])
    return total


def no_space(fault: OSError) -> bool:
    return fault.errno in (errno.ENOSPC, errno.EDQUOT)


def _stamp(shard: Shard) -> int:
    """A modification time of a shard in ns, in the years 1970 to 1978."""
    return int(shard.sha256[:7], 16) * 1_000_000_000


def _folder() -> Path:
    home = os.path.expanduser("~")
    own = Path(home, ".cache", "headrace") if os.path.isabs(home) else Path(gettempdir(), f"headrace-{os.getuid()}")
    return Path(os.environ.get(FOLDER) or own).expanduser() / "shards"


def _limit(folder: Path, held: int) -> int:
    text = os.environ.get(BOUND)
    if not text:
        return int((shutil.disk_usage(folder).free + held) * _SHARE)
    try:
        limit = float(text) * 1e9
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise UserError(f"{BOUND}: a number of gigabytes, such as 200, not {text!r}")
    return int(limit)
