"""`shard` from any source, with images written anew, duplicates dropped, every pixel verified, and as FFCV's format."""

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from headrace.errors import UserError, run_command
from headrace.pipelines.images.decode import DecodeError, decode, image_size
from headrace.pipelines.images.encode import Encoding
from headrace.pipelines.images.jpeg import jpeg_header
from headrace.pipelines.shard import main
from headrace.pipelines.shard import shard as shard_source
from headrace.pipelines.sharding.plan import ShardOptions
from headrace.pipelines.sources import open_source

NEAR = 8  # mean difference of pixels: steep colours suffer from JPEG; turned or shifted, they are 40 apart


def shard(source, out, workers=1, skip_bad=False, **options):
    return shard_source(source, out, ShardOptions(**options), workers=workers, skip_bad=skip_bad, progress=False)


def encode(seed, kind="JPEG", height=24, width=36, mode="RGB", **options):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_files(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# headers without a decoder

VARIETY = {
    "plain": encode(1),
    "gray": encode(2, mode="L"),
    "CMYK": encode(3, mode="CMYK"),
    "progressive": encode(4, progressive=True),
    "thumbnail": encode(5, exif=b"Exif\0\0" + turned(6).tobytes()[6:] + encode(6)),
    **{f"turned {n}": encode(7, exif=turned(n)) for n in range(1, 9)},
}


@pytest.mark.parametrize("name", VARIETY)
def test_jpeg_header_says_what_pillow_says(name):
    data = VARIETY[name]
    header = jpeg_header(memoryview(data))
    pixels = decode(data)
    assert header[:2] == pixels.shape[:2] == jpeg_header(np.frombuffer(data, np.uint8))[:2]
    assert header.components == {"gray": 1, "CMYK": 4}.get(name, 3)
    assert header.orientation == (int(name[-1]) if name[:6] == "turned" else 6 if name == "thumbnail" else 1)


def test_jpeg_header_leaves_the_unusual_to_pillow():
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    with_xmp = encode(1)[:2] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + encode(1)[2:]
    for data in (encode(1)[:-2], encode(1, "PNG"), b"", b"\xff\xd8\xff\xd9", encode(1) + b"\0", with_xmp):
        assert jpeg_header(data) is None
    assert image_size(encode(1) + b"\0") == (24, 36)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(VARIETY)), st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4))
def test_a_mutated_header_never_crashes_and_sizes_are_those_of_the_pixels(name, changes):
    data = bytearray(VARIETY[name])
    for offset, value in changes:
        data[offset % len(data)] = value
    header = jpeg_header(data)
    try:
        pixels = decode(bytes(data))
    except DecodeError:
        return
    assert header is None or header[:2] == pixels.shape[:2]


# images written anew


@pytest.fixture
def mixed(tmp_path):
    small = {"a/small.jpg": encode(1), "a/turned.jpg": encode(2, exif=turned(6)), "b/gray.jpg": encode(3, mode="L")}
    large = {
        "a/wide.jpg": encode(4, height=50, width=200),
        "b/tall.jpg": encode(5, height=200, width=51),
        "b/turned.jpg": encode(6, height=100, width=200, exif=turned(6)),
        "b/small.png": encode(7, "PNG"),
        "b/large.webp": encode(8, "WEBP", height=120, width=80),
    }
    return write_files(tmp_path / "mixed", small | large), small, large


def test_max_side_shrinks_what_is_larger_and_touches_nothing_else(mixed, tmp_path):
    root, small, large = mixed
    shard(root, tmp_path / "out", seed=None, encoding=Encoding(100, 92))
    source = open_source(tmp_path / "out")
    read = {name: index for index, name in enumerate(sorted(small | large))}
    for name, data in small.items():
        assert source.read(read[name]).tobytes() == data and source.size(read[name]) == decode(data).shape[:2]
    sizes = {"a/wide.jpg": (25, 100), "b/tall.jpg": (100, 26), "b/turned.jpg": (100, 50), "b/small.png": (24, 36)}
    for name, size in (sizes | {"b/large.webp": (100, 67)}).items():
        data = source.read(read[name]).tobytes()
        assert source.size(read[name]) == decode(data).shape[:2] == size and source.key(read[name]).endswith(".jpg")
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.getexif().get(0x0112)) == ("JPEG", None)
        upright = Image.fromarray(decode(large[name])).resize(size[::-1], Image.Resampling.BICUBIC)
        upright.save(expected := io.BytesIO(), "JPEG", quality=92)
        assert data == expected.getvalue()


def test_encoding_is_deterministic_and_quality_counts(mixed, tmp_path):
    root, *_ = mixed
    for name, quality, workers in (("a", 92, 1), ("b", 92, 2), ("c", 50, 1)):
        options = {"shard_mb": None, "shard_samples": 3, "encoding": Encoding(100, quality)}
        shard(root, tmp_path / name, workers=workers, **options)
    first, second, coarse = (tree(tmp_path / name) for name in "abc")
    assert first == second and len(coarse["train-000000.tar"]) < len(first["train-000000.tar"])


def test_verify_finds_what_a_header_does_not_show(tmp_path):
    data = encode(1, "PNG", height=80)
    at = data.index(b"IDAT") + 60
    broken = data[:at] + bytes(40) + data[at + 40 :]
    root = write_files(tmp_path / "in", {"good.png": data, "bad.png": broken})
    assert shard(root, tmp_path / "quick")["samples"] == 2
    with pytest.raises(UserError, match="bad.png: undecodable pixels"):
        shard(root, tmp_path / "out", encoding=Encoding(verify=True))
    assert shard(root, tmp_path / "out", skip_bad=True, encoding=Encoding(verify=True))["samples"] == 1


# what goes in, and how much of it


def test_shard_samples(tmp_path):
    root = write_files(tmp_path / "in", {f"{n}.jpg": encode(n) for n in range(10)})
    manifest = shard(root, tmp_path / "out", shard_mb=None, shard_samples=4)
    assert [entry["samples"] for entry in manifest["shards"]] == [4, 4, 2]


def test_drop_duplicates_keeps_the_first_of_the_source(tmp_path):
    same = encode(0)
    other = same[:-3] + bytes([same[-3] ^ 1]) + same[-2:]  # as long, but not equal
    files = {"a/1.jpg": encode(1), "a/2.jpg": same, "b/0.jpg": same, "b/1.jpg": same, "b/2.jpg": other}
    root = write_files(tmp_path / "in", files)
    assert shard(root, tmp_path / "all")["duplicates"] == 0
    manifest = shard(root, tmp_path / "out", drop_duplicates=True)
    source = open_source(tmp_path / "out")
    kept = sorted((source.read(i).tobytes(), source.label(i)) for i in range(len(source)))
    assert kept == sorted([(encode(1), 0), (same, 0), (other, 1)])
    assert (manifest["samples"], manifest["duplicates"]) == (3, 2)
    for part in ((0, 2), (1, 2)):
        options = ShardOptions(drop_duplicates=True, shard_mb=None, shard_samples=2)
        shard_source(root, tmp_path / "parts", options, workers=1, part=part, progress=False)
    assert json.loads((tmp_path / "parts/dataset.json").read_text())["duplicates"] == 2


def test_tars_of_others_and_ours_again(tmp_path):
    with tarfile.open((tmp_path / "theirs.tar"), "w") as archive:
        for n in range(6):
            for name, data in ((f"x/{n}.jpeg", encode(n)), (f"x/{n}.cls", b"%d" % (n % 2))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    shard(tmp_path / "theirs.tar", tmp_path / "ours", seed=None)
    shard(tmp_path / "ours", tmp_path / "again", workers=2, seed=None, shard_mb=None, shard_samples=4)
    for folder in ("ours", "again"):
        source = open_source(tmp_path / folder)
        assert [source.read(i).tobytes() for i in range(6)] == [encode(n) for n in range(6)]
        assert [source.label(i) for i in range(6)] == [0, 1] * 3


class Generated:
    """A source with the contract's methods alone: no file, no size, no suffix in its keys."""

    name, classes = "generated", ["even", "odd"]

    def __len__(self):
        return 5

    def read(self, index):
        return np.frombuffer(encode(index, "PNG" if index % 2 else "JPEG"), np.uint8)

    def label(self, index):
        return index % 2

    def key(self, index):
        return f"test/{index}"

    def size(self, index):
        return None


def test_the_barest_source(tmp_path, monkeypatch):
    import headrace.pipelines.shard as module

    monkeypatch.setattr(module, "open_source", lambda name: Generated())
    manifest = shard("anything", tmp_path / "out", seed=None)
    source = open_source(tmp_path / "out")
    assert [source.read(i).tobytes() for i in range(5)] == [Generated().read(i).tobytes() for i in range(5)]
    assert [source.key(i).rpartition("_")[2] for i in range(5)] == ["0.jpg", "1.png", "2.jpg", "3.png", "4.jpg"]
    assert manifest["classes"] == ["even", "odd"] and source.label(3) == 1


def test_part_is_checked(mixed, tmp_path, monkeypatch, capsys):
    root, *_ = mixed
    for text in ("2/2", "1", "a/b", "-1/2", "0/0"):
        assert run_command(lambda text=text: main([str(root), str(tmp_path / "out"), f"--part={text}"])) == 2
    assert "--part" in capsys.readouterr().err and not (tmp_path / "out").exists()


# FFCV


def test_beton_copies_jpegs_and_encodes_the_rest(mixed, tmp_path, capsys):
    root, small, large = mixed
    write_files(root, {"b/zz.jpg": b"no image"})
    command = [str(root), str(tmp_path / "x.beton"), "--format", "ffcv", "--no-shuffle"]
    if importlib.util.find_spec("ffcv") is None:
        assert run_command(lambda: main(command)) == 2 and "headrace[ffcv]" in capsys.readouterr().err
        return
    assert run_command(lambda: main(command)) == 2 and "b/zz.jpg" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.beton")) and not list(tmp_path.glob(".x*"))
    assert run_command(lambda: main([*command, "--skip-bad"])) == 0
    assert run_command(lambda: main([*command, "--skip-bad"])) == 2 and "exists" in capsys.readouterr().err
    code = (  # FFCV's own reader, in a process of its own: Numba takes seconds to start
        "import sys, numpy as np; from ffcv.reader import Reader; r = Reader(sys.argv[1]); m = r.metadata\n"
        "assert list(r.handlers) == ['image', 'label'] and set(m['f0']['mode']) == {0}\n"
        "assert [int(n) for n in m['f1']] == [0, 0, 0, 1, 1, 1, 1, 1]\n"
        "assert (r.alloc_table['ptr'] == m['f0']['data_ptr']).all()\n"
        "first, last = r.alloc_table['ptr'], r.alloc_table['ptr'] + r.alloc_table['size'] - 1\n"
        "assert (first // r.page_size == last // r.page_size).all()\n"
        "f = open(sys.argv[1], 'rb').read()\n"
        "for n, (p, s) in enumerate(zip(r.alloc_table['ptr'], r.alloc_table['size'])):\n"
        "    open(f'{sys.argv[2]}/{n}', 'wb').write(f[p:p + s])\n"
        "np.save(sys.argv[2] + '/sizes.npy', np.stack([m['f0']['height'], m['f0']['width']], 1))"
    )
    (tmp_path / "read").mkdir()
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.beton"), str(tmp_path / "read")], check=True)
    sizes = np.load(tmp_path / "read/sizes.npy")
    for number, name in enumerate(sorted(small | large)):
        data, stored = (small | large)[name], (tmp_path / f"read/{number}").read_bytes()
        assert tuple(sizes[number]) == decode(data).shape[:2] == Image.open(io.BytesIO(stored)).size[::-1]
        if "turned" in name or not name.endswith("jpg"):
            assert np.abs(decode(stored).astype(int) - decode(data)).mean() < NEAR
        else:
            assert stored == data


def test_beton_without_ffcv_names_the_extra(mixed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv.fields", None)
    with pytest.raises(UserError, match="headrace\\[ffcv\\]"):
        main([str(mixed[0]), str(tmp_path / "x.beton"), "--format", "ffcv"])
