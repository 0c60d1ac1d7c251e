"""What `headrace know` finds, and how fast: ``python -m headrace.benchmarks.know --data PHOTOS [--parts ...]``.

planted    photos and a changed copy of each, one kind of change after another: which copies are found (recall), how
           many groups hold two different photos (false), and the share of right pairs within groups (precision)
search     all pairs of 10^5, 10^6 and 10^7 synthetic hashes within 10 bits, a hundredth of them near another one: CPU
           seconds, and memory beside the hashes; at 10^5 beside a compiled comparison of all with all, and imagededup's
           search where that is installed, in queries a second: their pairs must be the same
shard      `headrace shard` with and without --measure, in turn, as it copies and as it decodes (--verify)
image      what measuring an image consists of

Rows go to the ledger ``know.jsonl``. CPU seconds hardly depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from headrace.errors import UserError, run_command
from headrace.pipelines.images.decode import decode
from headrace.pipelines.measure.groups import RADIUS, Pictures, duplicate_groups
from headrace.pipelines.measure.hamming import near_pairs
from headrace.pipelines.measure.measure import measure
from headrace.pipelines.measure.store import Block
from headrace.pipelines.numba_cache import compiled
from headrace.pipelines.sources import open_source

from .measuring import of_an_image, sharding
from .record import add_out, append, spread
from .steps import PeakMemory

PARTS = ("planted", "search", "shard", "image")
_QUERIES = 200  # of imagededup's search, of which one takes as long as any other


def planted(data: Path, images: int) -> Iterator[dict]:
    source = open_source(data)
    photos = [Image.fromarray(decode(source.read(index))) for index in range(min(images, len(source)))]
    plain = [encoded(photo, quality=92) for photo in photos]
    originals = block(plain)
    for kind, change in CHANGES.items():
        copies = block([change(photo) for photo in photos])
        groups = duplicate_groups(together(originals, copies)).reshape(2, -1)
        yield {"job": "planted", "contender": kind, "images": len(photos), **scores(groups)}
    none = duplicate_groups(together(originals))
    yield {"job": "planted", "contender": "nothing", "images": len(photos), "false": len(np.unique(none[none >= 0]))}


def scores(groups: np.ndarray) -> dict[str, float]:
    """Of groups (2, N) of originals and copies: recall, false groups, precision of pairs."""
    found = (groups[0] == groups[1]) & (groups[0] >= 0)
    numbers, sizes = np.unique(groups[groups >= 0], return_counts=True)
    pairs = int((sizes * (sizes - 1) // 2).sum())
    false = sum(len(np.unique(np.nonzero(groups == number)[1])) > 1 for number in numbers)
    return {"recall": float(found.mean()), "false": false, "precision": found.sum() / pairs if pairs else 1.0}


def block(encodings: list[bytes]) -> Pictures:
    made = Block.empty()
    for data in encodings:
        made.add(measure(data))
    thumbs = np.stack(made.thumbs)
    inner = np.stack(made.inner) if made.inner else np.empty((0, *thumbs.shape[1:]), np.uint8)
    return Pictures(thumbs, inner, np.array(made.inside_of, np.int64))


def together(*parts: Pictures) -> Pictures:
    starts = np.cumsum([0, *(len(part.thumbs) for part in parts)])
    thumbs, inner = (np.concatenate([getattr(part, name) for part in parts]) for name in ("thumbs", "inner"))
    return Pictures(thumbs, inner, np.concatenate([p.inside_of + at for p, at in zip(parts, starts)]))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.BICUBIC)


def _cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    box = (round(left * width), round(top * height), width - round(right * width), height - round(bottom * height))
    return image.crop(box)


def _marked(image: Image.Image) -> Image.Image:
    over = Image.new("RGBA", image.size)
    font = ImageFont.load_default(size=max(10, min(image.size) // 9))
    place = (image.width / 2, image.height * 0.8)
    ImageDraw.Draw(over).text(place, "SAMPLE.com", font=font, fill=(255, 255, 255, 150), anchor="mm")
    return Image.alpha_composite(image.convert("RGBA"), over).convert("RGB")


def _framed(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    return ImageOps.expand(image, round(0.08 * max(image.size)), color)


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG of quality 30": lambda photo: encoded(photo, quality=30),
    "PNG": lambda photo: encoded(photo, "PNG", compress_level=1),
    "half the size": lambda photo: encoded(_scaled(photo, 0.5)),
    "twice the size": lambda photo: encoded(_scaled(photo, 2)),
    "cut by 5 %, 2.5 % at each edge": lambda photo: encoded(_cut(photo, *[0.025] * 4)),
    "cut by 5 % at two edges": lambda photo: encoded(_cut(photo, 0, 0, 0.05, 0.05)),
    "cut by 5 % at each edge": lambda photo: encoded(_cut(photo, *[0.05] * 4)),
    "mirrored": lambda photo: encoded(ImageOps.mirror(photo)),
    "turned by 90 degrees": lambda photo: encoded(photo.transpose(Image.Transpose.ROTATE_90)),
    "turned by 180 degrees": lambda photo: encoded(photo.transpose(Image.Transpose.ROTATE_180)),
    "brighter by 30 %": lambda photo: encoded(ImageEnhance.Brightness(photo).enhance(1.3)),
    "darker by 30 %": lambda photo: encoded(ImageEnhance.Brightness(photo).enhance(0.7)),
    "gray": lambda photo: encoded(photo.convert("L")),
    "black border of 8 %": lambda photo: encoded(_framed(photo, (0, 0, 0))),
    "white border of 8 %": lambda photo: encoded(_framed(photo, (255, 255, 255))),
    "watermark": lambda photo: encoded(_marked(photo)),
}


def synthetic(count: int) -> np.ndarray:
    """(count,) uint64, a hundredth of which differ from another one in up to 12 bits."""
    rng = np.random.default_rng(count)
    hashes = rng.integers(0, 1 << 64, count, dtype=np.uint64)
    copies = rng.choice(count, count // 100, replace=False)
    hashes[copies] = hashes[rng.integers(0, count, len(copies))]
    for turn in range(12):
        flips = np.uint64(1) << rng.integers(0, 64, len(copies), dtype=np.uint64)
        hashes[copies] ^= np.where(rng.integers(0, 12, len(copies)) >= turn, flips, np.uint64(0))
    return hashes


def search(counts: list[int], repeat: int) -> Iterator[dict]:
    for count in counts:
        hashes, seconds, peaks = synthetic(count), [], []
        for _ in range(repeat if count <= 1_000_000 else 1):
            memory = PeakMemory(torch.device("cpu"))
            before, began = memory.megabytes(), time.process_time()
            pairs = sum(len(a) for a, _ in near_pairs(hashes, RADIUS))
            seconds.append(time.process_time() - began)
            peaks.append(memory.megabytes() - before)
        row = {"job": f"all pairs of {count:,}", "contender": "headrace", "hashes": count, "pairs": pairs}
        yield row | spread("cpu_seconds", seconds) | {"megabytes": max(peaks)}


def beside(count: int, repeat: int) -> Iterator[dict]:
    """Ours and others' in turn, over the same hashes; queries a second, of CPU time."""
    hashes = synthetic(count)
    contenders: dict[str, Callable] = {"headrace": _ours, "every pair, compiled": _every}
    if importlib.util.find_spec("imagededup"):
        contenders["imagededup, brute_force_cython"] = _imagededup
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeat):
        for name, contender in contenders.items():
            began = time.process_time()
            queries, found = contender(hashes)
            rates[name].append(queries / (time.process_time() - began))
            told = {pair for a, b in found for pair in ((a, b), (b, a)) if pair[0] < _QUERIES}
            if name == "headrace":
                ours = told
            elif told != ours:
                raise AssertionError(f"{name} finds other pairs: {len(told ^ ours)} differ")
    for name, values in rates.items():
        over = {"times_as_slow": float(np.median(rates["headrace"]) / np.median(values))}
        yield {"job": "beside", "contender": name, "hashes": count, **spread("queries_per_second", values), **over}


def _ours(hashes: np.ndarray) -> tuple[int, list[tuple[int, int]]]:
    found = [pair for a, b in near_pairs(hashes, RADIUS, threads=1) for pair in zip(a.tolist(), b.tolist())]
    return len(hashes), found


def _every(hashes: np.ndarray) -> tuple[int, list[tuple[int, int]]]:
    out = np.empty((len(hashes), 2), np.int64)
    return len(hashes), out[: _all_pairs(hashes, RADIUS, out)].tolist()


@compiled()
def _all_pairs(hashes, radius, out):
    found = 0
    for i in range(len(hashes)):
        for j in range(i + 1, len(hashes)):
            x = hashes[i] ^ hashes[j]  # counting ones as libraries do it, which compiles to the processor's own
            x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
            x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
            x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
            if (x * np.uint64(0x0101010101010101)) >> np.uint64(56) <= radius:
                out[found, 0], out[found, 1] = i, j
                found += 1
    return found


def _imagededup(hashes: np.ndarray) -> tuple[int, list[tuple[int, int]]]:
    from imagededup.handlers.search.retrieval import HashEval

    known = {str(number): f"{value:016x}" for number, value in enumerate(hashes.tolist())}
    queries = dict(list(known.items())[:_QUERIES])
    method = {"search_method": "brute_force_cython", "num_dist_workers": 0, "verbose": False}
    found = HashEval(known, queries, None, threshold=RADIUS, **method).retrieve_results()
    return len(queries), [(int(query), int(other)) for query, others in found.items() for other in others]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.know", description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="a folder of photos, for all but search")
    parser.add_argument("--images", type=int, default=1000, help="of them, for planted (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--hashes", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000], metavar="N")
    parser.add_argument("--beside", type=int, default=100_000, metavar="N", help="hashes beside others (%(default)s)")
    parser.add_argument("--repeat", type=int, default=5)
    add_out(parser)
    given = parser.parse_args(argv)
    if given.data is None and set(given.parts) - {"search"}:
        raise UserError("--data: missing; give a folder of photos, or --parts search")
    rows: list[Callable[[], Iterator[dict]]] = []
    if "planted" in given.parts:
        rows.append(lambda: planted(given.data, given.images))
    if "search" in given.parts:
        rows += [lambda: search(given.hashes, given.repeat), lambda: beside(given.beside, given.repeat)]
    if "shard" in given.parts:
        rows.append(lambda: sharding(given.data, given.repeat))
    if "image" in given.parts:
        rows.append(lambda: of_an_image(given.data, given.repeat))
    for made in rows:
        for row in made():
            print(json.dumps(row), flush=True)
            append("know", row, folder=given.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
