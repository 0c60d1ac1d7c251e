"""``headrace dense-knn``: classes of pixels by the nearest patches of other images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from ...cores import cores
from ...errors import UserError
from ...models.dense.heads import enlarged
from ...pipelines.rng import stream_key
from ...pipelines.sources.segmentation import IGNORED
from ..dense.confusion import confusion, segmentation_figures
from ..engine.distributed import ALONE, Launch, launch, pick_device
from ..evaluation.embed import Features
from ..evaluation.evaluate import Stopwatch, positive, record, table
from ..evaluation.knn import Neighbours
from .features import PatchSet, add_arguments, described, encoder_of, opened, patch_sets

_GIB = 2**30


def patch_bank(train: PatchSet, labels: torch.Tensor, most: int, seed: int) -> Features:
    """Patches that have a class, `labels` (N, P), in memory: all of them, or `most` that the seed draws.

    Raises `UserError` where there is none.
    """
    rows = (labels.flatten() != IGNORED).nonzero()[:, 0]
    if not len(rows):
        raise UserError(f"--train: {train.source.name}: not one patch whose pixels have a class of theirs")
    if len(rows) > most:
        bits = np.random.Generator(np.random.Philox(key=stream_key(seed, "patch bank", 0) % 2**64))
        rows = rows[torch.from_numpy(np.sort(bits.choice(len(rows), most, replace=False)))]
    return Features(train.vectors.flatten(0, 1)[rows], labels.flatten()[rows].long(), [])


@torch.inference_mode()
def patch_knn_table(
    bank: Features,
    val: PatchSet,
    classes: int,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    memory: float = 1.0,
    process: Launch = ALONE,
) -> list[dict[str, float]]:
    """A row ``{k, temperature, mIoU, mAcc, aAcc}`` for each pair, of one search.

    A patch's k nearest vote as in `evaluation.knn`; each class has its share of the votes, and the shares of an image's
    patches are enlarged to the size of its mask, bilinearly. The largest is a pixel's class. Beside the bank that takes
    some `memory` GiB. Several processes take every so many-th image each, and all get the figures of all.
    """
    ks = sorted({min(k, len(bank.labels)) for k in ks})
    own, patches = range(process.rank, len(val), process.world), val.vectors.shape[1]
    at_once = max(1, int(memory * _GIB / 4 / (val.vectors[0].numel() * 4)))
    matrices = torch.zeros(len(ks), len(temperatures), classes, classes, dtype=torch.int64)
    for start in range(0, len(own), at_once):
        some = own[start : start + at_once]
        queries = val.vectors[list(some)].flatten(0, 1)
        found = Neighbours.of(bank, queries, ks[-1], memory=memory / 2, device=process.device)
        for number, index in enumerate(some):
            near, truth = found.some(slice(number * patches, (number + 1) * patches)), torch.from_numpy(val.mask(index))
            for row, k in zip(matrices, ks):
                for matrix, votes in zip(row, near.votes(k, temperatures, classes)):
                    shares = votes.softmax(1).T.reshape(1, classes, *val.grid)
                    matrix += confusion(enlarged(shares, truth.shape)[0].argmax(0), truth, classes)
    matrices = torch.stack(process.gather(matrices)).sum(0)
    return [
        {"k": k, "temperature": temperature, **segmentation_figures(matrix)}
        for k, row in zip(ks, matrices)
        for temperature, matrix in zip(temperatures, row)
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace dense-knn",
        description="Semantic segmentation without training: every patch gets the class of its nearest patches.",
    )
    add_arguments(parser)
    parser.add_argument("--k", type=positive, nargs="+", default=[1, 10, 30], help="neighbours (1 10 30)")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.02], help="of the votes (0.02)")
    text = "patches to look among at most, drawn by the seed from all that have a class (500,000)"
    parser.add_argument("--bank", type=positive, default=500_000, metavar="N", help=text)
    parser.add_argument("--memory", type=float, default=1.0, help="GiB that the search may take, beside these (1)")
    arguments = parser.parse_args(argv)
    if min(arguments.temperature) <= 0 or arguments.memory <= 0:
        raise UserError("--temperature, --memory: must be positive")

    watch, sources = Stopwatch(), opened(arguments)
    found = encoder, _, grid = encoder_of(arguments)
    temperatures, classes = sorted(set(arguments.temperature)), len(sources[0].categories)
    with launch(pick_device(arguments.device)) as process:
        train, val = patch_sets(arguments, process, sources, found)
        labels = train.classes(process, arguments.threads or process.cores or cores())
        bank = patch_bank(train, labels, arguments.bank, arguments.seed)
        options = {"ks": arguments.k, "temperatures": temperatures, "memory": arguments.memory, "process": process}
        figures = patch_knn_table(bank, val, classes, **options)
    if not process.is_main:
        return 0
    data, settings = described(arguments, grid, sources)
    record(arguments.results, "dense-knn", encoder, data, settings | {"neighbours": len(bank.labels)}, figures, watch)
    rows, columns = grid
    title = f"k-NN of patches, {rows} x {columns} an image, {len(bank.labels):,} neighbours, {len(val):,} images"
    table(f"{title}, {encoder.name}", figures)
    return 0
