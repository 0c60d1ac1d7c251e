"""What ``headrace detect`` and ``headrace segment`` share: an encoder in a recipe, its training, the row of figures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from safetensors import SafetensorError, safe_open

from ...errors import UserError, notice
from ...models.algorithm import Algorithm
from ...models.algorithms import find_algorithm, inputs_of
from ...pipelines.loaders.quarantine import MAX_BAD
from ...pipelines.sources import open_source
from ...pipelines.spec import Loader
from ...places import new_file
from ..engine import checkpoint
from ..engine.distributed import Launch, launch, pick_device
from ..engine.run_directory import has_ended
from ..evaluation.embed import evaluation_view
from ..evaluation.embed_encoder import Encoder, digest, inherited, started_with
from ..evaluation.evaluate import Stopwatch, add_results, record, table
from ..pretrain import pretrain
from ..recipe import config
from ..recipe.recipe import Recipe, load_recipe
from .loader import workers_watched
from .names import match


@dataclass(frozen=True)
class Task:
    """What is particular to one of the commands."""

    name: str  # of the command, and of the folder of its recipes
    what: str  # "boxes" or "masks": what its data sets have
    kinds: str  # which ones there are
    about: str
    algorithm: type[Algorithm]
    fits: Callable[[Any], bool]  # whether a source has such annotations; reads one, so that missing files show early
    testable: Callable[[Any], Any]  # raises `UserError` for annotations of data.val that tests could not use
    learnable: Callable[[Any], Any]  # training source -> the part of it that can be learned from
    batches: Callable[..., Loader]  # as `pretrain` takes it
    # (trained algorithm, source, recipe, process, threads, names of its classes) -> (rows of the table, what else is
    # recorded), on the first process; every process takes its share of the work
    score: Callable[..., tuple[list[dict], dict] | None]
    # (trained algorithm, source, device, file, names of its classes): predictions as a picture
    draw: Callable[..., None]


def run(task: Task, argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"headrace {task.name}",
        description=f"{task.about} Everything that headrace pretrain does with a recipe holds: several processes, "
        "checkpoints, exact resume. A finished run is tested again.",
    )
    parser.add_argument("recipe", help=f"a YAML file, or a packaged recipe: {', '.join(recipes(task.name))}")
    parser.add_argument("encoder", help="a run directory, a checkpoint or an encoder.safetensors; scratch: none")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="data.train=..., data.val=..., ...")
    parser.add_argument("--show", action="store_true", help="print the resolved recipe with the origin of each value")
    parser.add_argument(
        "--picture", type=new_file, metavar="FILE", help="draw predictions on the first images of data.val"
    )
    add_results(parser)
    arguments = parser.parse_intermixed_args(argv)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    # a field of the backbone alone says nothing until the encoder has said which one it is
    first = [given for given in arguments.overrides if not given.startswith("algorithm.backbone.")]
    recipe = load_recipe(arguments.recipe, first)
    check(task, recipe, arguments.recipe)
    train, val = open_sets(task, recipe)
    given = [f"algorithm.classes={len(train.categories)}"]
    with started_with(arguments.encoder, recipe.out, keep=not arguments.show) as weights:
        return _run(task, arguments, given, (train, val), weights)


def _run(task: Task, arguments: argparse.Namespace, given: list, sets: tuple[Any, Any], weights: Path | None) -> int:
    train, val = sets
    if weights is not None:
        given += [*inherited(weights), *of_encoder(weights)]
    recipe = load_recipe(arguments.recipe, [*given, *arguments.overrides])
    if arguments.show:
        print(recipe.resolved, end="")
        return 0

    watch, device = Stopwatch(), pick_device(recipe.train.device)
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    with launch(device, recipe.train.timeout) as process, workers_watched():
        out = pretrain(recipe, process, task.learnable(train), task.batches)
        process.barrier()
        if not has_ended(out):
            if process.is_main:
                print(f"{out}: stopped before its end; the same command continues, and tests then")
            return 0
        path, state = checkpoint.find(out)
        trained = checkpoint.algorithm_of(state, path).to(device).eval()
        threads = recipe.data.threads or process.cores
        scored = task.score(trained, val, recipe, process, threads, train.categories)
        if not process.is_main:
            return 0
        if arguments.picture is not None:
            task.draw(trained, val, device, arguments.picture, train.categories)
    rows, more = scored
    view = evaluation_view(inputs_of(trained.config).views[0])
    table(f"{task.name} {recipe.name}, {arguments.encoder}, {len(val):,} images", rows)
    encoder = Encoder(arguments.encoder, trained, view, digest(trained, str(trained.config)))
    data = {"train": state["config"]["data"]["train"], "val": recipe.data.val, "images": len(val)}
    figures = more | {"rows": rows}
    record(arguments.results, f"{task.name} {recipe.name}", encoder, data, state["config"], figures, watch)
    return 0


def recipes(folder: str) -> list[str]:
    """Names of the packaged recipes of a command."""
    return [name for name in config.packaged() if name.startswith(f"{folder}/")]


def check(task: Task, recipe: Recipe, given: str) -> None:
    """Raises `UserError` for a recipe of something else, and for settings that have no effect here."""
    if not isinstance(recipe.algorithm, task.algorithm.Config):
        raise UserError(f"{given}: trains a {recipe.algorithm.name}; take one of {', '.join(recipes(task.name))}")
    if recipe.data.train is None or recipe.data.val is None:
        raise UserError(f"data.train, data.val: give both, images with {task.what} to learn from and to be tested on")
    idle = {
        "data.loader": recipe.data.loader != "auto",
        "data.block": recipe.data.block is not None,
        "data.max_bad": recipe.data.max_bad != MAX_BAD,
        "train.knn_every": recipe.train.knn_every is not None,
        "train.shard": recipe.train.shard,
    }
    if found := [key for key, is_set in idle.items() if is_set]:
        raise UserError(f"{', '.join(found)}: not for headrace {task.name}; leave it out")


def open_sets(task: Task, recipe: Recipe) -> tuple[Any, Any]:
    """Both sources, with annotations; see `names.match`. Raises `UserError` before anything is computed."""
    sources = open_source(recipe.data.train), open_source(recipe.data.val)
    for key, source in zip(("data.train", "data.val"), sources):
        if not task.fits(source):
            raise UserError(f"{key}: {source.name} has no {task.what}; give {task.kinds}")
    if said := match(*sources):
        notice(said)
    task.testable(sources[1])
    return sources


def of_encoder(file: Path) -> list[tuple[str, Any]]:
    """Overrides, as pairs of key and value, that put the encoder of an encoder.safetensors into a recipe."""
    try:
        with safe_open(file, "pt") as opened:
            section = yaml.safe_load((opened.metadata() or {})["config"])
    except (SafetensorError, KeyError, yaml.YAMLError):
        raise UserError(
            f"{file}: tensors without the configuration of an encoder of headrace; give an encoder.safetensors of a "
            "run, or make one of another library's checkpoint: headrace import"
        ) from None
    kind = find_algorithm(section["name"])
    section = config.build(config.from_plain({"algorithm": section}, str(file)), {"algorithm": kind.Config})
    backbone, view = getattr(section["algorithm"], "backbone", None), inputs_of(section["algorithm"]).views[0]
    if backbone is None:
        raise UserError(f"{file}: {kind.__name__} has no section `backbone` to build its encoder from")
    given = {
        "weights": str(file),
        "backbone": config.plain(backbone),
        "image_size": view.size,
        "mean": list(view.mean),
        "std": list(view.std),
    }
    return [(f"algorithm.{key}", value) for key, value in given.items()]


def gathered_lists(own: list, process: Launch) -> list:
    """The items of all processes, on every one of them."""
    if process.world == 1:
        return own
    parts: list[list] = [[] for _ in range(process.world)]
    dist.all_gather_object(parts, own, group=process.control)
    return [item for part in parts for item in part]


def to_patches(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """(B, 3, H, W) padded with 0 at the right and bottom to multiples."""
    padding = (0, -images.shape[-1] % multiple, 0, -images.shape[-2] % multiple)
    return torch.nn.functional.pad(images, padding) if any(padding) else images
