"""Takes Triton's launches: what would go to a GPU goes to a function instead, compiled for the target one names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor

from ...errors import UserError
from .. import tiles
from ..aot import TARGETS
from .execute import launch
from .memory import Findings


class Launch(NamedTuple):
    """One launch as Triton specialised it."""

    kernel: Any  # the JITFunction
    grid: tuple[int, ...]
    signature: dict[str, str]  # argument -> Triton's type
    constants: dict
    attributes: dict  # alignment
    options: Any  # warps, stages, ...
    bound: dict[str, Any]  # argument -> value

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__


class _Driver:
    """As much of a GPU's driver as a launch asks for."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


class _Place:
    """A tensor without memory, as a launch looks at it: its dtype, and where it would lie in its allocation."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.dtype, self.shape, self.device = tensor.dtype, tensor.shape, tensor.device
        self._at = (1 << 30) + tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        return self._at


def _placed(value: Any) -> Any:
    return _Place(value) if isinstance(value, FakeTensor) else value


@contextmanager
def taken(target: str, take: Callable[[Launch], None], processors: int = 0) -> Iterator[None]:
    """Inside the block each launch of a Triton kernel is specialised for `target` and given to `take`; with
    `processors` given, work is shared out for a GPU with so many.

    Raises `UserError` where Triton is missing or interprets.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UserError("kernels: TRITON_INTERPRET=1 leaves nothing to compile; unset it")
    try:
        from triton.backends.compiler import GPUTarget
        from triton.runtime import driver
        from triton.runtime.jit import JITFunction
    except ImportError:
        raise UserError("kernels: Triton is not installed; pip install triton") from None
    backend, arch, warp_size, _ = TARGETS[target]
    before = driver.__dict__.get("_active"), JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> None:
        args = [_placed(value) for value in args]
        kwargs = {name: _placed(value) for name, value in kwargs.items()}
        kwargs |= {"debug": False, "instrumentation_mode": ""}
        self.device_caches.clear()
        _, _, _, backend, binder = self.device_caches[0]
        bound, specialization, options = binder(*args, **kwargs)
        options, signature, constants, attributes = self._pack_args(backend, kwargs, bound, specialization, options)
        grid = grid(bound) if callable(grid) else grid
        grid = tuple(int(axis) for axis in grid)
        self.device_caches.clear()
        take(Launch(self, grid, signature, constants, attributes, options, dict(bound)))

    driver.set_active(_Driver(GPUTarget(backend, arch, warp_size)))
    JITFunction.run = run
    try:
        with tiles.pretended(target, processors):
            yield
    finally:
        driver._active, JITFunction.run = before


_compiled: dict[tuple, Any] = {}


def compiled(one: Launch, target: str) -> Any:
    """What Triton makes of a launch for a target; kept."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    words = (repr(one.signature), *(repr(sorted((str(k), str(v)) for k, v in part.items())) for part in
             (one.constants, one.attributes)), repr(one.options), target)  # fmt: skip
    key = (id(one.kernel), *words)
    if key not in _compiled:
        source = ASTSource(one.kernel, one.signature, one.constants, one.attributes)
        options = one.options.__dict__
        _compiled[key] = triton.compile(source, target=GPUTarget(*TARGETS[target][:3]), options=options)
    return _compiled[key]


def parameters(one: Launch) -> tuple[list[int], list[tuple[str, torch.Tensor]]]:
    """What `execute.launch` takes: a bit pattern for each parameter of the PTX, and the tensors among them."""
    values, tensors = [], []
    for name, value in one.bound.items():
        kind = one.signature[name]
        if kind == "constexpr":
            continue
        if isinstance(value, torch.Tensor):
            values.append(value.data_ptr())
            tensors.append((name, value))
        elif kind == "fp32":
            values.append(int(np.float32(value).view(np.uint32)))
        else:
            values.append(int(value) & ((1 << 64) - 1 if kind.endswith("64") else (1 << 32) - 1))
    return [*values, 0, 0], tensors  # Triton appends two pointers, to scratch memory that none of these kernels has


@contextmanager
def executed(target: str, alter: Callable[[Launch, str], str] | None = None) -> Iterator[Findings]:
    """Inside the block Triton kernels run on CPU tensors as compiled for `target`. Yields what they did wrong.

    `alter(launch, ptx)` may change a kernel's PTX before it runs.
    """
    findings = Findings()

    def take(one: Launch) -> None:
        if min(one.grid, default=0) <= 0:
            return
        binary = compiled(one, target)
        ptx = alter(one, binary.asm["ptx"]) if alter else binary.asm["ptx"]
        launch(ptx, binary.metadata.shared, one.grid, *parameters(one), findings)

    with taken(target, take):
        yield findings
