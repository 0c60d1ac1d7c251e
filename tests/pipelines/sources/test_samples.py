"""Tars as other people make them: what is read, what is passed over, and that it is said, by every reader alike."""

import json

import pytest

from headrace.errors import UserError, run_command
from headrace.pipelines.check import check, main
from headrace.pipelines.shard import main as shard_main
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.samples import split


def notes(name):
    said = []
    source = open_source(name, said.append)
    return source, " | ".join(said)


def keys(source):
    return [source.key(index).rpartition("/")[2] for index in range(len(source))]


@pytest.fixture
def make(tmp_path, tar_bytes):
    def write(names, encode_of, name="a.tar"):
        files = {member: encode_of(n) if callable(encode_of) else encode_of for n, member in enumerate(names)}
        (tmp_path / name).write_bytes(tar_bytes(files))
        return tmp_path / name

    return write


def test_the_key_of_webdataset():
    rule = {"a/0003.depth.png": ("a/0003", "depth.png"), "x.y/b.jpg": ("x.y/b", "jpg"), "b.": ("b", "")}
    rule |= dict.fromkeys(("a/._x.jpg", ".x.jpg", "README", "a.b/README", "__MACOSX/a/._x.jpg"))
    assert {name: split(name) for name in rule} == rule


def test_dots_in_names_lose_images_and_it_is_said(make, encode, tmp_path, capsys):
    """Forty files under eleven names: the readers give eleven, and everybody tells of the other 29."""
    names = [f"scan_{n // 4:04d}.v{n % 4}.jpg" for n in range(36)] + ["s_9.v0.jpg", "s_9.v1.jpg", "s_9.v2.jpg", "t.jpg"]
    tar = make(names, encode)
    source, said = notes(tar)
    assert len(source) == 11 and keys(source) == [*(f"scan_{n:04d}.v0.jpg" for n in range(9)), "s_9.v0.jpg", "t.jpg"]
    for part in ("29 images passed over, in 10 samples", "read 10 .v0.jpg; not 10 .v1.jpg, 10 .v2.jpg, 9 .v3.jpg"):
        assert part in said
    assert "?image=v1.jpg" in said and "first dot" in said
    report = check(tar)
    assert report.samples == 11 and report.sound and report.notes == [said.removeprefix(f"{tar}: ")]
    assert run_command(lambda: main([str(tar), "--json", str(tmp_path / "r.json")])) == 0
    assert "29 images passed over" in capsys.readouterr().out
    assert "29 images passed over" in json.loads((tmp_path / "r.json").read_text())["notes"][0]
    assert run_command(lambda: shard_main([str(tar), str(tmp_path / "out"), "--workers", "1"])) == 0
    out, err = capsys.readouterr()
    assert "29 images passed over" in err and "11 images" in out
    for name in (f"{tar}?image=v3.jpg", f"shards:{tar}?image=V3.jpg", f"{tar}?image=.v3.jpg"):
        source, said = notes(name)
        assert keys(source) == [f"scan_{n:04d}.v3.jpg" for n in range(9)] and source.name == name
        assert "31 images passed over, not .v3.jpg: 10 .v0.jpg, 10 .v1.jpg, 10 .v2.jpg, 1 .jpg" in said
        assert "2 samples without that member" in said and check(name).samples == 9


def test_depth_beside_colour(make, encode):
    tar = make([f"{n}.{kind}" for n in range(4) for kind in ("depth.png", "rgb.jpg", "json")], encode)
    source, said = notes(tar)
    assert keys(source) == [f"{n}.depth.png" for n in range(4)]
    assert "4 images passed over, in 4 samples" in said and "read 4 .depth.png; not 4 .rgb.jpg" in said
    assert "?image=rgb.jpg" in said and "4 other files: 4 .json" in said
    source, _ = notes(f"{tar}?image=rgb.jpg")
    assert [source.read(n).tobytes() for n in range(4)] == [encode(3 * n + 1) for n in range(4)]
    with pytest.raises(UserError, match=r"no sample has a member \.rbg\.jpg: .*4 \.json.*4 \.rgb\.jpg"):
        open_source(f"{tar}?image=rbg.jpg")


def test_images_that_take_turns_are_refused(make, encode):
    """By the order in the tar, a mask here and a photo there."""
    tar = make(["0.jpg", "0.mask.png", "1.mask.png", "1.jpg"], encode)
    with pytest.raises(UserError, match=r"now \.jpg, now \.mask\.png comes first; .*\?image=jpg"):
        open_source(tar)
    (problem,) = check(tar).problems
    assert problem.kind == "member" and "?image=jpg" in problem.detail
    assert keys(notes(f"{tar}?image=jpg")[0]) == ["0.jpg", "1.jpg"] and check(f"{tar}?image=jpg").sound
    apart = tar.with_name("b.tar")
    apart.write_bytes(make(["2.jpg", "2.mask.png"], encode, "b.tar").read_bytes())
    make(["1.mask.png", "1.jpg"], encode)
    with pytest.raises(UserError, match="comes first"):  # each tar alone would do
        open_source(tar.parent)


def test_files_of_a_mac_are_no_samples(make, encode):
    """Nor for `check`, nor in the index that DALI's wds2idx makes."""
    tar = make(["train/._0.jpg", "train/0.jpg", "__MACOSX/train/._0.jpg", "._train", ".DS_Store"], encode)
    source, said = notes(tar)
    assert keys(source) == ["0.jpg"] and "2 hidden files with an image's suffix" in said
    size, offset = len(encode(1)), 512 + -(-len(encode(0)) // 512) * 512 + 512
    tar.with_suffix(".idx").write_text(f"v1.2 1\njpg {offset} {size} train/0.jpg\n")
    report = check(tar, decode=True)
    assert report.sound and report.samples == 1 and "2 hidden files" in report.notes[0]


def test_members_that_do_not_lie_together(make, encode):
    order = ["0.jpg", "1.jpg", "0.cls", "2.cls"]
    tar = make(order, lambda n: encode(n) if order[n].endswith("jpg") else b"1")
    source, said = notes(tar)
    assert [source.label(n) for n in range(2)] == [-1, -1]
    assert "1 sample with the name of an earlier one" in said and "2 labels (.cls) passed over" in said
    twice, said = notes(make(["0.jpg", "1.jpg", "0.png"], encode))
    assert len(twice) == 3 and "1 sample with the name of an earlier one" in said


def test_any_member_can_be_the_image(make, encode):
    tar = make(["0.img", "1.img"], encode)
    with pytest.raises(UserError, match=r"no member of its tars is an image: 2 other files: 2 \.img; .*\?image="):
        open_source(tar)
    assert [one.kind for one in check(tar).problems] == ["member"]
    assert keys(notes(f"{tar}?image=img")[0]) == ["0.img", "1.img"]


def test_what_is_all_read_is_not_talked_about(make, encode):
    files = ["a/0.jpg", "a/0.cls", "b/1.JPEG", "b/1.cls", "c/2.jfif"]
    _, said = notes(make(files, lambda n: b"0" if files[n].endswith("cls") else encode(n)))
    assert said == ""


def test_our_own_shards_have_one_image(photo_folder, tmp_path, capsys):
    assert run_command(lambda: shard_main([str(photo_folder), str(tmp_path / "out"), "--workers", "1"])) == 0
    assert "passed over" not in capsys.readouterr().err
    with pytest.raises(UserError, match="hold one image a sample; leave image=jpg out"):
        open_source(f"{tmp_path / 'out'}?image=jpg")
    assert check(tmp_path / "out").notes == []


def test_the_archives_of_imagenet_count_what_they_pass_over(tmp_path, tar_bytes, encode):
    inner = {"n01440764_1.JPEG": encode(1), "n01440764_2.jfif": encode(2), "._n01440764_1.JPEG": b"", "list.txt": b""}
    files = {"n01440764.tar": tar_bytes(inner), "n01443537.tar": tar_bytes({"n01443537_1.JPEG": encode(3)})}
    (tmp_path / "train.tar").write_bytes(tar_bytes(files | {"README": b"x"}))
    source, said = notes(tmp_path / "train.tar")
    assert len(source) == 3 and "passed over: 2 other files: 1 .txt, 1 without a suffix" in said
    (tmp_path / "ILSVRC2012_img_test.tar").write_bytes(tar_bytes({"a_test_1.JPEG": encode(1), "a.dng": b""}))
    source, said = notes(f"imagenet:{tmp_path}/ILSVRC2012_img_test.tar")
    assert len(source) == 1 and "1 .dng (camera raw: convert" in said
