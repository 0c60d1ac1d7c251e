"""``headrace.loader``: the data path for a loop of one's own."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import Dataset

from ...cores import cores
from ...errors import UserError
from ..identity import LOOKED_AT, spread
from ..images.rules import rules, under, use_rules
from ..order import Order
from ..pixels.sidecars import MODES
from ..plan.facts import plan_hash
from ..plan.given import as_source
from ..plan.mixture import MixedOrder
from ..plan.order_of import order_of
from ..sources.stream import StreamSource
from ..spec import Batch, ByteSource, LoaderStats, MaskSpec, ViewSpec
from .arguments import as_inputs, device_of, one_of, ruled, share, whole
from .choose import LOADERS, choose_pixels, make_loader
from .quarantine import Quarantine


def loader(
    data: str | os.PathLike | ByteSource | Dataset | np.ndarray | torch.Tensor | Sequence,
    *,
    views: str | ViewSpec | Sequence[ViewSpec],
    batch_size: int,
    mask: str | MaskSpec | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    loader: str = "auto",
    threads: int | None = None,
    rank: int | None = None,
    world: int | None = None,
    last_batch: Literal["drop", "pad"] = "drop",
    pixels: Literal["auto", "never", "require"] = "auto",
    shuffle: bool = True,
    block: int | Literal["shard"] | None = None,
    dtype: torch.dtype = torch.float32,
    max_bad: float = 0.01,
    quarantine: str | os.PathLike | None = None,
    channels: int | None = None,
    range: tuple[float, float] | Literal["full", "percentile"] | None = None,
) -> EpochLoader:
    """Batches of multi-view, masked images, for a loop of one's own.

    Args:
        data: whatever `data.train` of a recipe may be (a folder, shards, ``kind:path``, an address); a `ByteSource`;
            images as (N, H, W, 3) uint8 or a list of (H, W, 3), alone or as (images, labels); a list of paths; several
            sets as ``{name: {"source": ..., "weight": ...}}``; a
            ``torch.utils.data.Dataset`` of encoded bytes, or of Pillow images, which is as slow as the data set.
        views: a published method's, such as "moco_v2" or "byol.first" (`headrace.pipelines.VIEWS`), or `ViewSpec`s.
        batch_size: images of all processes together; each gets its equal part.
        mask: a published method's, such as "mae" (`headrace.pipelines.MASKS`), for the first of the views, or a
            `MaskSpec`.
        seed: of order, crops, colours and masks: the same seed, the same batches, on any number of processes.
        device: where batches are: "cpu", "cuda", "cuda:1", or "auto".
        loader: auto, cpu, dali, memory, webdataset or ffcv.
        threads: of this process; None: its share of the cores.
        rank, world: which of how many processes this is; None: torch.distributed's when a loop begins, else torchrun's.
        last_batch: what becomes of the images that do not fill an epoch's last batch: left out (others in every epoch),
            or filled up with the epoch's first.
        pixels: decoded pixels beside shards, which `headrace pixels` writes: "auto" uses them where all shards have
            them, "never" decodes, "require" does neither without them.
        shuffle: False for the order of the source.
        block: read in blocks of so many neighbours, or of a shard, for slow disks.
        dtype: of the views.
        max_bad: the share of images that may be undecodable, each replaced by another, before the loop ends.
        quarantine: a file that gets a line of JSON for each of those.
        channels: 1 to 16, of deep images: views (count, B, channels, S, S) of samples of sixteen bits, with a mean and
            a standard deviation for each channel in `views`. Arrays may then be of any integers or floating point,
            their channels last or first. None: as before, RGB of eight bits at first.
        range: which values of images of more than eight bits are black and white, as `data.range` of a recipe. Both are
            rules of the process, for all loaders that are made from here on; None leaves them as they are. A loader
            keeps those that it was made under.

    Returns:
        An `EpochLoader`: ``for batch in loader`` is one epoch of ``len(loader)`` batches.

    Raises:
        UserError: for what cannot be done, in one line; in a loop, for too many bad images as well.
    """
    batch_size, seed = whole("batch_size", batch_size, 1), whole("seed", seed)
    threads = None if threads is None else whole("threads", threads, 1)
    block = block if block in (None, "shard") else whole("block", block, 1)
    one_of("loader", loader, LOADERS)
    one_of("last_batch", last_batch, ("drop", "pad"))
    one_of("pixels", pixels, MODES)
    one_of("shuffle", shuffle, (True, False))
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"dtype: needs a type of floating point such as torch.float16, got {dtype!r}")
    share("max_bad", max_bad)
    where = device_of(device)
    use_rules(ruled(channels, range))
    source, inputs = as_source(data), as_inputs(views, mask)
    order = order_of(source, batch_size, seed=seed, shuffle=shuffle, last=last_batch, block=block)
    kind, _, stored = choose_pixels(source, loader, pixels, where, inputs)
    aside = Quarantine(source, max_bad, None if quarantine is None else Path(quarantine))
    options = {"kind": kind, "pixels": stored, "threads": threads, "seed": seed, "dtype": dtype, "quarantine": aside}
    return EpochLoader(source, inputs, order, device=where, rank=rank, world=world, **options)


class EpochLoader:
    """Iterable over epochs: every ``for`` is one, the next of the run, and has ``len(loader)`` batches.

    A loop that was left early is over: the next one begins the next epoch. After `load_state_dict` it begins exactly
    where the state was taken instead, in the middle of an epoch if need be, on any number of processes.

    Threads start with the first loop, and end with `close`, at the end of a ``with`` block, or with the object.
    """

    def __init__(self, source, inputs, order, *, device, rank, world, kind, threads, **options) -> None:
        self.source, self.inputs, self.order, self.kind = source, inputs, order, kind
        self._device, self._given, self._threads, self._options = device, (rank, world), threads, options
        self._step = 0  # of the next batch, counted over all epochs
        self._exact = True  # whether the next loop begins at `_step` itself
        self._turn = 0  # which loop is going on
        self._data: int | None = None  # what `_told_apart` says, when somebody asked
        self._rules = rules()
        self._begin()

    def _begin(self) -> None:
        self._made = _Made()
        self._finalizer = weakref.finalize(self, self._made.close)

    def __getstate__(self) -> dict:
        """A copy has threads of its own, and is where this one is: in no loop."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_made", "_finalizer")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._begin()

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.order.steps_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self.order.epoch(self._step)

    def __iter__(self) -> Iterator[Batch]:
        if not self._exact:
            self._step = -(-self._step // len(self)) * len(self)
        self._turn += 1
        return self._batches(self._turn)

    def _batches(self, turn: int) -> Iterator[Batch]:
        inner = self._placed()
        if inner.state_dict()["step"] != self._step:
            inner.load_state_dict({"step": self._step})
        for _ in range(len(self) - self._step % len(self)):
            if turn != self._turn:
                raise UserError("loader: closed, or another loop over it has begun meanwhile; make one loader for each")
            if self._made.place is None or self._made.place[2] != os.getpid():
                raise UserError("loader: this loop began before the process was forked; begin one in the new process")
            batch = next(inner)
            self._step, self._exact = self._step + 1, False
            yield batch

    def _placed(self):
        """The loader of this process; made anew when it has become another one of the processes, or after a fork."""
        rank, world = process_of(*self._given)
        place = (rank, world, os.getpid())
        if self._made.place != place:
            self._made.close()
            device = self._device
            if device.type == "cuda" and device.index is None:
                device = torch.device("cuda", torch.cuda.current_device())
            threads = self._threads or threads_of(world)
            options = {**self._options, "device": device, "rank": rank, "world": world, "threads": threads}
            with under(self._rules):  # the process may have gone on to others
                self._made.loader = make_loader(self.source, self.inputs, self.order, kind=self.kind, **options)
            self._made.place = place
        return self._made.loader

    def state_dict(self) -> dict[str, int]:
        """The position behind the last batch that was given out, and what it is a position in: integers."""
        order = self.order
        if self._data is None:
            self._data = _told_apart(self.source, order)
        own = {"samples": order.samples, "batch_size": order.global_batch, "seed": order.seed, "data": self._data}
        return {"step": self._step, **own}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next loop continues there. Raises `UserError` for a state of other data, another order, batch size or
        seed."""
        own = self.state_dict()
        if not isinstance(state, Mapping):
            raise UserError(f"loader: the state is {type(state).__name__}, not what state_dict() gave")
        keys = [key for key in own if key not in ("step", "data") and state.get(key) != own[key]]
        differ = [f"{key} {state.get(key)}, here {own[key]}" for key in keys]
        if not differ and state.get("data") != own["data"]:
            differ = ["its images, their order or their shares are others"]
        try:
            step = whole("step", state.get("step"), 0)
        except UserError:
            differ = differ or ["it names no step"]
        if differ:
            raise UserError(f"loader: the state is of another loader: {'; '.join(differ)}")
        self._step, self._exact, self._turn = step, True, self._turn + 1

    def stats(self) -> LoaderStats:
        """Images, seconds waited, images that were replaced."""
        return self._made.loader.stats() if self._made.loader else LoaderStats()

    def close(self) -> None:
        """Ends every thread. Safe to call twice; a loop after it starts them again, at the next epoch."""
        self._turn += 1
        self._made.close()

    def __enter__(self) -> EpochLoader:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Made:
    """What is alive of an `EpochLoader`: held apart, so that the end of that one ends this."""

    def __init__(self) -> None:
        self.loader, self.place = None, None

    def close(self) -> None:
        loader, forked = self.loader, self.place is not None and self.place[2] != os.getpid()
        self.loader = self.place = None
        if loader is not None and not forked:  # a forked process has no threads to end
            loader.close()


def _told_apart(source: ByteSource, order: Order | MixedOrder) -> int:
    """63 bits that tell which samples there are, by keys spread over the set, and in which order."""
    total = hashlib.sha256(f"{plan_hash(source, order)} {order.shuffle}".encode())
    if not isinstance(source, StreamSource):  # which does not know its samples before they come
        some = spread(len(source), LOOKED_AT)
        if callable(glance := getattr(source, "glance", None)):
            glance(some)
        for index in some:
            total.update(source.key(index).encode("utf-8", "surrogateescape") + b"\0")
    return int.from_bytes(total.digest()[:8], "big") >> 1


def process_of(rank: int | None, world: int | None) -> tuple[int, int]:
    """(rank, world) as given, else torch.distributed's, else torchrun's, else (0, 1). Raises `UserError`."""
    if (rank is None) != (world is None):
        raise UserError("rank, world: give both or neither")
    if rank is None and dist.is_available() and dist.is_initialized():
        rank, world = dist.get_rank(), dist.get_world_size()
    elif rank is None:
        try:
            rank, world = (int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1)))
        except ValueError as fault:
            raise UserError(f"the variables RANK and WORLD_SIZE: {fault}; unset them, or give rank and world") from None
    rank, world = whole("rank", rank), whole("world", world)
    if not 0 <= rank < world:
        raise UserError(f"rank, world: process {rank} of {world} does not exist; ranks count from 0")
    return rank, world


def threads_of(world: int) -> int:
    """This process's share of the cores that its node lets it use, when there are `world` processes in all."""
    a_node = os.environ.get("LOCAL_WORLD_SIZE") or torch.cuda.device_count() or world  # where nobody says: a GPU each
    return max(1, cores() // min(world, int(a_node)))
