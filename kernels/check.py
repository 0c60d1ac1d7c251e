"""Holds an implementation of an operator, ours or a user's, to the reference.

For every case of the operator: values and gradients against the reference in float64, with an error of at most twice
what the reference itself makes at the case's precision plus a tiny constant; strided inputs, which must give the right
answer or be refused; inputs left as they were; outputs written completely; the same bits twice; a batch of none. Where
kernels are executed (`proof/`) also what they do to memory: races, unwritten reads, accesses out of bounds.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from .proof.ptx import Fault, NotCovered
from .records import Parity
from .registry import Choice, Implementation, Operator, operator, resolve

TINY = 1e-6  # relative; a few units in the last place of float32, for cases where the reference happens to be exact


class Result(NamedTuple):
    """One check of one case. `passed` is None where the implementation does not support the case."""

    op: str
    implementation: str
    case: str
    check: str
    passed: bool | None
    error: float = math.nan  # norm of the difference to the float64 reference, relative to the norm of that
    limit: float = math.nan
    note: str = ""


def check(
    op: str, implementation: Choice, device: str = "cpu", *, execute: str = "", first: bool = False
) -> list[Result]:
    """Check an implementation on the cases of an operator.

    Args:
        op: name of the operator.
        implementation: a built-in name, a path ``pkg.mod:fn``, or a function with the reference's arguments.
        device: where to run, as torch names it.
        execute: a GPU's architecture, such as "sm_90": Triton kernels are compiled for it and executed on the CPU.
        first: the first case alone.

    Returns:
        Results in the order of the cases: one per check, or a single one for a case that is not supported.

    Raises:
        UserError: unknown names; a kernel with instructions that cannot be executed; none that was.
    """
    spec = operator(op)
    chosen = resolve(spec, implementation)
    results = []
    for case in spec.cases[:1] if first else spec.cases:
        args, kwargs = case.arguments()
        args = tuple(arg if arg is None else _copy(arg, device) for arg in args)
        shape = spec.shape_class(*args, **kwargs)
        if reason := chosen.supports("cuda" if execute else shape[0], *shape[1:]):
            results.append(Result(op, chosen.name, case.id, "supported", None, note=reason))
        else:
            judge = executed_case if execute else _check_case
            found = judge(spec, chosen, args, kwargs, **({"target": execute} if execute else {}))
            results += [Result(op, chosen.name, case.id, *outcome) for outcome in found]
    return results


def executed_case(
    op: Operator, chosen: Implementation, args: tuple, kwargs: dict[str, Any], target: str
) -> Iterator[tuple]:
    """`_check_case` with the kernels executed for `target`, and what they did to memory as checks of their own."""
    from .proof.launches import executed

    fault, raised = "", False
    with executed(target) as findings:
        try:
            for outcome in _check_case(op, chosen, args, kwargs):
                raised |= outcome[0] == "runs"
                yield outcome
        except Fault as found:
            fault = str(found)
        except NotCovered as refused:
            raise UserError(
                f"check --execute {target}: {op.name}={chosen.name} needs {refused}, which is not among the "
                "instructions of docs/kernels.md that can be executed"
            ) from None
    if not findings.launches and not fault:
        if raised:  # a kernel that does not compile, say
            return
        raise UserError(
            f"check --execute {target}: {op.name}={chosen.name} launched no Triton kernel, so nothing was executed; "
            "check it without --execute"
        )
    yield "memory", not fault, math.nan, math.nan, fault
    for name, found in (("races", findings.races), ("unwritten reads", findings.unwritten)):
        first = next(iter(found), "")
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield name, not found, math.nan, math.nan, first + more


def parity(results: Sequence[Result]) -> Parity | None:
    """The outcome of `check` as it is recorded; None when no case was supported."""
    judged = [result for result in results if result.passed is not None]
    failed = [f"{result.case}: {result.check} {result.note}".strip() for result in judged if not result.passed]
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return Parity(sum(result.passed for result in judged), failed[0] + more if failed else "") if judged else None


def _check_case(op: Operator, chosen: Implementation, args: tuple, kwargs: dict[str, Any]) -> Iterator[tuple]:
    """Yields (check, passed, error, limit, note). Every run sees its own copy of the arguments."""
    loaded = chosen.load()

    def copies(args: tuple) -> tuple:
        return tuple(arg if arg is None else _copy(arg, arg.device) for arg in args)

    def run(function: Callable, args: tuple) -> dict[str, Tensor]:
        return values_and_gradients(op, lambda *tensors: function(*tensors, **kwargs), args)

    def candidate(*tensors: Tensor, **options: Any) -> Any:
        return op.run(chosen.name, loaded, tensors, options)

    def judge(check: str, results: dict[str, Tensor]) -> tuple:
        """The worst of several results, as one outcome."""
        errors = {name: relative_error(results[name], exact[name]) for name in exact}
        worst = max(errors, key=lambda name: errors[name] / limits[name])
        passed = errors[worst] <= limits[worst]
        return check, passed, errors[worst], limits[worst], "" if passed else f"the {worst} is off"

    exact = run(op.reference, doubled(args))
    plain = run(op.reference, args)
    limits = {name: limit(plain[name], exact[name]) for name in exact}

    used = copies(args)
    try:
        first = run(candidate, used)
    except (Fault, NotCovered):  # of the executor, for `executed_case`
        raise
    except Exception as error:  # whatever a user's function raises is a finding
        yield "runs", False, math.nan, math.nan, f"{type(error).__name__}: {error}"
        return
    changed = [name for name, new, old in zip(_names(op), used, args, strict=False) if not _same_bits(new, old)]
    yield "inputs unmodified", not changed, math.nan, math.nan, f"{', '.join(changed)} changed" if changed else ""
    for name, value in first.items():
        misfit = f"{value.dtype} {tuple(value.shape)}, must be {plain[name].dtype} {tuple(plain[name].shape)}"
        fits = (value.dtype, value.shape) == (plain[name].dtype, plain[name].shape)
        error = relative_error(value, exact[name]) if fits else math.inf
        yield name, error <= limits[name], error, limits[name], "" if fits else misfit
        if not fits:
            return

    again = run(candidate, copies(args))
    different = [name for name in first if not _same_bits(again[name], first[name])]
    yield "repeatable", not different, math.nan, math.nan, f"{', '.join(different)} differ" if different else ""
    with poisoned_memory():
        yield judge("outputs written", run(candidate, copies(args)))
    for position, name in enumerate(_names(op)[: len(args)]):
        if args[position] is not None and args[position].dim():
            strided = (*args[:position], _every_other(args[position]), *args[position + 1 :])
            try:
                yield judge(f"strided {name}", run(candidate, copies(strided)))
            except (UserError, ValueError) as error:
                yield f"strided {name}", True, math.nan, math.nan, f"refused: {error}"
    if op.batched:
        yield ("empty batch", *_judge_empty(op, run, candidate, args))


def _judge_empty(op: Operator, run: Callable, candidate: Callable, args: tuple) -> tuple:
    """A batch of none may be refused; whoever answers must answer like the reference, even if that is NaN."""
    empty = tuple(
        arg[:0] if name in op.batched and arg is not None else arg for name, arg in zip(_names(op), args, strict=False)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on means of nothing
        expected = run(op.reference, empty)
        try:
            found = run(candidate, empty)
        except (UserError, ValueError) as error:
            return True, math.nan, math.nan, f"refused: {error}"
        except (Fault, NotCovered):
            raise
        except Exception as error:
            return False, math.nan, math.nan, f"{type(error).__name__}: {error}"
    wrong = [
        name
        for name, value in expected.items()
        if found[name].shape != value.shape or not torch.allclose(found[name], value, equal_nan=True)
    ]
    return not wrong, math.nan, math.nan, f"{', '.join(wrong)} unlike the reference's" if wrong else ""


def _names(op: Operator) -> list[str]:
    return list(inspect.signature(op.reference).parameters)


def values_and_gradients(op: Operator, function: Callable, args: tuple) -> dict[str, Tensor]:
    """Outputs and gradients by name, for a fixed, uneven gradient of each output."""
    args = tuple(
        arg if arg is None else arg.detach().requires_grad_(i in op.gradient_positions) for i, arg in enumerate(args)
    )
    result = function(*args)
    outputs = result if isinstance(result, tuple) else (result,)
    found = {f"value {i}" if i else "value": output.detach() for i, output in enumerate(outputs)}
    differentiable = [output for output in outputs if output.requires_grad]
    if op.gradients and differentiable:
        generator = torch.Generator().manual_seed(3)
        weights = [torch.rand(output.shape, generator=generator).add(0.5).to(output) for output in differentiable]
        inputs = [args[i] for i in op.gradient_positions]
        grads = torch.autograd.grad(differentiable, inputs, weights, materialize_grads=True)
        found.update({f"gradient of {name}": grad for name, grad in zip(op.gradients, grads, strict=True)})
    return found


def doubled(args: tuple) -> tuple:
    """The arguments in float64, as far as they are floating point."""
    return tuple(arg.double() if arg is not None and arg.is_floating_point() else arg for arg in args)


def limit(plain: Tensor, exact: Tensor) -> float:
    """The relative error that an implementation may have where plain PyTorch gives `plain`."""
    return 2 * relative_error(plain, exact) + TINY


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Norm of the difference relative to the norm of the exact value; infinite where the value is not finite."""
    error = (value.double() - exact.double()).norm() / exact.double().norm().clamp(min=1e-30)
    return float(error.nan_to_num(math.inf, math.inf))


def _copy(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A copy with the same strides; `clone` and `to` would close the gaps of a slice."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device).copy_(tensor)


def _every_other(tensor: Tensor) -> Tensor:
    """The same values as a view of memory that has strangers in between."""
    wide = torch.stack((tensor, torch.ones_like(tensor)), dim=-1).flatten(-2)
    return wide[..., ::2]


def _same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    whole = (
        tensor.clone(memory_format=torch.contiguous_format) for tensor in (a, b)
    )  # a single value keeps any stride
    return torch.equal(*(tensor.view(-1).view(torch.uint8) for tensor in whole))


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New, unwritten tensors are full of NaN (integers: of their largest value) inside the block."""
    enabled = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)  # the fill happens in this mode only
        torch.utils.deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled[0], warn_only=enabled[1])
            torch.utils.deterministic.fill_uninitialized_memory = filled
