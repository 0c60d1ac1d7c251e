"""Operators, their implementations, and which one runs.

An operator is a folder of this package: its reference defines the answer, its other implementations are faster ways to
the same answer. Who decides, strongest first:

1. the ``impl=`` argument of the public function,
2. `use`, as a call or as a context manager,
3. `configure`, fed from the ``kernels:`` section of a recipe,
4. the environment: ``HEADRACE_KERNELS="patch_loss=reference"`` (``all=`` names every operator that has it),
5. nobody: on GPUs the first built-in implementation that supports the shape and has not failed its last check on this
   machine (`compiled` only where it has passed one); on CPUs the reference.

A choice by 1-4 is kept or refused, never replaced. Each choice is made once per operator and shape class and costs a
dict lookup from then on; choices hold for the whole process, all threads included.

Under `torch.compile` the chosen implementation becomes part of the graph, so that plain PyTorch fuses with its
surroundings; another choice leads to another graph, and coming back to an earlier one finds the graph of that time.

One file, because what an operator is, who decides and the caches that a choice empties are one mechanism.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import UserError
from ..outside import imported, nearest
from . import records, trial
from .compiled import compiled, without_compiler
from .recompute import with_gradient_of

log = logging.getLogger(__name__)

ENVIRONMENT = "HEADRACE_KERNELS"
ShapeClass = tuple  # (device type, dtype, *sizes): what a choice may depend on; never the batch size


class Cost(NamedTuple):
    """The least a forward and backward can do: every input read once, every output and gradient written once.

    The forward's share of it may be left out; benchmarks then rate the forward by its time alone.
    """

    bytes: int
    flops: int
    forward_bytes: int | None = None
    forward_flops: int | None = None


@dataclass(frozen=True)
class Case:
    """One set of arguments on the CPU, the same at every call. The first case of an operator is its typical one.

    The cases in an operator's `workloads.py` have the sizes of real training runs and make their tensors on torch's
    default device, by its global generator.
    """

    id: str
    arguments: Callable[[], tuple[tuple, dict[str, Any]]]  # () -> (positional, keyword)


def _always(*shape: Any) -> None:
    return None


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator, called with the arguments of its reference.

    `supports(device type, dtype, *sizes)` returns None or the reason why not. `differentiable=False` declares that the
    backward is the reference's. `compile=True` runs the function through `torch.compile`, separately per shape class.
    """

    name: str
    function: str | Callable  # a path is imported when first chosen
    supports: Callable[..., str | None] = _always
    differentiable: bool = True
    compile: bool = False

    def load(self) -> Callable:
        function = self.function if callable(self.function) else imported(self.function, "kernels")
        return compiled(function) if self.compile else function


Choice = str | Callable | Implementation  # a built-in one's name or a dotted path; or the thing itself


@dataclass(frozen=True)
class Decision:
    """What runs for one operator and shape class, who said so, and why the others do not run."""

    implementation: Implementation
    function: Callable
    why: str
    others: dict[str, str]  # name -> reason
    theirs: bool = False  # a user's


def _is_cast(value: Any) -> bool:
    """Whether autocast may take an argument to its dtype: a tensor that is not float64."""
    return torch.is_tensor(value) and value.is_floating_point() and value.dtype != torch.float64


@dataclass(eq=False)
class Operator:
    """An operator: tensors are its positional arguments, everything that shapes the computation is keyword-only.

    `shape_class(*args, **kwargs)` gives (device type, dtype, *sizes), the sizes in the order of `size_names`;
    `cost(*args, **kwargs)` gives the `Cost`; `gradients` names the arguments that receive one; `batched` those whose
    first dimension is the batch, for which the checker tries a batch of none; `autocast` those that autocast casts. All
    others keep their dtype, and inside of the implementation there is no autocast.
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
    batched: tuple[str, ...] = ()
    autocast: tuple[str, ...] = ()
    gradient_positions: tuple[int, ...] = field(init=False)
    autocast_positions: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        parameters = list(inspect.signature(self.reference).parameters)
        self.gradient_positions = tuple(parameters.index(name) for name in self.gradients)
        self.autocast_positions = tuple(parameters.index(name) for name in self.autocast)

    @property
    def implementations(self) -> tuple[Implementation, ...]:
        compiled_reference = Implementation("compiled", self.reference, without_compiler, compile=True)
        return (*self.fast, compiled_reference, Implementation("reference", self.reference))

    def describe(self, shape: ShapeClass) -> str:
        device, dtype, *sizes = shape
        named = (f"{name}={size}" for name, size in zip(self.size_names, sizes, strict=True))
        return " ".join((device, str(dtype).removeprefix("torch."), *named))

    def __call__(self, *args: Any, impl: Choice | None = None, **kwargs: Any) -> Any:
        """Run the chosen implementation."""
        device = args[0].device.type
        if device != "meta" and torch.is_autocast_enabled(device):  # which knows no autocast
            dtype = torch.get_autocast_dtype(device)
            args = tuple(
                arg.to(dtype) if i in self.autocast_positions and _is_cast(arg) else arg for i, arg in enumerate(args)
            )
            with torch.autocast(device, enabled=False):
                return self._dispatch(impl, args, kwargs)
        return self._dispatch(impl, args, kwargs)

    def _dispatch(self, impl: Choice | None, args: tuple, kwargs: dict[str, Any]) -> Any:
        device, dtype, *sizes = self.shape_class(*args, **kwargs)
        # `index` makes a number of what torch.compile may hold as a symbol; each shape class is its own graph.
        shape = (device, dtype, *[index(size) for size in sizes])
        _ensure_decided(self.name, shape, impl)
        decision = _decisions[self.name, shape, impl]
        if decision.theirs:
            return trial.call(self, decision, shape, args, kwargs)
        return self.run(decision.implementation.name, decision.function, args, kwargs)

    def run(self, implementation: str, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Call a function as an implementation of this operator: without a backward it gets the reference's."""
        result = function(*args, **kwargs)
        if not all(isinstance(output, torch.Tensor) for output in (result if isinstance(result, tuple) else (result,))):
            check = f"mend it, then `headrace kernels check {self.name} {implementation}`"
            given = type(result).__name__
            raise UserError(f"kernels: {implementation} gives {given} for {self.name}, not tensors; {check}")
        if torch.is_grad_enabled() and any(args[i].requires_grad for i in self.gradient_positions if _given(args, i)):
            if not any(output.requires_grad for output in (result if isinstance(result, tuple) else (result,))):
                _note_forward_only(self.name, implementation)
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
        raise UserError(f"kernels: there is no operator {name!r}{nearest(name, names)}")
    return importlib.import_module(f".{name}", __package__).OPERATOR


def resolve(op: Operator, choice: Choice) -> Implementation:
    """What `choice` means for `op`: a built-in implementation's name, a dotted path, or what such a path may lead to,
    a function or an `Implementation`.

    Raises `UserError` for an unknown name or a path that leads nowhere.
    """
    if isinstance(choice, Implementation):
        return choice
    if callable(choice):
        return Implementation(f"{choice.__module__}:{getattr(choice, '__qualname__', type(choice).__name__)}", choice)
    built_in = {implementation.name: implementation for implementation in op.implementations}
    if choice in built_in:
        return built_in[choice]
    if "." in choice or ":" in choice:
        found = imported(choice, "kernels", lambda value: callable(value) or isinstance(value, Implementation))
        return found if isinstance(found, Implementation) else Implementation(choice, _fitting(op, choice, found))
    instead = nearest(choice, built_in)
    raise UserError(f"kernels: {op.name} has no implementation {choice!r}{instead}, or give a path pkg.mod:fn")


def _fitting(op: Operator, name: str, function: Callable) -> Callable:
    """The function, which must take the arguments of the operator's reference. Raises `UserError`."""
    asked = inspect.signature(op.reference)
    plain = [p.name for p in asked.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    named = {p.name: None for p in asked.parameters.values() if p.kind is p.KEYWORD_ONLY}
    try:
        inspect.signature(function).bind(*plain, **named)
    except TypeError as fault:
        raise UserError(f"kernels: {name} does not take what {op.name} is called with, {asked}: {fault}") from None
    except ValueError:  # some builtins do not say what they take
        pass
    return function


def configure(choices: Mapping[str, Choice]) -> None:
    """Take a run's choices, operator -> implementation, in place of earlier ones. Raises `UserError` for bad names."""
    claims = _claims(choices)
    _configured.clear()
    _configured.update(claims)
    _decide_anew()


@contextmanager
def restored() -> Iterator[None]:
    """Afterwards a run's choices are what they were before, whatever was configured inside."""
    before = dict(_configured)
    try:
        yield
    finally:
        _configured.clear()
        _configured.update(before)
        _decide_anew()


class use:
    """Choose an implementation from now on, or, as a context manager, until the block ends.

    Args:
        op: name of an operator, or ``"all"`` for every one that has an implementation of that name.
        implementation: a built-in name, a path ``pkg.mod.fn`` or ``pkg.mod:fn``, or a function with the reference's
            arguments. A function without a backward gets the reference's.

    Raises `UserError` for names that do not exist.
    """

    def __init__(self, op: str, implementation: Choice) -> None:
        self._before = dict(_used)
        _used.update(_claims({op: implementation}))
        _decide_anew()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        _used.clear()
        _used.update(self._before)
        _decide_anew()


def _decide_anew() -> None:
    """Bring the decisions up to date, in place: compiled graphs are guarded by them. Where one names another function,
    the graphs of that function are valid; where one is missing, no graph is.
    """
    for name, shape, impl in list(_decisions):
        try:
            _decisions[name, shape, impl] = decide(operator(name), shape, impl)
        except UserError:  # to be raised where the operator is called
            del _decisions[name, shape, impl]


def subject(op: Operator, implementation: Implementation, device: str) -> records.Subject | None:
    """What a check or benchmark of `implementation` on a device type ("cuda", "cpu") is recorded about."""
    return records.subject(op.name, implementation.name, users_function(op, implementation), device)


def users_function(op: Operator, implementation: Implementation) -> Callable | None:
    """What an implementation of the user's calls; None for a built-in one."""
    function = None if implementation in op.implementations else implementation.function
    return imported(function, "kernels") if isinstance(function, str) else function


def decide(op: Operator, shape: ShapeClass, impl: Choice | None = None) -> Decision:
    """Who computes `op` for this shape class. Raises `UserError` where an explicit choice cannot be honoured."""
    reasons = {implementation.name: implementation.supports(*shape) for implementation in op.implementations}
    chosen, why = _explicit(op, impl)
    idle = "not asked for"
    if chosen is None:
        chosen, why = _automatic(op, shape[0], reasons), "automatic"
        idle = "comes after it" if shape[0] != "cpu" else "only when asked for on a CPU"
    elif reason := chosen.supports(*shape):
        able = ", ".join(f"{name}: {other or 'supported'}" for name, other in reasons.items() if name != chosen.name)
        raise UserError(
            f"kernels: {op.name}={chosen.name} ({why}) cannot run {op.describe(shape)}: {reason}; instead: {able}"
        )
    elif failed := _failed(op, chosen, shape[0]):
        raise UserError(
            f"kernels: {op.name}={chosen.name} ({why}) failed its last check on this machine: {failed}; mend it, then "
            f"`headrace kernels check {op.name} {chosen.name}`"
        )
    others = {name: reason or idle for name, reason in reasons.items() if name != chosen.name}
    if (op.name, shape, chosen.name) not in _announced:
        _announced.add((op.name, shape, chosen.name))
        log.info("%s for %s: %s (%s)", op.name, op.describe(shape), chosen.name, why)
    return Decision(chosen, _loaded(chosen, shape), why, others, chosen not in op.implementations)


@cache
def _loaded(implementation: Implementation, shape: ShapeClass) -> Callable:
    """Kept when choices change, so that coming back to one compiles nothing again."""
    return implementation.load()


def _automatic(op: Operator, device: str, reasons: dict[str, str | None]) -> Implementation:
    """The first that can and may; adds to `reasons` why those before it may not."""
    *candidates, reference = op.implementations
    for implementation in candidates if device != "cpu" else ():
        if reasons[implementation.name] is not None:
            continue
        outcome = records.parity(subject(op, implementation, device))
        if outcome and outcome.failed:
            reasons[implementation.name] = f"failed its last check: {outcome.failed}"
            log.warning("%s: %s %s", op.name, implementation.name, reasons[implementation.name])
        elif outcome is None and implementation.compile:
            reasons[implementation.name] = "taken by itself only once it passed a check on this machine"
        else:
            return implementation
    return reference


def _failed(op: Operator, implementation: Implementation, device: str) -> str:
    if implementation.name == "reference":  # the definition
        return ""
    outcome = records.parity(subject(op, implementation, device))
    return outcome.failed if outcome else ""


def forward_only(op: str) -> set[str]:
    """The implementations of an operator that turned out to have no backward of their own."""
    return {implementation for name, implementation in _forward_only if name == op}


def without_triton(device: str) -> str | None:
    """Why Triton cannot run on this device type, or None. In Triton's interpreter the CPU is a device too."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device == "cuda" or (device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return f"Triton needs a CUDA or ROCm device, not {device}"


def _constant(function: Callable) -> Callable:
    """`torch.compiler.assume_constant_result`, which imports the compiler: 2 s of a core that most runs do not need."""
    function._dynamo_marked_constant = True
    return function


# torch.compile runs these two while it traces and keeps only their effect: what it guards is the entry in `_decisions`,
# so a later `use` or `configure` leads to a new graph.
@_constant
def _ensure_decided(name: str, shape: ShapeClass, impl: Choice | None) -> None:
    if (name, shape, impl) not in _decisions:
        _decisions[name, shape, impl] = decide(operator(name), shape, impl)


@_constant
def _note_forward_only(op: str, implementation: str) -> None:
    if (op, implementation) not in _forward_only:
        _forward_only.add((op, implementation))
        log.info("%s: %s has no backward of its own; the reference is recomputed for it", op, implementation)


def _given(args: tuple, position: int) -> bool:
    return position < len(args) and args[position] is not None


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
    named = {name: choice for name, choice in choices.items() if name != "all"}
    if "all" in choices:
        able = [name for name in operator_names() if _has(operator(name), choices["all"])]
        # Where nobody has it, the first says so.
        named = {**dict.fromkeys(able or operator_names()[:1], choices["all"]), **named}
    return {name: resolve(operator(name), choice) for name, choice in named.items()}


def _has(op: Operator, choice: Choice) -> bool:
    return not isinstance(choice, str) or choice in {implementation.name for implementation in op.implementations}
