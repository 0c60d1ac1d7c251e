"""A recipe as its sections, and ``--smoke``."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...lengths import length_in_steps
from ...models.algorithm import Algorithm
from ...models.algorithms import find_algorithm
from ...pipelines.sources.arrays import ArraySource
from . import config
from .channels import require_channels
from .settings import DataSettings, Optim, TrainSettings

SECTIONS = ("algorithm", "data", "train", "optim", "kernels")
_SMOKE_IMAGES, _SMOKE_STEPS = 64, 20


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A checked recipe; one attribute per section."""

    name: str
    resolved: str  # as YAML, with the origin of each value
    algorithm: Algorithm.Config
    data: DataSettings
    train: TrainSettings
    optim: Optim
    kernels: dict[str, str]

    def plain(self) -> dict:
        """The sections as dicts, lists and scalars."""
        return config.plain({key: getattr(self, key) for key in SECTIONS})

    @property
    def out(self) -> Path:
        return Path(self.train.out or f"runs/{self.name}").expanduser()


def load_recipe(path: str, overrides: Sequence[str | tuple[str, Any]] = ()) -> Recipe:
    """Reads and checks a recipe; for `overrides` see `config.load`. Raises `UserError` naming every problem."""
    tree = config.load(path, overrides)
    algorithm = find_algorithm(tree.get("algorithm.name").value)
    types = {
        "description": str | None,
        "algorithm": algorithm.Config,
        "data": DataSettings,
        "train": TrainSettings,
        "optim": Optim,
        "kernels": dict[str, str],
    }
    sections = config.build(tree, types)
    resolved = config.show(tree, sections)
    sections.pop("description")
    require_channels(sections["algorithm"], sections["data"].channels)
    return Recipe(name=Path(path).stem, resolved=resolved, **sections)


def without_effect(recipe: Recipe, total_steps: int, steps_per_epoch: int, begin: int = 0) -> list[str]:
    """Settings that a run of this length, of which `begin` steps are behind it, never comes to, a sentence each."""
    notes, train = [], recipe.train
    warmup = length_in_steps(recipe.optim.warmup, total_steps, steps_per_epoch)
    if warmup >= total_steps:
        notes.append(f"optim.warmup: {warmup:,} steps, the run has {total_steps:,}: the rate only rises")
    if train.knn_every is not None and train.knn_every * steps_per_epoch > total_steps:
        notes.append(f"train.knn_every: {train.knn_every} epochs are longer than the run: there will be no score")
    if train.profile is not None and int(train.profile.split(":")[0]) > total_steps:
        notes.append(f"train.profile: {train.profile} lies behind the run's {total_steps:,} steps: no trace")
    elif train.profile is not None and int(train.profile.split(":")[1]) <= begin:
        notes.append(f"train.profile: {train.profile} lies before step {begin:,}, where the run goes on: no trace")
    return notes


def smoke(recipe: Recipe) -> Recipe:
    """The recipe as a matter of seconds: the algorithm's own tiny configuration, 20 steps of 8 images on the CPU.

    Everything else stays as it is, `data.train` too, if given.
    """
    steps = _SMOKE_STEPS if recipe.train.max_steps is None else min(_SMOKE_STEPS, recipe.train.max_steps)
    train = dataclasses.replace(
        recipe.train,
        out=recipe.train.out or tempfile.mkdtemp(prefix="headrace-smoke-"),
        batch_size=8,
        accumulate=min(2, recipe.train.accumulate),
        max_steps=steps,
        log_every=min(5, recipe.train.log_every),
        device="cpu",
        precision="fp32",
        compile=False,
    )
    data = recipe.data
    if data.train is None:
        data = dataclasses.replace(data, loader="memory", block=None)
    tiny = dataclasses.replace(recipe, algorithm=recipe.algorithm.smoke(), train=train, data=data)
    plain = tiny.plain()
    return dataclasses.replace(tiny, resolved=config.show(config.from_plain(plain, "--smoke"), plain))


def replaced(overrides: Sequence[str], asked: Recipe, tiny: Recipe) -> list[str]:
    """Which of the `overrides` that were typed for `asked` do not hold in `tiny`, what `smoke` made of it."""
    notes = []
    for key in (text.partition("=")[0].strip() for text in overrides):
        before, after = asked.plain(), tiny.plain()
        for name in key.split("."):
            before, after = (part.get(name) if isinstance(part, dict) else None for part in (before, after))
        if before != after:
            notes.append(f"--smoke: {key} is {after}, not {before}")
    return notes


def smoke_images(channels: int | None = None) -> ArraySource:
    """64 smooth random images of 48 px in four classes, whose brightness differs; deep ones of so many `channels`."""
    rng = np.random.default_rng(0)
    labels = np.arange(_SMOKE_IMAGES) % 4
    coarse = rng.uniform(0, 128, (_SMOKE_IMAGES, 6, 6, channels or 3)) + 40 * labels[:, None, None, None]
    images = coarse.repeat(8, 1).repeat(8, 2)
    images = images.astype(np.uint8) if channels is None else (257 * images).astype(np.uint16)
    return ArraySource(images, labels, name="generated images")
