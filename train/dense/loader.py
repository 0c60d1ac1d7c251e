"""Images with annotations as batches: workers of torch's `DataLoader` read, decode and distort them.

A sample is a function of (seed, epoch, sample id), so nothing depends on workers, processes or where a run was resumed.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ...errors import ProcessError, UserError
from ...pipelines.images.decode import DecodeError
from ...pipelines.order import Order
from ...pipelines.rng import uniform
from ...pipelines.spec import Batch, LoaderStats
from ..engine.signals import SIGNALS

DRAWS = 40  # random numbers that a sample may use
_PATIENCE = 600  # seconds without a batch after which a worker is given up
_GRACE = 20  # seconds that a worker goes on after SIGTERM

# (source, index, draws in [0, 1) or None for the test) -> what `collate` takes a list of
MakeSample = Callable[[Any, int, list[float] | None], Any]


@dataclass(frozen=True)
class _Fault:
    """Why a sample could not be made, on its way from a worker."""

    text: str


@dataclass
class _Samples(Dataset):
    source: Any
    make: MakeSample
    seed: int | None  # None: no draws

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, index = place
        draws = None
        if self.seed is not None:
            draws = uniform(self.seed, "annotated", epoch, torch.tensor([index]), DRAWS)[0].tolist()
        try:
            return self.make(self.source, index, draws)
        except UserError as fault:
            return _Fault(str(fault))
        except (OSError, DecodeError) as fault:
            return _Fault(f"{self.source.name}: {self.source.key(index)}: {fault}; unpack its archive again")


def _collated(samples: list, collate: Callable[[list], Any]) -> Any:
    fault = next((sample for sample in samples if isinstance(sample, _Fault)), None)
    return collate(samples) if fault is None else fault


def _started(samples: _Samples, places: Any, collate: Callable[[list], Any], threads: int, pin: bool) -> Iterator:
    """Batches of the places (epoch, index) in the lists of `places`, made by `threads` workers."""
    return iter(
        DataLoader(
            samples,
            batch_sampler=places,
            collate_fn=partial(_collated, collate=collate),
            num_workers=threads,
            timeout=_PATIENCE,
            worker_init_fn=_undisturbed,
            pin_memory=pin,
        )
    )


def _undisturbed(_worker: int) -> None:
    """Schedulers send their signals to every process, but which step is the last one, the run decides. SIGTERM is also
    how Python ends what is left of its children, so it only sets a time."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))


def _end(batches: Iterator) -> None:
    batches._shutdown_workers()  # it happens by itself, too, but only when nothing refers to them, such as a traceback


@contextmanager
def workers_watched() -> Iterator[None]:
    """A `ProcessError` in place of what torch raises, wherever the process then is, when a worker was killed."""
    try:
        yield
    except RuntimeError as fault:
        if "DataLoader" not in str(fault):
            raise
        with suppress(RuntimeError):  # torch raises it once more when it is told of the child's end
            time.sleep(0.2)
        raise ProcessError(
            f"{str(fault).splitlines()[0]}; where memory is short, lower data.threads or train.batch_size"
        ) from None


def _next(batches: Iterator) -> Any:
    try:
        batch = next(batches)
    except (OSError, EOFError):  # what is left of the pipe of a worker that was killed
        raise RuntimeError("a DataLoader worker ended") from None
    if isinstance(batch, _Fault):
        raise ProcessError(batch.text)
    return batch


class AnnotatedLoader:
    """An endless `Loader` of what ``make(source, id, draws)`` and ``collate(samples) -> dict`` make of the samples.

    The dict holds arguments of `Batch`: ``views``, and ``labels`` or ``objects``; its tensors go to the device.
    """

    def __init__(
        self,
        source: Any,
        make: MakeSample,
        collate: Callable[[list], dict],
        order: Order,
        *,
        seed: int,
        device: torch.device,
        threads: int,
        rank: int,
        world: int,
    ) -> None:
        self.steps_per_epoch = order.steps_per_epoch
        self._samples, self._collate, self._order = _Samples(source, make, seed), collate, order
        self._device, self._threads, self._rank, self._world = device, threads, rank, world
        self._step, self._batches, self._stats = 0, None, LoaderStats()

    def __iter__(self) -> AnnotatedLoader:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        if self._batches is None:
            pin = self._device.type == "cuda"
            places = _Places(self._order, self._rank, self._world, self._step)
            self._batches = _started(self._samples, places, self._collate, self._threads, pin)
        parts = on_device(_next(self._batches), self._device)
        ids = self._order.ids(self._step, self._rank, self._world)
        epoch = self._order.epoch(self._step)
        batch = Batch(ids=ids, mask=None, step=self._step, epoch=epoch, **{"labels": None, **parts})
        self._step += 1
        self._stats.images += len(ids)
        self._stats.wait_seconds += time.perf_counter() - began
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.close()
        self._step = state["step"]

    def stats(self) -> LoaderStats:
        return self._stats

    def close(self) -> None:
        if self._batches is not None:
            _end(self._batches)
        self._batches = None


@dataclass
class _Places:
    """The (epoch, id) of each batch of a process, from a step on and without end."""

    order: Order
    rank: int
    world: int
    first: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in itertools.count(self.first):
            epoch = self.order.epoch(step)
            yield [(epoch, index) for index in self.order.ids(step, self.rank, self.world).tolist()]


def each_once(source: Any, make: MakeSample, *, threads: int, rank: int, world: int) -> Iterator[tuple[int, Any]]:
    """(index, sample) of every sample of a source that is this process's to test, undistorted."""
    own = range(rank, len(source), world)
    samples = _started(_Samples(source, make, None), [[(0, index)] for index in own], _only, threads, False)
    try:
        for index in own:
            yield index, _next(samples)
    finally:
        _end(samples)


def _only(samples: list) -> Any:
    return samples[0]


def on_device(value: Any, device: torch.device) -> Any:
    """Tensors in dicts and lists, moved."""
    if torch.is_tensor(value):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: on_device(item, device) for key, item in value.items()}
    return [on_device(item, device) for item in value] if isinstance(value, list) else value
