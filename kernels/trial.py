"""A user's function in a run: its first call is tried before it counts, and what it raises is one line.

The trial is a forward and backward of its own, once for each operator, shape class and function, whose results have to
be tensors of the dtypes and shapes that the reference's have. Those come from the reference on torch's `meta` device,
which computes no numbers. Later calls cost a look into a table. What the numbers are worth, `check.py` finds out.
"""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ProcessError, UserError

if TYPE_CHECKING:
    from .registry import Decision, Operator

_NOT_THEIRS = tuple(str(Path(file).parents[up]) + os.sep for file, up in ((torch.__file__, 0), (__file__, 1)))
_tried: dict[tuple, str] = {}  # (operator, shape class, function, whether it has to learn) -> operator=implementation


def call(op: Operator, decision: Decision, shape: tuple, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The result of a user's function, as `Operator.run` gives it.

    Raises `UserError` where it gives something else than the reference does, and `ProcessError` where it raises, since
    other processes may be spared.
    """
    name, function = decision.implementation.name, decision.function
    if torch.compiler.is_compiling():
        return op.run(name, function, args, kwargs)
    try:
        key = op.name, shape, function, torch.is_grad_enabled()
        if key not in _tried:
            found = _anatomy(op, lambda *given: op.run(name, function, given, kwargs), args)
            _compare(f"{op.name}={name}", found, _expected(op, args, kwargs))
            _tried[key] = f"{op.name}={name}"
        return op.run(name, function, args, kwargs)
    except UserError:
        raise
    except (Exception, SystemExit) as fault:
        kind = type(fault)
        if kind.__module__.startswith("torch.") and kind.__name__.startswith("_"):  # how checkpointing ends a forward
            raise
        raise _raised(f"{op.name}={name}", fault) from fault


def blamed(fault: Exception) -> ProcessError | None:
    """What to say of an exception that a user's function has raised, in its backward for instance; None of others."""
    files = {frame.filename for frame in traceback.extract_tb(fault.__traceback__)} if _tried else set()
    for (_, _, function, _), claim in _tried.items():
        code = getattr(inspect.unwrap(function), "__code__", None) or getattr(type(function).__call__, "__code__", None)
        if code is not None and code.co_filename in files and not isinstance(fault, UserError):
            return _raised(claim, fault)
    return None


def _raised(claim: str, fault: BaseException) -> ProcessError:
    world, said = int(os.environ.get("WORLD_SIZE", "1")), " ".join(str(fault).split())[:300]
    who = f"process {os.environ.get('RANK', '0')} of {world}: " if world > 1 else ""
    frames = [f for f in traceback.extract_tb(fault.__traceback__) if not f.filename.startswith(_NOT_THEIRS)]
    where = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return ProcessError(
        f"{who}kernels: {claim} raises {type(fault).__name__}{said and f': {said}'}{where}; {_mend(claim)}"
    )


def _mend(claim: str) -> str:
    return f"mend it, then `headrace kernels check {claim.replace('=', ' ', 1)}`"


def _compare(claim: str, found: dict[str, str], expected: dict[str, str]) -> None:
    for what, ours in expected.items():
        if (theirs := found.get(what, "nothing")) != ours:
            raise UserError(
                f"kernels: {claim} gives {theirs} as {what}, where the reference gives {ours}; {_mend(claim)}"
            )


def _expected(op: Operator, args: tuple, kwargs: dict[str, Any]) -> dict[str, str]:
    def reference(*given: Any) -> Any:
        return op.reference(*given, **kwargs)

    try:
        return _anatomy(op, reference, args, "meta")
    except (NotImplementedError, RuntimeError, ValueError):  # it looks at numbers, or sums over processes
        return _anatomy(op, reference, args)


def _anatomy(op: Operator, function: Callable, args: tuple, device: str | None = None) -> dict[str, str]:
    """dtype and shape, in words, of each output and gradient of `function` for copies of `args` without a history."""
    given = [arg if arg is None else arg.detach().to(device or arg.device) for arg in args]
    learning = [i for i in op.gradient_positions if i < len(args) and args[i] is not None and args[i].requires_grad]
    leaves = [given[i].requires_grad_() for i in learning if torch.is_grad_enabled()]
    with torch.autograd.graph.saved_tensors_hooks(_same, _same):  # those of activation checkpointing would count these
        result = function(*given)
    outputs = result if isinstance(result, tuple) else (result,)
    found = {"result": " and ".join(map(_words, outputs))}
    roots = [output for output in outputs if output.requires_grad]
    if leaves and roots:
        gradients = torch.autograd.grad(roots, leaves, [torch.ones_like(root) for root in roots], allow_unused=True)
        names = list(inspect.signature(op.reference).parameters)
        found |= {f"gradient of {names[i]}": _words(g) for i, g in zip(learning, gradients, strict=True)}
    return found


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _words(tensor: torch.Tensor | None) -> str:
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
