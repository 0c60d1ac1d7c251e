"""Which rows of a global batch keep a residual branch: stochastic depth by subsets, the same on any number of ranks."""

from __future__ import annotations

import numpy as np
import torch

from ...kernels.ranks import world_size
from ...pipelines.rng import uniform
from ..algorithm import Progress
from ..backbones.transformer import Subset
from ..distributed import rank


@torch.compiler.disable  # its draws become numpy's on the host, which no graph can hold
def dealt_subsets(
    rate: float, blocks: int, views: int, batch: int, progress: Progress, group: str, device: torch.device
) -> list[tuple[Subset, Subset]]:
    """For each block the rows that keep its attention and its MLP: a function of (seed, step, block, `group`).

    Rows are `views` crops of each of `batch` samples of this rank, one view after the other. Of all R rows of the
    global batch max(1, int(R (1 - rate))) keep a branch; how many are here is known on the host, so nothing waits.
    """
    world = world_size()
    total, here = views * world * batch, np.arange(batch) + rank() * batch
    own = (np.arange(views)[:, None] * world * batch + here).ravel()
    u = uniform(progress.seed, f"drop path/{group}", progress.step, torch.arange(total), 2 * blocks)
    u = np.from_dlpack(u)  # which has never been anywhere but on the host
    keep = max(1, int(total * (1 - rate)))
    last = np.partition(u, keep - 1, axis=0)[keep - 1]
    kept = (u <= last)[own]
    rows = [np.flatnonzero(column) for column in kept.T]
    everything = torch.from_numpy(np.concatenate(rows))
    if device.type == "cuda":
        everything = everything.pin_memory().to(device, non_blocking=True)
    found = [Subset(part, total / keep) for part in everything.split([len(part) for part in rows])]
    return list(zip(found[::2], found[1::2]))
