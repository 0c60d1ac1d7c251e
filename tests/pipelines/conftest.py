"""Small images and the containers they come in; makes the helpers here importable."""

import io
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))


def _encode(seed, kind="JPEG", **options):
    """Noise of (30 + seed, 40) pixels; every seed gives other bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (30 + seed, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _write_files(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def _tar_bytes(files, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _beton_bytes(rows):
    """(content, label, height, width) -> a .beton as FFCV lays it out; content: bytes of a JPEG, or raw pixels."""
    header, field, row = struct.Struct("<HHIQQ"), struct.Struct("<B16s1024s"), struct.Struct("<BHHQxxxq")
    offset = start = header.size + 2 * field.size + len(rows) * row.size
    table, data, allocated = b"", b"", b""
    for number, (content, label, height, width) in enumerate(rows):
        raw = len(content) == height * width * 3
        table += row.pack(raw, width, height, offset, label)
        allocated += struct.pack("<QQQ", number, offset, len(content))
        data, offset = data + content, offset + len(content)
    fields = field.pack(2, b"image", b"") + field.pack(1, b"label", b"")
    return header.pack(2, 2, 1 << 21, len(rows), start + len(data)) + fields + table + data + allocated


def _contents(source):
    return [(source.key(i), source.read(i).tobytes(), source.label(i)) for i in range(len(source))]


@pytest.fixture(scope="session")
def encode():
    return _encode


@pytest.fixture(scope="session")
def write_files():
    return _write_files


@pytest.fixture(scope="session")
def tar_bytes():
    return _tar_bytes


@pytest.fixture(scope="session")
def beton_bytes():
    return _beton_bytes


@pytest.fixture(scope="session")
def contents():
    """(key, bytes, label) of every sample of a source."""
    return _contents


@pytest.fixture(scope="session")
def refused():
    """Checks that a source cannot be opened, and that one line says so with all the given words; returns the line."""
    from headrace.errors import UserError
    from headrace.pipelines.sources import open_source

    def check(name, *words):
        with pytest.raises(UserError) as caught:
            open_source(name)
        message = str(caught.value)
        assert "\n" not in message and all(str(word) in message for word in words), message
        return message

    return check
