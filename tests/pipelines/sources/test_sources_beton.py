"""FFCV's files, written byte by byte, and by FFCV itself where it is installed."""

import importlib.util
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest

from headrace.pipelines.images.decode import decode
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import ByteSource

HEADER, FIELD = struct.Struct("<HHIQQ"), struct.Struct("<B16s1024s")


def beton(samples, labels=True, version=2, kinds=None):
    """(mode, height, width, bytes, label) a sample -> a file as FFCV lays it out: a row is 13 bytes, 3 free, 8."""
    kinds = kinds or ([2, 1] if labels else [2])
    row = struct.Struct("<BHHQxxxq" if labels else "<BHHQ")
    start = HEADER.size + FIELD.size * len(kinds) + row.size * len(samples)
    rows, data, table = b"", b"", b""
    for number, (mode, height, width, content, label) in enumerate(samples):
        offset = start + len(data)
        rows += row.pack(mode, width, height, offset, *([label] if labels else []))
        table += struct.pack("<QQQ", number, offset, len(content))
        data += content + bytes(7)  # FFCV fills pages up
    fields = b"".join(FIELD.pack(kind, b"name", b"") for kind in kinds)
    return HEADER.pack(version, len(kinds), 1 << 21, len(samples), start + len(data)) + fields + rows + data + table


@pytest.fixture
def samples(encode):
    raw = np.random.default_rng(1).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    return [(0, 31, 40, encode(1), 2), (1, 5, 9, raw.tobytes(), 0), (0, 33, 40, encode(3), 2)], raw


def test_jpegs_are_views_and_raw_pixels_become_png(tmp_path, write_files, samples):
    samples, raw = samples
    write_files(tmp_path, {"x.beton": beton(samples)})
    for name in (tmp_path / "x.beton", f"beton:{tmp_path}/x.beton"):
        source = open_source(name)
        assert isinstance(source, ByteSource) and source.classes == ["0", "1", "2"]
        assert [source.label(i) for i in range(3)] == [2, 0, 2]
        assert [source.key(i) for i in range(3)] == [f"x.beton/0000000{n}" for n in ("0.jpg", "1.png", "2.jpg")]
        assert [source.read(i).tobytes() for i in (0, 2)] == [samples[0][3], samples[2][3]]
        assert source.read(0).base is source.read(2).base
        assert (decode(source.read(1)) == raw).all() and [source.size(i) for i in range(2)] == [(31, 40), (5, 9)]
        assert pickle.loads(pickle.dumps(source)).read(2).tobytes() == samples[2][3]


def test_no_labels(tmp_path, write_files, samples):
    source = open_source(write_files(tmp_path, {"x.beton": beton(samples[0], labels=False)}) / "x.beton")
    assert source.classes is None and source.label(0) == -1 and source.read(2).tobytes() == samples[0][2][3]


def test_damage_is_refused(tmp_path, write_files, samples, refused):
    samples, whole = samples[0], beton(samples[0])
    damaged = {
        "version 2": beton(samples, version=3),
        "header": whole[:10],
        "cut short": whole[:200],
        "table": whole[:-24],
        "own": beton(samples, kinds=[2, 255]),
        "no image": beton([], labels=False),
        "labels": beton([(0, 1, 1, b"x", -3)]),
        "another size": beton([(1, 5, 9, b"x" * 134, 0)]),
    }
    for words, content in damaged.items():
        write_files(tmp_path, {"x.beton": content})
        refused(tmp_path / "x.beton", "x.beton", words)
    huge = bytearray(whole)
    huge[8:16] = struct.pack("<Q", 1 << 60)
    write_files(tmp_path, {"x.beton": bytes(huge)})
    refused(tmp_path / "x.beton", "cut short")
    far = bytearray(whole)
    far[-8:] = struct.pack("<Q", 1 << 40)
    write_files(tmp_path, {"x.beton": bytes(far)})
    refused(tmp_path / "x.beton", "past its end")


if importlib.util.find_spec("ffcv"):  # an extra of the package
    # A process of its own: one that has written by FFCV 1.0.2 does not end where numba's TBB has one core only.
    WRITES = """
import sys
import numpy as np
from ffcv.fields import FloatField, IntField, RGBImageField
from ffcv.writer import DatasetWriter

class Photos:
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return 0.5, np.full((20 + index, 30, 3), 40 * index, np.uint8), index % 3

fields = {"weight": FloatField(), "image": RGBImageField(write_mode=sys.argv[2]), "label": IntField()}
DatasetWriter(sys.argv[1], fields, num_workers=1).from_indexed_dataset(Photos())
"""

    @pytest.mark.parametrize("mode", ["raw", "jpg"])
    def test_files_that_ffcv_wrote(tmp_path, mode):
        environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue"}
        subprocess.run([sys.executable, "-c", WRITES, tmp_path / "x.beton", mode], env=environment, check=True)
        images = [np.full((20 + n, 30, 3), 40 * n, np.uint8) for n in range(5)]
        source = open_source(tmp_path / "x.beton")
        assert [source.label(i) for i in range(5)] == [0, 1, 2, 0, 1]
        for index, image in enumerate(images):
            assert np.abs(decode(source.read(index)).astype(int) - image).max() <= (0 if mode == "raw" else 2)
            assert source.size(index) == image.shape[:2]
