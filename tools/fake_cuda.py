"""A GPU that is not there, for whole models: tensors without memory, CUDA's autocast, launches only looked at."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..kernels import registry
from ..kernels.proof.launches import Launch, taken

AXES = (2**31 - 1, 65535, 65535)  # the most blocks along each axis of a grid
PROCESSORS = 132  # of an H200
STRICT = {
    *(torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm, torch.ops.aten.convolution),
    *(torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten.index_copy, torch.ops.aten.index_copy_),
    *(torch.ops.aten.scatter, torch.ops.aten.scatter_, torch.ops.aten.index_add, torch.ops.aten.index_add_),
    *(torch.ops.aten.masked_scatter, torch.ops.aten.masked_scatter_),
}  # take floating point of one dtype


class Seen(NamedTuple):
    """What a model did on that GPU."""

    launches: list[Launch]
    dtypes: set[tuple[str, str]]  # operator, dtype of its shape class


@contextlib.contextmanager
def fake_cuda(dtype: torch.dtype | None, target: str = "sm_90") -> Iterator[Seen]:
    """Inside the block tensors on "cuda" have a shape, a dtype and strides, and no memory; autocast to `dtype` (None:
    none) follows CUDA's lists of operations; operators take what a GPU would, with the real host code down to the
    launches, which are listed. Forward only: torch's engine asks the driver before it goes backward."""
    seen = Seen([], set())
    dispatch = registry.Operator._dispatch

    def noted(op, impl, args, kwargs):
        seen.dtypes.add((op.name, str(op.shape_class(*args, **kwargs)[1]).removeprefix("torch.")))
        return dispatch(op, impl, args, kwargs)

    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True),
            (torch.cuda, "device_of", lambda tensor: contextlib.nullcontext()),
            (torch.Tensor, "pin_memory", lambda tensor, *args: tensor),
            (
                np,
                "from_dlpack",
                lambda tensor: np.random.default_rng(0).random(tuple(tensor.shape)),
            ),  # of draws on the host
            (torch.autograd, "grad", _gradients),
            (registry.Operator, "_dispatch", noted),
            (registry, "_decisions", {}),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(_host_code())
        stack.enter_context(taken(target, seen.launches.append, PROCESSORS))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_OneDtype())
        if dtype is not None:
            stack.enter_context(torch.autocast("cuda", dtype=dtype))
        yield seen


def _gradients(outputs: Tensor, inputs: Tensor | Sequence[Tensor], *args, **kwargs) -> tuple[Tensor, ...]:
    """Of losses that take theirs in the forward: of the right shape and dtype."""
    return tuple(torch.empty_like(each) for each in ([inputs] if isinstance(inputs, Tensor) else inputs))


class _OneDtype(TorchDispatchMode):
    """Refuses, as a GPU does and torch's tensors without memory do not, factors or parts of different dtypes."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in STRICT:
            dtypes = {each.dtype for each in args if isinstance(each, Tensor) and each.is_floating_point()}
            if len(dtypes) > 1:
                names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
                raise RuntimeError(f"{function}: {names} where one dtype is asked for")
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def _host_code() -> Iterator[None]:
    """What our operators of torch do for fake tensors is what they do for others: their launches are taken anyway."""
    from torch._library.custom_ops import OPDEFS

    for name in registry.operator_names():
        for implementation in registry.operator(name).implementations:
            if implementation.name == "triton":
                implementation.load()
    own = [op for name, op in list(OPDEFS.items()) if name.startswith("headrace::")]
    before = [op._abstract_fn for op in own]
    for op in own:
        op._abstract_fn = op._init_fn
    try:
        yield
    finally:
        for op, function in zip(own, before, strict=True):
            op._abstract_fn = function


def fake(value: Tensor | None) -> Tensor | None:
    """Such a tensor, like this one."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")


def put_on_fake_cuda(module: nn.Module) -> nn.Module:
    """The module itself; what its parts share stays shared."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, value in held.items():
                if value is not None and id(value) not in made:
                    new = fake(value.detach())
                    made[id(value)] = nn.Parameter(new, value.requires_grad) if held is part._parameters else new
                held[name] = value if value is None else made[id(value)]
    return module


def faults(one: Launch) -> list[str]:
    """What a GPU would refuse of a launch, or do slowly: a grid beyond its axes, a tensor whose first byte is not at a
    multiple of 16."""
    found = [
        f"{one.name}: {blocks} blocks along axis {axis}, at most {most}"
        for axis, (blocks, most) in enumerate(zip(one.grid, AXES, strict=False))
        if blocks > most
    ]
    for name, value in one.bound.items():
        if hasattr(value, "data_ptr") and value.data_ptr() % 16:
            found.append(f"{one.name}: {name} is not at a multiple of 16 bytes")
    return found
