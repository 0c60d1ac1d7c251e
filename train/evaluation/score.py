"""How good the encoder is on the way: `train.knn_every`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...errors import UserError
from ...models.algorithm import Algorithm
from ...pipelines.loaders.quarantine import Quarantine
from ...pipelines.sources import open_source
from ...pipelines.sources.stream import StreamSource
from ...pipelines.sources.subset import Subset
from ...pipelines.spec import ByteSource
from ..engine.distributed import Launch
from ..recipe.recipe import Recipe
from .embed import Features, evaluation_view
from .knn import knn_accuracy
from .labels import labelled, labels_of, matched, remarks
from .sweep import sweep

_BANK, _QUERIES = 50_000, 10_000  # images at most


def knn_score(
    recipe: Recipe, process: Launch, algorithm: Algorithm, source: ByteSource, threads: int
) -> Callable[[], dict[str, float]] | None:
    """What `train.knn_every` asks for: k-NN accuracy of the encoder on data.val, neighbours from the training set."""
    if recipe.train.knn_every is None:
        return None
    if recipe.data.val is None:
        raise UserError("train.knn_every: needs labelled images to classify; give data.val")
    val = open_source(recipe.data.val)
    if isinstance(source, StreamSource) or isinstance(val, StreamSource):
        raise UserError("train.knn_every: a stream has no fixed order, which it needs; copy the shards")
    val = matched(source, val, ("train.knn_every: data.train", "train.knn_every: data.val"))
    if process.is_main:
        for line in remarks(source, val):
            print(f"train.knn_every: {line}", flush=True)
    known = zip((labelled(source), labelled(val)), (_BANK, _QUERIES))
    some = [Subset(s, range(0, len(s), max(1, -(-len(s) // most)))) for s, most in known]
    labels = [torch.from_numpy(labels_of(s)) for s in some]
    bad = [Quarantine(s, recipe.data.max_bad) for s in some]
    view = evaluation_view(algorithm.inputs().views[0])
    options = {"process": process, "batch_size": recipe.train.batch_size, "threads": threads}
    options["pixels"] = "never" if recipe.data.pixels == "never" else "auto"  # these sets need not have any

    def score() -> dict[str, float]:
        sets = []
        for part, known, quarantine in zip(some, labels, bad):
            rows = sweep(algorithm.encoder, view, part, quarantine=quarantine, **options)
            good = torch.ones(len(part), dtype=torch.bool)
            for found in process.gather(list(quarantine.known())):  # their rows are those of substitutes
                good[found] = False
            sets.append(Features(rows[good], known[good], []))
        return {"knn": knn_accuracy(*sets)}

    return score
