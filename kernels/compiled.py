"""What `torch.compile` makes of an implementation: a plain PyTorch function compiled, as an implementation like any
other; kernels as operators of torch's, which it can trace.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def compiled(function: types.FunctionType) -> Callable:
    """`function` compiled on its own: what it compiles for other shape classes does not count against its limit.

    `torch.compile` keeps its graphs with the code object, and after eight of them it would go on uncompiled, silently.
    """
    code = function.__code__.replace()
    own = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    own.__kwdefaults__ = function.__kwdefaults__
    return torch.compile(own)


def without_compiler(device: str, *shape: Any) -> str | None:
    """Why `torch.compile` cannot serve this device type, or None."""
    if device == "cpu":
        compilers = (os.environ.get("CXX"), "g++", "clang++")
        found = any(shutil.which(name) for name in compilers if name)
        return None if found else "torch.compile needs a C++ compiler on CPUs"
    return None if importlib.util.find_spec("triton") else "torch.compile needs Triton on GPUs"


class Custom:
    """A function as an operator of torch's, `torch.ops.headrace.<name>`, which torch is asked for only where it looks.

    `torch.compile`, dispatch modes (fake tensors, counting, selective checkpoints), `torch.func` and subclasses of
    tensors see the operator (`op`). All other calls are those of the function itself, with the same backward in an
    autograd function: the way through torch's dispatcher, in Python, costs as much time of the host as a whole forward
    of window attention. Arguments are positional, and tensors among them are no lists. (A `triton_op` can be neither
    traced nor checked on a machine without a GPU driver.)
    """

    def __init__(self, name: str, function: Callable) -> None:
        self.op = torch.library.custom_op(f"headrace::{name}", function, mutates_args=())
        self._name, self._function, self._learn = name, function, None
        self.register_fake = self.op.register_fake

    def register_autograd(self, backward: Callable, *, setup_context: Callable | None = None) -> None:
        """As that of `torch.library.custom_op`."""
        self.op.register_autograd(backward, setup_context=setup_context)
        function = self._function

        def forward(ctx: Any, *args: Any) -> Any:
            result = function(*args)
            if setup_context:
                setup_context(ctx, args, result)
            return result

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._learn = type(self._name, (torch.autograd.Function,), methods).apply

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or _transformed():
            return self.op(*args)
        learns = False
        for arg in args:
            if isinstance(arg, Tensor):
                if type(arg) is not Tensor and type(arg) is not torch.nn.Parameter:
                    return self.op(*args)
                learns |= arg.requires_grad
        if not (learns and torch.is_grad_enabled()):
            return self._function(*args)
        return self._learn(*args) if self._learn else self.op(*args)  # the operator refuses to be differentiated


_transformed = torch._C._are_functorch_transforms_active


def custom(name: str) -> Callable[[Callable], Custom]:
    """Makes a `Custom` of a function, as a decorator."""
    return lambda function: Custom(name, function)
