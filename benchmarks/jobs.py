"""One job of `loaders.py`: the views that are wanted of a folder of images, and who makes them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import headrace
from headrace.cores import cores
from headrace.pipelines.images.decode import image_size
from headrace.pipelines.images.encode import Encoding
from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.pixels.command import write_pixels
from headrace.pipelines.pixels.layout import Request
from headrace.pipelines.pixels.sidecars import Pixels, open_pixels
from headrace.pipelines.shard import shard
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.arrays import ArraySource
from headrace.pipelines.spec import Batch, InputSpec, Loader, LoaderStats, ViewSpec
from headrace.pipelines.views.cut import crop_and_resize, decode_fast
from headrace.pipelines.views.draw import draw_views
from headrace.pipelines.views.reference import reference_views

from .peers import PEERS

# name -> the views, and the longer side to which larger images are encoded anew before anybody reads them: FFCV's way
JOBS: dict[str, tuple[str, int | None]] = {
    "mae": ("mae", None),
    "two-views": ("moco_v2", None),
    "multicrop": ("swav_2x224_6x96", None),
    "eval": ("eval", None),
    "mae-512": ("mae", 512),
    "two-views-512": ("moco_v2", 512),
}
CEILINGS = ("read only", "decode only", "decode and resize", "copy views", "synthetic")
OWN_LOOP = "headrace.loader"  # the first of our loaders, in a loop of one's own
PIXELS = {"headrace cpu, rgb beside shards": "rgb", "headrace cpu, yuv420 beside shards": "yuv420"}
DECODED = "headrace memory"  # all images decoded beforehand; it crops on one thread


class Synthetic:
    """The first batch of a loader again and again: what a consumer does when data costs nothing. Ends that loader."""

    def __init__(self, loader: Loader) -> None:
        self.steps_per_epoch = loader.steps_per_epoch
        with closing(loader):
            self._batch = next(loader)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return replace(self._batch)

    def stats(self) -> LoaderStats:
        return LoaderStats()

    def close(self) -> None:
        """It holds nothing but the batch."""


class Job:
    """`start(contender)` gives an endless iterator over batches. What peers need written is in the folder `scratch`."""

    def __init__(self, data: Path, views: tuple[ViewSpec, ...], workers: int, batch: int, scratch: Path) -> None:
        self.data, self.views, self.workers, self.batch, self.scratch = data, views, workers, batch, scratch
        self.source, self.inputs = open_source(data), InputSpec(views)
        self.order = Order(len(self.source), batch)

    def start(self, contender: str) -> Iterator:
        if contender in PEERS:
            return PEERS[contender].load()(self._prepared(contender), self.views, self.workers, self.batch)
        if contender == DECODED:
            images = [decode_fast(self.source.read(i)) for i in range(min(256, len(self.source)))]
            return self._batches(self._loader("memory", ArraySource(images)))
        if contender == OWN_LOOP:
            return self._own_loop()
        if contender in PIXELS:
            source = open_source(self._pixels(contender))
            return self._batches(self._loader("cpu", source, open_pixels(source, "require")))
        if contender.startswith("headrace "):
            return self._batches(self._loader(contender.removeprefix("headrace "), self.source))
        if contender == "synthetic":
            return self._batches(Synthetic(self._loader("cpu", self.source)))
        if contender == "copy views":
            return self._copies()
        if contender == "decode and resize":
            return self._by_threads(self._resizer())
        return self._by_threads({"read only": self._read, "decode only": self._decode}[contender])

    def _prepared(self, contender: str) -> Path:
        """What the peer reads: the folder, or what it writes of that once."""
        peer = PEERS[contender]
        if not peer.prepare:
            return self.data
        place = self.scratch / contender
        if not place.exists():
            peer.load(peer.prepare)(self.data, place)
        return place

    def _pixels(self, contender: str) -> Path:
        """The images as shards with pixels beside them, made once."""
        place = self.scratch / PIXELS[contender]
        if not place.exists():
            shard(self.data, place, workers=1, progress=False)
            write_pixels(place, Request(PIXELS[contender]), workers=self.workers, progress=False)
        return place

    def _loader(self, kind: str, source, pixels: Pixels | None = None) -> Loader:
        torch.set_num_threads(self.workers)
        order = Order(len(source), self.batch)
        return make_loader(source, self.inputs, order, kind=kind, pixels=pixels, threads=self.workers)

    def _own_loop(self) -> Iterator:
        """Epoch after epoch of `headrace.loader`, made as a stranger would."""
        options = {"batch_size": self.batch, "loader": "cpu", "threads": self.workers}
        torch.set_num_threads(self.workers)
        with headrace.loader(self.data, views=self.views, **options) as loader:
            while True:
                for batch in loader:
                    yield [copy for view in batch.views.values() for copy in view]

    def _batches(self, loader: Loader) -> Iterator:
        with closing(loader):
            for batch in loader:
                yield [copy for view in batch.views.values() for copy in view]

    def _by_threads(self, work: Callable[[int], object]) -> Iterator:
        with ThreadPoolExecutor(self.workers) as pool:
            for step in itertools.count():
                yield list(pool.map(work, self.order.ids(step).tolist()))

    def _read(self, index: int) -> int:
        return int(self.source.read(index)[::512].sum())  # every page of the file

    def _decode(self, index: int) -> np.ndarray:
        return decode_fast(self.source.read(index))

    def _copies(self) -> Iterator:
        """Finished views of a batch, copied from memory to memory: no loader can write them faster."""
        values = self.batch * sum(view.count * 3 * view.size**2 for view in self.views)
        source, target = np.ones((2, self.workers, -(-values // self.workers)), np.float32)
        with ThreadPoolExecutor(self.workers) as pool:
            while True:
                yield list(pool.map(np.copyto, target, source))

    def _resizer(self) -> Callable[[int], None]:
        """Crops are drawn beforehand, for all images at once."""
        sizes = torch.tensor([image_size(self.source.read(index)) for index in range(len(self.source))])
        params = draw_views(self.inputs, 0, 0, torch.arange(len(sizes)), sizes)
        boxes = {view.name: params[view.name].crop.transpose(0, 1).tolist() for view in self.views}

        def resize(index: int) -> None:
            image = self._decode(index)
            for view in self.views:
                out = np.empty((view.size, view.size, 3), np.uint8)
                for box in boxes[view.name][index]:
                    crop_and_resize(image, box, view.interpolation, out)

        return resize

    def forget(self) -> None:
        """Asks the system to drop the images from its page cache: whoever reads them next reads the disk."""
        shards = [self.scratch / form for form in PIXELS.values()]
        for path in itertools.chain.from_iterable(folder.rglob("*") for folder in (self.data, *shards)):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fdatasync(file.fileno())  # pages that are not on the disk yet are not dropped
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def check(self, contenders: Sequence[str]) -> dict[str, str]:
        """What is wrong with a contender's views, by name; nothing may be wrong with ours."""
        with closing(make_loader(self.source, self.inputs, Order(len(self.source), 8), kind="cpu")) as loader:
            batch = next(loader)
        oracle = reference_views(self.source, self.inputs, 0, 0, batch.ids)
        for view in self.views:
            error = ((batch.views[view.name] - oracle[view.name]) * torch.tensor(view.std).view(3, 1, 1) * 255).abs()
            if error.max() > 1.1:
                raise AssertionError(f"cpu: {view.name} is {error.max():.2f} grey levels from the reference")
        wrong, expected = {}, None
        for name in contenders:
            if name in CEILINGS:
                continue
            try:
                with closing(self.start(name)) as batches:
                    found = _summary(itertools.islice(batches, 4))
            except Exception as fault:  # a library that fails must not end the comparison
                wrong[name] = f"{type(fault).__name__}: {next(iter(str(fault).splitlines()), '')[:120]}"
                continue
            expected = expected or found
            if found[0] != expected[0] or np.abs(np.subtract(found[1], expected[1])).max() > 0.35:
                wrong[name] = f"shapes, mean and spread are {found}, ours are {expected}"
        return wrong


def shrink(data: Path, out: Path, side: int) -> Path:
    """The images of a folder, those with a longer side than `side` pixels as JPEGs of that size and quality 90."""
    source, encoding = open_source(data), Encoding(max_side=side)

    def write(index: int) -> None:
        path = (out / source.key(index)).with_suffix(".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(encoding.apply(source.read(index))[0]))

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, range(len(source))))
    return out


def _summary(batches: Iterator[list[torch.Tensor]]) -> tuple[list[tuple[int, ...]], list[float]]:
    """Shapes of the views, and mean and standard deviation over some batches."""
    made = [[view.float() for view in batch] for batch in batches]
    values = torch.cat([view.flatten() for batch in made for view in batch])
    return [tuple(view.shape) for view in made[0]], [round(values.mean().item(), 3), round(values.std().item(), 3)]
