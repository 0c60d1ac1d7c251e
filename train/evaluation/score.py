"""How good the encoder is on the way: `train.knn_every`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...errors import UserError
from ...models.algorithm import Algorithm
from ...pipelines.sources import open_source
from ...pipelines.sources.subset import Subset
from ...pipelines.spec import ByteSource
from ..engine.distributed import Launch
from ..recipe.recipe import Recipe
from .embed import Features, evaluation_view
from .knn import knn_accuracy
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
    if source.classes is None or source.classes != val.classes:
        raise UserError(f"train.knn_every: {source.name} and {val.name} must have labels, and the same classes")
    some = [Subset(s, range(0, len(s), max(1, -(-len(s) // most)))) for s, most in ((source, _BANK), (val, _QUERIES))]
    labels = [torch.tensor([s.label(i) for i in range(len(s))]) for s in some]
    view = evaluation_view(algorithm.inputs().views[0])
    options = {"process": process, "batch_size": recipe.train.batch_size, "threads": threads}

    def score() -> dict[str, float]:
        rows = [sweep(algorithm.encoder, view, part, **options) for part in some]
        bank, queries = (Features(vectors, known, []) for vectors, known in zip(rows, labels))
        return {"knn": knn_accuracy(bank, queries)}

    return score
