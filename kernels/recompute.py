"""The reference's backward for an implementation that has none of its own, and a refusal of second gradients for those
whose backward has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError


def with_gradient_of(reference: Callable, result: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
    """`result`, a tensor or a tuple of them, with the gradient that ``reference(*args, **kwargs)`` has.

    The reference runs in the backward, on the saved arguments; the forward costs nothing.
    """
    outputs = result if isinstance(result, tuple) else (result,)
    outputs = _Recompute.apply(reference, kwargs, len(outputs), *outputs, *args)
    return outputs if isinstance(result, tuple) else outputs[0]


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, reference, kwargs, count, *outputs_and_args):
        ctx.reference, ctx.kwargs, ctx.count = reference, kwargs, count
        outputs, args = outputs_and_args[:count], outputs_and_args[count:]
        # An argument may be absent: None stays outside of what is saved.
        ctx.present = tuple(i for i, arg in enumerate(args) if arg is not None)
        ctx.arguments = len(args)
        ctx.save_for_backward(*(args[i] for i in ctx.present))
        return tuple(output.view_as(output) for output in outputs)

    @staticmethod
    def backward(ctx, *grad_outputs):
        args: list[Tensor | None] = [None] * ctx.arguments
        for i, arg in zip(ctx.present, ctx.saved_tensors, strict=True):
            args[i] = arg
        wanted = [i for i in ctx.present if ctx.needs_input_grad[3 + ctx.count + i]]

        def floating_outputs(*leaves: Tensor) -> tuple[Tensor, ...]:
            inputs = list(args)
            for i, leaf in zip(wanted, leaves, strict=True):
                inputs[i] = leaf
            result = ctx.reference(*inputs, **ctx.kwargs)
            outputs = result if isinstance(result, tuple) else (result,)
            return tuple(output for output in outputs if output.is_floating_point())

        # `torch.func.vjp` and not `autograd.grad`: torch.compile traces the one inside a backward and not the other.
        _, vjp = torch.func.vjp(floating_outputs, *(args[i] for i in wanted))
        grads = vjp(tuple(grad for grad in grad_outputs if grad.is_floating_point()))
        found: list[Tensor | None] = [None] * ctx.arguments
        for i, grad in zip(wanted, grads, strict=True):
            found[i] = grad
        return (None,) * (3 + ctx.count) + tuple(found)


def no_second_gradient(operator: str, implementation: str = "triton") -> Callable:
    """What an operator's backward registers as its own backward: it raises `UserError`."""

    def refuse(*_: Any) -> None:
        how = f'impl="reference", or kernels.{operator}=reference in a recipe'
        raise UserError(f"{operator}: {implementation} has no second gradients; take {how}")

    return refuse


def once(gradient: Tensor, operator: str, implementation: str = "triton") -> Tensor:
    """A gradient, of which there is none: autograd would take what was computed ahead of it for a constant."""
    return _Once.apply(gradient, no_second_gradient(operator, implementation)) if torch.is_grad_enabled() else gradient


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradient: Tensor, refuse: Callable) -> Tensor:
        ctx.refuse = refuse
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, grad: Tensor) -> None:
        ctx.refuse()
