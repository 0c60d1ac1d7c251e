"""The loop: one batch in, one optimizer step out, nothing hidden."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..models.algorithm import Algorithm, Progress, StepOutput
from ..pipelines.rng import stream_key
from ..pipelines.spec import Batch, Loader
from .distributed import Launch
from .metrics import MetricsLog
from .settings import TrainSettings


def wrap(algorithm: Algorithm, launch: Launch) -> nn.Module:
    """The algorithm, its gradients averaged over ranks where there are several."""
    if launch.world == 1:
        return algorithm
    device_ids = [launch.device] if launch.device.type == "cuda" else None
    return DistributedDataParallel(
        algorithm, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def train_step(
    model: nn.Module,
    batch: Batch,
    progress: Progress,
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    clip_grad: float | None,
    autocast: bool,
) -> StepOutput:
    """Forward, backward, clip, step. No host synchronisation."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=autocast):
        output = model(batch, progress)
    optimizer.zero_grad(set_to_none=True)
    output.loss.backward()
    if clip_grad is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
    optimizer.step()
    return output


def train(
    algorithm: Algorithm,
    loader: Loader,
    optimizer: torch.optim.Optimizer,
    lrs: np.ndarray,
    settings: TrainSettings,
    launch: Launch,
    log: MetricsLog,
    *,
    first_step: int,
    clip_grad: float | None,
    save: Callable[[int], None],
) -> None:
    """Steps `first_step` .. len(lrs) - 1; `save(finished_steps)` every `save_every` steps and at the end.

    Raises `UserError` when the loss is no longer a number (looked at on logging steps only).
    """
    model = wrap(algorithm, launch).train()
    total_steps, interval = len(lrs), _Interval(launch, settings.batch_size, loader)
    for step in range(first_step, total_steps):
        batch = next(loader)
        # everything a step draws (dropout, drop path) is a function of (seed, step, rank), so there is no state to save
        torch.manual_seed(stream_key(settings.seed, f"step/{launch.rank}", step))
        progress = Progress(step, total_steps, loader.steps_per_epoch)
        output = train_step(
            model,
            batch,
            progress,
            optimizer,
            lr=float(lrs[step]),
            clip_grad=clip_grad,
            autocast=settings.precision == "bf16",
        )
        algorithm.after_step(progress)
        interval.add(output)
        finished = step + 1
        if finished % settings.log_every == 0 or finished == total_steps:
            row = interval.row(finished, batch.epoch, lrs[step], total_steps)
            if not math.isfinite(row["loss"]):
                raise UserError(
                    f"step {finished}: the loss is {row['loss']}; lower optim.lr, or set train.precision=fp32, "
                    "and start again from the last checkpoint"
                )
            log.row(row)
        if finished == total_steps or (settings.save_every and finished % settings.save_every == 0):
            save(finished)


class _Interval:
    """Sums between two logging steps, kept on the device."""

    def __init__(self, launch: Launch, batch_size: int, loader: Loader) -> None:
        self._launch, self._batch_size, self._loader = launch, batch_size, loader
        self._reset()

    def _reset(self) -> None:
        self._steps, self._sums = 0, {}
        self._began, self._waited = time.perf_counter(), self._loader.stats().wait_seconds

    def add(self, output: StepOutput) -> None:
        self._steps += 1
        for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
            self._sums[name] = self._sums.get(name, 0) + value

    def row(self, step: int, epoch: int, lr: float, total_steps: int) -> dict:
        """Means over the interval and over ranks; starts the next interval."""
        means = torch.stack([value.float() for value in self._sums.values()]) / self._steps
        if self._launch.world > 1:
            dist.all_reduce(means)
            means /= self._launch.world
        loss, *metrics = means.tolist()  # the one synchronisation of the interval
        seconds = time.perf_counter() - self._began
        row = {
            "step": step,
            "epoch": epoch,
            "loss": loss,
            "lr": float(lr),
            "images_per_s": self._batch_size * self._steps / seconds,
            "data_wait": (self._loader.stats().wait_seconds - self._waited) / seconds,
            "eta_s": (total_steps - step) * seconds / self._steps,
        }
        if metrics:
            row["metrics"] = dict(zip(list(self._sums)[1:], metrics))
        self._reset()
        return row
