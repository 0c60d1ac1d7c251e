"""Commands as functions, for notebooks and scripts: plain arguments in, plain objects out, `UserError` for faults."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UserError, notice
from ..kernels import registry
from ..pipelines.images.rules import restored, use_rules
from ..pipelines.loaders.arguments import device_of, one_of, share, whole
from ..pipelines.loaders.choose import LOADERS
from ..pipelines.loaders.quarantine import MAX_BAD
from ..pipelines.plan.given import as_source
from ..pipelines.spec import ByteSource, ViewSpec
from ..pipelines.views import recipes
from .engine.distributed import launch, pick_device
from .evaluation.embed import Features, embed_batches
from .evaluation.embed_encoder import Encoder, digest, load_encoder
from .evaluation.evaluate import require_finite
from .evaluation.knn import knn_table
from .evaluation.labels import labelled_sets, remarks
from .recipe.recipe import load_recipe, smoke_images
from .recipe.recipe import smoke as made_tiny


@dataclass
class Embedding:
    """Features of a data set; a row for every image that could be decoded, in the order of the source."""

    vectors: np.ndarray  # (N, D) float32
    labels: np.ndarray  # (N,) int64, -1 without labels
    keys: list[str]  # what the source calls the images
    left_out: list[str]  # "key: reason" of the others


def pretrain(recipe: str | os.PathLike, data: Any = None, *, smoke: bool = False, **overrides: Any) -> Path:
    """``headrace pretrain``: runs a recipe, or continues it; progress is printed line by line.

    Args:
        recipe: a YAML file, or the name of a packaged recipe such as "mae_vit-tiny".
        data: the images: whatever `headrace.loader` takes; or the section `data` of the recipe as a mapping.
        smoke: 20 steps of a tiny model on the CPU, on generated images unless there are `data`.
        overrides: sections as mappings, ``train={"max_steps": 50}``, or ``**{"train.max_steps": 50}``.

    Returns:
        The run directory: config.yaml, metrics.jsonl (`headrace.train.read_metrics`), checkpoints, encoder.safetensors.

    Raises:
        UserError: what the command would print.
    """
    from .pretrain import pretrain as run  # which imports every evaluation

    given = [(key, value) for section, values in overrides.items() for key, value in _keys(section, values)]
    source = None
    if isinstance(data, Mapping):
        given += _keys("data", data)
    elif isinstance(data, (str, os.PathLike)):
        given.append(("data.train", os.fspath(data)))
    built = load_recipe(os.fspath(recipe), given)
    built = made_tiny(built) if smoke else built
    with _as_before():
        use_rules(built.data.rules)  # what may be an image depends on them
        if data is not None and not isinstance(data, (Mapping, str, os.PathLike)):
            source = as_source(data)
        elif smoke and built.data.train is None:
            source = smoke_images(built.data.channels)
        with launch(pick_device(built.train.device), built.train.timeout) as process:
            return run(built, process, source)


@contextmanager
def _as_before() -> Iterator[None]:
    """Afterwards the process is set as its owner had it, whatever a run has set for itself."""
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        with restored(), registry.restored():
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        if strict != torch.are_deterministic_algorithms_enabled():  # the call imports the compiler
            torch.use_deterministic_algorithms(strict, warn_only=warns)


def _keys(section: str, values: Any) -> list[tuple[str, Any]]:
    if "." not in section and not isinstance(values, Mapping):
        raise UserError(f"pretrain: {section}: needs a mapping, as in train={{'max_steps': 50}}, got {values!r}")
    return [(section, values)] if "." in section else [(f"{section}.{key}", value) for key, value in values.items()]


def embed(
    encoder: str | os.PathLike | nn.Module,
    data: Any,
    *,
    layer: str | None = None,
    view: str | ViewSpec | None = None,
    batch_size: int = 256,
    device: str = "auto",
    loader: str = "auto",
    threads: int | None = None,
    max_bad: float = MAX_BAD,
) -> Embedding:
    """Features of all images of `data` (whatever `headrace.loader` takes), in memory.

    Args:
        encoder: a run directory, a checkpoint, an encoder.safetensors, ``timm:NAME`` and the other names of
            ``headrace embed``; or a module (B, 3, S, S) -> (B, D), which needs a `view`.
        layer: feat1 to feat5 of a ResNet, for its last features.
        view: a published view such as "eval" or "knn", or a `ViewSpec`; default: the encoder's own, undistorted.
        max_bad: the share of the images that may be undecodable.

    Raises:
        UserError: what the command would print.
    """
    batch_size, threads = whole("batch_size", batch_size, 1), None if threads is None else whole("threads", threads, 1)
    one_of("loader", loader, LOADERS)
    share("max_bad", max_bad)
    with restored():
        taken = _encoder(encoder, layer, view)  # by whose rules the images are read
        options = {"batch_size": batch_size, "loader": loader, "threads": threads, "max_bad": max_bad}
        return _embedded(taken, as_source(data), device_of(device), **options)


def _embedded(taken: Encoder, source: ByteSource, where: torch.device, **options: Any) -> Embedding:
    left_out: list[str] = []
    with launch(pick_device(where.type) if where.index is None else where) as process:  # this process's GPU
        options |= {"process": process, "setting": "max_bad"}
        parts = list(embed_batches(taken.module, source, taken.view, left_out, **options))
    kept = torch.cat([ids for ids, _ in parts]).tolist()
    vectors = torch.cat([vectors for _, vectors in parts]).numpy()
    labels = np.array([source.label(i) for i in kept], np.int64)
    return Embedding(vectors, labels, [source.key(i) for i in kept], left_out)


def knn(
    encoder: str | os.PathLike | nn.Module,
    train: Any,
    val: Any,
    *,
    k: int | Sequence[int] = (10, 20, 100, 200),
    temperature: float | Sequence[float] = 0.07,
    **options: Any,
) -> list[dict[str, float]]:
    """``headrace knn``: a row ``{k, temperature, top1, top5}`` for each pair; accuracies lie in [0, 1].

    `train` and `val` are labelled, and whatever `headrace.loader` takes; for `encoder` and `options` see `embed`.
    Nothing is written.

    Raises:
        UserError: what the command would print.
    """
    ks, temperatures = [whole("k", one, 1) for one in _several(k)], _several(temperature)
    if not ks or not temperatures or not all(isinstance(t, (int, float)) and t > 0 for t in temperatures):
        raise UserError(f"k, temperature: need at least one each, temperatures above 0, got {k!r} and {temperature!r}")
    with restored():
        taken = _encoder(encoder, options.pop("layer", None), options.pop("view", None))
        sets = labelled_sets(train, val, ("train", "val"))
        made = [embed(taken, source, **options) for source in sets]
        for line in remarks(*sets):
            notice(line)
    bank, queries = (Features(torch.from_numpy(e.vectors), torch.from_numpy(e.labels), e.left_out) for e in made)
    for name, features in (("train", bank), ("val", queries)):
        require_finite(features, name, taken)
    return knn_table(bank, queries, ks=sorted(ks), temperatures=sorted(temperatures))


def _several(values) -> list:
    return list(dict.fromkeys(values)) if isinstance(values, Iterable) and not isinstance(values, str) else [values]


def _encoder(encoder: Any, layer: str | None, view: str | ViewSpec | None) -> Encoder:
    if isinstance(encoder, Encoder):
        return encoder
    try:
        view = recipes.view(view) if isinstance(view, str) else view
    except ValueError as fault:
        raise UserError(f"view: {fault}") from None
    if view is not None and not isinstance(view, ViewSpec):
        raise UserError(f"view: needs a name such as 'eval', or a ViewSpec, got {view!r}")
    if not isinstance(encoder, (str, os.PathLike, nn.Module)):
        raise UserError(f"encoder: needs a run directory, a file, a name like timm:NAME or a module, got {encoder!r}")
    if not isinstance(encoder, nn.Module):
        found = load_encoder(os.fspath(encoder), layer)
        return found if view is None else replace(found, view=replace(view, name="evaluation"))
    if view is None or layer is not None:
        raise UserError("encoder: a module of your own needs a view, such as view='eval', and has no named layers")
    name = type(encoder).__name__
    return Encoder(name, encoder, replace(view, name="evaluation"), digest(encoder, name))
