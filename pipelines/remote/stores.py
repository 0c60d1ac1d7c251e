"""What a store of files behind an address can do, how it fails, and which store an address belongs to.

Every fault is one of two: `Transient`, for which another attempt is worth its while, or an `OSError`, for which it is
not. Nobody else has to know HTTP or a cloud's library.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from ...errors import UserError

SILENCE = 30  # seconds without an answer or a byte after which an attempt is given up
PASSING = (408, 425, 429)  # answers after which to try again, as after all from 500 on
_STORES = {  # scheme -> the file with its `open_store`
    "http": "web",
    "https": "web",
    "hf": "web",
    "s3": "objects",
    "gs": "objects",
    "az": "objects",
}
SCHEMES = tuple(f"{scheme}://" for scheme in _STORES)


class Transient(Exception):
    """A fault that may pass: no connection, too many requests, an answer that breaks off. `wait`: for how many seconds
    the server asks."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


class Missing(FileNotFoundError):
    """There is no such file, and the store has answered."""


class Reply(NamedTuple):
    """Bytes of a file from `start` on, in pieces of any length; what breaks off raises `Transient`."""

    start: int  # what was asked for, or 0 from a server that gives everything to everybody
    pieces: Iterator[bytes | memoryview]


class Store(Protocol):
    """A folder behind an address. Methods raise `Transient`, or `OSError` for what another attempt would not mend."""

    address: str  # of the folder, without a slash at its end

    def get(self, name: str, start: int = 0, end: int | None = None) -> Reply:
        """The bytes [start, end) of a file, or up to its end."""

    def names(self) -> list[tuple[str, int]]:
        """(name, size in bytes) of the files that lie directly in the folder, sorted."""

    def put(self, name: str, data: bytes | Path) -> None:
        """Writes a file, whole or not at all."""


def read(store: Store, name: str, start: int = 0, end: int | None = None) -> bytes:
    """The bytes [start, end) of a file, or all of them."""
    reply = store.get(name, start, end)
    data = bytearray()
    wanted = None if end is None else end - reply.start
    for piece in reply.pieces:
        data += piece
        if wanted is not None and len(data) >= wanted:
            break
    skip = start - reply.start
    data = bytes(data[skip:] if wanted is None else data[skip:wanted])
    if end is not None and len(data) < end - start:
        raise Transient(f"{len(data):,} of {end - start:,} bytes came")
    return data


def open_store(address: str) -> Store:
    """The store at ``scheme://...``. Raises `UserError` for an address without a meaning, or without its library."""
    scheme, mark, rest = address.partition("://")
    if not mark or scheme not in _STORES or not rest.strip("/"):
        raise UserError(f"{address}: no address of a folder; give one that begins with {', '.join(SCHEMES)}")
    return importlib.import_module(f".{_STORES[scheme]}", __package__).open_store(address.rstrip("/"))
