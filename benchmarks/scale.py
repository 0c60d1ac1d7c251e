"""What the index and the order cost at the scale of ImageNet-21k and beyond: ``python -m headrace.benchmarks.scale``.

Writes an index of 14.2 million samples in 1,420 empty shards to a temporary folder, opens it in a process of its own,
and prints the seconds and the resident memory that takes; then the order of 10^9 samples on 1,024 ranks. Ends with 1
above a limit: 10 s, 600 MB, 32 bytes a sample.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from headrace.pipelines.order import Order, shard_sizes
from headrace.pipelines.sources.mapped import INDEX
from headrace.pipelines.sources.shards import FORMAT, INDEX_FILE, MANIFEST, VERSION, ShardSource

_SHARDS, _PER_SHARD, _BYTES = 1420, 10_000, 110_000


def write(folder: Path) -> int:
    """A data set whose shards are holes of the right size; returns how many samples its index says it has."""
    samples = _SHARDS * _PER_SHARD
    index = np.lib.format.open_memmap(folder / INDEX_FILE, "w+", INDEX, (samples,))
    number = np.arange(samples)
    index["shard"], index["offset"] = number // _PER_SHARD, 512 + number % _PER_SHARD * (_BYTES + 1024)
    index["size"], index["label"], index["height"], index["width"] = _BYTES, number % 21_841, 375, 500
    index.flush()
    size = 512 + _PER_SHARD * (_BYTES + 1024)
    shards = [{"name": f"train-{shard:06}.tar", "samples": _PER_SHARD, "bytes": size} for shard in range(_SHARDS)]
    for shard in shards:
        with open(folder / shard["name"], "wb") as file:
            file.truncate(size)
    classes = [f"n{label:08}" for label in range(21_841)]
    manifest = {"format": FORMAT, "version": VERSION, "samples": samples, "classes": classes, "label_source": "folder"}
    (folder / MANIFEST).write_text(json.dumps(manifest | {"shards": shards}))
    return samples


def resident() -> int:
    """Bytes of this process in memory, pages of the mapped index among them: those are shared between processes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(folder: str, results) -> None:
    """Puts (seconds to open, bytes that took, seconds of `shard_sizes`, of a rank's ids, of ids by shards)."""
    times = [time.perf_counter()]
    before = resident()
    source = ShardSource(folder)
    times.append(time.perf_counter())
    memory = resident() - before
    blocks = shard_sizes(source)
    times.append(time.perf_counter())
    Order(10**9, 65536).ids(12_345, 1023, 1024)
    times.append(time.perf_counter())
    Order(len(source), 65536, blocks=blocks).ids(7, 1023, 1024)
    times.append(time.perf_counter())
    opening, *rest = np.diff(times).tolist()
    results.put((opening, memory, *rest))


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        samples = write(Path(name))
        per_sample = (Path(name) / INDEX_FILE).stat().st_size / samples
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(target=measure, args=(name, results))
        process.start()
        opening, memory, sizes, step, local = results.get(timeout=300)
        process.join()
    print(f"opening an index of {samples:,} samples  {opening:.2f} s, {memory / 1e6:.0f} MB more resident")
    print(f"index                                {per_sample:.1f} bytes a sample")
    print(f"sizes of {_SHARDS:,} shards                {sizes * 1e3:.1f} ms")
    print(f"a rank's ids of 10^9, 1,024 ranks     {step * 1e3:.1f} ms; by shards, the first {local * 1e3:.1f} ms")
    return int(opening > 10 or memory > 600e6 or per_sample > 32)


if __name__ == "__main__":
    sys.exit(main())
