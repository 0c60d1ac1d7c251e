"""What every algorithm is: a module that says what it wants to see and returns a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import UserError
from ..pipelines.spec import Batch, InputSpec, ViewSpec
from ..schema.bounds import require

# (module, view) -> (N, ...) on the CPU: what the module gives, in inference mode, for `view` of every training sample
Embed = Callable[[nn.Module, ViewSpec], torch.Tensor]


@dataclass(frozen=True)
class Progress:
    """Where the run stands. `step` counts optimizer steps from 0; what all processes draw alike is a function of
    (`seed`, `step`)."""

    step: int
    total_steps: int
    steps_per_epoch: int
    seed: int = 0

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def fraction(self) -> float:
        return self.step / max(1, self.total_steps)


def resized_view(view: ViewSpec, side: int) -> ViewSpec:
    """The same view with `side` pixels a side, in every step."""
    resize = None if view.resize is None else round(view.resize * side / view.size)
    return replace(view, size=side, sizes={}, resize=resize)


@dataclass
class StepOutput:
    """What one forward gives. The loss is this rank's mean; averaged over ranks it is the loss of the global batch."""

    loss: torch.Tensor  # scalar
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)  # detached scalars
    embedding: torch.Tensor | None = None  # (B, D) detached, what an online probe looks at
    # what `models.meters` looks at besides, detached: features of several views (V, B, D), of patches (B, N, D)
    views: torch.Tensor | None = None
    patches: torch.Tensor | None = None
    # () -> (B,) detached: the losses of this rank's samples, as `Algorithm.sample_loss` says. Called before the
    # backward pass, and only where a ledger is kept
    per_sample: Callable[[], torch.Tensor] | None = None


class Algorithm(nn.Module):
    """Base of all methods. A subclass is one file in `models/algorithms`, and its `Config` is the recipe's section.

    The gradient of the global batch must come out of averaging the ranks' gradients: losses that couple samples gather
    them with `models.distributed.gather_with_gradient`.
    """

    no_pictures = "predicts no pictures"  # why there is no `reconstruct`, where there is none
    sample_loss: str | None = None  # what `StepOutput.per_sample` gives of a sample, in a phrase; None: nothing
    equal_shapes = True  # False: images differ in size from step to step (detection)
    local_batch_norm = False  # True: batch normalisation per process, where the method counts on it (MoCo's shuffling)

    @dataclass(frozen=True)
    class Config:
        name: str
        fixed_size: ClassVar[str | None] = None  # why views may not change their size from step to step, where so
        rgb_only: ClassVar[str | None] = None  # why images are RGB of eight bits, where so

        def begins(self, total_steps: int, steps_per_epoch: int) -> dict[str, int]:
            """The views that are wanted from a later step on than the first, and that step, by their names."""
            return {}

        def resized(self, **sides: int) -> Algorithm.Config:
            """This configuration with views of other sides in pixels, by the names of their fields: what a batch of
            that size is made by. Networks stay those of `self`. Raises `ValueError` for a size that does not go."""
            views = {name: resized_view(getattr(self, name), side) for name, side in sides.items()}
            return replace(self, **views)

        def smoke(self) -> Algorithm.Config:
            """This configuration with small views, a tiny backbone and narrow heads: a step of 8 images takes a CPU
            about 0.1 s. What kind of parts there are stays as it is."""
            raise UserError(f"algorithm.name: {self.name} has no tiny configuration for --smoke (Config.smoke)")

    def __new__(cls, config: Algorithm.Config | None = None, *rest: Any, **named: Any) -> Algorithm:
        require(config)  # recipes have been held to this before; raises `UserError`
        return super().__new__(cls)

    def inputs(self) -> InputSpec:
        """The views and the mask this algorithm needs: a function of `self.config`, which every algorithm keeps.

        Here all its fields that are views, in their order, and its `mask` if there is one.
        """
        values = (getattr(self.config, each.name) for each in fields(self.config))
        views = tuple(value for value in values if isinstance(value, ViewSpec))
        return InputSpec(views=views, mask=getattr(self.config, "mask", None))

    @property
    def wants(self) -> str | None:
        """An encoder, as `headrace knn` names one, that is handed to `take_teacher` before training; None: none."""
        return None

    def take_teacher(self, module: nn.Module, view: ViewSpec, what: str) -> None:
        """The encoder that `wants` names, the view it is evaluated with, and what else the features of a view depend
        on, in a line: its weights and configuration, the data set and how its images are decoded."""
        raise NotImplementedError

    def prepare(self, samples: int) -> None:
        """Called once, before a checkpoint is loaded, with the number of training samples: memory banks."""

    def start_epoch(self, progress: Progress, embed: Embed) -> None:
        """Called before the first step of each epoch, on every rank: clustering of the whole data set."""

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        """The loss of one (micro-)batch. Under accumulation it runs several times per optimizer step: what must happen
        once a step (teacher, queue, centroids) is kept here and done in `after_step`."""
        raise NotImplementedError

    def after_backward(self, progress: Progress) -> None:
        """Called between backward and the optimizer step: gradients that are to be dropped or scaled."""

    def after_step(self, progress: Progress) -> None:
        """Called after each optimizer step: momentum teachers, queues, centroids."""

    @property
    def pictures(self) -> str | None:
        """What ``reconstruct(images (B, 3, S, S), mask, *, contrast) -> models.reconstruct.Restored`` shows, in a
        sentence; None without it. `contrast`: see `models.reconstruct.fill_hidden`."""
        return None

    @property
    def encoder(self) -> nn.Module:
        """What is evaluated and exported: ``encoder(images (B, 3, H, W)) -> (B, D)``."""
        raise NotImplementedError
