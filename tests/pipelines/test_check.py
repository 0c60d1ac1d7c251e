"""Every kind of damage to a data set, and none: what `check` finds, and that hostile tars do no harm."""

import io
import json
import os
import random
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from headrace.errors import UserError, run_command
from headrace.pipelines.check import check, main
from headrace.pipelines.shard import shard
from headrace.pipelines.sharding.plan import ShardOptions


def jpeg(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """12 images of two classes in three shards."""
    root = tmp_path_factory.mktemp("in")
    for n in range(12):
        (root / f"c{n % 2}").mkdir(exist_ok=True)
        (root / f"c{n % 2}/{n:02d}.jpg").write_bytes(jpeg(n))
    out = tmp_path_factory.mktemp("out") / "shards"
    shard(root, out, ShardOptions(shard_mb=None, shard_samples=4), workers=1, progress=False)
    return out


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "copy")


def found(data, **options):
    return {(problem.kind, problem.shard) for problem in check(data, **options).problems}


def write_tar(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def members_of(path):
    with tarfile.open(path) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]


def rewrite(folder, members):
    """Replaces shard 1 and makes the manifest agree with its bytes, so that only its contents are wrong."""
    import hashlib

    path = write_tar(folder / "train-000001.tar", members)
    manifest = json.loads((folder / "dataset.json").read_text())
    entry = manifest["shards"][1]
    entry["bytes"], entry["sha256"] = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "dataset.json").write_text(json.dumps(manifest))


def test_shards_of_partly_labelled_sets_are_sound(tmp_path, capsys):
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(ord(name)))
    (tmp_path / "list.txt").write_text("a.jpg 0\nb.jpg -1\nc.jpg 1\n")
    shard(f"list:{tmp_path / 'list.txt'}", tmp_path / "out", ShardOptions(), workers=1, progress=False)
    assert main([str(tmp_path / "out")]) == 0 and "sound" in capsys.readouterr().out


@pytest.mark.parametrize("decode", [False, True])
def test_sound_sets_of_every_kind(sound, tmp_path, decode):
    report = check(sound, decode)
    assert report.sound and (report.shards, report.samples) == (3, 12)
    assert report.bytes == sum(path.stat().st_size for path in sound.glob("*.tar"))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    write_tar(foreign / "a.tar", [("x/1.cls", b"0"), ("x/1.jpg", jpeg(1)), ("y/1.jpg", jpeg(2)), ("y/1.cls", b"1")])
    with tarfile.open(foreign / "b.tar", "w") as archive:  # a folder last, and tarfile's padding to 10 KiB
        member = tarfile.TarInfo("1.jpg")
        member.size = len(jpeg(3))
        archive.addfile(member, io.BytesIO(jpeg(3)))
        folder = tarfile.TarInfo("empty")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert check(foreign, decode).problems == [] and check(foreign, decode).samples == 3
    assert check(foreign / "a.tar", decode).sound
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose/1.jpg").write_bytes(jpeg(1))
    assert check(tmp_path / "loose", decode).samples == 1 and check(tmp_path / "loose", decode).sound


# bytes


def test_truncated_at_any_place(copy):
    path = copy / "train-000001.tar"
    data = path.read_bytes()
    for length in (0, 100, 512, 700, len(data) // 2 // 512 * 512, len(data) - 1024, len(data) - 512, len(data) - 1):
        path.write_bytes(data[:length])
        assert ("truncated", path.name) in found(copy), length
        alone = copy / "alone"
        alone.mkdir(exist_ok=True)
        (alone / "x.tar").write_bytes(data[:length])  # the same without a manifest that knows its size
        assert found(alone) & {("truncated", "x.tar"), ("header", "x.tar")}, length
        shutil.rmtree(alone)


def test_any_flipped_bit_is_found(copy):
    path, random_ = copy / "train-000002.tar", random.Random(0)
    data = path.read_bytes()
    for _ in range(25):
        at = random_.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << random_.randrange(8)]) + data[at + 1 :])
        assert ("checksum", path.name) in found(copy), at


def test_zeros_in_the_middle_hide_no_samples(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", jpeg(n)) for n in range(4)])
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        at = archive.getmembers()[2].offset
    data[at : at + 512] = bytes(512)
    path.write_bytes(data)
    assert found(path) == {("header", "a.tar")} and "data follow" in str(check(path))


def test_missing_and_extra_files(copy):
    (copy / "train-000000.tar").unlink()
    (copy / "train-000001.idx").unlink()
    write_tar(copy / "mine.tar", [("1.jpg", jpeg(1))])
    assert found(copy) == {("missing", "train-000000.tar"), ("idx", "train-000001.tar"), ("extra", "mine.tar")}


# samples


def test_order_and_duplicates_in_ours(copy):
    members = members_of(copy / "train-000001.tar")
    swapped = [members[1], members[0], *members[2:]]
    interleaved = [members[0], members[2], members[1], members[3], *members[4:]]
    backwards = [*members[2:4], *members[:2], *members[4:]]
    for name, wrong in (("swapped", swapped), ("interleaved", interleaved), ("backwards", backwards)):
        rewrite(copy, wrong)
        assert ("order", "train-000001.tar") in found(copy), name
    rewrite(copy, [*members, *members[:2]])
    assert ("duplicate", "train-000001.tar") in found(copy)
    rewrite(copy, members_of(copy / "train-000000.tar"))
    assert ("order", "train-000001.tar") in found(copy)  # every key is in the shard before, too


def test_order_and_duplicates_in_tars_of_others(tmp_path):
    cases = {
        "order": [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2)), ("1.cls", b"0"), ("2.cls", b"1")],
        "duplicate": [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2)), ("1.jpg", jpeg(3))],
        "label": [("1.jpg", jpeg(1)), ("1.cls", b"0"), ("2.jpg", jpeg(2))],
        "name": [("../../1.jpg", jpeg(1)), ("/etc/2.jpg", jpeg(2))],
    }
    for kind, members in cases.items():
        assert kind in {problem.kind for problem in check(write_tar(tmp_path / f"{kind}.tar", members)).problems}
    twice = [("1.jpg", jpeg(1)), ("1.jpg", jpeg(1))]
    assert found(write_tar(tmp_path / "t.tar", twice)) == {("duplicate", "t.tar")}
    named = check(write_tar(tmp_path / "l.tar", [("1.jpg", jpeg(1)), ("1.cls", b"cat")]))
    assert [(problem.kind, problem.key, problem.detail) for problem in named.problems] == [
        ("label", "1", "its class is b'cat'")
    ]


def test_undecodable_images_need_decode(copy, tmp_path):
    members = members_of(copy / "train-000001.tar")
    name, data = members[2]
    rewrite(copy, [*members[:2], (name, data[:-40] + bytes(len(data) - len(data[:-40]))), *members[3:]])
    assert check(copy).sound
    report = check(copy, decode=True)
    assert [(problem.kind, problem.key) for problem in report.problems] == [("image", name)]
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose/bad.jpg").write_bytes(b"no image")
    assert [(problem.kind, problem.key) for problem in check(tmp_path / "loose").problems] == [("image", "bad.jpg")]


# indexes


def test_index_and_idx_must_agree_with_the_tars(copy):
    index = np.load(copy / "index.npy")
    for name, change in (("offset", 512), ("size", 1), ("label", 1)):
        wrong = index.copy()
        wrong[name][5] += change
        np.save(copy / "index.npy", wrong)
        assert found(copy) == {("index", "train-000001.tar")}, name
    wrong = index.copy()
    wrong["height"][5] += 1
    np.save(copy / "index.npy", wrong)
    assert found(copy) == set() and found(copy, decode=True) == {("index", "train-000001.tar")}
    wrong = index.copy()
    wrong["shard"][5] = 9
    for array, where in ((wrong, "index.npy"), (index[:-1], "index.npy"), (index["offset"], "index.npy")):
        np.save(copy / "index.npy", array)
        assert ("index", where) in found(copy)
    np.save(copy / "index.npy", index)
    idx = copy / "train-000002.idx"
    text = idx.read_text()
    moved, miscounted = text.replace("jpg 512", "jpg 513"), text.replace("v1.2 4", "v1.2 5")
    for wrong in (moved, miscounted, text + "x\n", text[: len(text) // 2], ""):
        idx.write_text(wrong)
        assert found(copy) == {("idx", "train-000002.tar")}


def test_damaged_manifests(copy, tmp_path):
    text = (copy / "dataset.json").read_text()
    manifest = json.loads(text)
    hostile = [dict(manifest["shards"][0], name=name) for name in ("../../x.tar", "/etc/passwd", "a\0b", "..")]
    cases = [text[:200], json.dumps(manifest | {"shards": 3}), json.dumps(manifest | {"samples": 11})]
    cases += [json.dumps(manifest | {"shards": [entry]}) for entry in hostile]
    cases += [json.dumps(manifest | {"format": "headrace-shardz"})]
    for case in cases:
        (copy / "dataset.json").write_text(case)
        assert ("manifest", "dataset.json") in found(copy), case[:80]
    (copy / "dataset.json").write_text(json.dumps(manifest | {"version": 7}))
    with pytest.raises(UserError, match="version 7"):
        check(copy)


# the command


def test_command(copy, tmp_path, capsys):
    assert run_command(lambda: main([str(copy), "--decode", "--json", str(tmp_path / "r.json")])) == 0
    assert "12 images in 3 shards (decoded" in (out := capsys.readouterr().out) and out.strip().endswith("sound")
    assert json.loads((tmp_path / "r.json").read_text())["sound"] is True
    (copy / "train-000001.tar").unlink()
    assert run_command(lambda: main([str(copy), "--json", str(tmp_path / "r.json")])) == 1
    assert "missing  train-000001.tar    no such file" in (out := capsys.readouterr().out)
    assert out.strip().endswith("1 problems: 1 missing")
    problem = {"kind": "missing", "shard": "train-000001.tar", "key": "", "detail": "no such file"}
    assert json.loads((tmp_path / "r.json").read_text())["problems"] == [problem]
    unwritable = ["--json", str(tmp_path / "no/r.json")]
    for wrong in ([str(tmp_path / "none")], [str(copy), *unwritable], [str(copy), "--workers=0"]):
        assert run_command(lambda wrong=wrong: main(wrong)) == 2
    (tmp_path / "half/.sharding").mkdir(parents=True)
    assert run_command(lambda: main([str(tmp_path / "half")])) == 2 and "did not finish" in capsys.readouterr().err


# hostile files


def mutate(draw, data, members):
    """One of: flipped bits, cut short, a block repeated, two blocks swapped, a hostile name, a hostile number."""
    data, kind = bytearray(data), draw.randrange(6)
    block = lambda: 512 * draw.randrange(len(data) // 512)
    if kind == 0:
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del data[draw.randrange(len(data)) :]
    elif kind == 2:
        at = block()
        data[at:at] = data[at : at + 512 * draw.randint(1, 4)]
    elif kind == 3:
        a, b = block(), block()
        data[a : a + 512], data[b : b + 512] = data[b : b + 512], data[a : a + 512]
    else:
        at = draw.choice(members).offset
        if kind == 4:
            name = draw.choice([b"../../escaped.jpg", b"/tmp/escaped.jpg", b"\xff\xfe/x.jpg", b"a/../../b.cls", b""])
            data[at : at + 100] = name.ljust(100, b"\0")
        else:
            size = draw.choice([b"77777777777\0", b"-0000001000\0", b"\x80" + b"\xff" * 11, b"zzzz\0\0\0\0\0\0\0\0"])
            data[at + 124 : at + 136] = size
            data[at + 156 : at + 157] = draw.choice([b"0", b"x", b"L", b"g", b"5"])
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])  # the header's own checksum is right
    return bytes(data)


@pytest.mark.timeout(60)
def test_two_hundred_mutants_do_no_harm(sound, copy, tmp_path):
    """No crash, no hang, nothing written; what differs from the original is never called sound."""
    draw, everything = random.Random(7), lambda: sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with tarfile.open(sound / "train-000001.tar") as archive:
        members = archive.getmembers()
    escaped = [tmp_path.parent / "escaped.jpg", tmp_path / "escaped.jpg", "/tmp/escaped.jpg"]
    assert not any(os.path.exists(path) for path in escaped)
    names = ["train-000001.tar"] * 7 + ["index.npy", "train-000001.idx", "dataset.json"]
    for number in range(200):
        name = names[number % len(names)]
        original = (sound / name).read_bytes()
        mutant = mutate(draw, original, members) if name.endswith("tar") else mutate_any(draw, original)
        (copy / name).write_bytes(mutant)
        before = everything()
        try:
            report = check(copy, decode=number % 10 == 0, workers=1)
            if mutant != original and name != "dataset.json" and name != "index.npy":
                assert not report.sound, (number, name)
            str(report), report.to_json()
        except UserError:
            assert name == "dataset.json"  # a version that nobody has written yet
        if name.endswith("tar"):  # the same as anybody's tar
            (tmp_path / "alone.tar").write_bytes(mutant)
            before = everything()
            check(tmp_path / "alone.tar", decode=True, workers=1)
        assert everything() == before and not any(os.path.exists(path) for path in escaped)
        (copy / name).write_bytes(original)
    assert check(copy).sound


def mutate_any(draw, data):
    data = bytearray(data)
    if draw.random() < 0.3:
        return bytes(data[: draw.randrange(len(data))])
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def test_what_is_no_set_for_check_is_refused(tmp_path, capsys):
    """Streams have no beginning to go back to; a folder of images and tars is for nobody."""
    path = write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(1))])
    assert run_command(lambda: main([f"file:{path}#samples=1"])) == 2
    assert "only data.loader=webdataset can read" in capsys.readouterr().err
    (tmp_path / "2.jpg").write_bytes(jpeg(2))
    assert run_command(lambda: main([str(tmp_path)])) == 2 and "holds tars, and images" in capsys.readouterr().err


def test_the_archive_of_archives_is_counted_as_it_is_read(tmp_path):
    inner = [write_tar(tmp_path / f"n0000000{n}.tar", [(f"n0000000{n}_{n}.JPEG", jpeg(n))]) for n in range(2)]
    whole = write_tar(tmp_path / "whole.tar", [(tar.name, tar.read_bytes()) for tar in inner])
    report = check(whole, decode=True)
    assert report.sound and report.samples == 2
