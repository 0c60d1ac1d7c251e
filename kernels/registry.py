"""Operators, their implementations, and which one runs.

An operator is a folder of this package: its reference defines the answer, its other implementations are faster ways to
the same answer. Who decides, strongest first:

1. the ``impl=`` argument of the public function,
2. `use`, as a call or as a context manager,
3. `configure`, fed from the ``kernels:`` section of a recipe,
4. the environment: ``HEADRACE_KERNELS="patch_loss=reference"`` (``all=reference`` names every operator),
5. nobody: the first built-in implementation that supports the shape; on CPUs that is the reference.

A choice by 1-4 is kept or refused, never replaced. Each choice is made once per operator and shape class and costs a
dict lookup from then on; choices hold for the whole process, all threads included.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import UserError
from .recompute import with_gradient_of

log = logging.getLogger(__name__)

ENVIRONMENT = "HEADRACE_KERNELS"
Choice = str | Callable  # the name of a built-in implementation, a dotted path, or the function itself
ShapeClass = tuple  # (device type, dtype, *sizes): what a choice may depend on; never the batch size


class Cost(NamedTuple):
    """The least a forward and backward can do: every input read once, every output and gradient written once."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Case:
    """One set of arguments on the CPU, the same at every call. The first case of an operator is its typical one."""

    id: str
    arguments: Callable[[], tuple[tuple, dict[str, Any]]]  # () -> (positional, keyword)


def _always(*shape: Any) -> None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator, called with the arguments of its reference.

    `supports(device type, dtype, *sizes)` returns None or the reason why not. `differentiable=False` declares that the
    backward is the reference's.
    """

    name: str
    function: Choice  # a path is imported when first chosen
    supports: Callable[..., str | None] = _always
    differentiable: bool = True


@dataclass(frozen=True)
class Decision:
    """What runs for one operator and shape class, who said so, and why the others do not run."""

    implementation: Implementation
    function: Callable
    why: str
    others: dict[str, str]  # name -> reason


@dataclass(eq=False)
class Operator:
    """An operator: tensors are its positional arguments, everything that shapes the computation is keyword-only.

    `shape_class(*args, **kwargs)` gives (device type, dtype, *sizes), the sizes in the order of `size_names`;
    `cost(*args, **kwargs)` gives the `Cost`; `gradients` names the arguments that receive one.
    """

    name: str
    doc: str
    reference: Callable
    shape_class: Callable[..., ShapeClass]
    size_names: tuple[str, ...]
    gradients: tuple[str, ...]
    cases: tuple[Case, ...]
    cost: Callable[..., Cost]
    fast: tuple[Implementation, ...] = ()  # built-in, best first
    gradient_positions: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        parameters = list(inspect.signature(self.reference).parameters)
        self.gradient_positions = tuple(parameters.index(name) for name in self.gradients)

    @property
    def implementations(self) -> tuple[Implementation, ...]:
        return (*self.fast, Implementation("reference", self.reference))

    def describe(self, shape: ShapeClass) -> str:
        device, dtype, *sizes = shape
        named = (f"{name}={size}" for name, size in zip(self.size_names, sizes, strict=True))
        return " ".join((device, str(dtype).removeprefix("torch."), *named))

    def __call__(self, *args: Any, impl: Choice | None = None, **kwargs: Any) -> Any:
        """Run the chosen implementation. One without a backward of its own gets the reference's."""
        device, dtype, *sizes = self.shape_class(*args, **kwargs)
        # `index` makes a number of what torch.compile may hold as a symbol; each shape class is its own graph.
        shape = (device, dtype, *[index(size) for size in sizes])
        _ensure_decided(self.name, shape, impl)
        decision = _decisions[self.name, shape, impl]
        result = decision.function(*args, **kwargs)
        if torch.is_grad_enabled() and any(args[i].requires_grad for i in self.gradient_positions):
            if not any(output.requires_grad for output in (result if isinstance(result, tuple) else (result,))):
                _note_forward_only(self.name, decision.implementation.name)
                return with_gradient_of(self.reference, result, args, kwargs)
        return result


_used: dict[str, Implementation] = {}
_configured: dict[str, Implementation] = {}
_decisions: dict[tuple[str, ShapeClass, Choice | None], Decision] = {}
_announced: set[tuple] = set()
_forward_only: set[tuple[str, str]] = set()


def operator_names() -> list[str]:
    """The operators, by name: the folders beside this file that have cases."""
    return sorted(cases.parent.name for cases in Path(__file__).parent.glob("*/cases.py"))


def operator(name: str) -> Operator:
    """The operator of that name. Raises `UserError` for a name that is none."""
    names = operator_names()
    if name not in names:
        raise UserError(f"kernels: there is no operator {name!r}{_nearest(name, names)}")
    return importlib.import_module(f".{name}", __package__).OPERATOR


def resolve(op: Operator, choice: Choice) -> Implementation:
    """What `choice` means for `op`: a built-in implementation's name, a dotted path to a function, or a function.

    Raises `UserError` for an unknown name or a path that leads nowhere.
    """
    if callable(choice):
        return Implementation(f"{choice.__module__}:{getattr(choice, '__qualname__', type(choice).__name__)}", choice)
    built_in = {implementation.name: implementation for implementation in op.implementations}
    if choice in built_in:
        return built_in[choice]
    if "." in choice or ":" in choice:
        return Implementation(choice, _import(choice))
    nearest = _nearest(choice, built_in)
    raise UserError(f"kernels: {op.name} has no implementation {choice!r}{nearest}, or give a path pkg.mod:fn")


def configure(choices: Mapping[str, Choice]) -> None:
    """Take a run's choices, operator -> implementation, in place of earlier ones. Raises `UserError` for bad names."""
    claims = _claims(choices)
    _configured.clear()
    _configured.update(claims)
    _decisions.clear()


class use:
    """Choose an implementation from now on, or, as a context manager, until the block ends.

    Args:
        op: name of an operator, or ``"all"``.
        implementation: a built-in name, a path ``pkg.mod.fn`` or ``pkg.mod:fn``, or a function with the reference's
            arguments. A function without a backward gets the reference's.

    Raises `UserError` for names that do not exist.
    """

    def __init__(self, op: str, implementation: Choice) -> None:
        self._before = dict(_used)
        _used.update(_claims({op: implementation}))
        _decisions.clear()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        _used.clear()
        _used.update(self._before)
        _decisions.clear()


def decide(op: Operator, shape: ShapeClass, impl: Choice | None = None) -> Decision:
    """Who computes `op` for this shape class. Raises `UserError` where an explicit choice cannot be honoured."""
    reasons = {implementation.name: implementation.supports(*shape) for implementation in op.implementations}
    chosen, why = _explicit(op, impl)
    idle = "not asked for"
    if chosen is None:
        # In the interpreter Triton runs on CPUs too, for tests; nobody should train with it by accident.
        candidates = op.implementations if shape[0] != "cpu" else op.implementations[-1:]
        chosen = next(implementation for implementation in candidates if reasons[implementation.name] is None)
        why, idle = "automatic", "comes after it" if len(candidates) > 1 else "for tests alone on a CPU"
    elif reason := chosen.supports(*shape):
        able = ", ".join(f"{name}: {other or 'supported'}" for name, other in reasons.items() if name != chosen.name)
        raise UserError(
            f"kernels: {op.name}={chosen.name} ({why}) cannot run {op.describe(shape)}: {reason}; instead: {able}"
        )
    others = {name: reason or idle for name, reason in reasons.items() if name != chosen.name}
    if (op.name, shape, chosen.name) not in _announced:
        _announced.add((op.name, shape, chosen.name))
        log.info("%s for %s: %s (%s)", op.name, op.describe(shape), chosen.name, why)
    function = chosen.function if callable(chosen.function) else _import(chosen.function)
    return Decision(chosen, function, why, others)


class ReportRow(NamedTuple):
    op: str
    chosen: str
    why: str
    others: dict[str, str]  # the implementations that do not run -> reason


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
        if not chosen.differentiable or (name, chosen.name) in _forward_only:
            why += "; no backward of its own: the reference's, recomputed"
        rows.append(ReportRow(name, chosen.name, why, decision.others))
    return rows


def without_triton(device: str) -> str | None:
    """Why Triton cannot run on this device type, or None. In Triton's interpreter the CPU is a device too."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device == "cuda" or (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return f"Triton needs a CUDA or ROCm device, not {device}"


# torch.compile runs these two while it traces and keeps only their effect: what it guards is the entry in `_decisions`,
# so a later `use` or `configure` leads to a new graph.
@torch.compiler.assume_constant_result
def _ensure_decided(name: str, shape: ShapeClass, impl: Choice | None) -> None:
    if (name, shape, impl) not in _decisions:
        _decisions[name, shape, impl] = decide(operator(name), shape, impl)


@torch.compiler.assume_constant_result
def _note_forward_only(op: str, implementation: str) -> None:
    if (op, implementation) not in _forward_only:
        _forward_only.add((op, implementation))
        log.info("%s: %s has no backward of its own; the reference is recomputed for it", op, implementation)


def _explicit(op: Operator, impl: Choice | None) -> tuple[Implementation | None, str]:
    if impl is not None:
        return resolve(op, impl), "impl="
    levels = (("use()", _used), ("configuration", _configured), (ENVIRONMENT, _environment()))
    return next(((claims[op.name], why) for why, claims in levels if op.name in claims), (None, ""))


def _environment() -> dict[str, Implementation]:
    choices: dict[str, str] = {}
    for entry in filter(None, os.environ.get(ENVIRONMENT, "").replace(" ", "").split(",")):
        name, equals, choice = entry.partition("=")
        if not equals or name in choices:
            fault = "is named twice" if equals else "is no choice"
            raise UserError(f"{ENVIRONMENT}: {name!r} {fault}; write operator=implementation,... once per operator")
        choices[name] = choice
    return _claims(choices)


def _claims(choices: Mapping[str, Choice]) -> dict[str, Implementation]:
    everywhere = {name: choices["all"] for name in operator_names()} if "all" in choices else {}
    named = {name: choice for name, choice in choices.items() if name != "all"}
    return {name: resolve(operator(name), choice) for name, choice in {**everywhere, **named}.items()}


def _import(path: str) -> Callable:
    module_name, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"kernels: cannot import {module_name!r} of {path!r}: {error}; is it installed?") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise UserError(f"kernels: {module_name!r} has no function {attribute!r}{_nearest(attribute, names)}")
    return function


def _nearest(name: str, names: Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"
