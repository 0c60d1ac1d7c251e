"""What a module makes of every image of a source, the work shared by all processes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ...errors import UserError
from ...pipelines.loaders.choose import choose_pixels, make_loader
from ...pipelines.loaders.quarantine import Quarantine
from ...pipelines.order import Order
from ...pipelines.spec import ByteSource, InputSpec, ViewSpec
from ..engine.distributed import Launch


@torch.no_grad()
def sweep(
    module: nn.Module,
    view: ViewSpec,
    source: ByteSource,
    process: Launch,
    *,
    batch_size: int,
    kind: str = "auto",
    threads: int | None = None,
    pixels: str = "auto",
    seed: int = 0,
    quarantine: Quarantine | None = None,
) -> torch.Tensor:
    """(N, ...) float32 on the CPU of every process: row i is ``module(image i)``, in evaluation mode.

    `batch_size` is that of all processes. Row i of an image that cannot be decoded is that of its substitute;
    `quarantine` says which these are, and how many there may be.
    """
    order = Order(len(source), batch_size, seed=seed, shuffle=False, last="pad")
    inputs = InputSpec(views=(replace(view, count=1),))
    kind, _, stored = choose_pixels(source, kind, pixels, process.device, inputs)
    if kind == "webdataset":
        raise UserError(f"{source.name}: a stream has no fixed order, which this algorithm needs; copy the shards")
    share = {"seed": seed, "device": process.device, "rank": process.rank, "world": process.world}
    share |= {"threads": threads, "quarantine": quarantine}
    loader = make_loader(source, inputs, order, kind=kind, pixels=stored, **share)
    training = module.training
    module.eval()
    try:
        own = torch.cat([module(next(loader).views[view.name][0]).float().cpu() for _ in range(order.steps_per_epoch)])
    finally:
        loader.close()
        module.train(training)
    rows = own.new_empty(len(source), *own.shape[1:])
    for rank, part in enumerate(process.gather(own)):
        ids = [order.ids(step, rank, process.world) for step in range(order.steps_per_epoch)]
        rows[torch.cat(ids)] = part
    return rows
