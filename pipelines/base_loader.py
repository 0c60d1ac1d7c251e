"""What every loader does alike: position, plan, substitution of bad images, finishing, statistics.

A loader adds one thing: how the crops of a planned batch are cut (`_cut`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..errors import UserError
from ..kernels.augment import augment
from .decode import DecodeError, image_size
from .draw import draw_views
from .masks import draw_mask
from .order import Order
from .spec import Batch, ByteSource, InputSpec, LoaderStats, ViewParams

_SUBSTITUTES = 1000  # consecutive bad images after which the source, not an image, is at fault


@dataclass
class Plan:
    """All that is known of a batch before a pixel is decoded."""

    step: int
    epoch: int
    ids: torch.Tensor  # (B,) int64
    encoded: list  # per sample: bytes as a 1-D uint8 array, or what a subclass keeps instead
    params: dict[str, ViewParams]


class BaseLoader:
    """Endless iterator of this rank's batches, in the order's global sequence.

    An image that cannot be read or decoded is replaced by the next good one of the source, so that step counts and
    batch sizes never change; `stats()` counts and names every replacement.
    """

    def __init__(
        self,
        source: ByteSource,
        inputs: InputSpec,
        order: Order,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.source, self.inputs, self.order = source, inputs, order
        self.seed, self.device, self.rank, self.world = seed, torch.device(device), rank, world
        self.steps_per_epoch = order.steps_per_epoch
        self.batch_size = len(order.ids(0, rank, world))
        self._step = 0
        self._bad: dict[int, str] = {}
        self._stats = LoaderStats()

    # ---- what a subclass provides

    def _cut(self) -> tuple[Plan, dict[str, torch.Tensor]]:
        """The plan of step `self._step` and its crops: view name -> (count * B, size, size, 3) uint8 on the device."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to end unless a subclass starts something."""

    # ---- the contract

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        plan, crops = self._cut()
        ids = plan.ids.to(self.device)
        views = {}
        for view in self.inputs.views:
            params = plan.params[view.name]
            finished = augment(
                crops[view.name],
                flip=params.flip.flatten(),
                jitter=params.jitter.flatten(0, 1),
                order=params.order.flatten(0, 1),
                gray=params.gray.flatten(),
                sigma=params.sigma.flatten(),
                solarize=params.solarize.flatten(),
                sigma_max=view.blur_sigma[1],
                mean=view.mean,
                std=view.std,
            )
            views[view.name] = finished.unflatten(0, (view.count, -1))
        mask = draw_mask(self.inputs.mask, self.seed, plan.epoch, ids) if self.inputs.mask else None
        labels = None
        if self.source.classes is not None:
            labels = torch.tensor([self.source.label(i) for i in plan.ids.tolist()], device=self.device)
        self._step += 1
        self._stats.images += len(ids)
        self._stats.wait_seconds += time.perf_counter() - began
        return Batch(views=views, ids=plan.ids, labels=labels, mask=mask, step=plan.step, epoch=plan.epoch)

    def state_dict(self) -> dict[str, int]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._step = int(state["step"])

    def stats(self) -> LoaderStats:
        self._stats.bad_images = len(self._bad)
        self._stats.replaced = [f"{self.source.key(i)}: {reason}" for i, reason in list(self._bad.items())[:100]]
        return self._stats

    # ---- for subclasses

    def _plan(self, step: int) -> Plan:
        """Reads the samples of a step and draws its views."""
        epoch = self.order.epoch(step)
        wanted = self.order.ids(step, self.rank, self.world).tolist()
        ids, encoded, sizes = zip(*(self._fetch(index) for index in wanted))
        ids = torch.tensor(ids)
        params = draw_views(self.inputs, self.seed, epoch, ids, torch.tensor(sizes))
        return Plan(step=step, epoch=epoch, ids=ids, encoded=list(encoded), params=params)

    def _fetch(self, index: int) -> tuple[int, object, tuple[int, int]]:
        """(index, bytes, (height, width)) of a sample, or of the next good one behind it."""
        for _ in range(_SUBSTITUTES):
            if index not in self._bad:
                try:
                    encoded = self.source.read(index)
                    return index, encoded, self.source.size(index) or image_size(encoded)
                except (OSError, DecodeError) as fault:
                    self._reject(index, fault)
            index = (index + 1) % len(self.source)
        raise UserError(
            f"{self.source.name}: {len(self._bad)} images cannot be decoded, the last one is "
            f"{self.source.key(index)} ({self._bad.get(index, '')}); check the data set"
        )

    def _reject(self, index: int, fault: Exception) -> None:
        self._bad[index] = str(fault)
