"""`headrace shard --measure` and `--drop-near-duplicates`: the same as measuring the shards, and one of each group."""

import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageOps

sys.path.insert(0, str(Path(__file__).parents[1] / "measure"))
from pictures import jpeg, picture, write_pictures

from headrace.errors import UserError
from headrace.pipelines import shard as shard_module
from headrace.pipelines.images.encode import Encoding
from headrace.pipelines.measure.store import Store
from headrace.pipelines.shard import main, shard
from headrace.pipelines.sharding.plan import ShardOptions
from headrace.pipelines.sources import open_source

CAT, DOG, OWL = (picture(seed) for seed in range(3))


@pytest.fixture
def photos(tmp_path):
    files = {"x/a.jpg": CAT.resize((80, 60)), "x/b.jpg": CAT, "x/c.jpg": DOG, "y/d.jpg": jpeg(ImageOps.mirror(DOG), 30)}
    return write_pictures(tmp_path / "photos", files | {"y/e.jpg": OWL, "y/f.jpg": ImageOps.expand(OWL, 20)})


def names(source):
    return [source.key(i).rpartition("_")[2] for i in range(len(source))]


def options(**changes):
    return ShardOptions(shard_mb=None, shard_samples=2, seed=None, **changes)


def arrays(table):
    place = table / ".know"
    return {file.name: np.load(file) for file in sorted([*table.glob("*.npy"), *place.glob("*.npy")])}


@pytest.mark.parametrize("workers", [1, 2])
def test_measured_while_packed_is_measured_afterwards(photos, tmp_path, workers):
    shard(photos, tmp_path / "out", options(measure=True), workers=workers, progress=False)
    source, table = open_source(tmp_path / "out"), tmp_path / "out" / "columns"
    store = Store(tmp_path / "again", source)
    store.begin()
    for job in store.jobs():
        store.write(job, lambda count: None)
    found = store.finish()
    own = arrays(table)
    assert (own["measured.npy"] == found.rows).all() and (own["sharpness.npy"] == found.rows["sharpness"]).all()
    assert (own["thumbs.npy"] == found.pictures.thumbs).all() and (own["inner.npy"] == found.pictures.inner).all()
    assert own["inside_of.npy"].tolist() == [5] and own["width.npy"].tolist() == [80, 160, 160, 160, 160, 200]
    ready = Store(table, source)
    ready.begin()  # `headrace know` finds its measurements there
    assert ready.jobs() == [] and json.loads((table / "images.json").read_text())["images"] == 6


def test_the_tars_are_the_same_with_and_without(photos, tmp_path):
    shard(photos, tmp_path / "with", options(measure=True), workers=1, progress=False)
    shard(photos, tmp_path / "without", options(), workers=1, progress=False)
    for file in (tmp_path / "without").iterdir():
        if file.name != "dataset.json":  # which says what was asked
            assert file.read_bytes() == (tmp_path / "with" / file.name).read_bytes()


def test_near_duplicates_are_left_out(photos, tmp_path):
    manifest = shard(photos, tmp_path / "out", options(drop_near_duplicates=True), workers=1, progress=False)
    assert names(open_source(tmp_path / "out")) == ["b.jpg", "c.jpg", "f.jpg"]
    assert manifest["duplicates"] == 3 and not (tmp_path / "out" / "columns").exists()
    shutil.copyfile(photos / "x/c.jpg", photos / "y/z.jpg")
    both = options(drop_near_duplicates=True, drop_duplicates=True, measure=True)
    assert shard(photos, tmp_path / "both", both, workers=2, progress=False)["duplicates"] == 4
    assert names(open_source(tmp_path / "both")) == ["b.jpg", "c.jpg", "f.jpg"]


def test_bad_images_are_left_out_of_the_columns_too(photos, tmp_path):
    (photos / "x/aa.jpg").write_bytes(jpeg(CAT)[:-300])
    with pytest.raises(UserError, match="aa.jpg: truncated"):
        shard(photos, tmp_path / "out", options(measure=True), workers=1, progress=False)
    shard(photos, tmp_path / "out", options(measure=True), workers=1, skip_bad=True, progress=False)
    assert len(np.load(tmp_path / "out/columns/width.npy")) == len(open_source(tmp_path / "out")) == 6


def test_verify_is_done_by_measuring(photos, tmp_path):
    """Damage within files that go on to their ends: both ways say the same of it."""
    buffer, said = io.BytesIO(), {False: [], True: []}
    picture(9, (640, 480)).save(buffer, "PNG")
    png, coarse = bytearray(buffer.getvalue()), jpeg(picture(9, (640, 480)))
    png[len(png) // 2] ^= 0x55
    for number, data in enumerate((png, coarse[: len(coarse) // 2] + coarse[len(coarse) // 2 + 900 :])):
        (photos / "x/aa.jpg").write_bytes(data)
        for measured, found in said.items():
            verified = options(measure=measured, encoding=Encoding(verify=True))
            try:
                shard(photos, tmp_path / f"out{number}{measured}", verified, workers=1, progress=False)
                found.append(None)
            except UserError as fault:
                found.append(str(fault))
    assert said[True] == said[False] and "aa.jpg: undecodable pixels" in said[True][0]


def test_killed_between_manifest_and_columns(photos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def killed(*_):
            raise KeyboardInterrupt

        patch.setattr(shard_module, "publish_measurements", killed)
        patch.setattr(shard_module.Workspace, "give_up", lambda self: None)
        shard(photos, tmp_path / "out", options(measure=True), workers=1, progress=False)
    assert not (tmp_path / "out/columns").exists()
    assert shard(photos, tmp_path / "out", options(measure=True), workers=1, progress=False)["samples"] == 6
    assert len(np.load(tmp_path / "out/columns/width.npy")) == 6 and not (tmp_path / "out/.sharding").exists()


@pytest.mark.parametrize("option", ["--measure", "--drop-near-duplicates"])
def test_not_for_ffcv(photos, tmp_path, option):
    with pytest.raises(UserError, match=f"{option}: not with --format ffcv"):
        main([str(photos), str(tmp_path / "x.beton"), "--format", "ffcv", option])
    assert not os.path.exists(tmp_path / "x.beton")
