"""Files of pixels: what is in them, what is refused, and that whoever writes them when, they are the same."""

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from headrace.errors import UserError
from headrace.pipelines.check import check
from headrace.pipelines.images.decode import decode
from headrace.pipelines.images.rules import Rules, rules, use_rules
from headrace.pipelines.pixels import command, layout, writer
from headrace.pipelines.pixels.command import write_pixels
from headrace.pipelines.pixels.layout import HEAD, ROW, Request
from headrace.pipelines.pixels.sidecars import open_pixels
from headrace.pipelines.shard import main as shard_main
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.subset import Subset

COMMAND = "import sys; from headrace.pipelines.pixels.command import main; from headrace.errors import run_command; "
COMMAND += "sys.exit(run_command(lambda: main(sys.argv[1:])))"


@pytest.fixture
def shards(photo_folder, tmp_path):
    """24 photos in three tars with our index."""
    shard_main([str(photo_folder), str(tmp_path / "shards"), "--shard-samples", "8", "--workers", "1"])
    return tmp_path / "shards"


@pytest.fixture
def foreign(encode, tar_bytes, tmp_path):
    """Five JPEGs of another's making, the fourth of which is none."""
    files = {f"{n}.jpg": b"\xff\xd8\xff no image" if n == 3 else encode(n) for n in range(5)}
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    return tmp_path / "a.tar"


def write(source, form="rgb", workers=1, **options):
    request = Request(form, options.pop("max_side", None))
    return write_pixels(source, request, workers=workers, progress=False, **options)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.pixels")}


def altered(path, **changes):
    """Rewrites the header of a sidecar with other facts."""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    facts = json.loads(data[16 : 16 + length]) | changes
    path.write_bytes(layout.head_bytes(facts) + data[HEAD:])


def with_rows(path, change):
    """Rewrites the rows, checksum and all, as somebody would who means harm."""
    data = bytearray(path.read_bytes())
    facts = json.loads(data[16 : 16 + struct.unpack_from("<I", data, 12)[0]])
    rows = np.frombuffer(data, ROW, facts["samples"], HEAD).copy()
    change(rows)
    data[HEAD : HEAD + rows.nbytes] = rows.tobytes()
    path.write_bytes(layout.head_bytes(facts | {"rows": zlib.crc32(rows.tobytes())}) + data[HEAD:])


def test_rgb_is_what_pillow_decodes(shards):
    source = open_source(shards)
    write(shards)
    pixels = open_pixels(source, "require")
    for index in range(len(source)):
        image = pixels.image(index)
        assert np.array_equal(image, decode(source.read(index))) and not image.flags.writeable
        assert pixels.size(index) == source.size(index)
    assert check(shards, decode=True).problems == []


def test_the_file_is_as_the_page_says(foreign):
    """Read here by its description alone."""
    write(foreign)
    data = foreign.with_suffix(".pixels").read_bytes()
    magic, version, length = struct.unpack_from("<8sII", data)
    facts = json.loads(data[16 : 16 + length])
    assert (magic, version, facts["format"], facts["samples"], facts["bytes"]) == (b"HRPIXELS", 1, "rgb", 5, len(data))
    assert facts["tar"]["sha256"] == hashlib.sha256(foreign.read_bytes()).hexdigest()
    source = open_source(foreign)
    for index in range(5):
        offset, height, width, crc = struct.unpack_from("<QIII", data, 4096 + 20 * index)
        if index == 3:
            assert (offset, height, width, crc) == (0, 0, 0, 0)
            continue
        pixels = data[offset : offset + 3 * height * width]
        expected = decode(source.read(index))
        assert offset % 64 == 0 and pixels == expected.tobytes() and zlib.crc32(pixels) == crc


@pytest.mark.parametrize("form", ["rgb", "yuv420"])
def test_workers_parts_and_second_runs_write_the_same(form, shards):
    write(shards, form)
    first = digests(shards)
    times = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.pixels")}
    assert "3 were there" in write(shards, form)
    assert times == {path.name: path.stat().st_mtime_ns for path in shards.glob("*.pixels")}
    for path in shards.glob("*.pixels"):
        path.unlink()
    write(shards, form, part=(1, 2))
    assert len(digests(shards)) == 1
    write(shards, form, workers=3, part=(0, 2))
    assert digests(shards) == first
    assert "3 files" in write(shards, {"rgb": "yuv420", "yuv420": "rgb"}[form])  # another one is made anew
    assert digests(shards) != first


def test_a_killed_run_is_continued_to_the_byte(encode, tar_bytes, tmp_path):
    """Killed at several moments, the last one in the midst of a file; what was finished is kept."""
    for shard in range(6):
        pixels = np.random.default_rng(shard).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=90)
        data = (tmp_path / "x.jpg").read_bytes()
        (tmp_path / f"s-{shard}.tar").write_bytes(tar_bytes({f"{n}.jpg": data for n in range(8)}))
    (tmp_path / "x.jpg").unlink()
    write(tmp_path, workers=2)
    expected = digests(tmp_path)
    for path in tmp_path.glob("*.pixels"):
        path.unlink()
    killed = 0
    for wanted in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", COMMAND, str(tmp_path), "--workers", "2"])
        deadline = time.monotonic() + 60
        while len(digests(tmp_path)) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert digests(tmp_path).items() <= expected.items()
        assert wanted <= len(digests(tmp_path))
    assert killed
    kept = len(digests(tmp_path))
    assert f"{kept} were there" in write(tmp_path) or kept == 6
    assert digests(tmp_path) == expected and not [*tmp_path.glob(".*partial")]


def test_max_side_is_pillows_resize_and_is_said(shards):
    write(shards, max_side=64)
    source, pixels = open_source(shards), open_pixels(open_source(shards), "require")
    assert "at most 64 px" in pixels.words
    for index in range(len(source)):
        image = Image.fromarray(decode(source.read(index)))
        if max(image.size) > 64:
            size = [max(1, round(s * 64 / max(image.size))) for s in image.size]
            image = image.resize(size, Image.Resampling.BICUBIC)
        assert np.array_equal(pixels.image(index), np.asarray(image))


def test_max_side_shrinks_too_many_pixels_while_it_decodes_them(shards):
    write(shards, max_side=20)
    wanted = [open_pixels(open_source(shards), "require").image(index).copy() for index in range(24)]
    use_rules(Rules(max_pixels=6_000))
    write(shards, max_side=20)
    found = open_pixels(open_source(shards), "require")
    for index, pixels in enumerate(wanted):
        assert found.image(index).shape == pixels.shape
        assert np.abs(found.image(index).astype(float) - pixels).mean() < 6


def test_a_subset_and_several_sets_have_the_pixels_of_theirs(shards, photo_folder):
    write(shards)
    source = open_source(shards)
    some = Subset(source, np.array([20, 3]))
    assert np.array_equal(open_pixels(some, "require").image(1), decode(source.read(3)))
    from headrace.pipelines.plan.sets import open_plan

    both = open_plan({"a": str(shards), "b": str(shards)})
    assert np.array_equal(open_pixels(both, "require").image(24 + 5), decode(source.read(5)))
    mixed = open_plan({"a": str(shards), "b": str(photo_folder)})
    said = []
    assert open_pixels(mixed, "auto", said.append) is None and "only shards can have them" in said[0]


def test_what_is_missing_is_said_or_refused(shards, photo_folder):
    said = []
    assert open_pixels(open_source(shards), "auto", said.append) is None
    assert open_pixels(open_source(photo_folder), "auto", said.append) is None and said == []
    write(shards, part=(0, 3))
    assert open_pixels(open_source(shards), "auto", said.append) is None
    assert said == [f"{shards}: 2 of 3 shards have no pixels beside them, train-000001.pixels among them: "
                    "its pixels are not used"]  # fmt: skip
    with pytest.raises(UserError, match="data.pixels: .*2 of 3 shards.*`headrace pixels`"):
        open_pixels(open_source(shards), "require")
    with pytest.raises(UserError, match="only shards"):
        open_pixels(open_source(photo_folder), "require")
    assert open_pixels(open_source(shards), "never") is None
    write(shards, "yuv420", part=(1, 3)), write(shards, part=(2, 3))
    with pytest.raises(UserError, match="rgb, but train-000001.pixels is yuv420"):
        open_pixels(open_source(shards))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def grown(path):
    path.write_bytes(path.read_bytes() + b"\0")


def other_version(path):
    data = bytearray(path.read_bytes())
    data[8] = 7
    path.write_bytes(data)


def flipped(path):
    data = bytearray(path.read_bytes())
    data[HEAD + 3] ^= 1
    path.write_bytes(data)


def row(**values):
    def change(rows):
        for key, value in values.items():
            rows[2][key] = value

    return lambda path: with_rows(path, change)


DAMAGE = {
    "cut short": (cut, "bytes instead of"),
    "grown": (grown, "bytes instead of"),
    "cut in the header": (lambda path: path.write_bytes(path.read_bytes()[:100]), "too short"),
    "empty": (lambda path: path.write_bytes(b""), "too short"),
    "no pixels at all": (lambda path: path.write_bytes(b"x" * 9000), "not a file of pixels"),
    "another version": (other_version, "version 7, this headrace reads version 1"),
    "a header that is no JSON": (lambda path: path.write_bytes(path.read_bytes().replace(b"{", b"[", 1)), "header is"),
    "a header without a tar": (lambda path: altered(path, tar=None), "header is damaged"),
    "a header of huge numbers": (lambda path: altered(path, samples="9" * 99), "header is damaged"),
    "another format": (lambda path: altered(path, format="raw"), "header is damaged"),
    "another decoder": (lambda path: altered(path, decoder="Pillow 1"), "decoded by Pillow 1, here is Pillow"),
    "other rules": (lambda path: altered(path, rules={"range": "percentile"}), "decoded with data.range=percentile"),
    "a flipped bit in the rows": (flipped, "table of samples is damaged"),
    "an offset behind the end": (row(offset=1 << 40), "points past the end"),
    "an offset that is negative": (row(offset=(1 << 64) - 64), "points past the end"),
    "an offset in the rows": (row(offset=HEAD), "overlap"),
    "an offset at its neighbour's": (row(offset=8192), "overlap"),
    "a huge size": (row(height=0xFFFFFFFF, width=0xFFFFFFFF), "points past the end"),
    "a wide size": (row(height=1, width=0xFFFFFFFF), "points past the end"),
    "no width": (row(width=0), "no height or no width"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_one_line_and_exit_code_2(name, foreign, monkeypatch, capsys):
    write(foreign)
    path = foreign.with_suffix(".pixels")
    damage, words = DAMAGE[name]
    damage(path)
    for mode in ("auto", "require"):
        with pytest.raises(UserError) as caught:
            open_pixels(open_source(foreign), mode)
        line = str(caught.value)
        assert words in line and str(path) in line and "`headrace pixels`" in line and "\n" not in line
    problem = next(one for one in check(foreign).problems if one.kind == "pixels")
    assert words in problem.detail
    assert open_pixels(open_source(foreign), "never") is None
    write(foreign)  # makes it again
    assert open_pixels(open_source(foreign), "require") is not None


def test_a_sidecar_of_another_tar_is_refused(encode, tar_bytes, tmp_path):
    a, b = tmp_path / "a.tar", tmp_path / "b.tar"
    a.write_bytes(tar_bytes({"0.jpg": encode(0), "1.jpg": encode(1)}))
    write(a)
    other = bytearray(encode(1))
    other[-40] ^= 1  # of the same size
    for name, data in (("one byte", bytes(other)), ("another image", encode(2))):
        b.write_bytes(tar_bytes({"0.jpg": encode(0), "1.jpg": data}))
        (tmp_path / "b.pixels").write_bytes((tmp_path / "a.pixels").read_bytes())
        with pytest.raises(UserError, match="made from another b.tar"):
            open_pixels(open_source(b))
        assert name


def test_a_tar_that_has_changed_where_nobody_looks_is_found_by_check(encode, tar_bytes, tmp_path):
    tar = tmp_path / "a.tar"
    tar.write_bytes(tar_bytes({f"{n}.png": encode(n, "PNG") for n in range(80)}))
    write(tar)
    data = bytearray(tar.read_bytes())
    looked_at = np.linspace(0, len(data) - 4096, 16).astype(int)
    place = int(looked_at[3]) + 5000
    assert len(data) > 16 * 5000 and place < looked_at[4]
    data[place] ^= 1
    tar.write_bytes(data)
    assert [one.kind for one in check(tar).problems] == ["pixels"]


def test_pixels_that_have_rotted_are_found_by_check(foreign):
    write(foreign)
    path = foreign.with_suffix(".pixels")
    data = bytearray(path.read_bytes())
    data[-300] ^= 4
    path.write_bytes(data)
    found = [(one.kind, one.key) for one in check(foreign).problems]
    assert found == [("pixels", "a.tar/4.jpg")]


def test_other_rules_are_other_pixels(foreign):
    write(foreign)
    before = rules()
    use_rules(Rules(range="percentile"))
    try:
        with pytest.raises(UserError, match="asked for are data.range=percentile"):
            open_pixels(open_source(foreign))
    finally:
        use_rules(before)


def test_a_disk_that_is_too_small_is_said_before(shards, monkeypatch, capsys):
    usage = command.shutil.disk_usage(shards)
    monkeypatch.setattr(command.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(UserError, match="needs 1 MB, 0 MB are free; --format yuv420"):
        write_pixels(shards)
    assert "3 tars" in capsys.readouterr().err and not digests(shards)


def test_a_disk_that_fills_up_leaves_what_is_finished(shards, monkeypatch):
    real, written = os.pwrite, []

    def pwrite(file, data, offset):
        written.append(len(data))
        if len(written) > 15:
            raise OSError(28, "No space left on device")
        return real(file, data, offset)

    monkeypatch.setattr(writer.os, "pwrite", pwrite)
    with pytest.raises(UserError, match="No space left on device.*run the same again"):
        write(shards)
    assert len(digests(shards)) == 1 and not [*shards.glob(".*")]
    monkeypatch.undo()
    assert "1 were there" in write(shards)


def test_two_runs_do_not_write_one_file(foreign):
    import fcntl

    partial = foreign.with_name(".a.pixels.partial")
    with open(partial, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is writing it"):
            write(foreign)
    assert partial.exists() and "1 files" in write(foreign) and not partial.exists()


def test_shard_writes_both(photo_folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(photo_folder), str(out), "--pixels", "yuv420", "--workers", "1"]
    shard_main(arguments)
    assert "yuv420: 1 files of pixels" in capsys.readouterr().out
    assert open_pixels(open_source(out), "require").request == Request("yuv420")
    shard_main(arguments)
    assert "1 were there" in capsys.readouterr().out
    for more in (["--part", "0/2"], ["--format", "ffcv"]):
        with pytest.raises(UserError, match="--pixels: not with"):
            shard_main([str(photo_folder), str(tmp_path / "other"), "--pixels", "rgb", *more])


def test_folders_are_told_what_to_do(photo_folder):
    with pytest.raises(UserError, match="pixels lie beside tars, and this is none; `headrace shard`"):
        write_pixels(photo_folder)


def test_which_member_is_the_image_belongs_to_the_pixels(encode, tar_bytes, tmp_path):
    tar = tmp_path / "a.tar"
    tar.write_bytes(tar_bytes({"0.one.png": encode(0, "PNG"), "0.two.png": encode(1, "PNG")}))
    write(f"shards:{tar}?image=two.png")
    source = open_source(f"shards:{tar}?image=two.png")
    assert np.array_equal(open_pixels(source, "require").image(0), decode(source.read(0)))
    with pytest.raises(UserError, match="another a.tar"):
        open_pixels(open_source(tar, lambda note: None))
