"""``headrace tsne``: features of a labelled set in two dimensions, as a picture and as an array."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display is needed, and none is opened
import matplotlib.pyplot as plt

from ...errors import UserError
from ...pipelines.sources import open_source
from ...pipelines.sources.subset import Subset
from ...pipelines.spec import ByteSource
from ...places import new_file, new_folder
from ...train.evaluation.embed_store import stored_features
from ...train.evaluation.evaluate import add_arguments, encoder_of, options_of, positive
from .figures import save_figure
from .pca import principal_components


def some(source: ByteSource, classes: int, per_class: int) -> Subset:
    """The first `per_class` images of each of the first `classes` classes."""
    counts, ids = [0] * classes, []
    for index in range(len(source)):
        label = source.label(index)
        if 0 <= label < classes and counts[label] < per_class:
            counts[label] += 1
            ids.append(index)
    return Subset(source, ids)


def flatten(
    vectors: np.ndarray, method: str, *, perplexity: float = 30.0, neighbours: int = 15, seed: int = 0
) -> np.ndarray:
    """(N, 2) of (N, D): principal components, t-SNE (van der Maaten and Hinton 2008) from a seeded random start, or
    UMAP (McInnes et al., arXiv 1802.03426).
    """
    if method == "pca":
        return principal_components(vectors, 2)
    if method == "umap":
        return _umap(vectors, neighbours, seed)
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("headrace tsne: needs scikit-learn; pip install headrace[eval], or --method pca") from None
    if perplexity >= len(vectors):
        raise UserError(f"--perplexity: must be less than the {len(vectors)} images, {perplexity:g} is not")
    options = {"init": "random", "learning_rate": 200.0, "early_exaggeration": 12.0}
    return TSNE(perplexity=perplexity, random_state=seed, **options).fit_transform(vectors)


def _umap(vectors: np.ndarray, neighbours: int, seed: int) -> np.ndarray:
    try:
        import umap
    except ImportError:
        raise UserError("--method umap: needs umap-learn; pip install headrace[umap], or take tsne or pca") from None
    if not 2 <= neighbours < len(vectors):
        raise UserError(f"--neighbours: from 2 to less than the {len(vectors)} images, not {neighbours}")
    # a seed makes it work in one thread; where that is said, it does not warn of it
    return umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(vectors)


def plot(points: np.ndarray, labels: np.ndarray, classes: list[str], path: Path, title: str) -> None:
    """One dot an image, one colour a class."""
    low, high = points.min(0), points.max(0)
    points = (points - low) / np.where(high > low, high - low, 1)
    figure, axes = plt.subplots(figsize=(10, 10), layout="constrained")
    colours = plt.get_cmap("tab20")
    for number, label in enumerate(sorted(set(labels.tolist()))):
        own = labels == label
        axes.scatter(*points[own].T, s=15, color=colours(number % 20), label=classes[label])
    axes.set(xticks=[], yticks=[])
    axes.legend(fontsize=8)
    axes.set_title(title, fontsize=9)
    save_figure(figure, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace tsne", description="Features in two dimensions, as a picture.")
    add_arguments(parser)
    parser.add_argument("data", help="labelled shards, folder or other source")
    parser.add_argument("--method", choices=("tsne", "umap", "pca"), default="tsne")
    parser.add_argument("--classes", type=positive, default=20, help="the first so many (20)")
    parser.add_argument("--per-class", type=positive, default=100, help="images of each (100)")
    parser.add_argument("--perplexity", type=float, default=30.0)
    parser.add_argument("--neighbours", type=int, default=15, help="of each image that umap keeps near (15)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=new_folder, default="features", help="folder of cached features (features)")
    parser.add_argument("--out", type=new_file, default="tsne.png", help="the picture; an .npy of the points beside it")
    arguments = parser.parse_args(argv)
    source = open_source(arguments.data)
    if source.classes is None:
        raise UserError(f"{source.name}: has no labels to colour by; give a folder per class")
    encoder = encoder_of(arguments)
    chosen = some(source, min(arguments.classes, len(source.classes)), arguments.per_class)
    features = stored_features(encoder, chosen, arguments.features, **options_of(arguments))
    vectors, labels = features.vectors.numpy(), features.labels.numpy()
    options = {"perplexity": arguments.perplexity, "neighbours": arguments.neighbours, "seed": arguments.seed}
    points = flatten(vectors, arguments.method, **options)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.save(arguments.out.with_suffix(".npy"), points)
    plot(points, labels, source.classes, arguments.out, f"{len(points):,} images of {source.name} by {encoder.name}")
    print(f"{arguments.out}: {len(points):,} images of {len(set(labels.tolist()))} classes")
    return 0
