"""Stores against servers: one of S3 (moto), a web server that plays Hugging Face; and the walk along an order."""

import json
import os
import random

import pytest
from readers import equal, reader, taken
from servers import serving

from headrace.errors import UserError
from headrace.pipelines.check import check
from headrace.pipelines.remote.stores import Missing, open_store, read
from headrace.pipelines.remote.walk import Walk
from headrace.pipelines.shard import shard
from headrace.pipelines.sharding.plan import ShardOptions
from headrace.pipelines.sources import open_source

OPTIONS = ShardOptions(shard_mb=None, shard_samples=2)


def test_shards_are_written_to_s3_and_read_from_there(s3, photo_folder, tmp_path, cache):
    local = shard(photo_folder, tmp_path / "local", OPTIONS, workers=1, progress=False)
    assert shard(photo_folder, f"{s3}/deep/set", OPTIONS, workers=1, progress=False) == local
    assert not list(cache.with_name("writing").iterdir())
    store = open_store(f"{s3}/deep/set")
    for name, size in store.names():
        assert read(store, name) == (tmp_path / "local" / name).read_bytes() and size == len(read(store, name))
    assert len(store.names()) == 26 and read(store, "index.npy", 3, 9) == read(store, "index.npy")[3:9]
    expected = taken(reader(str(tmp_path / "local")), 12)
    assert equal(expected, taken(reader(f"{s3}/deep/set"), 12))
    assert equal(expected, taken(reader(f"{s3}/deep/set"), 12))
    assert check(f"{s3}/deep/set", workers=1).sound
    # what is finished stays, and is no other's
    assert shard(photo_folder, f"{s3}/deep/set", OPTIONS, workers=1, progress=False) == local
    with pytest.raises(UserError, match="finished data set, made with other arguments"):
        shard(photo_folder, f"{s3}/deep/set", ShardOptions(shard_mb=None, shard_samples=3), workers=1, progress=False)
    with pytest.raises(UserError, match="parts share a disk"):
        shard(photo_folder, f"{s3}/other", OPTIONS, part=(0, 2))


def test_an_interrupted_upload_goes_on(s3, photo_folder, monkeypatch, capsys):
    from headrace.pipelines.remote.objects import Bucket

    put, wrote = Bucket.put, []

    def few(self, name, data):
        if len(wrote) == 5:
            raise OSError("on purpose")
        wrote.append(name)
        put(self, name, data)

    monkeypatch.setattr(Bucket, "put", few)
    with pytest.raises(UserError, match="cannot be written .on purpose.; .*run the same again"):
        shard(photo_folder, f"{s3}/again", OPTIONS, workers=1, progress=False)
    with pytest.raises(UserError, match="dataset.json"):
        open_source(f"{s3}/again")
    first = list(wrote)
    wrote[:] = []
    monkeypatch.setattr(Bucket, "put", lambda self, name, data: (wrote.append(name), put(self, name, data)))
    shard(photo_folder, f"{s3}/again", OPTIONS, workers=1, progress=False)
    assert len(first) == 5 and len(wrote) == 21 and wrote[-1] == "dataset.json" and not set(first) & set(wrote)
    assert len(open_source(f"{s3}/again")) == 24


def test_what_s3_refuses_is_one_line(s3, photo_folder):
    with pytest.raises(UserError, match="s3://nobody/x: .*create the bucket"):
        shard(photo_folder, "s3://nobody/x", OPTIONS)
    with pytest.raises(UserError, match="s3://photos/none/dataset.json: .*headrace shard"):
        open_source("s3://photos/none")
    with pytest.raises(Missing):
        read(open_store(s3), "none")


def test_object_stores_say_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'gs://bucket/set: needs the extra \[cloud\]: pip install "headrace\[cloud\]"'):
        open_source("gs://bucket/set")


def test_a_web_server_takes_no_shards(photo_folder, tmp_path):
    with (
        serving(tmp_path) as server,
        pytest.raises(UserError, match="web server .*s3://, gs:// and az://, or to a disk"),
    ):
        shard(photo_folder, server.address, OPTIONS)


def test_hugging_face(shards, monkeypatch, tmp_path):
    """Files behind redirects, private ones with a token that goes to the hub alone, lists over several pages."""
    seen = []
    with serving(shards) as files, serving(tmp_path) as hub:

        def answer(request):
            seen.append(request.headers.get("Authorization"))
            path = request.path
            if path.startswith("/api/datasets/me/photos/tree/v1/small"):
                names = sorted(file.name for file in shards.iterdir())
                page = int(path.partition("page=")[2] or 0)
                rows = [{"type": "file", "path": f"small/{n}", "size": (shards / n).stat().st_size} for n in names]
                rows = [{"type": "directory", "path": "small/x", "size": 0}, *rows][20 * page : 20 * page + 20]
                more = (
                    {"Link": f'<{hub.address}{path.partition("?")[0]}?page={page + 1}>; rel="next"'} if page < 2 else {}
                )
                return 200, json.dumps(rows).encode(), more
            folder = "/datasets/me/photos/resolve/v1/small/"
            if path.startswith(folder) and request.headers.get("Authorization") == "Bearer secret":
                return 302, b"", {"Location": f"{files.address}/{path.removeprefix(folder)}"}
            return 401, b""

        hub.answer = answer
        files.answer = lambda request: seen.append(("file", request.headers.get("Authorization")))
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", "secret")
        with pytest.raises(UserError, match="the server answers 401"):
            open_source("hf://datasets/me/other")
        address = "hf://datasets/me/photos@v1/small"
        assert equal(taken(reader(str(shards)), 6), taken(reader(address), 6))
        assert open_store(address).names() == sorted((file.name, file.stat().st_size) for file in shards.iterdir())
        assert ("file", None) in seen and not any(one[1] for one in seen if isinstance(one, tuple))
        with pytest.raises(UserError, match="hf://datasets/<owner>/<name>"):
            open_source("hf://models/x/y")
    assert os.environ["HF_TOKEN"] == "secret"


@pytest.mark.parametrize("seed", range(8))
def test_the_walk_asks_for_every_shard_before_its_step_and_holds_no_more_than_there_is_room(seed):
    draw = random.Random(seed)
    sizes = [draw.randint(1, 9) for _ in range(12)]
    order = [draw.sample(range(12), draw.randint(1, 3)) for _ in range(200)]
    room = max(sum(sizes[s] for s in step) for step in order) + draw.randint(0, 20)
    walk, there, asked = Walk(lambda step: order[step], sizes, room), set(), []
    for step in range(120):
        fresh = walk.to(step, there)
        assert set(order[step]) <= walk.held and sum(sizes[s] for s in walk.held) <= room
        there = (there & walk.held) | set(fresh)  # what is not held may be removed
        asked += fresh
        assert set(order[step]) <= there
    assert walk.to(150, there) != [] and set(order[150]) <= walk.held  # a jump begins anew
    assert set(asked) == set(range(12))
