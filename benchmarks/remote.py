"""Shards behind an address beside the same shards on a disk: ``python -m benchmarks.remote --data FOLDER``.

A folder of images becomes shards, which a web server of this machine (Python's own, one process) and, where obstore and
moto are installed, an S3 server serve. Contenders, each one epoch in a process of its own, in turn:

    local            shards on the disk                    http, s3: first   with an empty cache
    webdataset       the webdataset library over the same  http, s3: warm    again, with the cache full
                     web server, torchvision v2's views

Prints images per second of wall time and milliseconds of CPU time an image, medians, and both as ratios to `local`;
appends a row to the ledger.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from headrace.pipelines.shard import shard
from headrace.pipelines.sharding.plan import ShardOptions

from .record import add_out, append, spread

BATCH, THREADS = 64, 2
S3 = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}


def own(address: str) -> tuple[int, float]:
    """(images, seconds) of an epoch of headrace's own loader in blocks of shards, from opening the source on."""
    from headrace.pipelines.loaders.choose import make_loader
    from headrace.pipelines.order import Order, shard_sizes
    from headrace.pipelines.sources import open_source
    from headrace.pipelines.spec import InputSpec

    from .loaders import VIEWS

    began = time.perf_counter()
    source = open_source(address)
    order = Order(len(source), BATCH, blocks=shard_sizes(source))
    loader = make_loader(source, InputSpec(VIEWS["moco_v2"]), order, kind="cpu", threads=THREADS)
    for _ in range(order.steps_per_epoch):
        next(loader)
    seconds = time.perf_counter() - began
    loader.close()
    return order.steps_per_epoch * BATCH, seconds


def webdataset(address: str) -> tuple[int, float]:
    """(images, seconds) of an epoch of the webdataset library with as many workers as the others have threads."""
    from .loaders import VIEWS
    from .peers.tars import webdataset as batches

    with urllib.request.urlopen(f"{address}/dataset.json") as reply:
        manifest = json.load(reply)
    urls = [f"pipe:curl -fs {address}/{one['name']}" for one in manifest["shards"]]
    began, steps = time.perf_counter(), manifest["samples"] // BATCH
    made = batches(urls, VIEWS["moco_v2"], THREADS, BATCH)
    for _ in range(steps):
        next(made)
    return steps * BATCH, time.perf_counter() - began


def job(kind: str, address: str) -> None:
    images, seconds = {"own": own, "webdataset": webdataset}[kind](address)
    times = os.times()
    used = times.user + times.system + times.children_user + times.children_system
    print(json.dumps({"images": images, "seconds": seconds, "cpu": used}), flush=True)
    os._exit(0)  # worker processes of others go with their parent


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def serving(*command: str) -> Iterator[str]:
    """The address of a server, which is the command with its port put in."""
    port = _free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", *(word.format(port=port) for word in command)], **quiet)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote", description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder of images")
    parser.add_argument("--shard-mb", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    add_out(parser)
    given = parser.parse_args()
    if given.job:
        job(*given.job)
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        shards, cache = Path(place) / "shards", Path(place) / "cache"
        os.environ["HEADRACE_CACHE"] = str(cache)
        shard(given.data, shards, ShardOptions(shard_mb=given.shard_mb), progress=False)
        web = stack.enter_context(serving("http.server", "{port}", "--bind", "127.0.0.1", "--directory", str(shards)))
        runs = [("local", "own", str(shards)), ("http: first", "own", web), ("http: warm", "own", web)]
        runs.append(("webdataset", "webdataset", web))
        if importlib.util.find_spec("obstore") and importlib.util.find_spec("moto"):
            os.environ.update(S3)
            os.environ["AWS_ENDPOINT_URL"] = stack.enter_context(serving("moto.server", "-p", "{port}"))
            urllib.request.urlopen(
                urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/photos", method="PUT")
            ).close()
            shard(given.data, "s3://photos/set", ShardOptions(shard_mb=given.shard_mb), progress=False)
            runs += [("s3: first", "own", "s3://photos/set"), ("s3: warm", "own", "s3://photos/set")]
        found: dict[str, list[dict]] = {name: [] for name, _, _ in runs}
        for turn in range(given.repeat + 1):
            for name, kind, address in runs:
                if name.endswith("first"):
                    shutil.rmtree(cache, ignore_errors=True)
                command = [sys.executable, "-m", "headrace.benchmarks.remote", "--job", kind, address]
                said = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
                if turn:  # the first warms the page cache, and numba's
                    found[name].append(json.loads(said.splitlines()[-1]))
    figures = {}
    for name, rows in found.items():
        figures[name] = spread("images_per_second", [row["images"] / row["seconds"] for row in rows])
        figures[name] |= {"cpu_ms": spread("median", [1e3 * row["cpu"] / row["images"] for row in rows])["median"]}
    base = figures["local"]
    for name, one in figures.items():
        rate, cost = one["images_per_second"] / base["images_per_second"], one["cpu_ms"] / base["cpu_ms"]
        print(f"{name:<12} {one['images_per_second']:8.1f} images/s ({one['p20']:.1f} - {one['p80']:.1f})", end="")
        print(f"  {one['cpu_ms']:6.2f} CPU ms an image   rate {rate:.2f}, CPU time {cost:.2f} of local")
    append("remote", {"figures": figures, "config": {"batch": BATCH, "threads": THREADS}}, folder=given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
