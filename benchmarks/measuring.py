"""What measuring costs beside sharding, and what it consists of: two parts of know.py."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from headrace.pipelines.images.decode import decode, image_size
from headrace.pipelines.images.reduced import decode_reduced
from headrace.pipelines.measure.letters import letters
from headrace.pipelines.measure.measure import LEAST, measure, thumbnail
from headrace.pipelines.measure.statistics import statistics
from headrace.pipelines.sources import open_source

from .record import spread

_FEW, _SOME = 16, 300  # images: of a run that shows what starting costs; of which parts are timed


def sharding(data: Path, repeat: int) -> Iterator[dict]:
    """CPU seconds of the command, its worker included, in turn; a ratio is of medians of one run. The same for few
    images is what starting costs, and the rest what an image does."""
    source = open_source(data)
    with tempfile.TemporaryDirectory() as few:
        for index in range(_FEW):
            (Path(few) / f"{index}{Path(source.key(index)).suffix}").write_bytes(source.read(index))
        for way in ([], ["--verify"], ["--max-side", "256"]):
            seconds: dict[str, list[float]] = {"without": [], "--measure": []}
            starts: dict[str, list[float]] = {"without": [], "--measure": []}
            for turn in range(repeat + 1):
                for name in seconds:
                    words = [*way, "--measure"] if name == "--measure" else way
                    found = _sharded(data, words), _sharded(Path(few), words)
                    if turn:  # the first fills the page cache
                        seconds[name].append(found[0])
                        starts[name].append(found[1])
            plain = float(np.median(seconds["without"]))
            for name, taken in seconds.items():
                own = float(np.median(taken) - np.median(starts[name])) / (len(source) - _FEW)
                row = {"job": f"shard {' '.join(way)}".strip(), "contender": name, "images": len(source)}
                row |= spread("cpu_seconds", taken) | {"over_without": float(np.median(taken)) / plain}
                yield row | {"microseconds_an_image": 1e6 * own}


def _sharded(data: Path, words: list[str]) -> float:
    """CPU seconds of the command and its worker."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "headrace.cli", "shard", str(data), f"{folder}/out", "--workers", "1", *words]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def of_an_image(data: Path, repeat: int) -> Iterator[dict]:
    """CPU time of what measuring an image consists of; JPEGs alone."""
    source = open_source(data)
    encodings = [bytes(source.read(index)) for index in range(min(len(source), _SOME))]
    encodings = [data for data in encodings if data[:2] == b"\xff\xd8"]
    eighths = [max(1, min(image_size(data)) // 8) for data in encodings]
    pixels = [decode_reduced(data, LEAST) for data in encodings]
    lumas = [statistics(image)[0] for image in pixels]
    parts: dict[str, Callable[[int], object]] = {
        "decoding at an eighth": lambda i: decode_reduced(encodings[i], eighths[i]),
        "decoding as for measuring": lambda i: decode_reduced(encodings[i], LEAST),
        "figures of pixels": lambda i: statistics(pixels[i]),
        "letters": lambda i: letters(lumas[i]),
        "thumbnail": lambda i: thumbnail(lumas[i]),
        "measuring": lambda i: measure(encodings[i]),
        "decoding in full": lambda i: decode(encodings[i]),
    }
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(repeat + 1):
        for name, part in parts.items():
            began = time.process_time()
            for index in range(len(encodings)):
                part(index)
            if turn:
                taken[name].append(1e6 * (time.process_time() - began) / len(encodings))
    whole = float(np.median(taken["measuring"]))
    for name, values in taken.items():
        row = {"job": "an image", "contender": name, "images": len(encodings), **spread("cpu_microseconds", values)}
        yield row | {"of_measuring": float(np.median(values)) / whole}
