"""Features of a data set: every image once, in the order of the source."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from ..errors import UserError
from ..pipelines.loaders import choose_loader, make_loader
from ..pipelines.order import Order
from ..pipelines.spec import ByteSource, InputSpec, ViewSpec


@dataclass
class Features:
    """Rows of images that could be decoded."""

    vectors: torch.Tensor  # (N, D) float32 on the CPU
    labels: torch.Tensor  # (N,) int64, -1 without labels
    left_out: list[str]  # "key: reason" of the others


def evaluation_view(training: ViewSpec) -> ViewSpec:
    """The deterministic counterpart of a training view: its middle square at the same size and normalisation."""
    return ViewSpec(
        name="evaluation",
        size=training.size,
        crop="center",
        interpolation=training.interpolation,
        flip=0.0,
        mean=training.mean,
        std=training.std,
    )


@torch.inference_mode()
def embed(
    encoder: nn.Module,
    source: ByteSource,
    view: ViewSpec,
    *,
    loader: str = "auto",
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    threads: int | None = None,
) -> Features:
    """Features of all images of a source under a view with `count` 1; the encoder is called in evaluation mode."""
    order = Order(len(source), min(batch_size, len(source)), shuffle=False, last="pad")
    inputs = InputSpec(views=(replace(view, count=1),))
    kind, _ = choose_loader(source, loader, device)
    if kind == "webdataset":
        raise UserError(
            f"{source.name}: a stream, whose images come in no fixed order; copy the shards to evaluate on them"
        )
    batches = make_loader(source, inputs, order, kind=kind, threads=threads, device=device)
    encoder = encoder.to(device).eval()
    vectors, labels = [], []
    try:
        for step in range(order.steps_per_epoch):
            batch = next(batches)
            fresh = min(len(batch.ids), len(source) - step * len(batch.ids))  # the rest pads the last batch
            asked = order.ids(step)[:fresh]
            own = asked == batch.ids[:fresh]  # the others stand in for undecodable images
            vectors.append(encoder(batch.views[view.name][0])[:fresh][own.to(device)].float().cpu())
            labels.append(torch.tensor([source.label(i) for i in asked[own].tolist()]))
        left_out = batches.stats().replaced
    finally:
        batches.close()
    return Features(torch.cat(vectors), torch.cat(labels), left_out)
