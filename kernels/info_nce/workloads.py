"""The sizes of info_nce in training, for benchmarks."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from ..registry import Case


def _queue(id: str, batch: int, queue: int, width: int = 128) -> Case:
    def arguments():
        rows = normalize(torch.randn(batch, width), dim=1)
        keys = normalize(rows + torch.randn(batch, width) / width**0.5, dim=1)
        negatives = normalize(torch.randn(queue, width), dim=1)
        return (*(x.to(torch.bfloat16) for x in (rows, negatives)), None, None, keys.to(torch.bfloat16)), options

    options = {"temperature": 0.2}
    return Case(id, arguments)


def _pairs(id: str, samples: int, width: int = 128) -> Case:
    """Two views of each sample, all against all."""

    def arguments():
        everything = normalize(torch.randn(2 * samples, width), dim=1).to(torch.bfloat16)
        own = torch.arange(2 * samples)
        positive = (own + samples) % (2 * samples)
        return (everything.clone(), everything, positive, own, None), {"temperature": 0.1}

    return Case(id, arguments)


WORKLOADS = (
    _queue("MoCo B=256 K=65536", 256, 65536),
    _queue("MoCo B=1024 K=65536", 1024, 65536),
    _pairs("SimCLR B=4096", 4096),
)
# Microseconds on an H200, forward and backward.
TARGETS = {"MoCo B=256 K=65536": (27,), "SimCLR B=4096": (100, 120)}
