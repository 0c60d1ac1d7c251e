"""One set in many places: a run that is killed goes on with another number of processes, and nobody can tell."""

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from readers import BATCH, equal, reader, taken
from servers import FAULTS, serving

from headrace.pipelines.sources import open_source

STEPS = 2 * 24 // BATCH  # of two epochs
KILLED = 4  # steps that were done by then
RUN = """
import os, sys, time, torch
sys.path[:0] = {paths!r}
from readers import reader
got = {{}}
for number, place in enumerate(sys.argv[3:]):
    os.environ["HEADRACE_CACHE"] = f"{{sys.argv[2]}}/{{number}}"  # of its own, or the second would find all there
    loader = reader(place)
    batches = [next(loader) for _ in range({steps})]
    got[place] = [(b.ids.tolist(), b.views["image"], b.mask.hidden, b.labels.tolist()) for b in batches]
torch.save(got, sys.argv[1])
print("done", flush=True)
time.sleep(60)
"""


def passed_on(upstream):
    """Requests to another server, with this one's faults."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answer(request):
        fault = request.server.fault()
        if fault in ("429", "500"):
            return int(fault), b"<Error><Code>SlowDown</Code></Error>"
        if fault == "reset":
            request.close_connection = True
            request.connection.close()
        wanted = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "connection")}
        try:
            reply = opener.open(urllib.request.Request(upstream + request.path, headers=wanted))
        except urllib.error.HTTPError as refused:
            reply = refused
        with reply:
            kept = {k: v for k, v in reply.headers.items() if k.lower() in ("content-range", "last-modified", "etag")}
            return reply.status, reply.read(), kept, fault

    return answer


def to_parquet(source, folder):
    """A row group for each sample, in three files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    told = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": source.classes}}
    told = {b"huggingface": json.dumps({"info": {"features": told}}).encode()}
    schema = pa.schema([("image", struct), ("label", pa.int64())], metadata=told)
    folder.mkdir()
    for number in range(3):
        some = range(8 * number, 8 * number + 8)
        images = [{"bytes": bytes(source.read(i)), "path": None} for i in some]
        table = pa.table({"image": images, "label": [source.label(i) for i in some]}, schema=schema)
        pq.write_table(table, folder / f"train-{number:05d}-of-00003.parquet", row_group_size=1)
    return folder


def as_hub(folder):
    """Answers as Hugging Face does for a data set with these files."""

    def answer(request):
        if request.path.startswith("/api/datasets/me/photos/tree/main"):
            rows = []
            for file in sorted(folder.iterdir()):
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                rows.append({"type": "file", "path": file.name, "size": file.stat().st_size, "lfs": {"oid": digest}})
            return 200, json.dumps(rows).encode()
        request.path = request.path.removeprefix("/datasets/me/photos/resolve/main")
        return None if request.path.endswith(".parquet") else (404, b"")

    return answer


@pytest.fixture(scope="module")
def everywhere(shards, tmp_path_factory, request):
    """(place -> address, place -> server, what a process that was killed had got of each, where its caches are)."""
    root, source = tmp_path_factory.mktemp("everywhere"), open_source(shards)
    places, servers = {"disk": str(shards)}, {}
    with pytest.MonkeyPatch.context() as patch, serving(shards, share=0.5, stall=0.1) as web:
        places["http"], servers["http"] = web.address, web
        proxies = []
        if find_spec("pyarrow"):
            places["parquet"] = f"parquet:{to_parquet(source, root / 'parquet')}"
            proxies.append(hub := serving(root / "parquet", share=0.5, stall=0.1, seed=3))
            servers["hub"] = hub.__enter__()
            servers["hub"].answer = as_hub(root / "parquet")
            patch.setenv("HF_ENDPOINT", servers["hub"].address)
            places["hub"] = "hf://datasets/me/photos?split=train"
        if find_spec("obstore") and find_spec("moto"):
            from headrace.pipelines.remote.stores import open_store

            places["s3"] = f"{request.getfixturevalue('s3')}/everywhere"
            for file in sorted(shards.iterdir()):
                open_store(places["s3"]).put(file.name, file)
            proxies.append(cloud := serving(root, share=0.5, stall=0.1, seed=1))
            servers["s3"] = cloud.__enter__()
            servers["s3"].answer = passed_on(os.environ["AWS_ENDPOINT_URL"])
            patch.setenv("AWS_ENDPOINT_URL", servers["s3"].address)
        code = RUN.format(paths=[str(Path(__file__).parent.parent), *sys.path], steps=KILLED)
        command = [sys.executable, "-c", code, str(root / "got"), str(root), *places.values()]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert run.stdout.readline() == "done\n"
        run.kill()
        run.wait()
        yield places, servers, torch.load(root / "got"), root
        for one in proxies:
            one.__exit__(None, None, None)


@pytest.mark.parametrize("place", ["disk", "http", "s3", "parquet", "hub"])
def test_a_killed_run_goes_on_elsewhere(place, everywhere, shards, tmp_path, monkeypatch):
    """The same ids, crops, masks and labels over two epochs, killed in the first and resumed on two processes."""
    if place == "s3":
        pytest.importorskip("obstore", reason="needs the extra [cloud]")
        pytest.importorskip("moto", reason="needs the extra [cloud-tests]")
    if place in ("parquet", "hub"):
        pytest.importorskip("pyarrow", reason="needs the extra [tables]")
    places, servers, got, root = everywhere
    monkeypatch.setenv("HEADRACE_CACHE", str(root / str(list(places).index(place))))
    expected = taken(reader(str(shards)), STEPS)
    assert equal(expected[:KILLED], got[places[place]])
    ranks = []
    for rank in range(2):
        aside = tmp_path / f"{rank}.jsonl"
        ranks.append(taken(reader(places[place], rank, 2, file=aside), STEPS - KILLED, KILLED))
        assert not aside.exists()
    joined = [
        (a[0] + b[0], torch.cat([a[1].unflatten(1, (-1,)), b[1]], 1), torch.cat([a[2], b[2]]), a[3] + b[3])
        for a, b in zip(*ranks)
    ]
    assert equal(expected[KILLED:], joined)
    if place in ("http", "s3"):
        assert set(servers[place].faults) == set(FAULTS), servers[place].faults
