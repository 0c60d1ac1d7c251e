"""Features of a data set: every image once, in the order of the source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ...errors import UserError
from ...pipelines.loaders.choose import choose_pixels, make_loader
from ...pipelines.loaders.quarantine import MAX_BAD, Quarantine
from ...pipelines.order import Order
from ...pipelines.spec import ByteSource, InputSpec, ViewSpec
from ..engine.distributed import ALONE, Launch

_SMALL = 32  # pixels; such images show their thing from edge to edge, and have no margin to cut off


@dataclass
class Features:
    """Rows of images that could be decoded."""

    vectors: torch.Tensor  # (N, D) float32 on the CPU
    labels: torch.Tensor  # (N,) int64, -1 without labels
    left_out: list[str]  # "key: reason" of the others
    place: Path | None = None  # the folder that holds them, if they are on disk

    def labelled(self) -> Features:
        """The rows that have a label: the others neither teach nor count. Raises `UserError` if there is none."""
        known = self.labels >= 0
        if known.all():
            return self
        if not known.any():
            raise UserError(f"not one of {len(known):,} images has a label to learn from or to be judged by")
        return Features(self.vectors[known], self.labels[known], self.left_out)


def evaluation_view(training: ViewSpec) -> ViewSpec:
    """The deterministic counterpart of a training view: its middle square at the same size and normalisation, seven
    eighths of the short side, or all of it at 32 px."""
    return ViewSpec(
        name="evaluation",
        size=training.size,
        crop="center",
        center_fraction=1.0 if training.size <= _SMALL else 0.875,
        interpolation=training.interpolation,
        flip=0.0,
        mean=training.mean,
        std=training.std,
    )


@torch.inference_mode()
def embed_batches(
    encoder: nn.Module,
    source: ByteSource,
    view: ViewSpec,
    left_out: list[str],
    *,
    loader: str = "auto",
    pixels: str = "auto",
    batch_size: int = 256,
    process: Launch = ALONE,
    threads: int | None = None,
    max_bad: float = MAX_BAD,
    setting: str = "--max-bad",
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids (B,), vectors (B, ...) float32 on the CPU) batch by batch, in the order of the source.

    The encoder is called in evaluation mode with `view`, of which one copy is made. Images that cannot be decoded have
    no row; at the end `left_out` names all of them. Several processes share the work, `batch_size` images each at a
    time, and all of them get all rows.

    Raises `UserError` if a larger share than `max_bad` cannot be decoded; `setting` is what the user calls it.
    """
    share = min(batch_size, -(-len(source) // process.world))
    order = Order(len(source), share * process.world, shuffle=False, last="pad")
    inputs = InputSpec(views=(replace(view, count=1),))
    kind, _, stored = choose_pixels(source, loader, pixels, process.device, inputs)
    if kind == "webdataset":
        raise UserError(
            f"{source.name}: a stream, whose images come in no fixed order; copy the shards to evaluate on them"
        )
    place = {"device": process.device, "rank": process.rank, "world": process.world}
    bad = Quarantine(source, max_bad, setting=setting)
    batches = make_loader(source, inputs, order, kind=kind, pixels=stored, threads=threads, quarantine=bad, **place)
    encoder = encoder.to(process.device).eval()
    try:
        for step in range(order.steps_per_epoch):
            batch = next(batches)
            vectors = encoder(batch.views[view.name][0]).float().cpu()
            vectors, read = (torch.cat(process.gather(part)) for part in (vectors, batch.ids))
            fresh = min(len(read), len(source) - step * len(read))  # the rest pads the last batch
            asked = order.ids(step)[:fresh]
            own = asked == read[:fresh]  # the others stand in for undecodable images
            yield asked[own], vectors[:fresh][own]
        found = {index: line for known in process.gather(bad.known()) for index, line in known.items()}
        left_out += sorted(found.values())
        bad.check(len(found), left_out)  # each process has seen its own share
    finally:
        batches.close()


def embed(encoder: nn.Module, source: ByteSource, view: ViewSpec, **options) -> Features:
    """Features of all images of a source, in memory; for `options` see `embed_batches`."""
    left_out: list[str] = []
    ids, vectors = zip(*embed_batches(encoder, source, view, left_out, **options))
    labels = torch.tensor([source.label(i) for i in torch.cat(ids).tolist()])
    return Features(torch.cat(vectors), labels, left_out)
