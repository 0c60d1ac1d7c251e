"""The reference's backward for an implementation that has none of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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
        ctx.reference, ctx.kwargs = reference, kwargs
        ctx.save_for_backward(*outputs_and_args[count:])
        return tuple(output.view_as(output) for output in outputs_and_args[:count])

    @staticmethod
    def backward(ctx, *grad_outputs):
        wanted = ctx.needs_input_grad[-len(ctx.saved_tensors) :]
        args = [arg.detach().requires_grad_(want) for arg, want in zip(ctx.saved_tensors, wanted, strict=True)]
        with torch.enable_grad():
            result = ctx.reference(*args, **ctx.kwargs)
        outputs = result if isinstance(result, tuple) else (result,)
        differentiable = [i for i, output in enumerate(outputs) if output.requires_grad]
        grads = iter(
            torch.autograd.grad(
                [outputs[i] for i in differentiable],
                [arg for arg in args if arg.requires_grad],
                [grad_outputs[i] for i in differentiable],
                allow_unused=True,
            )
        )
        return (None,) * (3 + len(outputs)) + tuple(next(grads) if want else None for want in wanted)
