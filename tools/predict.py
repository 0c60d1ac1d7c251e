"""Classes of photos: ``headrace predict photo.jpg --checkpoint <run or file>``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from ..errors import UserError
from ..pipelines.sources.files import FileSource
from ..places import place
from ..train.evaluation.embed import embed, evaluation_view
from .models_api import Model, read_classifier


def predict(model: Model, photos: list[Path], top: int = 1) -> list[tuple[Path, list[tuple[int, float]]]]:
    """For each photo its `top` most likely classes with their probabilities, the likeliest first.

    Raises `UserError` for a file that is missing or is no image.
    """
    for photo in photos:
        if not photo.is_file():
            raise UserError(f"{photo}: no such file")
    source = FileSource("", [os.fsencode(photo.absolute()) for photo in photos])
    found = embed(model, source, evaluation_view(model.view), batch_size=1, loader="cpu", threads=1)
    if found.left_out:
        raise UserError(f"{found.left_out[0]}; give photos that can be decoded")
    shares = found.vectors.softmax(1).topk(min(top, found.vectors.shape[1]), dim=1)
    rows = zip(photos, shares.indices.tolist(), shares.values.tolist(), strict=True)
    return [(photo, list(zip(indices, values))) for photo, indices, values in rows]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace predict", description="What a trained classifier sees in photos: classes and probabilities."
    )
    parser.add_argument("photos", nargs="+", type=place, metavar="photo")
    parser.add_argument("--checkpoint", required=True, help="a run, a checkpoint, or a classifier of another code base")
    parser.add_argument("--classes", type=place, help="a text file with the name of a class in each line")
    parser.add_argument("--top", type=int, default=1, help="how many classes of each photo (1)")
    arguments = parser.parse_args(argv)
    if arguments.top < 1:
        raise UserError(f"--top: must be at least 1, not {arguments.top}")
    classifier, trained = read_classifier(arguments.checkpoint)
    if not trained:
        raise UserError(
            f"{arguments.checkpoint}: has an encoder but no classifier; train one: headrace finetune, headrace linear"
        )
    names = _names(arguments.classes, classifier.config.classes)
    with torch.inference_mode():
        rows = predict(Model(classifier, head=True).eval(), arguments.photos, arguments.top)
    for photo, classes in rows:
        print("\n".join(f"{photo}  {names[index]}  {share:.4f}" for index, share in classes))
    return 0


def _names(path: Path | None, classes: int) -> list[str]:
    if path is None:
        return [f"class {index}" for index in range(classes)]
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except OSError as fault:
        raise UserError(f"--classes: {path}: {fault.strerror}") from None
    if len(names) != classes:
        raise UserError(f"--classes: {path} has {len(names)} lines for {classes} classes")
    return names
