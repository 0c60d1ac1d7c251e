"""Finds the fastest tiles of an operator's Triton kernels on this GPU, for `tiles.tile` to give from then on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from . import tiles
from .bench import measure, training_step, workloads
from .check import TINY, doubled, poisoned_memory, relative_error, values_and_gradients
from .registry import Operator, resolve


class Trial(NamedTuple):
    """One configuration of one kernel. `us` is the time of the operator's forward and backward around it."""

    key: str
    tile: tiles.Tile
    us: float | None  # None where it failed
    note: str


def tune(op: Operator, device: str = "cuda", timer: Callable[[Callable, str], float] | None = None) -> Iterator[Trial]:
    """Measure every candidate of every kernel that the operator's workloads launch, one kernel at a time.

    A candidate whose results are further from the reference than twice what the present tile makes is out. The best of
    each key, where it beats the present one by 2 %, goes into the overlay at the end.

    Args:
        timer: (function, device) -> microseconds; the median of `bench.measure` when left out.

    Raises:
        UserError: an operator without candidates, or a device on which its Triton kernels do not run.
    """
    timer = timer or (lambda function, device: measure(function, device).p50)
    triton = resolve(op, "triton")
    function = triton.load()
    candidates = getattr(sys.modules[triton.function.partition(":")[0]], "CANDIDATES", {})
    if not candidates:
        raise UserError(f"tune: {op.name} has no candidates; its triton_impl.py names none in CANDIDATES")
    index = torch.cuda.current_device() if device == "cuda" else None
    best: dict[str, tiles.Tile] = {}
    seen: set[str] = set()
    reasons: list[str] = []
    for case in workloads(op, device):
        with nullcontext() if case in op.cases else torch.device(device):
            args, kwargs = case.arguments()
        args = tuple(arg if arg is None else arg.to(device) for arg in args)
        if reason := triton.supports(*op.shape_class(*args, **kwargs)):
            reasons.append(reason)
            continue

        def call(*tensors, kwargs=kwargs):
            return op.run("triton", function, tensors, kwargs)

        exact = values_and_gradients(op, lambda *tensors: op.reference(*tensors, **kwargs), doubled(args))  # noqa: B023
        tiles.asked(op.name)
        error = _error(values_and_gradients(op, call, args), exact)
        step = training_step(op, call, args)
        for key, given in tiles.asked(op.name).items():
            if key in seen:
                continue
            seen.add(key)
            fastest = timer(step, device)
            yield Trial(key, given, fastest, "present")
            for candidate in candidates.get(key.split()[0], ()):
                if candidate == given:
                    continue
                with tiles.trial(op.name, key, candidate):
                    try:
                        with poisoned_memory():  # a tile too small would leave the last results in place
                            found = values_and_gradients(op, call, args)
                        if _error(found, exact) > 2 * error + TINY:
                            yield Trial(key, candidate, None, "wrong results")
                            continue
                        us = timer(step, device)
                    except Exception as fault:  # out of shared memory, or whatever a compiler says
                        yield Trial(key, candidate, None, f"{type(fault).__name__}: {str(fault)[:120]}")
                        continue
                yield Trial(key, candidate, us, "")
                if us < 0.98 * fastest:
                    fastest, best[key] = us, candidate
    if not seen:
        raise UserError(f"tune: {op.name} launches nothing to tune on {device}; {'; '.join(reasons)}")
    if best:
        tiles.save(op.name, index, best)


def _error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    return max(relative_error(found[name], exact[name]) for name in exact)
