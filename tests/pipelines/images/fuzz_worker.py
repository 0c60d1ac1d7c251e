"""A process of its own for test_fuzz_images.py: mutated JPEGs through every loader, and what became of them.

Usage: fuzz_worker.py <folder of photos> <count>; prints a line of JSON per loader.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from headrace.pipelines.images.decode import DecodeError, decode, image_size
from headrace.pipelines.images.jpeg import jpeg_header
from headrace.pipelines.loaders.cpu import CpuLoader
from headrace.pipelines.loaders.dali import DaliLoader
from headrace.pipelines.loaders.memory import MemoryLoader
from headrace.pipelines.loaders.quarantine import Quarantine
from headrace.pipelines.order import Order
from headrace.pipelines.spec import InputSpec, ViewSpec
from headrace.pipelines.views import cpu_augment  # noqa: F401 - compiled before memory is watched

LOADERS = {"memory": MemoryLoader, "cpu": CpuLoader, "dali": DaliLoader}
BATCH = 8


def seeds(folder):
    """Photos as every kind of JPEG that is common."""
    exif = Image.Exif()
    exif[0x112] = 6
    kinds = [{}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"exif": exif}, {"restart_marker_rows": 1}]
    for index, path in enumerate(sorted(folder.rglob("*.jpg"))):
        options = dict(kinds[index % len(kinds)])
        buffer = io.BytesIO()
        Image.open(path).convert(options.pop("mode", "RGB")).save(buffer, "JPEG", quality=85, **options)
        yield buffer.getvalue()


def segments(data):
    """The marker segments up to the start of scan, and the rest."""
    parts, offset = [], 2
    while data[offset + 1] != 0xDA:
        end = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        parts.append(data[offset:end])
        offset = end
    return parts, data[offset:]


def mutate(data, rng):
    kind = int(rng.integers(9))
    if kind in (0, 1):  # flipped bits: anywhere, or in the header
        array = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, len(array) if kind else min(400, len(array)), rng.integers(1, 9))
        array[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
        return array.tobytes()
    if kind in (2, 3):  # cut short, with an end marker or without
        return data[: rng.integers(len(data))] + (b"\xff\xd9" if kind == 3 else b"")
    parts, rest = segments(data)
    if kind == 4:
        parts.insert(rng.integers(len(parts) + 1), parts[rng.integers(len(parts))])
    elif kind == 5:
        parts = [parts[n] for n in rng.permutation(len(parts))]
    elif kind == 6:
        del parts[rng.integers(len(parts))]
    elif kind == 7:  # another size in the header
        sides = [0, 1, 7, 40, 200, 1000, 5000, 9000, 20000, 65500, 65535]
        size = b"".join(int(rng.choice(sides)).to_bytes(2, "big") for _ in range(2))
        parts = [p[:5] + size + p[9:] if p[1] in (0xC0, 0xC1, 0xC2) else p for p in parts]
    else:  # a block of the scan again, or noise in its place
        at, length = rng.integers(len(rest)), int(rng.integers(1, 200))
        noise = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
        rest = rest[:at] + (rest[at : at + length] * 2 if rng.random() < 0.5 else noise) + rest[at + length :]
    return b"\xff\xd8" + b"".join(parts) + rest


class Images:
    """Bytes in memory as a source."""

    name, classes = "mutated", None

    def __init__(self, images):
        self.images = [np.frombuffer(image, np.uint8) for image in images]

    def __len__(self):
        return len(self.images)

    def read(self, index):
        return self.images[index]

    def key(self, index):
        return str(index)


def mutated(folder, count):
    originals, rng = list(seeds(folder)), np.random.default_rng(2024)
    return [mutate(originals[n % len(originals)], rng) for n in range(count)]


def verdict(data):
    """ "good", or which of the two functions refuses it."""
    try:
        image_size(data)
    except DecodeError:
        return "header"
    try:
        decode(data)
    except DecodeError:
        return "pixels"
    return "good"


def spread(verdicts, images):
    """An order in batches of BATCH of which DALI would take all or refuse one, were it given what it is not given: at
    most one image of each has a sound header and undecodable pixels."""
    hidden = [n for n, v in enumerate(verdicts) if v == "pixels" and jpeg_header(images[n]) is not None]
    good = [n for n, v in enumerate(verdicts) if v == "good"]
    rest = sorted(set(range(len(images))) - set(hidden))
    batches = len(images) // BATCH
    assert len(hidden) <= batches <= len(good)
    rest = [n for n in rest if n not in set(good[:batches])]
    order = []
    for n in range(batches):
        order += hidden[n : n + 1]
        fill = BATCH - 1 - len(hidden[n : n + 1])
        order += rest[:fill] + [good[n]]
        rest = rest[fill:]
    return order


def peak_mb():
    """The most memory that was resident since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def main(folder, count):
    forget_peak()  # of what compiling cpu_augment took
    images = mutated(Path(folder), int(count))
    verdicts = [verdict(data) for data in images]
    places = spread(verdicts, [np.frombuffer(image, np.uint8) for image in images])
    source = Images([images[n] for n in places])
    order = Order(len(source), BATCH, shuffle=False)
    for kind, loader in LOADERS.items():
        quarantine = Quarantine(source, 1.0)
        options = {} if kind == "memory" else {"threads": 2}
        batches = loader(source, InputSpec((ViewSpec(size=32),)), order, quarantine=quarantine, **options)
        try:
            ids = [next(batches).ids.tolist() for _ in range(order.steps_per_epoch)]
        finally:
            batches.close()
        report = {
            "loader": kind,
            "verdicts": [verdicts[n] for n in places],
            "ids": ids,
            "bad": [n for n in range(len(source)) if n in quarantine],
            "peak_mb": peak_mb(),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
