"""What there is of each operator, and what it would run on a device: for `headrace kernels` and the start of a run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from .registry import Implementation, decide, forward_only, operator, operator_names


class ReportRow(NamedTuple):
    op: str
    implementation: Implementation
    why: str
    others: dict[str, str]  # the implementations that do not run -> reason

    @property
    def chosen(self) -> str:
        return self.implementation.name


def report(device: str) -> list[ReportRow]:
    """What each operator would run on a device type ("cuda", "cpu"), judged by its typical case.

    Raises `UserError` where an explicit choice cannot be honoured there.
    """
    rows = []
    for name in operator_names():
        op = operator(name)
        args, kwargs = op.cases[0].arguments()
        decision = decide(op, (device, *op.shape_class(*args, **kwargs)[1:]))
        chosen, why = decision.implementation, decision.why
        if not chosen.differentiable or chosen.name in forward_only(name):
            why += "; no backward of its own: the reference's, recomputed"
        rows.append(ReportRow(name, chosen, why, decision.others))
    return rows


def function(name: str) -> Callable:
    """What one calls: the operator's public function, which checks its arguments. Raises `UserError` as `operator`."""
    return getattr(importlib.import_module(f".{operator(name).name}", __package__), name)


def reference(name: str) -> ModuleType:
    """The definition of an operator and its parts: ``reference("patch_loss").patchify``. Raises `UserError` as
    `operator`."""
    return importlib.import_module(f".{operator(name).name}.reference", __package__)
