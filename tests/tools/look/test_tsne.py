"""Two dimensions keep apart what is apart; principal components are scikit-learn's; the command."""

import sys

import numpy as np
import pytest
from sklearn.decomposition import PCA

from headrace.errors import UserError
from headrace.tools.look import tsne
from headrace.tools.look.tsne import flatten


def clusters(n=40, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    return (5 * rng.normal(size=(4, 16))[labels] + rng.normal(size=(n, 16))).astype(np.float32), labels


def test_principal_components():
    vectors, _ = clusters()
    got, expected = flatten(vectors, "pca"), PCA(2).fit_transform(vectors)
    for axis in (0, 1):
        sign = np.sign(got[:, axis] @ expected[:, axis])
        assert np.abs(got[:, axis] - sign * expected[:, axis]).max() < 1e-4
    assert np.array_equal(flatten(vectors[::-1], "pca")[::-1].round(4), got.round(4))


def test_tsne_keeps_neighbours_and_its_seed():
    vectors, labels = clusters()
    points = flatten(vectors, "tsne", perplexity=8, seed=3)
    distance = np.linalg.norm(points[:, None] - points, axis=-1) + 1e9 * np.eye(40)
    assert (labels[distance.argmin(1)] == labels).mean() > 0.95
    assert np.array_equal(points, flatten(vectors, "tsne", perplexity=8, seed=3))
    with pytest.raises(UserError, match="must be less than the 40 images"):
        flatten(vectors, "tsne", perplexity=40)


def test_umap_keeps_clusters_and_its_seed():
    pytest.importorskip("umap", reason="needs the extra [umap]")
    vectors, labels = clusters(80)
    points = flatten(vectors, "umap", neighbours=10, seed=3)
    distance = np.linalg.norm(points[:, None] - points, axis=-1) + 1e9 * np.eye(80)
    assert points.shape == (80, 2) and (labels[distance.argmin(1)] == labels).mean() > 0.95
    assert np.array_equal(points, flatten(vectors, "umap", neighbours=10, seed=3))
    assert not np.array_equal(points, flatten(vectors, "umap", neighbours=10, seed=4))
    with pytest.raises(UserError, match="--neighbours: from 2 to less than the 80 images, not 80"):
        flatten(vectors, "umap", neighbours=80)


def test_without_umap_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"pip install headrace\[umap\]") as caught:
        flatten(clusters()[0], "umap")
    assert "\n" not in str(caught.value)


def test_command(photo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["pixels:16", str(photo_folder), "--method", "pca", "--classes", "2", "--per-class", "5"]
    assert tsne.main([*arguments, "--threads", "1"]) == 0
    points = np.load(tmp_path / "tsne.npy")
    assert points.shape == (10, 2) and np.abs(points.mean(0)).max() < 1e-3
    from PIL import Image

    picture = np.asarray(Image.open(tmp_path / "tsne.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    with pytest.raises(UserError, match="no labels to colour by"):
        tsne.main(["pixels:16", str(photo_folder / "class_0")])
