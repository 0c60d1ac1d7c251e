"""Shards behind an address for `check`: each is fetched anew, looked at, and let go of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import UserError
from .check_tar import TarCheck
from .remote.backoff import insist
from .remote.cache import ShardCache
from .remote.stores import Missing, Store, open_store
from .sources.shards import INDEX_FILE, MANIFEST

_PATIENCE = 60.0  # seconds that a store may be silent


@contextlib.contextmanager
def far_folder(address: str) -> Iterator[tuple[Path, Callable[[TarCheck, bool], TarCheck]]]:
    """A folder of this machine with manifest and index of shards behind an address, and what checks one of them, with
    or without decoding. What the store does not have is not there either.

    Raises `UserError` where there is no manifest, or no answer.
    """
    store, cache = open_store(address), ShardCache()
    with TemporaryDirectory(prefix="check-", dir=cache.folder) as place:
        folder = Path(place)

        def look_at(job: TarCheck, decode: bool) -> TarCheck:
            files = (job.path, job.path.with_suffix(".idx"))
            for file in files:
                _copy(store, file.name, file)
            job.check(decode)
            for file in files:
                file.unlink(missing_ok=True)
            return job

        if not _copy(store, MANIFEST, folder / MANIFEST):
            raise UserError(f"{address}/{MANIFEST}: none there; give the folder that `headrace shard` wrote")
        _copy(store, INDEX_FILE, folder / INDEX_FILE)
        yield folder, look_at


def _copy(store: Store, name: str, file: Path) -> bool:
    """Whether there is such a file. Raises `UserError` where nobody may read it, or the store is silent."""
    try:
        insist(lambda: _receive(store, name, file), f"{store.address}/{name}", _PATIENCE)
    except Missing:
        file.unlink(missing_ok=True)
        return False
    except OSError as fault:
        raise UserError(
            f"{store.address}/{name}: {fault}; check the address, the disk, and who may read there"
        ) from None
    return True


def _receive(store: Store, name: str, file: Path) -> None:
    """The file from its beginning on: what has come before is not trusted."""
    with open(file, "wb") as opened:
        for piece in store.get(name).pieces:
            opened.write(piece)
