"""The whole journey in about two minutes: images -> shards -> MAE -> k-NN against pixels and an untrained encoder.

Without ``--data`` on a generated set of labelled shapes; with it on any folder of images, labelled or not.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from torch import nn

from ..errors import UserError
from ..models.algorithms import find_algorithm
from ..pipelines.images.rules import use_rules
from ..pipelines.pixels.command import write_pixels
from ..pipelines.shard import shard
from ..pipelines.sources import open_source
from ..pipelines.sources.subset import Subset
from ..pipelines.spec import ByteSource, ViewSpec
from ..places import new_folder, place
from ..train import pretrain
from ..train.engine.checkpoint import load_algorithm
from ..train.engine.distributed import Launch, pick_device
from ..train.engine.run_directory import has_ended
from ..train.evaluation.embed import Features, embed, evaluation_view
from ..train.evaluation.knn import knn_accuracy
from ..train.recipe.recipe import load_recipe
from .demo_images import write_demo_images
from .look.plots import plot_samples
from .look.reconstruct import plot_reconstruction
from .look.samples import first_samples
from .runs.charts import save_png
from .runs.curves import chart_of
from .runs.run_logs import read_log
from .thumbnails import write_thumbnails

RECIPE = "mae_vit-tiny_demo"
QUERY_EVERY = 6  # of a labelled folder without a split, every sixth image is classified by the others
IMAGES_PER_CLASS = 5  # on average; with fewer, neighbours of the same class are a matter of luck
NOTE, GENERATED = "images-of.txt", "the generated set"  # in --out, of what it is a demo
PHOTOS = 500  # at most, in the retrieval test of unlabelled folders


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace demo", description="Pre-train on a small set and see what it is worth."
    )
    parser.add_argument("--data", type=place, help="your own folder of images; default: a generated set")
    text = "everything is left here (default runs/demo; of your own images runs/demo-FOLDER)"
    parser.add_argument("--out", type=new_folder, help=text)
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="changes to the recipe, e.g. train.max_steps=100"
    )
    arguments = parser.parse_args(argv)
    own = "" if arguments.data is None else f"-{arguments.data.resolve().name}"
    demo(arguments.out or new_folder(f"runs/demo{own}"), arguments.data, arguments.overrides)
    return 0


def demo(out: Path, data: Path | None, overrides: list[str]) -> dict[str, float]:
    """Runs every stage that `out` does not hold yet; returns the figures of the closing table, in [0, 1]. There are
    none of a training that was told to stop."""
    use_rules(load_recipe(RECIPE, overrides).data.rules)  # thumbnails and their pixels are read as the run reads them
    train_set, bank, queries = _generated(out) if data is None else _own(out, data)
    run = ["train.resume=auto", f"data.train={train_set.name}", f"train.out={out}", *overrides]
    if len(train_set) < 128:
        run.insert(0, "data.last_batch=pad")
    recipe = load_recipe(RECIPE, run)
    pretrain.main([RECIPE, *run])
    if not has_ended(out):
        print(f"{out}: stopped before its end; the same command continues, and shows what it is worth then")
        return {}

    _, trained = load_algorithm(out)
    view = trained.inputs().views[0]
    torch.manual_seed(recipe.train.seed)
    untrained = find_algorithm(recipe.algorithm.name)(recipe.algorithm)
    encoders = {
        "raw pixels": nn.Flatten(),
        "untrained encoder": untrained.encoder,
        "pre-trained encoder": trained.encoder,
    }
    device = pick_device(recipe.train.device)
    if bank.classes is not None and len(bank) >= IMAGES_PER_CLASS * len(bank.classes):
        title = f"k-NN accuracy, {len(bank):,} neighbours, {len(queries):,} queries, chance {1 / len(bank.classes):.1%}"
        score = lambda encoder: _classification(encoder, bank, queries, evaluation_view(view), device)
    else:
        photos = min(PHOTOS, len(train_set))
        title = f"a second crop of the same photo is the nearest of {photos:,} (no labels to go by), "
        title += f"chance {1 / photos:.1%}"
        score = lambda encoder: _retrieval(encoder, train_set, view, device)
    figures = {name: score(encoder) for name, encoder in encoders.items()}

    save_png([chart_of([read_log(out)], ["loss"], "loss")], out / "loss.png", f"MAE on {len(train_set):,} images")
    plot_reconstruction(trained.cpu(), queries, out / "reconstruction.png")
    shown = first_samples(train_set, trained.inputs(), 6, seed=recipe.train.seed)
    plot_samples(shown, out / "views.png", "What the algorithm sees")
    (out / "results.json").write_text(
        json.dumps({"measure": title, "figures": figures}, indent=2) + "\n", encoding="utf-8"
    )
    _table(title, figures, out)
    return figures


def _generated(out: Path) -> tuple[ByteSource, ByteSource, ByteSource]:
    """The generated set as shards: to train on, the neighbours, the queries."""
    images = out / "images"
    if not _holds(out, GENERATED) and not images.exists():
        print("generating 3,600 images of textured shapes", flush=True)
    write_demo_images(images)
    (out / NOTE).write_text(GENERATED, encoding="utf-8")
    train = _sharded(images / "train", out / "shards" / "train")
    return train, train, _sharded(images / "val", out / "shards" / "val")


def _holds(out: Path, wanted: str) -> bool:
    """Whether the images that are wanted lie there in full. Raises `UserError` where others do: a demo of those would
    be shown as one of these."""
    note = out / NOTE
    found = note.read_text(encoding="utf-8") if note.exists() else None
    if found is None and (out / "shards").exists():
        found = GENERATED  # by a version that noted others alone
    if found not in (None, wanted):
        raise UserError(f"{out}: holds a demo of {found}; delete it or give another --out")
    return found == wanted and (out / "images").exists()


def _own(out: Path, data: Path) -> tuple[ByteSource, ByteSource, ByteSource]:
    """The user's images made small, as shards; every sixth is a query where folders give labels."""
    data = data.expanduser()
    thumbnails, wanted = out / "images", str(data.resolve())
    if not _holds(out, wanted):
        shutil.rmtree(thumbnails, ignore_errors=True)  # of nobody knows what: a kill came before the note
        for line in write_thumbnails(open_source(data), thumbnails):
            print(f"left out: {line}")
        (out / NOTE).write_text(wanted, encoding="utf-8")
    train = _sharded(thumbnails, out / "shards" / "train")
    ids = range(len(train))
    return (
        train,
        Subset(train, [i for i in ids if i % QUERY_EVERY]),
        Subset(train, [i for i in ids if i % QUERY_EVERY == 0]),
    )


def _sharded(folder: Path, out: Path) -> ByteSource:
    if not (out / "dataset.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        shard(folder, out)
    write_pixels(out, progress=False)  # each image is read in every one of many epochs, and takes 12 kB
    return open_source(out)


def _classification(
    encoder: nn.Module, bank: ByteSource, queries: ByteSource, view: ViewSpec, device: torch.device
) -> float:
    features = [embed(encoder, source, view, process=Launch(device=device)) for source in (bank, queries)]
    return knn_accuracy(*features)


def _retrieval(encoder: nn.Module, source: ByteSource, view: ViewSpec, device: torch.device) -> float:
    """How often the nearest of all first crops is that of the same photo: a question that needs no labels."""
    photos = Subset(source, range(min(PHOTOS, len(source))))
    crops = []
    for name in ("first crop", "second crop"):
        crop = ViewSpec(name=name, size=view.size, scale=(0.3, 0.6), interpolation=view.interpolation)
        vectors = embed(encoder, photos, crop, process=Launch(device=device)).vectors
        crops.append(Features(vectors, torch.arange(len(vectors)), []))
    return knn_accuracy(*crops, k=1)


def _table(title: str, figures: dict[str, float], out: Path) -> None:
    width = max(map(len, figures))
    print(f"\n{title}")
    print("\n".join(f"  {name:<{width}}  {figure:6.1%}" for name, figure in figures.items()))
    files = (
        "loss.png",
        "reconstruction.png",
        "views.png",
        "encoder.safetensors",
        "metrics.jsonl",
        "config.yaml",
        "results.json",
    )
    print(f"\nin {out}/: {', '.join(files)}, checkpoints step-*.pt")
