"""What a system would reach if data cost nothing: its own step on one batch, again and again; what that consists of.

Nobody who computes the same products and convolutions can be faster than that by a better data path.
"""

from __future__ import annotations

import gc
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch.profiler import ProfilerActivity, profile

from .heat import Racer

_PARTS = {  # names of PyTorch's operators and of its optimizers' steps; the first that fits
    "convolutions": r"conv",
    "matrix products": r"aten::(mm|addmm|bmm|baddbmm|_addmm_activation|mkl_linear|linear)$",
    "attention": r"scaled_dot_product",
    "normalisation": r"(batch|layer|group)_norm",
    "activations": r"relu|gelu|threshold|clamp_min|softmax",
    "optimizer": r"_fused_|_foreach_|Optimizer|vector_norm|lerp",
}
OTHER = "the rest"
PARTS = (*_PARTS, OTHER)


def without_data(racer: Racer) -> Racer:
    """The same with its first batch for ever; who makes batches has ended and takes no core any more."""
    batch = next(racer.batches)
    racer.batches.close()
    gc.collect()  # a DataLoader ends its processes when nothing refers to it
    return replace(racer, batches=_again(batch))


def _again(batch: Any) -> Iterator:
    while True:
        yield batch


def shares(racer: Racer, steps: int = 2) -> dict[str, float]:
    """Of the time of some steps, the part of each of `PARTS`; they add up to 1."""
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        for _ in range(steps):
            racer.step(next(racer.batches))
    return grouped({event.key: event.self_cpu_time_total for event in watched.key_averages()})


def grouped(times: dict[str, float]) -> dict[str, float]:
    """Operator -> time, as the share of each of `PARTS`."""
    found = defaultdict(float)
    for name, time in times.items():
        found[next((part for part, pattern in _PARTS.items() if re.search(pattern, name)), OTHER)] += time
    whole = sum(found.values())
    return {part: found[part] / whole for part in PARTS}
