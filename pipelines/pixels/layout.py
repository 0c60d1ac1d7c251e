"""The sidecar of a tar: a header, a row for every sample, and pixels.

bytes 0-4095     `MAGIC`, version and length (u4, little-endian) of the JSON that follows; zeros behind it
from 4096 on     a `ROW` for every sample, in the order of the tar; one without pixels, which did not decode, is zeros
then             pixels, each sample at a multiple of `ALIGN`: ``rgb`` (height, width, 3), ``yuv420`` as `Planes.flat`,
                 ``deep`` (channels, height, width) u2, little-endian

The JSON: {format, max_side, decoder, rules, samples, bytes, rows, tar: {image, bytes, print, sha256}}. `bytes` is the
length of the file, `rows` the CRC-32 of the rows, `print` the SHA-256 of blocks spread over the tar: a moment's look.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import __version__ as pillow_version
from PIL import features

from ...errors import UserError
from ..images.planes import planes_size
from ..images.rules import rules
from ..sources.shards import Tar

MAGIC, VERSION, HEAD, ALIGN = b"HRPIXELS", 1, 4096, 64
SUFFIX = ".pixels"
FORMATS = ("rgb", "yuv420", "deep")
ROW = np.dtype([("offset", "<u8"), ("height", "<u4"), ("width", "<u4"), ("crc", "<u4")])
_FIXED = struct.Struct("<8sII")
_BLOCKS, _BLOCK = 16, 4096  # of a tar that its print is made of; bytes


@dataclass(frozen=True)
class Request:
    """What decides the pixels of a sidecar, besides its tar."""

    format: str = "rgb"
    max_side: int | None = None

    @classmethod
    def usual(cls, form: str | None = None, max_side: int | None = None) -> Request:
        """In the format asked for, or in the one that loses nothing of what this process decodes."""
        return cls(form or usual_formats()[0], max_side)

    def __post_init__(self) -> None:
        if self.format not in usual_formats():
            how = "have --channels" if self.format == "deep" else "are RGB of eight bits"
            raise UserError(f"--format: images of {self.format} {how}; here, give {' or '.join(usual_formats())}")
        if self.max_side is not None and self.max_side < 1:
            raise UserError(f"--max-side: must be at least 1 pixel, not {self.max_side}")

    @property
    def words(self) -> str:
        shrunk = "" if self.max_side is None else f", longer side at most {self.max_side} px"
        return f"{self.format}{shrunk}"

    def facts(self) -> dict:
        """As the header holds it, with what else decides: software and rules."""
        said = {key: value for key, value in asdict(rules()).items() if value is not None}
        return asdict(self) | {"decoder": decoder(), "rules": json.loads(json.dumps(said))}


@dataclass(frozen=True)
class Sidecar:
    """A sidecar that was looked at: its header and rows are sound, and it is that of its tar."""

    path: Path
    head: dict
    rows: np.ndarray  # (samples,) of `ROW`

    @property
    def request(self) -> Request:
        return Request(self.head["format"], self.head["max_side"])


def sidecar_of(tar: Path) -> Path:
    return tar.with_suffix(SUFFIX)


def decoder() -> str:
    """The software that decides what pixels an image has."""
    return f"Pillow {pillow_version}, libjpeg {features.version('jpg')}"


def usual_formats() -> tuple[str, ...]:
    """What the pixels of images can be written as, by how this process decodes them."""
    return ("rgb", "yuv420") if rules().channels is None else ("deep",)


def bytes_of(form: str, height, width):
    """Bytes of an image's pixels; numbers or arrays."""
    if form == "deep":
        return 2 * rules().channels * height * width
    return 3 * height * width if form == "rgb" else planes_size(height, width)


def aligned(offset: int) -> int:
    return -(-offset // ALIGN) * ALIGN


def first_pixel(samples: int) -> int:
    """Where the pixels of the first sample begin."""
    return -(-(HEAD + samples * ROW.itemsize) // HEAD) * HEAD


def tar_print(tar: Tar) -> dict[str, int | str]:
    """{image, bytes, print}: what can be told without reading all of a tar."""
    with open(tar.path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256()
        for at in np.linspace(0, max(0, size - _BLOCK), _BLOCKS).astype(np.int64).tolist():
            digest.update(os.pread(file.fileno(), _BLOCK, at))
    return {"image": tar.image, "bytes": size, "print": digest.hexdigest()}


def head_bytes(facts: dict) -> bytes:
    """The first `HEAD` bytes of a sidecar."""
    text = json.dumps(facts, sort_keys=True).encode()
    return (_FIXED.pack(MAGIC, VERSION, len(text)) + text).ljust(HEAD, b"\0")


def read_sidecar(tar: Tar) -> Sidecar | None:
    """The sidecar of `tar`; None where there is none.

    Raises `UserError`, one line, for a sidecar that is damaged, of another tar, another version or other software: its
    rows are believed only when every one of them lies inside the file.
    """
    path, samples = sidecar_of(tar.path), tar.samples
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            head = _head(path, os.pread(file.fileno(), HEAD, 0))
            rows = os.pread(file.fileno(), samples * ROW.itemsize, HEAD)
        there = tar_print(tar)
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise UserError(f"{path}: cannot be read ({fault.strerror}); {_AGAIN}") from None
    known = there | {"sha256": tar.sha256 or head["tar"]["sha256"]}
    if head["samples"] != samples or head["tar"] != known:
        raise UserError(f"{path}: made from another {tar.path.name} than the one beside it; {_AGAIN}")
    if head["bytes"] != size:
        raise UserError(f"{path}: {size:,} bytes instead of {head['bytes']:,}; {_AGAIN}")
    if head["decoder"] != decoder():
        raise UserError(f"{path}: decoded by {head['decoder']}, here is {decoder()}; {_AGAIN}")
    if head["rules"] != (here := Request.usual().facts()["rules"]):
        raise UserError(f"{path}: decoded with {_words(head['rules'])}, asked for are {_words(here)}; {_AGAIN}")
    if zlib.crc32(rows) != head["rows"] or len(rows) != samples * ROW.itemsize:
        raise UserError(f"{path}: its table of samples is damaged; {_AGAIN}")
    table = np.frombuffer(rows, ROW)
    if problem := _problem(table, head["format"], size):
        raise UserError(f"{path}: its table of samples {problem}; {_AGAIN}")
    return Sidecar(path, head, table)


_AGAIN = "make it again with `headrace pixels`, delete it, or use data.pixels=never"


def _head(path: Path, data: bytes) -> dict:
    if len(data) < HEAD or data[: len(MAGIC)] != MAGIC:
        raise UserError(f"{path}: {'too short for' if len(data) < HEAD else 'not'} a file of pixels; {_AGAIN}")
    _, version, length = _FIXED.unpack_from(data)
    if version != VERSION:
        raise UserError(f"{path}: pixels of version {version}, this headrace reads version {VERSION}; {_AGAIN}")
    try:
        head = json.loads(data[_FIXED.size : _FIXED.size + length])
        whole = all(type(head[key]) is int for key in ("samples", "bytes", "rows"))
        sound = whole and head["format"] in FORMATS and isinstance(head["decoder"], str) and "rules" in head
        side = head["max_side"]
        sound = sound and (side is None or type(side) is int and side > 0)
        sound = sound and {"image", "bytes", "print", "sha256"} <= head["tar"].keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path}: its header is damaged; {_AGAIN}")
    return head


def _problem(rows: np.ndarray, form: str, size: int) -> str | None:
    """What is wrong with the rows of a file of `size` bytes. In floating point first: nothing can overflow there."""
    offset, height, width = (rows[key].astype(np.float64) for key in ("offset", "height", "width"))
    if ((height == 0) != (width == 0)).any() or ((height == 0) & (offset != 0)).any():
        return "has a sample of no height or no width"
    if (offset + 32 * height * width > 2.0**62).any():
        return "points past the end of the file"
    there = rows[height > 0]
    start, height, width = (there[key].astype(np.int64) for key in ("offset", "height", "width"))
    length = bytes_of(form, height, width)
    if (start + length > size).any() or (length >> 32).any():
        return "points past the end of the file"
    if (start < np.append(first_pixel(len(rows)), start + length)[: len(there)]).any():
        return "has samples that overlap"
    return None


def _words(found: object) -> str:
    if not isinstance(found, dict):
        return "unknown rules"
    return ", ".join(f"data.{key}={value}" for key, value in found.items())
