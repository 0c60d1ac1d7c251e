"""Shards to be served, a server of S3, and a cache of the tests' own."""

import subprocess
import sys
import time
import urllib.request

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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """The address of an S3 server (moto's), with a bucket `photos`."""
    pytest.importorskip("obstore", reason="needs the extra [cloud]")
    pytest.importorskip("moto.server", reason="needs the extra [cloud-tests]")
    log = tmp_path_factory.mktemp("moto") / "log"
    with open(log, "w") as out:
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", "0"], stdout=out, stderr=out)
    try:
        deadline, address = time.monotonic() + 60, None
        while address is None and time.monotonic() < deadline and server.poll() is None:
            time.sleep(0.1)
            address = next((w for w in log.read_text().split() if w.startswith("http://127.0.0.1:")), None)
        assert address is not None, log.read_text()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(urllib.request.Request(f"{address}/photos", method="PUT")).close()
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def s3(s3_server):
    """The address of that bucket; the environment names its server."""
    with pytest.MonkeyPatch.context() as patch:
        named = {"AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        for name, value in {**named, "AWS_REGION": "us-east-1", "NO_PROXY": "127.0.0.1"}.items():
            patch.setenv(name, value)
        yield "s3://photos"
