"""Shards to be served, and a cache of the tests' own."""

import pytest

from headrace.pipelines.remote import backoff
from headrace.pipelines.shard import shard
from headrace.pipelines.sharding.plan import ShardOptions


@pytest.fixture(scope="module")
def shards(photo_folder, tmp_path_factory):
    """24 shards of one photo each: more than the 16 of a window."""
    folder = tmp_path_factory.mktemp("served") / "set"
    shard(photo_folder, folder, ShardOptions(shard_mb=None, shard_samples=1), workers=1, progress=False)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of the cached shards."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(backoff, "_FIRST", 0.01)
    return tmp_path / "cache" / "shards"
