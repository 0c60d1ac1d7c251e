"""Tar headers, read and written three to five times as fast as by `tarfile`.

POSIX ustar, with the long names of GNU ("L" members) and pax ("x" members) understood when reading.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

BLOCK = 512
END = bytes(2 * BLOCK)  # closes an archive


class TarError(ValueError):
    """Not a tar, or cut short; the message says where."""


def padding(size: int) -> int:
    """Bytes between the end of a member of `size` bytes and the next header."""
    return -size % BLOCK


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a regular file: nothing but name and size varies, so equal members give equal archives.

    `name` is at most 100 ASCII characters, `size` below 8 GiB.
    """
    owner = b"0000644\0" + b"0000000\0" * 2  # mode, uid, gid
    until_checksum = name.encode("ascii").ljust(100, b"\0") + owner + b"%011o\0" % size + b"%011o\0" % 0
    after_checksum = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
    checksum = sum(until_checksum) + sum(after_checksum) + 8 * ord(" ")
    return until_checksum + b"%06o\0 " % checksum + after_checksum


def name_in(block: bytes) -> str:
    """The member name in a header; a name that GNU or pax stores before the header appears cut to 100 bytes."""
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "backslashreplace")


def members(descriptor: int, begin: int = 0, end: int | None = None) -> Iterator[tuple[str, int, int]]:
    """(name, offset of the data, size of the data) of every regular file in an open tar, in order.

    `begin`, `end`: which bytes of the file are the tar, where it lies inside another; offsets count from byte 0.

    Raises `TarError` where a header is none or a member reaches past the end.
    """
    position, end = begin, os.fstat(descriptor).st_size if end is None else end
    extended: dict[str, str] = {}  # what "L" and "x" members say about the member after them
    while position < end:
        block = os.pread(descriptor, min(BLOCK, end - position), position)
        if block.count(0) == len(block):
            return
        if not _is_header(block):
            raise TarError(f"no tar header at byte {position:,}")
        kind, start = block[156:157], position + BLOCK
        size = int(extended.get("size", 0)) or _octal(block[124:136])
        if kind in b"123456":  # links, devices and folders have no data, whatever their header says
            size = 0
        if size < 0:  # would send the walk backwards, for ever
            raise TarError(f"{name_in(block)}: a size of {size:,} bytes")
        if start + size > end:
            raise TarError(f"cut short: {name_in(block)} should end at byte {start + size:,}, the tar at {end:,}")
        position = start + size + padding(size)
        if kind == b"L":
            extended["path"] = os.pread(descriptor, size, start).rstrip(b"\0").decode("utf-8", "backslashreplace")
        elif kind == b"x":
            extended.update(_pax_records(os.pread(descriptor, size, start)))
        else:
            if kind in b"07\0":
                yield extended.get("path") or name_in(block), start, size
            if kind != b"g":
                extended = {}


def _is_header(block: bytes) -> bool:
    """Whether its checksum, taken with blanks in the checksum's own place, is right."""
    try:
        return len(block) == BLOCK and _octal(block[148:156]) == sum(block) - sum(block[148:156]) + 8 * ord(" ")
    except TarError:
        return False


def _octal(field: bytes) -> int:
    """A number of a header: octal digits, or big-endian binary behind a set top bit where they do not suffice."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise TarError(f"no number in a tar header: {field!r}") from None


def _pax_records(data: bytes) -> dict[str, str]:
    """Records of the form ``<length> <keyword>=<value>\\n``, length counting the whole record."""
    records = {}
    try:
        while data:
            length = int(data.split(b" ", 1)[0])
            keyword, value = data[:length].split(b" ", 1)[1].rstrip(b"\n").split(b"=", 1)
            records[keyword.decode()] = value.decode("utf-8", "backslashreplace")
            data = data[length:]
    except (ValueError, IndexError):
        raise TarError(f"unreadable pax header: {data[:40]!r}") from None
    return records
