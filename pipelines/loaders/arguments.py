"""What people hand to `headrace.loader` beside the data, checked: `UserError` for what cannot be meant."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ...errors import UserError
from ..images.rules import Rules, rules
from ..spec import InputSpec, MaskSpec, ViewSpec
from ..views import recipes


def whole(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an integer, of NumPy's or a tensor's as well. Raises `UserError` for others, and below `least`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or least is not None and number < least:
        least = "" if least is None else f" from {least} on"
        raise UserError(f"{name}: needs a whole number{least}, got {value!r}")
    return number


def one_of(name: str, value: Any, choices: Sequence) -> None:
    """Raises `UserError` unless `value` is one of `choices`."""
    if not any(value is choice or type(value) is str and value == choice for choice in choices):
        raise UserError(f"{name}: needs {' or '.join(map(str, choices))}, got {value!r}")


def share(name: str, value: Any) -> None:
    """Raises `UserError` unless `value` is a share of the images."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UserError(f"{name}: needs a share of the images from 0 to 1, got {value!r}")


def device_of(given: str | torch.device) -> torch.device:
    if given == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device: needs 'cpu', 'cuda', 'cuda:1' or 'auto', got {given!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: {given} was asked for, but torch sees no GPU; use device='cpu' or 'auto'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device: {given} was asked for, but there are {torch.cuda.device_count()} GPUs, from cuda:0 on"
        )
    return device


def ruled(channels: int | None, range: object) -> Rules:
    """The process's rules with what is given of these. Raises `UserError`."""
    said = {} if channels is None else {"channels": whole("channels", channels)}
    if range is not None:
        said["range"] = range if isinstance(range, str) else _pair(range)
    try:
        return replace(rules(), **said)
    except ValueError as fault:
        raise UserError(str(fault)) from None


def _pair(given: object) -> tuple[float, float]:
    try:
        low, high = map(float, given)
    except (TypeError, ValueError):
        raise UserError(f"range: needs full, percentile or two numbers (low, high), got {given!r}") from None
    return low, high


def as_inputs(views, mask=None) -> InputSpec:
    """What `views` and `mask` of `loader` stand for. Raises `UserError`."""
    try:
        if isinstance(views, str):
            views = recipes.VIEWS.get(views) or (recipes.view(views),)
        views = (views,) if isinstance(views, ViewSpec) else tuple(views) if isinstance(views, Iterable) else ()
        if not views or not all(isinstance(view, ViewSpec) for view in views):
            raise ValueError("needs a name such as 'moco_v2', or ViewSpecs")
    except ValueError as fault:
        raise UserError(f"views: {fault}") from None
    if len(views) == 1 and views[0].draws is not None:  # one of several, asked for alone
        views = (replace(views[0], draws=None),)
    if not isinstance(mask, (str, MaskSpec, type(None))):
        raise UserError(f"mask: needs a name such as 'mae', or a mask, got {mask!r}")
    try:
        return InputSpec(views, recipes.mask(mask, views[0].side) if isinstance(mask, str) else mask)
    except ValueError as fault:
        raise UserError(f"mask: {fault}" if isinstance(mask, str) else str(fault)) from None
