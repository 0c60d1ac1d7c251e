"""How fast a folder becomes tars: ``python -m benchmarks.shard [--data FOLDER] [--gigabytes 1]``.

`headrace shard` with two workers, `webdataset.ShardWriter` over the same files, `cp -r` of them, and `cp` of the shards
(the same bytes in few files), in turn, from the page cache to the same disk, each as a process of its own; what was
written before is removed and flushed first. Prints medians and the spread, and appends a row to the ledger.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from headrace.pipelines.sources import open_source

from .record import add_out, append

_TAR_WRITER = """
import sys, webdataset as wds
from pathlib import Path
root, out = map(Path, sys.argv[1:])
files = sorted(path for path in root.rglob("*") if path.is_file())
classes = {name: label for label, name in enumerate(sorted({path.parent.name for path in files}))}
with wds.ShardWriter(str(out / "train-%06d.tar"), maxsize=256 << 20, verbose=0) as sink:
    for index, path in enumerate(files):
        sink.write({"__key__": f"{index:08d}", "jpg": path.read_bytes(), "cls": classes[path.parent.name]})
"""


def commands(data: Path, out: Path) -> dict[str, list[str]]:
    shard = [sys.executable, "-m", "headrace.cli", "shard", str(data), str(out), "--workers", "2", "--shard-mb", "256"]
    return {
        "headrace shard": shard,
        "webdataset.ShardWriter": [sys.executable, "-c", _TAR_WRITER, str(data), str(out)],
        "cp -r of the images": ["cp", "-r", str(data), str(out / "copy")],
        "cp -r of the shards": ["cp", "-r", "--reflink=never", f"{out}-shards", str(out / "copy")],
    }


def timed(command: list[str], out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def repeat_images(source: Path, target: Path, size: int) -> tuple[int, int]:
    """Copies a folder of images until `size` bytes are there; (files, bytes)."""
    files, written = [path for path in sorted(source.rglob("*")) if path.is_file()], 0
    for number in range(1 << 30):
        copy, path = divmod(number, len(files))
        name = target / files[path].relative_to(source).parent / f"{copy}_{files[path].name}"
        name.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files[path], name)
        written += name.stat().st_size
        if written >= size:
            return number + 1, written
    raise AssertionError("unreachable")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shard", description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="a folder of images, repeated up to --gigabytes")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=5)
    add_out(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.data.resolve().parent) as folder:
        data, out = Path(folder) / "data", Path(folder) / "out"
        files, size = repeat_images(arguments.data, data, int(arguments.gigabytes * 1e9))
        runs: dict[str, list[float]] = {name: [] for name in commands(data, out)}
        for turn in range(arguments.repeat + 1):
            for name, command in commands(data, out).items():
                seconds = timed(command, out)
                if turn == 0 and name == "headrace shard" and len(open_source(out)) != files:
                    raise AssertionError(f"{files} files, but {len(open_source(out))} samples in the shards")
                if turn == 0 and name == "headrace shard":
                    shutil.copytree(out, f"{out}-shards")
                if turn:  # the first warms the page cache
                    runs[name].append(seconds)
        print(f"{files:,} files, {size / 1e6:.0f} MB; seconds as median (min - max), MB/s")
        figures = {}
        for name, seconds in runs.items():
            median = statistics.median(seconds)
            figures[name] = {"seconds": median, "min": min(seconds), "max": max(seconds)}
            print(f"{name:<24} {median:6.2f} ({min(seconds):.2f} - {max(seconds):.2f})  {size / median / 1e6:6.0f}")
        own = figures["headrace shard"]["seconds"]
        rates = {name: figure["seconds"] / own for name, figure in figures.items() if name != "headrace shard"}
        print("headrace shard: " + ", ".join(f"{rate:.2f} x {name}" for name, rate in rates.items()))
        config = {"files": files, "bytes": size, "workers": 2, "repeat": arguments.repeat}
        append("shard", {"seconds": figures, "rate_over": rates, "config": config}, folder=arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
