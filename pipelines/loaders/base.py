"""What every loader does alike: position, plan, substitution of bad images, faults, finishing, statistics.

A loader adds one thing: how the crops of a planned batch are cut (`_cut`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...errors import UserError
from ...kernels.augment import OPERATOR, augment, blur_taps, parameter_table
from ...kernels.registry import decide
from ..images.decode import DecodeError, image_size
from ..images.rules import rules, under
from ..order import Order, share_of
from ..spec import Batch, ByteSource, InputSpec, LoaderStats, Place, ViewParams, ViewSpec
from ..views.draw import draw_views
from ..views.finish import after_colour, before_colour, flips_early, operate
from ..views.masks import draw_mask
from .device import to_device
from .quarantine import Quarantine

if TYPE_CHECKING:  # numba takes half a second to import, which loaders on GPUs can do without
    from ..views.cpu_augment import ViewMaker


class LoaderError(Exception):
    """Something that no loader foresees went wrong; the message says in which stage and at which sample."""


@dataclass
class Plan:
    """All that is known of a batch before a pixel is decoded."""

    step: int
    epoch: int
    passes: int | torch.Tensor  # what is drawn for a sample depends on: the epoch, or of a mixture's samples (B,) int64
    ids: torch.Tensor  # (B,) int64
    encoded: list  # per sample: bytes as a 1-D uint8 array, or what a subclass keeps instead
    sizes: tuple[tuple[int, int], ...]  # (height, width) of the upright images
    params: dict[str, ViewParams]
    inputs: InputSpec  # what is wanted of this batch


class BaseLoader:
    """Endless iterator of this rank's batches, in the order's global sequence.

    An image that cannot be read or decoded is replaced by another one, of its own shard where there are shards, so that
    step counts and batch sizes never change; `quarantine` knows every such image and says when there are too many.

    `next` raises `UserError` for that, and `LoaderError` for anything unforeseen in any thread of the loader.
    """

    exact = True  # whether ids are those of `order`, and views those of `reference.py`

    def __init__(
        self,
        source: ByteSource,
        inputs: InputSpec,
        order: Order,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
        world: int = 1,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.source, self.inputs, self.order = source, inputs, order
        self.seed, self.device, self.rank, self.world = seed, torch.device(device), rank, world
        self.dtype = dtype  # of the views
        self.steps_per_epoch = order.steps_per_epoch
        self.batch_size = share_of(order.global_batch, world)
        self.rules = rules()  # for all that it decodes: the process may go on to others
        self._makers = self._view_makers()
        self._step = order.first
        self._follow = getattr(source, "follow", None)  # of a source that fetches what will be read
        self._reader = object()  # whom it knows this loader as
        self._left = False  # whether that is over
        self._bad = Quarantine(source) if quarantine is None else quarantine
        sets = len(getattr(order, "parts", ()))
        self._stats = LoaderStats(set_waits=[0.0] * sets, set_bad=[0] * sets)
        self._spent: dict[int, float] = {}  # of several sets: seconds that images of coming batches took so far

    # ---- what a subclass provides

    def _cut(self) -> tuple[Plan, dict[str, torch.Tensor]]:
        """The plan of step `self._step` and its crops: view name -> (count * B, size, size, C) uint8 on the device, or
        uint16 of deep images.

        Or of views in `self._makers` the result of its colour half: (count * B, 3, size, size) float32, channels-last.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Ends what a source fetches for this loader; a subclass ends its threads after that."""
        if self._follow is not None:
            self._left = True
            self.source.leave(self._reader)

    def hurry(self) -> None:
        """The run was asked to stop: of a source that is far away nothing is awaited for long. For signal handlers."""
        if self._follow is not None:
            self.source.hurry()

    # ---- the contract

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        with under(self.rules):
            plan, crops = self._cut()
        wanted = plan.inputs
        small = [plan.ids, *(color_table(view, plan.params[view.name]) for view in wanted.views)]
        if self.source.classes is not None:
            small.append(torch.tensor(self._labels(plan)))
        ids, *small = to_device(small, self.device)
        views = {
            view.name: self._finish(view, crops[view.name], plan, table) for view, table in zip(wanted.views, small)
        }
        labels = small[-1] if self.source.classes is not None else None
        mask = None
        if wanted.mask is not None:
            place = Place(plan.step, self.rank * len(ids), self.world * len(ids))
            mask = draw_mask(wanted.mask, self.seed, plan.passes, ids, place)
        self._step += 1
        self._stats.images += len(ids)
        waited = time.perf_counter() - began
        self._stats.wait_seconds += waited
        origin = self.order.origin(plan.ids)
        if origin is not None:
            self._share_out(waited, plan.ids.tolist(), origin.tolist())
        mixed = {} if origin is None else {"origin": origin, "passes": plan.passes}
        return Batch(views=views, ids=plan.ids, labels=labels, mask=mask, step=plan.step, epoch=plan.epoch, **mixed)

    def _share_out(self, waited: float, ids: list[int], origin: list[int]) -> None:
        """Adds to each set what of a wait was for its images: the share of the seconds that reading and, where it is
        done one by one, decoding and cropping them took."""
        spent = [self._spent.pop(index, 0.0) for index in ids]
        whole = sum(spent)
        for number, seconds in zip(origin, spent):
            self._stats.set_waits[number] += waited * (seconds / whole if whole else 1 / len(ids))

    def _spend(self, index: int, began: float) -> None:
        if self._stats.set_waits:
            self._spent[index] = self._spent.get(index, 0.0) + time.perf_counter() - began

    def _finish(self, view: ViewSpec, crops: torch.Tensor, plan: Plan, table: torch.Tensor) -> torch.Tensor:
        """What `_cut` gave and its parameters -> views (copies, B, C, side, side)."""
        params = plan.params[view.name]
        if not crops.dtype.is_floating_point:
            crops = operate(before_colour(crops, view, params), view, self.seed, plan.passes, plan.ids)
        if crops.dtype.is_floating_point:
            finished = crops.to(self.dtype)
        elif view in self._makers:
            finished = self._makers[view].finish_batch(crops, table).to(self.dtype)
        else:
            finished = augment(
                crops,
                table,
                mean=view.mean,
                std=view.std,
                sigma_max=view.blur_sigma[1] if view.blur else 0.0,
                gray_weights=view.gray_weights,
                gray_first=view.gray_first,
                dtype=self.dtype,
            )
        finished = finished.unflatten(0, (view.count, -1))
        return after_colour(finished, view, params, self.seed, plan.passes, plan.ids)

    def _view_makers(self) -> dict[ViewSpec, ViewMaker]:
        """On a CPU a `ViewMaker` for each view of RGB, unless the user chose an implementation of `augment` instead."""
        if self.device.type != "cpu" or rules().channels is not None:
            return {}
        from ..views.cpu_augment import ViewMaker

        return {
            view: ViewMaker(view)
            for kind in self.inputs.kinds
            for view in kind.views
            if decide(OPERATOR, ("cpu", self.dtype, view.size, 0)).why == "automatic"
            and not (view.blur and blur_taps(view.blur_sigma[1]) // 2 >= view.size)  # `augment` says what is wrong
        }

    def reorder(self, order: Order) -> None:
        """Goes on at the same step with another order, whose batches are as large; what is in preparation is lost."""
        self.order = order
        self.load_state_dict(self.state_dict())

    def state_dict(self) -> dict[str, int]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._step = int(state["step"])
        self._spent.clear()

    def stats(self) -> LoaderStats:
        self._stats.bad_images = len(self._bad)
        self._stats.replaced = self._bad.lines(100)
        if self._stats.set_bad:
            origin = self.order.origin(torch.tensor(self._bad.indices(), dtype=torch.int64))
            self._stats.set_bad = torch.bincount(origin, minlength=len(self._stats.set_bad)).tolist()
        return self._stats

    # ---- for subclasses

    def _plan(self, step: int) -> Plan:
        """Reads the samples of a step and draws its views."""
        if self._follow is not None:
            self._follow(self._reader, self._wanted_at, step)
        inputs = self.inputs.at(step)
        epoch, passes = self.order.epoch(step), self.order.passes(step, self.rank, self.world)
        ids, encoded, sizes = zip(*self._gather(step))
        ids = torch.tensor(ids)
        try:
            params = draw_views(inputs, self.seed, passes, ids, torch.tensor(sizes))
        except Exception as fault:
            raise LoaderError(f"draw: step {step}: {type(fault).__name__}: {fault}") from fault
        drawn = {"params": params, "inputs": inputs}
        return Plan(step=step, epoch=epoch, passes=passes, ids=ids, encoded=list(encoded), sizes=sizes, **drawn)

    def _wanted_at(self, step: int) -> torch.Tensor:
        """The samples of a step to come; none behind the last."""
        last = self.order.ends is not None and step >= self.order.ends
        return torch.empty(0, dtype=torch.int64) if last else self.order.ids(step, self.rank, self.world)

    def _gather(self, step: int) -> list[tuple[int, object, tuple[int, int]]]:
        """(index, bytes, (height, width)) of every sample of this rank's batch."""
        return [self._fetch(index) for index in self.order.ids(step, self.rank, self.world).tolist()]

    def _labels(self, plan: Plan) -> list[int]:
        return [self.source.label(i) for i in plan.ids.tolist()]

    def _fetch(self, wanted: int) -> tuple[int, object, tuple[int, int]]:
        """(index, bytes, (height, width)) of a sample, or of the one that stands in for it."""
        if self._left:
            raise LoaderError("read: the loader was closed")
        began = time.perf_counter()
        for index in self._bad.candidates(wanted):
            if index not in self._bad and (found := self._load(index)) is not None:
                self._spend(index, began)
                return index, *found
        raise UserError(
            f"{self.source.name}: not one of {len(self.source):,} images can be decoded; check the data set"
        )

    def _load(self, index: int) -> tuple[object, tuple[int, int]] | None:
        """(bytes, (height, width)) of one sample; None for a bad one, which is set aside."""
        encoded = self._attempt("read", index, self.source.read, index)
        if encoded is None:
            return None
        # of the bytes, not of the index: what has been damaged since must not reach a decoder under its old size
        size = self._attempt("header", index, image_size, encoded)
        return None if size is None else (encoded, size)

    def _attempt(self, stage: str, index: int, work: Callable, argument):
        """`work(argument)`; None where that shows the sample to be bad, which is then set aside.

        Raises `LoaderError`, which names the stage and the sample, for every other exception.
        """
        try:
            return work(argument)
        except (OSError, DecodeError) as fault:
            self._reject(index, fault)
        except UserError:  # no word on the sample: its server is silent
            raise
        except Exception as fault:
            where = self._bad.where(index)
            shard = "" if where["shard"] is None else f" of {where['shard']}"
            raise LoaderError(f"{stage}: {where['key']}{shard}: {type(fault).__name__}: {fault}") from fault
        return None

    def _reject(self, index: int, fault: Exception) -> None:
        self._bad.add(index, str(fault))


def color_table(view: ViewSpec, params: ViewParams) -> torch.Tensor:
    """The colour half of the parameters, (count * B, 12), as `augment` takes it."""
    return parameter_table(
        jitter=params.jitter.flatten(0, 1),
        order=params.order.flatten(0, 1),
        gray=params.gray.flatten(),
        sigma=params.sigma.flatten(),
        solarize=params.solarize.flatten(),
        flip=params.flip.flatten() & (not flips_early(view)),
    )
