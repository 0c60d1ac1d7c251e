"""How fast implementations of an operator are, next to each other and to what the hardware could do.

Each contender runs the same arguments: forward without gradients, and forward with backward. Its time is compared with
the least that `Operator.cost` allows at the bandwidth and the arithmetic measured on the same device just before. On a
GPU the sizes are those of the operator's `workloads.py` and every run starts with a cold L2 cache (`do_bench` of
Triton); on a CPU it is the operator's first case, which tells whether a benchmark works and little else.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from . import tiles
from .check import doubled, relative_error, values_and_gradients
from .registry import Case, Choice, Implementation, Operator, resolve

FORWARD, BOTH = "forward", "forward+backward"


class Ceilings(NamedTuple):
    """What this device was seen to do: a copy of 4 GB, a product of two 8192x8192 bfloat16 matrices (CPUs: smaller)."""

    bytes_per_second: float
    flops_per_second: float


class Times(NamedTuple):
    """Microseconds: 20th, 50th and 80th percentile."""

    p20: float
    p50: float
    p80: float


@dataclass
class Row:
    """One contender at one workload in one direction; figures that could not be had are None."""

    op: str
    impl: str
    workload: str
    shape: str
    dtype: str
    dir: str
    us_p20: float | None = None
    us_p50: float | None = None
    us_p80: float | None = None
    us_graph: float | None = None  # replayed from a CUDA graph, warm
    bytes_min: int | None = None
    flops: int | None = None
    gbps: float | None = None
    tflops: float | None = None
    frac_bw: float | None = None
    frac_flop: float | None = None
    frac_roofline: float | None = None  # least possible time / time
    peak_mb: float | None = None  # allocated during one run, beyond the arguments
    rel_err: dict[str, float] = field(default_factory=dict)  # to the float64 reference
    bit_repro: bool | None = None
    config: dict[str, Any] = field(default_factory=dict)  # tiles used
    note: str = ""


def workloads(op: Operator, device: str) -> tuple[Case, ...]:
    """The sizes to measure on a device type: the operator's workloads on a GPU, its typical case on a CPU."""
    module = _workloads_module(op)
    return module.WORKLOADS if module and device != "cpu" else op.cases[:1]


def peers(op: Operator, device: str) -> dict[str, Callable]:
    """What others offer for the operator, by name, called with the reference's arguments. None on CPUs."""
    module = _workloads_module(op)
    return module.peers() if hasattr(module, "peers") and device != "cpu" else {}


def _workloads_module(op: Operator):
    exists = (Path(__file__).parent / op.name / "workloads.py").exists()
    return importlib.import_module(f".{op.name}.workloads", __package__) if exists else None


def contenders(op: Operator, choices: Sequence[Choice], device: str) -> list[Implementation]:
    """Reference and compiled, then the choices; without choices everything built-in that can be timed, and the peers.

    Raises `UserError` for what is nothing or would be timed in Triton's interpreter.
    """
    standard = [resolve(op, "reference"), resolve(op, "compiled")]
    named = [resolve(op, choice) for choice in choices if choice not in ("reference", "compiled")]
    for implementation in named:
        if device == "cpu" and _is_triton(implementation):
            raise UserError(
                f"bench: {op.name}={implementation.name} runs in Triton's interpreter on a CPU, whose time says "
                "nothing; leave it out, or benchmark on a GPU"
            )
    if not choices and device != "cpu":
        named = [*op.fast, *(Implementation(name, function) for name, function in peers(op, device).items())]
    return [*standard, *named]


def _is_triton(implementation: Implementation) -> bool:
    if isinstance(implementation.function, str):
        return implementation.function.partition(":")[0].endswith(".triton_impl")
    return "triton" in vars(sys.modules.get(implementation.function.__module__, object))


def bench(op: Operator, case: Case, implementations: Iterable[Implementation], device: str) -> Iterator[Row]:
    """Rows of every implementation at one workload, forward first. Whoever fails gets a row with the reason."""
    limits = ceilings(device)
    with nullcontext() if case in op.cases else torch.device(device):
        args, kwargs = case.arguments()
    args = tuple(arg if arg is None else arg.to(device) for arg in args)
    cost = op.cost(*args, **kwargs)
    exact = _exact(op, args, kwargs)
    device_type, dtype, *sizes = op.shape_class(*args, **kwargs)
    shape = " ".join(
        [*(f"{list(arg.shape)}" for arg in args if arg is not None)]
        + [f"{name}={size}" for name, size in zip(op.size_names, sizes, strict=True)]
    )
    start = Row(op.name, "", case.id, shape, str(dtype).removeprefix("torch."), FORWARD)
    for implementation in implementations:
        row = replace(start, impl=implementation.name)
        if reason := implementation.supports(device_type, dtype, *sizes):
            yield replace(row, note=f"not supported: {reason}")
            continue
        try:
            yield from _rows(op, implementation, args, kwargs, device, row, cost, limits, exact)
        except Exception as error:  # a contender that fails must not end the comparison
            yield replace(row, note=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}")


def _rows(op, implementation, args, kwargs, device, row, cost, limits, exact) -> Iterator[Row]:
    function = implementation.load()

    def call(*tensors: Tensor | None) -> Any:
        return op.run(implementation.name, function, tensors, kwargs)

    def forward() -> None:
        with torch.no_grad():
            call(*args)

    tiles.asked(op.name)
    found, again = (values_and_gradients(op, call, args) for _ in range(2))
    judged = {
        "rel_err": {name: relative_error(found[name], exact[name]) for name in exact if name in found},
        "bit_repro": all(torch.equal(found[name], again[name]) for name in found),
    }
    config = tiles.asked(op.name)
    del found, again
    times = measure(forward, device)
    bytes_min, flops = (cost.forward_bytes, cost.forward_flops) if op.gradients else (cost.bytes, cost.flops)
    graph = _graph_time(forward, device) if times.p50 < 50 else None
    figures = _figures(times, bytes_min, flops, limits)
    yield replace(row, **figures, us_graph=graph, peak_mb=_peak(forward, device), config=config, **judged)
    if op.gradients:
        both = training_step(op, call, args)
        figures = _figures(measure(both, device), cost.bytes, cost.flops, limits)
        yield replace(row, dir=BOTH, **figures, peak_mb=_peak(both, device), config=config, **judged)


def training_step(op: Operator, call: Callable, args: tuple) -> Callable[[], Any]:
    """A forward with its backward, for fixed gradients of the outputs; the forward alone where there is no backward."""
    if not op.gradients:
        return lambda: call(*args)
    leaves = tuple(
        arg if arg is None else arg.detach().requires_grad_(i in op.gradient_positions) for i, arg in enumerate(args)
    )
    inputs = [leaves[i] for i in op.gradient_positions if i < len(leaves) and leaves[i] is not None]

    def outputs() -> list[Tensor]:
        result = call(*leaves)
        return [output for output in (result if isinstance(result, tuple) else (result,)) if output.requires_grad]

    weights = [torch.rand_like(output) for output in outputs()]

    def step() -> None:
        torch.autograd.grad(outputs(), inputs, weights, allow_unused=True)

    return step


def _exact(op: Operator, args: tuple, kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Values and gradients of the reference in float64; empty where there is no memory for them."""
    try:
        return values_and_gradients(op, lambda *tensors: op.reference(*tensors, **kwargs), doubled(args))
    except torch.OutOfMemoryError:
        return {}


def _figures(times: Times, bytes_min: int | None, flops: int | None, limits: Ceilings) -> dict[str, Any]:
    figures = {"us_p20": times.p20, "us_p50": times.p50, "us_p80": times.p80, "bytes_min": bytes_min, "flops": flops}
    if bytes_min is None or flops is None:
        return figures
    seconds = times.p50 * 1e-6
    least = bytes_min / limits.bytes_per_second, flops / limits.flops_per_second
    fractions = {"frac_bw": least[0] / seconds, "frac_flop": least[1] / seconds, "frac_roofline": max(least) / seconds}
    return {**figures, "gbps": bytes_min / seconds / 1e9, "tflops": flops / seconds / 1e12, **fractions}


def measure(function: Callable[[], Any], device: str, milliseconds: int = 80) -> Times:
    """How long a call takes, after warming up for a quarter of the given time."""
    if device == "cpu":
        from torch.utils.benchmark import Timer

        function()
        timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
        taken = torch.tensor(timer.blocked_autorange(min_run_time=milliseconds / 1e3).times, dtype=torch.float64)
        return Times(*(taken.quantile(torch.tensor((0.2, 0.5, 0.8), dtype=torch.float64)) * 1e6).tolist())
    from triton.testing import do_bench

    taken = do_bench(function, warmup=milliseconds // 4, rep=milliseconds, quantiles=(0.2, 0.5, 0.8))
    return Times(*(1e3 * t for t in taken))


def _graph_time(function: Callable[[], Any], device: str) -> float | None:
    if device == "cpu":
        return None
    from triton.testing import do_bench_cudagraph

    try:
        return 1e3 * do_bench_cudagraph(function, return_mode="median")
    except RuntimeError:  # what synchronises cannot be captured
        torch.cuda.synchronize()
        return None


def _peak(function: Callable[[], Any], device: str) -> float | None:
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


@cache
def ceilings(device: str) -> Ceilings:
    """Measured on the spot, once per process."""
    size, side, dtype = (2**28, 512, torch.float32) if device == "cpu" else (4 * 10**9, 8192, torch.bfloat16)
    copied = measure(_copy(size, device), device).p50
    multiplied = measure(_product(side, dtype, device), device).p50
    return Ceilings(2 * size / (copied * 1e-6), 2 * side**3 / (multiplied * 1e-6))


def _copy(size: int, device: str) -> Callable[[], Any]:
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product(side: int, dtype: torch.dtype, device: str) -> Callable[[], Any]:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))  # zeros would draw less power
    return lambda: a @ b


def summary(rows: Sequence[Row]) -> dict[str, str]:
    """Implementation -> its last row of the first workload in a few words; those without a time are left out."""
    found = {}
    for row in rows:
        if row.workload == rows[0].workload and row.us_p50 is not None:
            rated = f", {row.frac_roofline:.0%} of roofline" if row.frac_roofline is not None else ""
            found[row.impl] = f"{row.workload} {row.dir} {_short(row.us_p50)} us{rated}"
    return found


def _short(microseconds: float) -> str:
    return f"{microseconds:.0f}" if microseconds >= 100 else f"{microseconds:.3g}"


HEADER = ("operator", "workload", "implementation", "direction", "us", "p20-p80", "GB/s", "TFLOP/s", "roofline")
HEADER = (*HEADER, "speed-up", "peak MB", "error", "note")


def cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """A row for a table under `HEADER`; `rows` holds the reference's."""
    if row.us_p50 is None:
        return (row.op, row.workload, row.impl, row.dir, *("",) * 8, row.note)
    show = lambda value, form: "" if value is None else format(value, form)  # noqa: E731
    reference = next(
        (r.us_p50 for r in rows if (r.workload, r.dir, r.impl) == (row.workload, row.dir, "reference")), None
    )
    return (
        row.op,
        row.workload,
        row.impl,
        row.dir,
        _short(row.us_p50),
        f"{_short(row.us_p20)}-{_short(row.us_p80)}",
        show(row.gbps, ".0f"),
        show(row.tflops, ".1f"),
        show(row.frac_roofline, ".0%"),
        show(reference and reference / row.us_p50, ".2f"),
        show(row.peak_mb, ".0f"),
        show(max(row.rel_err.values(), default=None), ".0e"),
        row.note,
    )
