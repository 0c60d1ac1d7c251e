"""ImageNet's own archive, a tar of a tar for each class: sharded as it lies, and equal to sharding the folders."""

import io
import tarfile
import tempfile
from pathlib import Path

import pytest

import headrace
from headrace.pipelines import shard as shard_command
from headrace.pipelines.sources import open_source

SAMPLES = sorted((Path(headrace.__file__).parent.parent / "shared" / "data").glob("imagenet-sample-*.tar"))


@pytest.fixture(scope="module")
def photos(photo_folder):
    """class -> name -> bytes: the 1,000 real photos where they are at hand, else the generated ones."""
    classes = {}
    for path in SAMPLES:
        with tarfile.open(path) as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):
                wnid, _, name = member.name.rpartition("/")
                classes.setdefault(wnid, {})[name] = tar.extractfile(member).read()
    if not SAMPLES:
        for number, path in enumerate(sorted(photo_folder.rglob("*.jpg"))):
            wnid = f"n{1440764 + number // 4:08d}"
            classes.setdefault(wnid, {})[f"{wnid}_{number}.JPEG"] = path.read_bytes()
    return classes


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_the_archive_shards_like_its_folders_without_being_unpacked(photos, tmp_path, monkeypatch):
    for wnid, files in photos.items():
        (tmp_path / "folders" / wnid).mkdir(parents=True)
        for name, data in files.items():
            (tmp_path / "folders" / wnid / name).write_bytes(data)
    archive = tmp_path / "ILSVRC2012_img_train.tar"
    archive.write_bytes(tar_of((f"{wnid}.tar", tar_of(files.items())) for wnid, files in photos.items()))

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    for source, out in ((archive, "from-archive"), (tmp_path / "folders", "from-folders")):
        assert shard_command.main([str(source), str(tmp_path / out), "--shard-mb", "32", "--workers", "1"]) == 0

    one, other = tmp_path / "from-archive", tmp_path / "from-folders"
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    tars = [name for name in names if name.endswith((".tar", ".idx", ".npy"))]
    assert len(tars) >= 3 and all((one / name).read_bytes() == (other / name).read_bytes() for name in tars)
    shards = open_source(one)
    expected = {data: wnid for wnid, files in photos.items() for data in files.values()}
    assert len(shards) == len(expected) and shards.classes == sorted(photos)
    for index in range(len(shards)):  # every image, bit for bit, under its class
        assert shards.classes[shards.label(index)] == expected[shards.read(index).tobytes()]
    assert not list(scratch.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"folders", archive.name, "scratch", *(one.name, other.name)}
