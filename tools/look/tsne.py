"""``headrace tsne``: features of a set in two dimensions, as a picture and as an array."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")  # no display is needed, and none is opened
import matplotlib.pyplot as plt

from ...errors import UserError
from ...models.clustering import kmeans
from ...pipelines.sources import open_source
from ...pipelines.sources.subset import Subset
from ...pipelines.spec import ByteSource
from ...places import new_file, new_folder
from ...train.evaluation.embed import Features
from ...train.evaluation.embed_store import stored_features
from ...train.evaluation.evaluate import add_arguments, encoder_of, options_of, positive, say_left_out
from ...train.evaluation.labels import labels_of
from .figures import save_figure
from .maps import save_values
from .pca import principal_components

_MARKERS = "osD^v<>"  # twenty colours of each before they come again


def some(source: ByteSource, classes: int, per_class: int) -> Subset:
    """The first `per_class` images of each of the first `classes` classes."""
    counts, ids = [0] * classes, []
    for index in range(len(source)):
        label = source.label(index)
        if 0 <= label < classes and counts[label] < per_class:
            counts[label] += 1
            ids.append(index)
    return Subset(source, ids)


def spread(source: ByteSource, count: int) -> Subset:
    """`count` images at equal distances, all if there are fewer."""
    count = min(count, len(source))
    return Subset(source, [place * len(source) // count for place in range(count)])


def flatten(
    vectors: np.ndarray, method: str, *, perplexity: float | None = None, neighbours: int | None = None, seed: int = 0
) -> np.ndarray:
    """(N, 2) of (N, D): principal components, t-SNE (van der Maaten and Hinton 2008) from a seeded random start, or
    UMAP (McInnes et al., arXiv 1802.03426).

    By default 30 is the perplexity and 15 are the neighbours of an image, or less where there are few images.
    """
    if len(vectors) < 3:
        raise UserError(f"tsne: {len(vectors)} images make no picture; give three or more")
    if method == "pca":
        return principal_components(vectors, 2)
    if method == "umap":
        return _umap(vectors, neighbours, seed)
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("headrace tsne: needs scikit-learn; pip install headrace[eval], or --method pca") from None
    perplexity = min(30.0, (len(vectors) - 1) / 3) if perplexity is None else perplexity
    if not 0 < perplexity < len(vectors):
        raise UserError(f"--perplexity: more than 0 and less than the {len(vectors)} images, not {perplexity:g}")
    options = {"init": "random", "learning_rate": 200.0, "early_exaggeration": 12.0}
    return TSNE(perplexity=perplexity, random_state=seed, **options).fit_transform(vectors)


def _umap(vectors: np.ndarray, neighbours: int | None, seed: int) -> np.ndarray:
    try:
        import umap
    except ImportError:
        raise UserError("--method umap: needs umap-learn; pip install headrace[umap], or take tsne or pca") from None
    neighbours = min(15, len(vectors) - 1) if neighbours is None else neighbours
    if not 2 <= neighbours < len(vectors):
        raise UserError(f"--neighbours: from 2 to less than the {len(vectors)} images, not {neighbours}")
    # a seed makes it work in one thread; where that is said, it does not warn of it
    return umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(vectors)


def cluster(vectors: torch.Tensor, clusters: int, seed: int) -> np.ndarray:
    """(N,) which cluster each row (N, D) is in: of ten runs of k-means, the one whose rows are nearest to centroids."""
    runs = [kmeans(torch.clone(vectors), clusters, seed + start) for start in range(10)]
    return min(runs, key=lambda run: (vectors - run[1][run[0]]).square().sum().item())[0].numpy()


def plot(points: np.ndarray, groups: np.ndarray, names: list[str], path: Path, title: str) -> None:
    """One dot an image; one colour a group, and one shape for each twenty of them; grey for group -1."""
    low, high = points.min(0), points.max(0)
    points = (points - low) / np.where(high > low, high - low, 1)
    figure, axes = plt.subplots(figsize=(10, 10), layout="constrained")
    colours = plt.get_cmap("tab20")
    for number, group in enumerate(sorted(set(groups.tolist()))):
        look = {"color": "0.5"}
        if group >= 0:
            marker = _MARKERS[number // 20 % len(_MARKERS)]
            look = {"color": colours(number % 20), "marker": marker, "label": names[group]}
        axes.scatter(*points[groups == group].T, s=15, **look)
    axes.set(xticks=[], yticks=[])
    if names:
        axes.legend(fontsize=8)
    axes.set_title(textwrap.fill(title, 150), fontsize=9)
    save_figure(figure, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace tsne",
        description="Features in two dimensions, as a picture: coloured by class; without labels grey, or by cluster.",
    )
    add_arguments(parser)
    parser.add_argument("data", help="shards, folder or other source")
    parser.add_argument("--method", choices=("tsne", "umap", "pca"), default="tsne")
    parser.add_argument("--classes", type=positive, default=20, help="the first so many (20)")
    parser.add_argument("--per-class", type=positive, default=100, help="images of each (100)")
    parser.add_argument(
        "--clusters", type=positive, metavar="K", help="colour by K clusters that k-means finds, and not by class"
    )
    parser.add_argument("--perplexity", type=float, help="of tsne (30, or a third of the images where they are fewer)")
    parser.add_argument("--neighbours", type=int, help="of each image that umap keeps near (15)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=new_folder, default="features", help="folder of cached features (features)")
    parser.add_argument("--out", type=new_file, default="tsne.png", help="the picture; an .npy of the points beside it")
    arguments = parser.parse_args(argv)
    encoder, source = encoder_of(arguments), open_source(arguments.data)
    if source.classes is None:  # as many as there would be of a labelled set
        chosen = spread(source, arguments.classes * arguments.per_class)
    else:
        chosen = some(source, min(arguments.classes, len(source.classes)), arguments.per_class)
        if unlabelled := int((labels_of(source) < 0).sum()):
            print(f"left out: {unlabelled:,} of {len(source):,} images of {source.name}, which have no label")
    features = stored_features(encoder, chosen, arguments.features, **options_of(arguments))
    options = {"perplexity": arguments.perplexity, "neighbours": arguments.neighbours, "seed": arguments.seed}
    points = flatten(features.vectors.numpy(), arguments.method, **options)
    groups, names, by = _groups(features, source.classes, arguments.clusters, arguments.seed)
    save_values(arguments.out, torch.from_numpy(points))
    title = f"{len(points):,} images of {source.name} by {encoder.name}, {arguments.method}; {by}"
    plot(points, groups, names, arguments.out, title)
    print(f"{arguments.out}: {len(points):,} images; {by}")
    say_left_out(features.left_out)
    return 0


def _groups(
    features: Features, classes: list[str] | None, clusters: int | None, seed: int
) -> tuple[np.ndarray, list[str], str]:
    """(N,) what each row is coloured by, the names of that, and a sentence about it."""
    labels = features.labels.numpy()
    if clusters is not None:
        if clusters > len(labels):
            raise UserError(f"--clusters: {clusters} of {len(labels)} images; give at most as many")
        names = [f"cluster {number}" for number in range(clusters)]
        said = f"colours are {clusters} clusters of the features by k-means, not labels"
        return cluster(features.vectors, clusters, seed), names, said
    if classes is None:
        return labels, [], "grey, since there are no labels (--clusters colours them)"
    return labels, classes, f"colours are {len(set(labels.tolist()))} classes"
