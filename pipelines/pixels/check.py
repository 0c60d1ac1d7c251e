"""Whether a sidecar is that of its tar: its header and rows, every pixel against its checksum, and against decoding."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

from ...errors import UserError
from ..sources.shards import ShardSource, Tar
from .layout import bytes_of, read_sidecar
from .writer import pixels_of, tar_sha256


def sidecar_problems(tar: Tar, decode: bool) -> Iterator[tuple[str, str]]:
    """(sample or nothing, what is wrong), of a tar that is sound itself; nothing where there is no sidecar."""
    try:
        found = read_sidecar(tar)
        if found is None:
            return
        source = ShardSource(tar.path, image=tar.image)
    except UserError as fault:
        yield "", str(fault).partition("; ")[0]
        return
    if tar.sha256 is None and tar_sha256(tar.path) != found.head["tar"]["sha256"]:
        yield "", f"{found.path.name} was made from another {tar.path.name}"
        return
    with open(found.path, "rb", buffering=0) as file:
        for index, row in enumerate(found.rows):
            offset, height, width, crc = row.item()
            size = bytes_of(found.request.format, height, width)
            if height and zlib.crc32(os.pread(file.fileno(), size, offset)) != crc:
                yield source.key(index), f"its pixels in {found.path.name} are damaged"
            elif decode:
                made = pixels_of(source, index, found.request)
                if (None if made is None else made[1:]) != ((height, width, crc) if height else None):
                    yield source.key(index), f"its pixels in {found.path.name} are not those of the image"
