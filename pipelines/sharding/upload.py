"""A finished data set -> an object store, shard by shard; an interrupted upload goes on where it was."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ...errors import UserError
from ..remote.backoff import insist
from ..remote.stores import Missing, Store, read
from ..sources.shards import INDEX_FILE, MANIFEST, as_manifest

_SENT = "sent.json"  # beside the staged data set: what has been written to the store, {name: bytes}
_REPORT = 5.0  # seconds between two counts
_PATIENCE = 300.0  # seconds that a store may be silent


def finished(store: Store) -> dict | None:
    """The manifest of the data set in a store; None where there is none. Raises `UserError` where that is not to be
    known, and where the store lists files that are none of a data set's."""
    try:
        names = [name for name, _ in insist(store.names, store.address, 60.0)]
        data = insist(lambda: read(store, MANIFEST), f"{store.address}/{MANIFEST}", 60.0) if MANIFEST in names else None
    except Missing as fault:
        raise UserError(f"{store.address}: {fault}; create the bucket, or correct the address") from None
    except OSError as fault:
        raise UserError(
            f"{store.address}: {fault}; shards are written to s3://, gs:// and az://, or to a disk"
        ) from None
    foreign = [name for name in names if not name.endswith((".tar", ".idx")) and name not in (INDEX_FILE, MANIFEST)]
    manifest = None if data is None else as_manifest(data, f"{store.address}/{MANIFEST}")
    if foreign or data is not None and manifest is None:
        raise UserError(f"{store.address}: not empty ({', '.join(foreign[:3]) or MANIFEST}); choose another folder")
    return manifest


def upload(folder: Path, store: Store, say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> None:
    """Writes the data set in `folder` to `store`, its manifest last.

    What an earlier attempt has written is not written again. Raises `UserError`; then the same again goes on.
    """
    manifest = as_manifest((folder / MANIFEST).read_bytes(), folder / MANIFEST)
    names = [name for shard in manifest["shards"] for name in (shard["name"], f"{Path(shard['name']).stem}.idx")]
    there = dict(insist(store.names, store.address, _PATIENCE))
    record = folder.with_name(f"{folder.name}.{_SENT}")
    sent = json.loads(record.read_bytes()) if record.exists() else {}
    told = time.monotonic()
    for number, name in enumerate([*names, INDEX_FILE, MANIFEST], 1):
        file = folder / name
        size = file.stat().st_size
        if sent.get(name) == size == there.get(name):
            continue
        try:
            insist(lambda: store.put(name, file), f"{store.address}/{name}", _PATIENCE)  # noqa: B023 (called at once)
        except OSError as fault:
            hint = "check who may write there, and run the same again"
            raise UserError(f"{store.address}/{name}: cannot be written ({fault}); {hint}") from None
        sent[name] = size
        record.write_text(json.dumps(sent), encoding="utf-8")
        if time.monotonic() - told > _REPORT:
            told = time.monotonic()
            say(f"uploading: {number:,} of {len(names) + 2:,} files")
    record.unlink(missing_ok=True)
