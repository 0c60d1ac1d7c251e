"""``headrace shape-bias``: does a classifier go by shape or by texture (Geirhos et al., arXiv 1811.12231)?"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

import torch

from ...errors import UserError
from ...models.algorithms.classifier import Classifier
from ...pipelines.sources.cue_conflict import CATEGORIES, IMAGENET_CLASSES, CueConflictSource
from ...places import new_folder
from ...train.engine.checkpoint import load_algorithm
from ...train.evaluation.embed import embed, evaluation_view
from ...train.evaluation.embed_encoder import Encoder, digest, published_torchvision
from ...train.evaluation.evaluate import Stopwatch, add_computing, add_results, options_of, record, table

_COLUMNS = ("subj", "session", "trial", "rt", "object_response", "category", "condition", "imagename")


def decide(scores: torch.Tensor) -> torch.Tensor:
    """Scores (N, 1000) -> the category (N,) whose ImageNet classes have the highest mean probability."""
    shares = scores.softmax(1)
    return torch.stack([shares[:, IMAGENET_CLASSES[name]].mean(1) for name in CATEGORIES], dim=1).argmax(1)


def shape_bias(decisions: torch.Tensor, shapes: torch.Tensor, textures: torch.Tensor) -> dict:
    """Of the images whose shape and texture differ: how often the decision (N,) was either, and shape's part of those.

    A category without such a decision has no part; `share of shape` is None if none has.
    """
    conflict = shapes != textures
    by_shape, by_texture = (decisions == shapes) & conflict, (decisions == textures) & conflict

    def part(rows: torch.Tensor) -> float | None:
        shape, texture = (by_shape & rows).sum().item(), (by_texture & rows).sum().item()
        return shape / (shape + texture) if shape + texture else None

    return {
        "share of shape": part(conflict),
        "shape decisions": int(by_shape.sum()),
        "texture decisions": int(by_texture.sum()),
        "images in conflict": int(conflict.sum()),
        "top1": (decisions == shapes).float().mean().item(),
        "categories": {name: part(shapes == number) for number, name in enumerate(CATEGORIES)},
    }


def load_classifier(name: str) -> Encoder:
    """A run of headrace finetune or linear, or ``torchvision:NAME``. Raises `UserError` unless it has 1,000 classes."""
    if name.startswith("torchvision:"):
        module, view = published_torchvision(name.partition(":")[2])
    else:
        algorithm = load_algorithm(name)[1]
        if not isinstance(algorithm, Classifier):
            raise UserError(f"{name}: {algorithm.config.name} classifies nothing; fine-tune it first")
        if algorithm.config.classes != 1000:
            raise UserError(f"{name}: tells {algorithm.config.classes} classes apart; needs ImageNet's 1,000")
        module, view = algorithm.scorer, evaluation_view(algorithm.config.view)
    return Encoder(name, module.eval(), view, digest(module, name))


def write_decisions(path: Path, name: str, source: CueConflictSource, decisions: list[int]) -> None:
    """The table that the authors' own scripts read: one row an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(_COLUMNS)
        for index, decision in enumerate(decisions):
            image = source.key(index).rpartition("/")[2]
            shape = CATEGORIES[source.label(index)]
            rows.writerow((name, 1, index + 1, "NaN", CATEGORIES[decision], shape, "NaN", image))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace shape-bias", description="Shape or texture, of cue-conflict images."
    )
    parser.add_argument("classifier", help="a run of headrace finetune or linear on ImageNet, or torchvision:NAME")
    parser.add_argument("data", help="the folder with the 16 categories of cue-conflict images")
    parser.add_argument("--out", type=new_folder, default="shape-bias", help="folder of the decisions (shape-bias)")
    add_computing(parser)
    add_results(parser)
    arguments = parser.parse_args(argv)
    watch, classifier = Stopwatch(), load_classifier(arguments.classifier)
    source = CueConflictSource(Path(arguments.data))
    found = embed(classifier.module, source, classifier.view, **options_of(arguments))
    if found.left_out:
        raise UserError(f"{source.name}: {found.left_out[0]}; get the images again")
    if found.vectors.shape[1] != 1000:
        raise UserError(f"{arguments.classifier}: gives {found.vectors.shape[1]} scores; needs ImageNet's 1,000")
    decisions, textures = decide(found.vectors), torch.tensor([source.texture(i) for i in range(len(source))])
    figures = shape_bias(decisions, found.labels, textures)
    subject = re.sub(r"\W+", "-", arguments.classifier).strip("-")
    file = arguments.out / f"cue-conflict_{subject}_session-1.csv"
    write_decisions(file, subject, source, decisions.tolist())
    record(arguments.results, "shape bias", classifier, {"cue conflict": source.name}, {}, figures, watch)
    if figures["share of shape"] is None:
        raise UserError(f"{arguments.classifier}: not one decision was shape or texture; is it trained on ImageNet?")
    table(f"shape bias, {arguments.classifier}", [{k: v for k, v in figures.items() if k != "categories"}])
    parts = figures["categories"]
    table(
        "by category", [{"category": name, "share of shape": part} for name, part in parts.items() if part is not None]
    )
    print(f"decisions: {file}")
    return 0
