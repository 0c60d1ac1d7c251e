"""What is trained in a heat of the race, and what a racer is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headrace.train.recipe.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """A recipe with what is changed in it; `side`: images for it are of about so many pixels."""

    method: str
    recipe: str
    batch: int
    side: int
    title: str
    changes: tuple[str, ...] = ()


JOBS = {
    "simclr-32": Job("simclr", "simclr_resnet18_cifar10", 32, 32, "SimCLR, ResNet-18, 32 px"),
    "simclr-224": Job("simclr", "simclr_resnet18", 16, 224, "SimCLR, ResNet-18, 224 px"),
    "mae-32": Job("mae", "mae_vit-tiny_cifar10", 64, 32, "MAE, ViT-tiny, 32 px"),
    "mae-224": Job("mae", "mae_vit-tiny", 32, 224, "MAE, ViT-tiny, 224 px"),
    "dino-224": Job(
        "dino",
        "dino_vit-tiny_cifar10",
        8,
        224,
        "DINO, ViT-tiny, 2 x 224 + 6 x 96",
        (
            "algorithm.first=dino_2x224_8x96.first",
            "algorithm.second=dino_2x224_8x96.second",
            "algorithm.small={recipe: dino_2x224_8x96.small, count: 6}",
            "algorithm.backbone.patch_size=16",
        ),
    ),
    "mixmim-128": Job("mixmim", "mixmim_mixmim-small-128px", 32, 224, "MixMIM, small, 128 px"),
    "demo-dali": Job("mae", "mae_vit-tiny_demo", 64, 224, "the demo's MAE, dali loader", ("data.loader=dali",)),
    "demo-cpu": Job("mae", "mae_vit-tiny_demo", 64, 224, "the demo's MAE, cpu loader", ("data.loader=cpu",)),
}


@dataclass(frozen=True)
class Heat:
    """One job on a folder of images in folders of classes."""

    job: Job
    recipe: Recipe  # resolved; fp32, the batch size of the job
    data: Path
    workers: int  # threads of our loader, processes of a DataLoader
    encoder: nn.Module | None = None  # to train, (B, 3, S, S) -> (B, encoder.features); None: the system's own

    @property
    def algorithm(self) -> Any:
        return self.recipe.algorithm


@dataclass(frozen=True)
class Racer:
    """Endless batches, a whole step on one (forward, backward, update) that gives its loss, and what is compared."""

    batches: Iterator
    step: Callable[[Any], Tensor]
    views: Callable[[Any], list[Tensor]]  # those of a batch, (B, 3, S, S) each
    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None

    @property
    def parameters(self) -> int:
        """Of those that are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def trained(
    model: nn.Module,
    batches: Iterator,
    loss: Callable[[Any], Tensor],
    optimizer: torch.optim.Optimizer,
    views: Callable[[Any], list[Tensor]],
    after: Callable[[], None] = lambda: None,
) -> Racer:
    """A racer in the plain loop that people write."""

    def step(batch: Any) -> Tensor:
        value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        after()
        return value.detach()

    return Racer(batches, step, views, model, optimizer)


def optimizer(heat: Heat, model: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer, its rate all but zero so that every step of every racer does the same work."""
    own, parameters = heat.recipe.optim, [p for p in model.parameters() if p.requires_grad]
    common = {"lr": 1e-30, "weight_decay": own.weight_decay}
    if own.name == "sgd":
        return torch.optim.SGD(parameters, momentum=own.momentum, **common)
    return torch.optim.AdamW(parameters, betas=own.betas, **common)


def as_authors(model: nn.Module) -> None:
    """Linear layers as MAE's and MixMIM's authors draw them: Xavier's uniform values, no bias.

    So that losses of first steps compare; no step takes more or less time by it.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
