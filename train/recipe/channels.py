"""Whether views and network of a recipe are those of images with as many channels as `data.channels` says."""

from __future__ import annotations

from dataclasses import fields

from ...errors import UserError
from ...models.algorithm import Algorithm
from ...pipelines.spec import ViewSpec
from ...pipelines.views.finish import deep_problem


def require_channels(algorithm: Algorithm.Config, channels: int | None) -> None:
    """Raises `UserError` that names the key of the recipe: another number of channels, or an operation that has no
    meaning for them."""
    if channels is not None and algorithm.rgb_only:
        raise UserError(f"data.channels: {algorithm.name} {algorithm.rgb_only}; leave it out")
    many = channels or 3
    backbone = getattr(algorithm, "backbone", None)
    held = getattr(backbone, "in_channels", many)  # of a network of one's own nothing is known
    if held != many:
        asked = f"data.channels is {channels}" if channels else "images are RGB unless data.channels says otherwise"
        raise UserError(f"algorithm.backbone.in_channels: {held}, but {asked}; they must be the same")
    if many != 3 and getattr(backbone, "sobel", False):
        raise UserError(f"algorithm.backbone.sobel: edges of RGB images, not of {many} channels; leave it out")
    for each in fields(algorithm):
        view = getattr(algorithm, each.name)
        if not isinstance(view, ViewSpec):
            continue
        if channels is not None and (problem := deep_problem(view, channels)):
            raise UserError(f"algorithm.{each.name}.{problem}")
        if view.channels != many:
            held = f"{view.channels} values, images are RGB; data.channels={view.channels} says otherwise"
            raise UserError(f"algorithm.{each.name}.mean: {held}")
