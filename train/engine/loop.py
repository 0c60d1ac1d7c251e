"""The loop: one batch in, one optimizer step out, nothing hidden."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...errors import UserError
from ...models.algorithm import Algorithm, Embed, Progress
from ...pipelines.rng import stream_key
from ...pipelines.spec import Batch, Loader
from ..recipe.settings import TrainSettings
from .distributed import Launch
from .interval import Interval, OfSets
from .metrics import MetricsLog
from .profiler import profiled
from .sharding import is_sharded
from .signals import StopRequest
from .step import Stepper
from .transforms import compiled_graphs


def wrap(algorithm: Algorithm, launch: Launch, *, unused_parameters: bool = False) -> nn.Module:
    """The algorithm, its gradients averaged over ranks where there are several.

    DDP's static graph is no option: with collectives in the backward pass (batch normalisation over processes, gathered
    embeddings) its gradients are wrong by up to the number of processes (torch 2.15).
    """
    if launch.world == 1 or is_sharded(algorithm):
        return algorithm
    device_ids = [launch.device] if launch.device.type == "cuda" else None
    options = {"gradient_as_bucket_view": True, "find_unused_parameters": unused_parameters}
    newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options["forward_sync_buffers" if newer else "broadcast_buffers"] = False
    return DistributedDataParallel(algorithm, device_ids=device_ids, **options)


def train(
    stepper: Stepper,
    loader: Loader,
    settings: TrainSettings,
    launch: Launch,
    log: MetricsLog,
    *,
    out: Path,
    first_step: int,
    total_steps: int,
    embed: Embed,
    save: Callable[[int], None],
    score: Callable[[], dict[str, float]] | None = None,
    flush: Callable[[], None] | None = None,
    renew: Callable[[int], None] | None = None,
    of_sets: OfSets | None = None,
) -> int:
    """Steps `first_step` .. total_steps - 1; returns how many are finished, fewer after one of `SIGNALS`.

    `save(finished_steps)` is called every `save_every` steps and at the end, `score()` every `knn_every` epochs,
    `flush()` on logging steps, `renew(step)` before the first step of an epoch, by every process.
    Raises `UserError` when `max_skipped` steps in a row had no finite gradient (looked at on logging steps).
    """
    algorithm, lrs = stepper.algorithm, stepper.schedules.lrs
    stepper.model.train()
    interval, per_epoch = Interval(launch, settings.batch_size, loader, of_sets), loader.steps_per_epoch
    hurry = getattr(loader, "hurry", None)
    with (
        StopRequest(launch.control, hurry) as stop,
        profiled(settings.profile, out, launch.is_main, first_step) as profiler,
    ):
        for step in range(first_step, total_steps):
            progress = Progress(step, total_steps, per_epoch, settings.seed)
            if step % per_epoch == 0:
                torch.manual_seed(stream_key(settings.seed, "epoch", progress.epoch))  # the same on all ranks
                algorithm.start_epoch(progress, embed)
                stepper.watch_buffers()
                if renew is not None:
                    renew(step)
            batch = next(loader)
            # everything a step draws (dropout, drop path) is a function of (seed, step, rank): no state to save
            torch.manual_seed(stream_key(settings.seed, f"step/{launch.rank}", step))
            interval.add(stepper(batch, progress))
            profiler(step)
            finished, stopped = step + 1, stop.agreed()
            last = stopped or finished == total_steps
            scored = score is not None and finished % (per_epoch * settings.knn_every) == 0
            if finished % settings.log_every == 0 or last or scored:
                row = interval.row(finished, batch.epoch, lrs[step], total_steps, stepper.skipped_in_row)
                if settings.compile:
                    row["metrics"]["graphs"] = compiled_graphs()
                if scored:
                    row["metrics"] |= score()
                    stepper.model.train()
                    interval.restart()
                log.row(row)
                log.warn(interval.warning(row))
                if flush is not None:
                    flush()
                if row.get("skipped_in_row", 0) >= settings.max_skipped:
                    raise UserError(_not_finite(row, batch, out, launch))
            if last or finished % settings.save_every == 0:
                save(finished)
            if stopped:
                log.warn(
                    f"stopped by {stop.signal or 'a signal to another process'} after step {finished}; "
                    "the same command continues there"
                )
                return finished
    return total_steps


def _not_finite(row: dict, batch: Batch, out: Path, launch: Launch) -> str:
    """Leaves the batch on disk; returns what to tell the user."""
    path = out / f"not-finite-step-{row['step']:08d}-rank-{launch.rank}.pt"
    mask = None if batch.mask is None else {key: value for key, value in vars(batch.mask).items() if value is not None}
    left, where = (
        {"step": batch.step, "ids": batch.ids, "views": batch.views, "mask": mask, "labels": batch.labels},
        "in",
    )
    try:
        torch.save(left, path)
    except (OSError, RuntimeError):  # torch's zip writer raises RuntimeError when the disk is full
        path.unlink(missing_ok=True)
        where = "lost, for it could not be written as"
    return (
        f"step {row['step']}: loss or gradient not finite in {row['skipped_in_row']} steps in a row, all left out; "
        f"this batch is {where} {path}; lower optim.lr, set optim.clip_grad or train.precision=bf16 or fp32, and start "
        "again from the last checkpoint, with train.accept_changes=true"
    )
