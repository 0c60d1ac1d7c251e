"""How long an image takes in every stage between disk and model: each alone on one thread, and all of them together."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import torch

from ... import kernels
from ...cores import cores
from ...errors import UserError
from ...models.algorithm import Algorithm, Progress
from ...models.algorithms import make_algorithm
from ...pipelines.images.decode import DecodeError, image_size
from ...pipelines.images.jpeg import chroma_halved
from ...pipelines.images.planes import Planes
from ...pipelines.loaders.base import BaseLoader, Plan
from ...pipelines.loaders.choose import READ_PIXELS, choose_loader, make_loader
from ...pipelines.loaders.quarantine import Quarantine
from ...pipelines.order import Order
from ...pipelines.pixels.layout import usual_formats
from ...pipelines.pixels.sidecars import Pixels, open_pixels
from ...pipelines.sources.files import FileSource
from ...pipelines.sources.subset import Subset
from ...pipelines.spec import Batch, ByteSource, InputSpec, Loader
from ...pipelines.views import cut
from ...pipelines.views.draw import draw_views
from ...pipelines.views.finish import cut_view, places
from ...pipelines.views.yuv import to_planes
from ...train.engine.distributed import Launch, pick_device
from ...train.engine.optim import Schedules, build_optimizer
from ...train.engine.step import Stepper
from ...train.precision import resolved
from ...train.recipe.recipe import Recipe
from ...train.recipe.settings import DataSettings
from .advice import Measured, Timing
from .packages import missing_packages

_SAMPLES = 64  # images that the stages are measured with, the same ones again and again
_PIXEL_BYTES = 1 << 28  # at most, of these decoded: camera photos are large
_BATCH = 16  # images of a batch on CPUs, where a recipe's own would leave time for few
_COLD = 2000  # images that are read from disk at most


def measure(source: ByteSource, recipe: Recipe, seconds: float, with_model: bool) -> Measured:
    """Everything `advise` wants to know, in about `seconds`, besides what it takes to start loaders and model.

    Raises `UserError` for a source without a good image and for choices that cannot be honoured.
    """
    device = pick_device(recipe.train.device)
    kernels.configure(recipe.kernels)
    algorithm = make_algorithm(recipe.algorithm)
    inputs, seed = algorithm.inputs(), recipe.train.seed
    stored = open_pixels(source, recipe.data.pixels)
    loaders, chosen = _loaders(source, recipe.data.loader, device, inputs, stored)
    share = seconds / (7 + len(loaders) + 2 * (stored is None) + (device.type == "cuda") + 2 * with_model)
    stages = {}
    if cold := _read_cold(source, share):  # before anything else: pages that this process has mapped cannot be dropped
        stages["read, cold"] = cold
    good, sizes, image_bytes = _good_samples(source, seed)
    samples = Subset(source, good)
    largest = recipe.train.batch_size if device.type == "cuda" else min(_BATCH, recipe.train.batch_size)
    batch = min(largest, len(samples))
    plain = _PlainLoader(samples, inputs, Order(len(samples), batch, shuffle=False), device=device)
    with _one_thread():
        stages |= _stages(plain, 7 * share)
    together = stages.pop("together")
    if device.type == "cuda":
        stages["copy to GPU"] = _copy(inputs, batch, device, share)
    threads = recipe.data.threads or cores()
    height, width = sizes.double().mean(0).tolist()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    whole, model, training = {}, None, None
    for kind in loaders:
        if kind == "memory" and kind != chosen and len(source) * height * width * 3 > memory / 2:
            continue
        data = samples if kind == "memory" else source  # memory: its pace once everything is decoded
        order = Order(len(data), min(batch, len(data)), seed=seed)
        try:
            own = {"pixels": stored} if data is source and kind in READ_PIXELS else {}
            own["quarantine"] = Quarantine(data, recipe.data.max_bad)
            loader = make_loader(data, inputs, order, kind=kind, threads=threads, seed=seed, device=device, **own)
        except UserError:  # installed, and yet it cannot be used
            if kind == chosen:
                raise
            continue
        try:
            for _ in range(order.steps_per_epoch if kind == "memory" else 3):  # past what was prepared ahead
                next(loader)
            whole[kind] = _timed(partial(_consume, loader, 2), share)
            if with_model and kind == chosen:
                model, training = _model(algorithm, recipe, device, loader, share)
        finally:
            loader.close()
    pixels, free = {}, None
    if stored is None and "cpu" in loaders:
        options = {"kind": "cpu", "threads": threads, "seed": seed, "device": device}
        for form in usual_formats():
            with closing(make_loader(samples, inputs, plain.order, pixels=_Made(samples, form), **options)) as loader:
                pixels[form] = _timed(partial(_consume, loader, 2), share)
        place = getattr(source, "root", None)
        free = shutil.disk_usage(place).free if place is not None and Path(place).exists() else None
    return Measured(
        stages=stages,
        together=together,
        loaders=whole,
        loader=chosen,
        cores=cores(),
        threads=threads,
        torch_threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        folder=isinstance(source, FileSource),
        images=len(source),
        image_bytes=image_bytes,
        height=height,
        width=width,
        crop=max(view.size for view in inputs.views),
        memory=memory,
        pixels=pixels,
        free=free,
        model=model,
        training=training,
        missing=missing_packages(),
    )


class _Made(Pixels):
    """`Pixels` of a few images, as sidecars of a format would have them in the page cache."""

    words = "in memory"

    def __init__(self, source: ByteSource, form: str) -> None:
        self.form, self._images = form, []
        for index in range(len(source)):
            encoded = source.read(index)
            image = cut.decode_fast(encoded)
            self._images.append(image if form != "yuv420" else to_planes(image, chroma_halved(encoded)))

    def image(self, index: int) -> np.ndarray | Planes:
        return self._images[index]

    def size(self, index: int) -> tuple[int, int]:
        return self._images[index].shape[:2]


def _loaders(
    source: ByteSource, wanted: str, device: torch.device, inputs: InputSpec, pixels: Pixels | None
) -> tuple[list[str], str]:
    """The loaders that can serve the source here, and the one that training would use."""
    chosen, _ = choose_loader(source, wanted, device, inputs, pixels)
    kinds = []
    for kind in get_args(get_type_hints(DataSettings)["loader"]):
        try:
            if kind != "auto":
                kinds.append(choose_loader(source, kind, device, inputs)[0])
        except UserError:  # not installed, or not for this kind of source
            pass
    return kinds, chosen


def _timed(work: Callable[[], int], seconds: float) -> Timing | None:
    """`work` handles some images and returns how many, 0 when there are none left; None if there never were."""
    return _in_turn({"it": work}, seconds).get("it")


def _in_turn(works: dict[str, Callable[[], int]], seconds: float) -> dict[str, Timing]:
    """Each work once a round, so that what slows the machine meanwhile slows all alike; the first round warms up."""
    found, end, rounds = {name: [] for name in works}, time.perf_counter() + seconds, 0
    while rounds < 4 or time.perf_counter() < end:
        for name, work in works.items():
            began = time.perf_counter()
            images = work()
            if not images:
                end, rounds = began, 4
            elif rounds:
                found[name].append((time.perf_counter() - began) / images * 1e6)
        rounds += 1
    percentiles = {name: np.percentile(times, (50, 20, 80)).tolist() for name, times in found.items() if times}
    return {name: Timing(*values) for name, values in percentiles.items()}


def _read_cold(source: ByteSource, seconds: float) -> Timing | None:
    """One image after the other from the disk, after the system was asked to forget them; None where it cannot be."""
    if not callable(getattr(source, "extent", None)) or not hasattr(os, "posix_fadvise"):
        return None
    ids = Order(len(source), min(_COLD, len(source)), seed=1).ids(0).tolist()
    try:
        extents = [source.extent(index) for index in ids]
        for path, offset, size in extents:
            with open(path, "rb") as file:
                os.fdatasync(file.fileno())  # pages that are not on the disk yet are not dropped
                os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_DONTNEED)
    except OSError:
        return None
    chunks = iter([extents[at : at + 8] for at in range(0, len(extents), 8)])

    def read() -> int:
        chunk = next(chunks, ())
        for path, offset, size in chunk:
            with open(path, "rb", buffering=0) as file:
                os.pread(file.fileno(), size, offset)
        return len(chunk)

    return _timed(read, seconds)


def _good_samples(source: ByteSource, seed: int) -> tuple[list[int], torch.Tensor, float]:
    """Ids of images that decode, in random order; their sizes (N, 2) as height, width; mean bytes of an encoded one."""
    good, sizes, total, pixels = [], [], 0, 0
    for index in Order(len(source), min(4 * _SAMPLES, len(source)), seed=seed).ids(0).tolist():
        try:
            encoded = source.read(index)
            image = cut.decode_fast(encoded)
        except (OSError, DecodeError):
            continue
        good.append(index)
        sizes.append(image.shape[:2])
        total += len(encoded)
        pixels += image.nbytes
        if len(good) == _SAMPLES or pixels > _PIXEL_BYTES:
            break
    if not good:
        raise UserError(f"{source.name}: no image that can be decoded; headrace check {source.name} says why")
    return good, torch.tensor(sizes), total / len(good)


class _PlainLoader(BaseLoader):
    """The obvious loader, everything in the caller's thread; with `prepared` crops only what comes after them."""

    prepared: tuple[Plan, dict[str, torch.Tensor]] | None = None

    def plan(self, step: int) -> Plan:
        """What is known of a batch before a pixel is decoded; the few samples come again and again."""
        return self._plan(step % self.steps_per_epoch)

    def crops(self, plan: Plan, images: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """All views of a batch: name -> (count * B, size, size, 3) uint8."""
        found = {}
        for view in self.inputs.views:
            pixels = np.empty((view.count, len(images), view.size, view.size, 3), np.uint8)
            for copy, rows in zip(places(plan.params[view.name]), pixels):
                for image, place, row in zip(images, copy, rows):
                    cut_view(image, view, place, row)
            found[view.name] = torch.from_numpy(pixels).flatten(0, 1)
        return found

    def _cut(self) -> tuple[Plan, dict[str, torch.Tensor]]:
        if self.prepared is not None:
            return self.prepared
        plan = self.plan(self._step)
        crops = self.crops(plan, [cut.decode_fast(encoded) for encoded in plan.encoded])
        return plan, {name: pixels.to(self.device) for name, pixels in crops.items()}


def _stages(loader: _PlainLoader, seconds: float) -> dict[str, Timing]:
    """Each part of `loader`'s work by itself, over the same batches, and all of it ("together")."""
    source, inputs = loader.source, loader.inputs
    plans = [loader.plan(step) for step in range(loader.steps_per_epoch)]
    images = [[cut.decode_fast(encoded) for encoded in plan.encoded] for plan in plans]
    sizes = [torch.tensor([image.shape[:2] for image in batch]) for batch in images]
    finisher = _PlainLoader(source, inputs, loader.order, device=loader.device)
    crops = loader.crops(plans[0], images[0])
    finisher.prepared = (plans[0], {name: pixels.to(loader.device) for name, pixels in crops.items()})

    def over_batches(work: Callable[[int], object]) -> Callable[[], int]:
        turns = itertools.cycle(range(len(plans)))

        def one() -> int:
            work(next(turns))
            return loader.batch_size

        return one

    works = {
        # a source may return a view of the file: the bytes are touched here
        "read, warm": over_batches(lambda at: [bytes(source.read(index)) for index in plans[at].ids.tolist()]),
        "header": over_batches(lambda at: [image_size(encoded) for encoded in plans[at].encoded]),
        "draw": over_batches(lambda at: draw_views(inputs, 0, 0, plans[at].ids, sizes[at])),
        "decode": over_batches(lambda at: [cut.decode_fast(encoded) for encoded in plans[at].encoded]),
        "crop and resize": over_batches(lambda at: loader.crops(plans[at], images[at])),
        "augment": lambda: _consume(finisher),
        "together": lambda: _consume(loader),
    }
    return _in_turn(works, seconds)


def _consume(loader: Loader, batches: int = 1) -> int:
    """Takes batches until they are finished on the device; returns how many images."""
    taken = [next(loader) for _ in range(batches)]
    return sum(_finished(batch) for batch in taken)


def _finished(batch: Batch) -> int:
    if next(iter(batch.views.values())).is_cuda:
        torch.cuda.synchronize()
    return len(batch.ids)


def _copy(inputs: InputSpec, batch: int, device: torch.device, share: float) -> Timing:
    """All crops of a batch from pinned memory to the GPU."""
    shapes = [(view.count * batch, view.size, view.size, 3) for view in inputs.views]
    crops = [torch.zeros(shape, dtype=torch.uint8, pin_memory=True) for shape in shapes]

    def copy() -> int:
        for pixels in crops:
            pixels.to(device, non_blocking=True)
        torch.cuda.synchronize()
        return batch

    return _timed(copy, share)


def _model(
    algorithm: Algorithm, recipe: Recipe, device: torch.device, loader: Loader, share: float
) -> tuple[Timing, Timing]:
    """Training steps at a rate of all but 0: on one batch again and again, then on what the loader brings."""
    algorithm = algorithm.to(device, memory_format=torch.channels_last).train()
    optimizer, still = build_optimizer(algorithm, recipe.optim), replace(recipe.optim, lr=1e-30)
    options = {
        "precision": resolved(recipe.train.precision, Launch(device=device)),
        "clip_grad": recipe.optim.clip_grad,
    }
    stepper = Stepper(algorithm, algorithm, optimizer, Schedules(still, 1, 1000, 1000), **options)

    def step(batch: Batch) -> int:
        stepper(batch, Progress(0, 1000, 1000))
        return _finished(batch)

    fixed = next(loader)
    for _ in range(3):  # the first two take up to ten times as long: memory is allocated and kernels are chosen
        step(fixed)
    return _timed(lambda: step(fixed), share), _timed(lambda: step(next(loader)), share)


@contextmanager
def _one_thread():
    """torch's operators on one core, so that the parts' times can be added."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
