"""One optimizer step: forward, backward, guard, clip, update. It never waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ...errors import UserError
from ...kernels.trial import blamed
from ...models.algorithm import Algorithm, Progress, StepOutput
from ...pipelines.spec import Batch, Mask
from .optim import Schedules, clip_groups
from .sharding import whole

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# (step, ids (B,), losses (B,), skipped: 0 or 1) of this process's samples, on the device but for step and ids
Note = Callable[[int, Tensor, Tensor, Tensor], None]
_GUARDED = 1 << 24  # elements; larger buffers (memory banks of large data sets) would cost more than they are worth


class Stepper:
    """Takes steps with `model`, which is `algorithm` or what averages its gradients over processes.

    A step whose loss or gradient is not finite on any process is left out on all of them: weights, optimizer state and
    buffers (running statistics, queues) keep their bits. How many there were in a row is `skipped_in_row`, a tensor. A
    loss that is not finite is made to give gradients that are not, so averaging them tells every process.

    `notes` are told the losses of the samples of each step.
    """

    def __init__(
        self,
        model: nn.Module,
        algorithm: Algorithm,
        optimizer: torch.optim.Optimizer,
        schedules: Schedules,
        *,
        precision: str = "fp32",
        accumulate: int = 1,
        clip_grad: float | None = None,
        clip_apart: Sequence[str] = (),
        notes: Sequence[Note] = (),
    ) -> None:
        self.model, self.algorithm, self.optimizer, self.schedules = model, algorithm, optimizer, schedules
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._device = self._parameters[0].device
        self._precision, self._accumulate, self._clip = precision, accumulate, clip_grad
        self._notes = notes
        self._apart = clip_groups(algorithm, clip_apart) if clip_apart else []
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=precision == "fp16")
        # whether it looks at `found_inf` itself, or the scaler does for it
        self._leaves_out = getattr(optimizer, "_step_supports_amp_scaling", False) or self.scaler.is_enabled()
        self.skipped_in_row = torch.zeros((), device=self._device)
        self.watch_buffers()

    def watch_buffers(self) -> None:
        """To be called when the algorithm may have made new buffers."""
        holders = [(m._buffers, name) for m in self.algorithm.modules() for name, b in m._buffers.items()]
        self._holders = [(d, n) for d, n in holders if d[n] is not None and 0 < d[n].numel() <= _GUARDED]

    def __call__(self, batch: Batch, progress: Progress) -> StepOutput:
        """The output's loss and metrics are means over micro-batches; `grad_norm` and `skipped` (0 or 1) are added."""
        self.schedules.apply(self.optimizer, progress.step)
        buffers = self._flat_buffers()
        output, losses = self._gradients(batch, progress)
        self.scaler.unscale_(self.optimizer)
        self.algorithm.after_backward(progress)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = whole(get_total_norm(gradients))
        for group in self._apart:
            own = get_total_norm([p.grad for p in group if p.grad is not None])
            clip_grads_with_norm_(group, self._clip, whole(own))
        if self._clip is not None and not self._apart:
            clip_grads_with_norm_(self._parameters, self._clip, norm)
        skipped = (~norm.isfinite()).float()
        if not self.scaler.is_enabled():  # the scaler looks for itself
            self.optimizer.found_inf = skipped
        if self._leaves_out or not skipped:  # which waits for the device
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.algorithm.after_step(progress)
        self._restore_buffers(buffers, skipped)
        self.skipped_in_row = (self.skipped_in_row + 1) * skipped
        output.metrics = {**output.metrics, "grad_norm": norm, "skipped": skipped}
        for note in self._notes:
            note(progress.step, batch.ids, torch.cat(losses), skipped)
        return output

    def _gradients(self, batch: Batch, progress: Progress) -> tuple[StepOutput, list[Tensor]]:
        self.optimizer.zero_grad(set_to_none=True)
        autocast = {"dtype": _DTYPES[self._precision], "enabled": self._precision != "fp32"}
        total: StepOutput | None = None
        losses: list[Tensor] = []  # of the samples, where somebody wants to know
        for micro, last in micro_batches(batch, self._accumulate):
            with nullcontext() if last or not hasattr(self.model, "no_sync") else self.model.no_sync():
                with torch.autocast(self._device.type, **autocast):
                    output = self.model(micro, progress)
                if self._notes:
                    losses.append(self._of_samples(output))
                output.per_sample = None  # nor what it holds is needed any more
                share = torch.where(output.loss.detach().isfinite(), 1 / self._accumulate, float("nan"))
                try:
                    self.scaler.scale(output.loss * share).backward()
                except Exception as fault:
                    if (said := blamed(fault)) is not None:
                        raise said from fault
                    raise
            total = _mean(total, output, self._accumulate)
        return total, losses

    @torch.no_grad()
    def _of_samples(self, output: StepOutput) -> Tensor:
        if output.per_sample is None:
            name = self.algorithm.config.name
            raise UserError(f"train.ledger: {name} has a sample_loss, but its StepOutput comes without per_sample")
        return output.per_sample().detach().float()

    def _flat_buffers(self) -> dict[torch.dtype, Tensor]:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for holder, name in self._holders:
            by_type.setdefault(holder[name].dtype, []).append(holder[name].detach().flatten())
        return {kind: torch.cat(parts) for kind, parts in by_type.items()}

    @torch.no_grad()
    def _restore_buffers(self, before: dict[torch.dtype, Tensor], skipped: Tensor) -> None:
        """Gives every buffer back what it held, where the step was left out."""
        after = self._flat_buffers()
        for kind, old in before.items():
            targets = [d[n] for d, n in self._holders if d[n].dtype == kind]
            parts = torch.where(skipped > 0, old, after[kind]).split([t.numel() for t in targets])
            torch._foreach_copy_(targets, [part.view(t.shape) for part, t in zip(parts, targets)])


def _mean(total: StepOutput | None, output: StepOutput, count: int) -> StepOutput:
    share = replace(
        output, loss=output.loss.detach() / count, metrics={k: v / count for k, v in output.metrics.items()}
    )
    if total is None:
        return share
    return replace(
        share,
        loss=total.loss + share.loss,
        metrics={name: total.metrics[name] + value for name, value in share.metrics.items()},
    )


def micro_batches(batch: Batch, count: int) -> Iterator[tuple[Batch, bool]]:
    """`batch` in `count` equal parts of consecutive samples, each with whether it is the last."""
    if count == 1:
        yield batch, True
        return
    size = len(batch.ids) // count
    for part in range(count):
        rows = slice(part * size, (part + 1) * size)

        def cut(x: Tensor | np.ndarray | None, rows: slice = rows):  # one row stands for all samples
            return x if x is None or x.shape[0] != len(batch.ids) else x[rows]

        mask = None
        if batch.mask is not None:
            mask = Mask(**{f.name: cut(getattr(batch.mask, f.name)) for f in fields(Mask)})
        views = {name: view[:, rows] for name, view in batch.views.items()}
        yield (
            replace(
                batch,
                views=views,
                ids=batch.ids[rows],
                labels=cut(batch.labels),
                origin=cut(batch.origin),
                passes=cut(batch.passes),
                mask=mask,
                objects=batch.objects and batch.objects[rows],
            ),
            part == count - 1,
        )
