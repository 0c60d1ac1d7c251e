"""Shards behind an address beside the same shards on a disk: ``python -m headrace.benchmarks.remote --data FOLDER``.

A folder of images in class folders becomes shards, which a web server of this machine (Python's own, one process) and,
where obstore and moto are installed, an S3 server serve. Contenders, each one epoch in a process of its own, in turn,
with as many threads or workers, of the same encoded images, with the same views:

    local            shards on the disk                    http, s3: first   with an empty cache
    webdataset       the webdataset library over the same  http, s3: warm    again, with the cache full
                     tars from the same server
    litdata          LitData over chunks of the same size, from the same S3 server, with an empty cache

The two libraries decode with torchvision and make views with its v2, as in benchmarks/loaders. Prints images per second
of wall time, from opening the source on (`epoch`, where starting worker processes counts) and from the first batch on
(`steady`), milliseconds of CPU time an image, medians, and ratios; appends a row to the ledger.
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
from collections.abc import Iterator, Sequence
from pathlib import Path

from headrace.errors import UserError, run_command
from headrace.pipelines.shard import shard
from headrace.pipelines.sharding.plan import ShardOptions

from .ledger import about, facts, lines
from .record import add_out, append, spread

BATCH, THREADS = 64, 2
S3 = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}


def timed(batches: Iterator, steps: int, began: float) -> dict[str, float]:
    """Figures of `steps` batches of which the first was asked for since `began`."""
    next(batches)
    first = time.perf_counter()
    for _ in range(steps - 1):
        next(batches)
    now = time.perf_counter()
    return {
        "epoch": steps * BATCH / (now - began),
        "steady": (steps - 1) * BATCH / (now - first),
        "images": steps * BATCH,
    }


def own(address: str) -> dict[str, float]:
    """An epoch of headrace's own loader in blocks of shards."""
    from headrace.pipelines.loaders.choose import make_loader
    from headrace.pipelines.order import Order, shard_sizes
    from headrace.pipelines.sources import open_source
    from headrace.pipelines.spec import InputSpec

    from .loaders import VIEWS

    began = time.perf_counter()
    source = open_source(address)
    order = Order(len(source), BATCH, blocks=shard_sizes(source))
    loader = make_loader(source, InputSpec(VIEWS["moco_v2"]), order, kind="cpu", threads=THREADS)
    return timed(loader, order.steps_per_epoch, began)


def webdataset(address: str) -> dict[str, float]:
    """An epoch of the webdataset library over ``address#samples#tars``, fetched by curl."""
    from .loaders import VIEWS
    from .peers.tars import webdataset as batches

    address, samples, tars = address.split("#")
    signed = "--aws-sigv4 aws:amz:{AWS_REGION}:s3 -u {AWS_ACCESS_KEY_ID}:{AWS_SECRET_ACCESS_KEY}".format(**S3)
    urls = [f"pipe:curl -fs {signed} {address}/train-{number:06d}.tar" for number in range(int(tars))]
    began = time.perf_counter()
    return timed(batches(urls, VIEWS["moco_v2"], THREADS, BATCH), int(samples) // BATCH, began)


def litdata(address: str) -> dict[str, float]:
    """An epoch of LitData over ``address#samples``."""
    from .loaders import VIEWS
    from .peers.chunks import chunks

    address, _, samples = address.partition("#")
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        made = chunks(address, VIEWS["moco_v2"], THREADS, BATCH, Path(cache))
        return timed(made, int(samples) // BATCH, began)


def job(kind: str, address: str) -> None:
    figures = {"own": own, "webdataset": webdataset, "litdata": litdata}[kind](address)
    times = os.times()
    used = times.user + times.system + times.children_user + times.children_system
    print(json.dumps(figures | {"cpu_ms": 1e3 * used / figures["images"]}), flush=True)
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


def contenders(data: Path, room: Path, megabytes: int, stack: contextlib.ExitStack) -> Iterator[tuple[str, str, str]]:
    """(name, kind, address) of each; what serves them ends with `stack`."""
    shards, options = room / "shards", ShardOptions(shard_mb=megabytes)
    manifest = shard(data, shards, options, progress=False)
    samples, tars = manifest["samples"], len(manifest["shards"])
    web = stack.enter_context(serving("http.server", "{port}", "--bind", "127.0.0.1", "--directory", str(shards)))
    yield from (("local", "own", str(shards)), ("http: first", "own", web), ("http: warm", "own", web))
    yield "http: webdataset", "webdataset", f"{web}#{samples}#{tars}"
    if not (importlib.util.find_spec("obstore") and importlib.util.find_spec("moto")):
        return
    from headrace.pipelines.remote.stores import open_store

    server = stack.enter_context(serving("moto.server", "-p", "{port}"))
    os.environ.update(S3, AWS_ENDPOINT_URL=server)
    urllib.request.urlopen(urllib.request.Request(f"{server}/photos", method="PUT")).close()
    shard(data, "s3://photos/set", options, progress=False)
    yield from (("s3: first", "own", "s3://photos/set"), ("s3: warm", "own", "s3://photos/set"))
    yield "s3: webdataset", "webdataset", f"{server}/photos/set#{samples}#{tars}"
    if importlib.util.find_spec("litdata"):
        from .peers.chunks import write

        write(data, room / "chunks", megabytes)
        for file in sorted((room / "chunks").iterdir()):
            open_store("s3://photos/chunks").put(file.name, file)
        yield "s3: litdata", "litdata", f"s3://photos/chunks#{samples}"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.remote", description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder of images in class folders")
    parser.add_argument("--copies", type=int, default=2, help="how often an epoch holds them, so that it takes seconds")
    parser.add_argument("--shard-mb", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    add_out(parser)
    given = parser.parse_args(argv)
    if given.job:
        job(*given.job)
    if given.data is None or not given.data.is_dir():
        raise UserError(f"remote: --data {given.data or 'is missing'}: a folder of images in folders of classes")
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    found: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        room, cache = Path(place), Path(place) / "cache"
        os.environ["HEADRACE_CACHE"] = str(cache)
        for folder in sorted(one for one in given.data.resolve().iterdir() if one.is_dir()):  # a class each
            (room / "data" / folder.name).mkdir(parents=True)
            for copy in range(given.copies):
                (room / "data" / folder.name / str(copy)).symlink_to(folder)
        runs = list(contenders(room / "data", room, given.shard_mb, stack))
        for turn in range(given.repeat + 1):
            for name, kind, address in runs:
                if name.endswith("first"):
                    shutil.rmtree(cache, ignore_errors=True)
                command = [sys.executable, "-m", "headrace.benchmarks.remote", "--job", kind, address]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8").stdout
                if turn:  # the first warms the page cache, and numba's
                    found.setdefault(name, []).append(json.loads(said.splitlines()[-1]))
    figures = {}
    for name, rows in found.items():
        figures[name] = {key: spread("median", [row[key] for row in rows]) for key in ("epoch", "steady", "cpu_ms")}
    _print(figures)
    config = {"batch": BATCH, "threads": THREADS, "copies": given.copies, "shard_mb": given.shard_mb}
    append("remote", {"figures": figures, "config": config}, folder=given.out)
    return 0


def table(rows: list[dict]) -> list[str]:
    """The last run for a page: images/s of an epoch and from its first batch on, over ours from disk, and CPU time."""
    row = facts(rows[-1])
    body = []
    for name, own in row["figures"].items():
        cells = ["headrace " * (name.split()[-1] in ("local", "first", "warm")) + name]
        for key in ("epoch", "steady"):
            one = own[key]
            ratio = one["median"] / row["figures"]["local"][key]["median"]
            cells += [f"{one['median']:,.0f} ({one['p20']:,.0f}-{one['p80']:,.0f})", f"{ratio:.2f}"]
        body.append([*cells, f"{own['cpu_ms']['median']:.1f}"])
    header = [
        "images/s, median (p20-p80)",
        "first epoch",
        "of disk",
        "from its first batch on",
        "of disk",
        "CPU ms an image",
    ]
    return [f"{about([row])}.", "", *lines(header, body)]


def _print(figures: dict[str, dict]) -> None:
    """A line for each, with its rates as parts of those of `local`, and ours as multiples of the libraries'."""
    base = figures["local"]
    print(
        f"{'':<18}{'epoch':>8}{'of local':>10}{'steady':>9}{'of local':>10}{'CPU ms':>9}  images/s; CPU time an image"
    )
    for name, one in figures.items():
        epoch, steady, cpu = (one[key]["median"] for key in ("epoch", "steady", "cpu_ms"))
        parts = epoch / base["epoch"]["median"], steady / base["steady"]["median"]
        print(f"{name:<18}{epoch:8.1f}{parts[0]:10.2f}{steady:9.1f}{parts[1]:10.2f}{cpu:9.2f}")
    for name, one in figures.items():
        server, _, kind = name.partition(": ")
        if kind in ("webdataset", "litdata"):
            ours = figures[f"{server}: first"]
            times = [ours[key]["median"] / one[key]["median"] for key in ("epoch", "steady")]
            print(
                f"first epoch over {server}: {times[0]:.2f} times {kind}, from the first batch on {times[1]:.2f} times"
            )


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
