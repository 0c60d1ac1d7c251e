"""Object stores, ``s3://bucket/folder``, ``gs://``, ``az://container/folder``, with obstore: one wheel for all three.

To fetch a MiB takes it 0.7 ms of CPU time, botocore under fsspec (s3fs) 3.3. Its own repetitions are switched off:
`backoff.py` is the one place where something is tried again. Places and secrets come from the environment, by the names
of the clouds' own tools; for S3 from boto3 as well, where that is installed: it reads profiles.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from ...errors import UserError
from .stores import PASSING, SILENCE, Missing, Reply, Transient

_PIECE = 1 << 20  # bytes
_LONGEST = 300  # characters of what the library says
_STATUS = re.compile(r"status code: (\d\d\d)")
_PART = 16 << 20  # of an upload in parts; S3 allows 10,000 parts: 160 GB


class Bucket:
    """The objects below ``scheme://bucket/folder``."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._store = None

    def __getstate__(self) -> dict:
        return {"address": self.address, "_store": None}

    @property
    def _client(self):
        if self._store is None:
            self._store = _connect(self.address)
        return self._store

    def get(self, name: str, start: int = 0, end: int | None = None) -> Reply:
        import obstore

        asked = None if not start and end is None else (start, end) if end is not None else {"offset": start}
        reply = _asked(obstore.get, self._client, name, options=None if asked is None else {"range": asked})
        return Reply(reply.range[0], _pieces(reply))

    def names(self) -> list[tuple[str, int]]:
        import obstore

        found = _asked(lambda client: obstore.list_with_delimiter(client)["objects"], self._client)
        return sorted((Path(one["path"]).name, one["size"]) for one in found)

    def put(self, name: str, data: bytes | Path) -> None:
        import obstore

        _asked(obstore.put, self._client, name, data, chunk_size=_PART, max_concurrency=4)


def open_store(address: str) -> Bucket:
    if importlib.util.find_spec("obstore") is None:
        raise UserError(f'{address}: needs the extra [cloud]: pip install "headrace[cloud]", or obstore alone')
    return Bucket(address)


def _connect(address: str):
    from obstore.store import from_url

    patience = timedelta(seconds=SILENCE)
    plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    options = {
        "retry_config": {"max_retries": 0},
        "client_options": {
            "connect_timeout": patience,
            "read_timeout": patience,
            "timeout": timedelta(days=1),  # of a whole object, however large
            "allow_http": plain or os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"),
        },
    }
    if address.startswith("s3://") and "AWS_ACCESS_KEY_ID" not in os.environ and importlib.util.find_spec("boto3"):
        from boto3 import Session
        from obstore.auth.boto3 import Boto3CredentialProvider

        if (session := Session()).get_credentials() is not None:
            options["credential_provider"] = Boto3CredentialProvider(session)
    try:
        return from_url(address, **options)
    except Exception as fault:  # of classes that differ between versions
        raise UserError(
            f"{address}: cannot be opened ({_words(fault)}); check the address and the environment"
        ) from None


def _asked(work, *arguments, **options):
    """What `work` returns, with faults as `stores.py` has them."""
    try:
        return work(*arguments, **options)
    except FileNotFoundError:
        raise Missing("the store has no such object") from None
    except Exception as fault:
        raise _as_ours(fault) from None


def _pieces(reply) -> Iterator[memoryview]:
    left = reply.range[1] - reply.range[0]
    try:
        for piece in reply.stream(min_chunk_size=_PIECE):
            left -= len(piece)
            yield memoryview(piece)
    except Exception as fault:
        raise _as_ours(fault) from None
    if left:
        raise Transient(f"the transfer breaks off {left:,} bytes before its end")


def _as_ours(fault: Exception) -> Exception:
    from obstore import exceptions

    final = (
        exceptions.PermissionDeniedError,
        exceptions.UnauthenticatedError,
        exceptions.InvalidPathError,
        exceptions.NotSupportedError,
        exceptions.UnknownConfigurationKeyError,
    )
    status = int(found[1]) if (found := _STATUS.search(str(fault))) else 0
    if status == 404:
        return Missing(_words(fault))
    refused = 400 <= status < 500 and status not in PASSING
    return OSError(_words(fault)) if isinstance(fault, final) or refused else Transient(_words(fault))


def _words(fault: Exception) -> str:
    """What the library says, without its lists of causes and pages of XML."""
    said = next(iter(str(fault).splitlines()), "").partition(": <?xml")[0]
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
