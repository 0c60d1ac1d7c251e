"""How fast a workload can be at best, from the code as it is: `headrace kernels roofline`.

The real host code runs on tensors in memory that nobody writes; each launch is compiled for the target and a sample of
its blocks is executed, which tells how often each loop turns. From that and the machine code follows how many warp
instructions are issued. A multiprocessor issues four a cycle, so no schedule is faster; nor is one faster than memory
or the tensor cores. `predicted` is a model on top: how well so many warps hide their latencies.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from ..registry import Case, Operator, operator, operator_names
from .execute import launch, translated
from .launches import Launch, compiled, parameters, taken
from .memory import Findings
from .sass import Code, Loop, disassemble
from .translate import Translator


class GPU(NamedTuple):
    name: str
    processors: int
    clock: float  # Hz
    bandwidth: float  # bytes a second, as copies reach it
    flops: float  # a second, of bfloat16 products, as large matrices reach it

    @property
    def issues(self) -> float:
        """Warp instructions a second."""
        return self.processors * 4 * self.clock


GPUS = {
    "sm_80": GPU("A100", 108, 1.41e9, 1.7e12, 250e12),
    "sm_90": GPU("H200", 132, 1.98e9, 4.3e12, 790e12),
    "sm_100": GPU("B200", 148, 1.85e9, 7.0e12, 1600e12),
}
# Warps on a multiprocessor -> the share of its issue slots that our kernels fill; a guess that a GPU has yet to mend.
EFFICIENCY = ((0, 0.1), (8, 0.35), (12, 0.45), (16, 0.52), (24, 0.62), (32, 0.68), (48, 0.75), (64, 0.78))
BANDWIDTH = 0.88  # of the bandwidth that copies reach
LARGE = 1 << 20  # values from which on a random tensor of a workload is left unwritten


class Kernel(NamedTuple):
    """One launch of a workload."""

    name: str
    grid: tuple[int, ...]
    warps: int
    registers: int
    resident: int  # warps on a multiprocessor
    instructions: float  # of a warp, on average over the programs
    issue: float  # us
    predicted: float  # us


class Row(NamedTuple):
    operator: str
    workload: str
    phase: str  # "forward" or "backward"
    kernels: tuple[Kernel, ...]
    bytes: float  # us
    flops: float  # us
    target: float  # us

    @property
    def issue(self) -> float:
        return sum(kernel.issue for kernel in self.kernels)

    @property
    def bound(self) -> float:
        return max(self.issue, self.bytes, self.flops)

    @property
    def predicted(self) -> float:
        return max(sum(kernel.predicted for kernel in self.kernels), self.bytes / BANDWIDTH, self.flops)


@contextmanager
def unwritten() -> Iterator[None]:
    """Large random tensors are memory that reads as zero and costs nothing until it is written."""

    def lazily(name, function):
        def make(*args, **kwargs):
            size = kwargs.get("size", args[2:3] if name == "randint" else args)
            size = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
            if math.prod(size) < LARGE:
                return function(*args, **kwargs)
            if name == "randint":
                kwargs.setdefault("dtype", torch.int64)
            return torch.zeros(*size, **{key: value for key, value in kwargs.items() if key == "dtype"})

        return make

    names = ("randn", "rand", "randint")
    patches = [mock.patch.object(torch, name, lazily(name, getattr(torch, name))) for name in names]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


class _Indices(TorchFunctionMode):
    """New memory of integers reads as zero: no launch writes it here, and host code may look up what it says."""

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function in (torch.empty, torch.empty_like, torch.Tensor.new_empty) and not made.is_floating_point():
            made.zero_()
        return made


def rows(target: str, names: list[str], only: str = "") -> Iterator[Row]:
    """The forward and, where there is one, the backward of each workload of these operators."""
    gpu = GPUS[target]
    for name in names or operator_names():
        op = operator(name)
        if not any(implementation.name == "triton" for implementation in op.implementations):
            continue
        workloads = importlib.import_module(f"headrace.kernels.{name}.workloads")
        for case in workloads.WORKLOADS:
            if only in case.id:
                yield from _workload(op, case, target, gpu, getattr(workloads, "TARGETS", {}).get(case.id, ()))


def _workload(op: Operator, case: Case, target: str, gpu: GPU, targets: tuple[float, ...]) -> Iterator[Row]:
    with unwritten(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        args, kwargs = case.arguments()
    cost = op.cost(*args, **kwargs)
    function = next(one for one in op.implementations if one.name == "triton").load()
    kernels: list[tuple[str, Kernel]] = []
    phase = ["forward"]

    def take(one: Launch) -> None:
        kernels.append((phase[0], _kernel(one, target, gpu)))

    leaves = tuple(
        arg if arg is None else arg.detach().requires_grad_(number in op.gradient_positions)
        for number, arg in enumerate(args)
    )
    with taken(target, take, gpu.processors), _Indices():
        result = op.run("triton", function, leaves, kwargs)
        phase[0] = "backward"
        outputs = [one for one in (result if isinstance(result, tuple) else (result,)) if one.requires_grad]
        inputs = [leaves[number] for number in op.gradient_positions if leaves[number] is not None]
        if outputs:
            torch.autograd.grad(outputs, inputs, [torch.zeros_like(one) for one in outputs], allow_unused=True)
    ahead = (cost.forward_bytes or cost.bytes, cost.forward_flops or cost.flops)
    for number, (name, data, flops) in enumerate(
        (("forward", *ahead), ("backward", cost.bytes - ahead[0], cost.flops - ahead[1]))
    ):
        own = tuple(kernel for kind, kernel in kernels if kind == name)
        if own:
            floor = 1e6 * max(data / gpu.bandwidth, flops / gpu.flops)
            aim = targets[number] if len(targets) > number else 2 * floor
            yield Row(op.name, case.id, name, own, 1e6 * data / gpu.bandwidth, 1e6 * flops / gpu.flops, aim)


def _kernel(one: Launch, target: str, gpu: GPU) -> Kernel:
    from ..aot import TARGETS, binary_figures

    programs = math.prod(one.grid)
    warps = one.options.num_warps
    binary = compiled(one, target)
    registers = binary_figures(binary.asm["cubin"])[0]
    code = disassemble(binary.asm["cubin"])
    executable = compiled(one, "sm_80" if target == "sm_80" else "sm_90")
    ptx = executable.asm["ptx"]
    visits = launch(ptx, executable.metadata.shared, one.grid, *parameters(one), Findings(), sample=True)
    kernel = translated(ptx)
    threads = visits[0] or 1  # every thread begins
    instructions = _executed(code, kernel, {block: count / threads for block, count in visits.items()})
    per_warp = -(-max(registers, 8) // 8) * 8 * 32
    blocks = min(65536 // (per_warp * warps), (TARGETS[target].shared + 1024) // (binary.metadata.shared + 1024), 32)
    blocks = max(1, min(blocks, 2048 // (32 * warps), math.ceil(programs / gpu.processors)))
    issue = 1e6 * instructions * warps * programs / gpu.issues
    efficiency = float(np.interp(blocks * warps, *zip(*EFFICIENCY, strict=True)))
    return Kernel(one.name, one.grid, warps, registers, blocks * warps, instructions, issue, issue / efficiency)


def _executed(code: Code, kernel: Translator, visits: dict[int, float]) -> float:
    """Instructions of the machine code that a warp executes, given how often it comes by each block of the PTX.

    Loops correspond by their order; where the assembler has unrolled one, a turn of the machine code's is as many of
    the PTX's as it has more accesses and special functions. Where loops do not correspond, the machine code as a whole
    is taken to be executed as the PTX as a whole.
    """
    ends = [*kernel.starts[1:], len(kernel.program.instructions)]
    sizes = [end - start for start, end in zip(kernel.starts, ends, strict=True)]
    loops = _loops(kernel)
    if len(loops) != len(code.loops):
        share = sum(visits.get(block, 0) * size for block, size in enumerate(sizes)) / sum(sizes)
        return len(code.instructions) * share
    total = 0.0
    for number in range(-1, len(loops)):  # -1: what is in no loop
        blocks = [block for block in range(len(sizes)) if _innermost(loops, block) == number]
        own = [at for at in range(len(code.instructions)) if _innermost(code.loops, at) == number]
        size = sum(sizes[block] for block in blocks)
        if not size:
            continue
        turns = sum(visits.get(block, 0) * sizes[block] for block in blocks) / size
        if number >= 0:
            marks = sum(_mark(kernel, block, end) for block, end in zip(kernel.starts, ends, strict=True)
                        if kernel.number[block] in blocks)  # fmt: skip
            machine = sum(code.instructions[at].partition(".")[0] in MACHINE for at in own)
            turns /= max(1, round(machine / marks)) if marks else 1
        total += len(own) * turns
    return total


MACHINE = {"LDG", "STG", "LDGSTS", "MUFU", "HGMMA", "HMMA", "UTCHMMA"}
MARKS = {"mma", "wgmma", "ex2", "lg2", "rcp", "sqrt", "rsqrt"}


def _mark(kernel: Translator, start: int, end: int) -> int:
    """Instructions that the assembler neither invents nor removes."""
    count = 0
    for one in kernel.program.instructions[start:end]:
        memory = one.opcode[0] in ("ld", "st") and one.opcode[1] == "global"
        copy = one.opcode[:2] == ("cp", "async") and one.opcode[2] not in ("commit_group", "wait_group", "wait_all")
        product = one.opcode[0] == "wgmma" and one.opcode[1] != "mma_async"
        count += memory or copy or (one.opcode[0] in MARKS and not product)
    return count


def _loops(kernel: Translator) -> list[Loop]:
    """Of the PTX, in blocks."""
    firsts: dict[int, int] = {}
    ends = [*kernel.starts[1:], len(kernel.program.instructions)]
    for block, end in enumerate(ends):
        last = kernel.program.instructions[end - 1]
        if last.opcode[0] == "bra":
            first = kernel.number[kernel.program.labels[last.arguments[0]]]
            if first <= block:
                firsts[first] = max(block, firsts.get(first, block))
    return [Loop(first, last) for first, last in sorted(firsts.items())]


def _innermost(loops, at: int) -> int:
    """Number of the smallest loop around, -1 for none."""
    around = [(loop.last - loop.first, number) for number, loop in enumerate(loops) if loop.first <= at <= loop.last]
    return min(around)[1] if around else -1
