"""Views that change their size during a run, or begin later: ``algorithm.view.size: {0: 128, 60%: [160, 192, 224]}``.

From each moment on, every step has one of the moment's sizes. Where there are several, it is drawn: a function of
(seed, step), equal on all processes, and the same place in the lists of all views, so that lists of one length change
together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace

import numpy as np
import torch

from ...errors import UserError
from ...models.algorithm import Algorithm
from ...models.algorithms import inputs_of
from ...pipelines.rng import uniform
from ...pipelines.spec import ChangingInputs, InputSpec, ViewSpec
from ...schema.yaml_nodes import Node
from .schedules import length_in_steps

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def spelled_sizes(view: Node) -> Node:
    """A view whose `size` is a mapping, as `ViewSpec` has it: `sizes`, and as `size` the largest of the last moment."""
    size = view.value.get("size")
    if size is None or not isinstance(size.value, dict) or not size.value:
        return view
    lists = {
        moment: sides if isinstance(sides.value, list) else Node([sides], sides.origin, sides.text)
        for moment, sides in size.value.items()
    }
    last = list(lists.values())[-1].value
    numbers = [side for side in last if type(side.value) is int]
    largest = max(numbers, key=lambda side: side.value) if numbers else Node(None, size.origin)
    return Node({**view.value, "size": largest, "sizes": Node(lists, size.origin)}, view.origin, view.text)


def inputs_of_run(config: Algorithm.Config, total_steps: int, steps_per_epoch: int, seed: int) -> InputSpec:
    """What an algorithm wants to see in the steps of a run.

    Raises `UserError` for moments that are none, do not begin at 0 or do not rise, and for sizes that the method has no
    use for.
    """
    views = {
        each.name: view
        for each in fields(config)
        if isinstance(view := getattr(config, each.name), ViewSpec) and view.sizes
    }
    late = config.begins(total_steps, steps_per_epoch)
    if not views and not any(late.values()):
        return inputs_of(config)
    drawn = uniform(seed, "view sizes", 0, torch.arange(total_steps), 1)[:, 0].numpy()
    length = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    columns = [_of_steps(name, view.sizes, drawn, length) for name, view in views.items()]
    columns += [np.arange(total_steps) >= first for first in late.values()]
    kinds, which = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    if len(kinds) > 255:
        raise UserError(f"algorithm: {len(kinds)} combinations of view sizes; at most 255 are possible")
    several = []
    for kind in kinds:
        inputs = inputs_of(_resized(config, dict(zip(views, map(int, kind)))))
        absent = {name for name, wanted in zip(late, kind[len(views) :]) if not wanted}
        several.append(replace(inputs, views=tuple(view for view in inputs.views if view.name not in absent)))
    own = inputs_of(config)
    numbers = torch.from_numpy(which.reshape(-1).astype(np.uint8))
    return ChangingInputs(own.views, own.mask, several=tuple(several), which=numbers)


def _of_steps(name: str, sizes: Mapping[str, tuple[int, ...]], drawn: np.ndarray, length: dict) -> np.ndarray:
    """(steps,) int64: the side of each step, by uniform numbers `drawn` (steps,)."""
    begins = [_moment(name, text, length) for text in sizes]
    if begins[0] != 0 or any(a >= b for a, b in zip(begins, begins[1:])):
        # two moments of a very short run may be one
        rising = begins == sorted(begins) and begins[0] == 0
        if not rising:
            raise UserError(f"algorithm.{name}.size: moments begin with 0 and rise, got {', '.join(sizes)}")
    found = np.zeros(length["total_steps"], np.int64)
    for begin, sides in zip(begins, sizes.values()):
        found[begin:] = np.asarray(sides)[(drawn[begin:] * len(sides)).astype(np.int64)]
    return found


def _moment(name: str, text: str, length: dict) -> int:
    share = _SHARE.fullmatch(text.strip())
    try:
        return length_in_steps(float(share[1]) / 100 if share else 0.0 if text.strip() == "0" else text, **length)
    except ValueError:
        wanted = '"60%", "30 epochs" or "5000 steps"'
        raise UserError(f"algorithm.{name}.size: a moment is 0, {wanted}, not {text!r}") from None


def _resized(config: Algorithm.Config, sides: dict[str, int]) -> Algorithm.Config:
    shown = " and ".join(f"{name} of {side} px" for name, side in sides.items())
    if config.fixed_size:
        raise UserError(f"algorithm: {config.name} has no {shown}: {config.fixed_size}; give one size")
    try:
        return config.resized(**sides)
    except ValueError as fault:
        raise UserError(f"algorithm: there is no {shown}: {fault}") from None
