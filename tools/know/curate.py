"""A balanced choice of a data set's images: ``headrace curate <encoder> <data>``.

Features are clustered, these clusters as well, and images are drawn evenly from all of them. What comes of it are two
columns that the data plan reads, so that no image is copied: where: "curated", or weight: balance.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F

from ...errors import UserError
from ...pipelines.plan.columns import write_columns
from ...pipelines.sources import open_source
from ...pipelines.spec import ByteSource
from ...places import new_folder
from ...train.engine.distributed import launch, pick_device
from ...train.evaluation.embed import Features
from ...train.evaluation.embed_store import stored_features
from ...train.evaluation.evaluate import (
    add_arguments,
    encoder_of,
    options_of,
    positive,
    require_finite,
    say_left_out,
    share,
)
from .hierarchy import balanced, build, weights
from .know import table_of

_LEAF, _STEP, _MOST, _TOP = 20, 10, 4096, 10  # images of a leaf; things of a cluster above; clusters at most, at least


def levels_for(images: int) -> list[int]:
    """Clusters of each level where nobody says: twenty images in each of the lowest, ten clusters in each above."""
    levels = [max(1, min(images // _LEAF, _MOST))]
    while levels[-1] // _STEP >= _TOP:
        levels.append(levels[-1] // _STEP)
    return levels


def columns_for(features: Features, ids: np.ndarray, images: int, levels: Sequence[int], count: int, seed: int) -> dict:
    """``curated`` (images,) bool and ``balance`` (images,) float32; False and 0 for images that have no features."""
    hierarchy = build(F.normalize(features.vectors.float(), dim=1), levels, seed=seed)
    curated, balance = np.zeros(images, bool), np.zeros(images, np.float32)
    curated[ids[balanced(hierarchy, count, seed=seed)]] = True
    balance[ids] = weights(hierarchy, count)
    return {"curated": curated, "balance": balance}


def rows_of(source: ByteSource, place: Path) -> np.ndarray:
    """(N,) int64: the image that each row of stored features is of; images that cannot be decoded have no row."""
    keys, found, at = (place / "keys.txt").read_text("utf-8", "surrogateescape").split("\n")[:-1], [], 0
    for key in keys:
        while source.key(at) != key:
            at += 1
        found.append(at)
        at += 1
    return np.array(found, np.int64)


def class_entropy(labels: np.ndarray) -> float:
    """Of the shares of the classes, in bits; of ten equal ones 3.32."""
    shares = np.bincount(labels[labels >= 0]) / max(1, (labels >= 0).sum())
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace curate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    add = parser.add_argument
    add("data", help="shards, a folder, or another source of images")
    text = "clusters of each level, from the lowest (by the number of images)"
    add("--levels", type=positive, nargs="+", metavar="K", help=text)
    add("--keep", type=share, default=0.25, metavar="SHARE", help="of the images that are curated (%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--features", type=new_folder, default="features", help="folder of cached features (features)")
    add("--out", type=new_folder, default="know", help="where columns go that cannot lie beside the images (know)")
    given = parser.parse_args(argv)
    if given.levels and any(low <= high for low, high in zip(given.levels, given.levels[1:])):
        raise UserError(f"--levels: each has fewer clusters than the one below, not {' '.join(map(str, given.levels))}")
    encoder, source = encoder_of(given), open_source(given.data)
    with launch(pick_device(given.device)) as process:
        features = stored_features(encoder, source, given.features, **options_of(given, process))
    if not process.is_main:
        return 0
    require_finite(features, "data", encoder)
    count = max(1, round(given.keep * len(features.vectors)))
    levels = given.levels or levels_for(len(features.vectors))
    if levels[0] > len(features.vectors):
        raise UserError(f"--levels: {levels[0]:,} clusters of {len(features.vectors):,} images; ask for fewer")
    columns = columns_for(features, rows_of(source, features.place), len(source), levels, count, given.seed)
    table = table_of(given.data, given.out / "columns")
    write_columns(table, source, columns)
    counts = f"{count:,} of {len(source):,} images"
    print(f"{table}: curated ({counts}) and balance, by {' > '.join(map(str, levels))} clusters")
    if source.classes is not None:
        labels = np.array([source.label(index) for index in range(len(source))])
        before, after = class_entropy(labels), class_entropy(labels[columns["curated"]])
        print(f"entropy of the classes: {before:.2f} bits of all images, {after:.2f} of the curated ones")
    say_left_out(features.left_out)
    return 0
