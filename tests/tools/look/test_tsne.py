"""Two dimensions keep apart what is apart; principal components are scikit-learn's; the command."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from headrace.errors import UserError
from headrace.tools.look import tsne
from headrace.tools.look.tsne import flatten
from headrace.train.evaluation.embed import Features


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
    with pytest.raises(UserError, match="more than 0 and less than the 40 images, not 40"):
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
    picture = np.asarray(Image.open(tmp_path / "tsne.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def colours_of(path):
    """Colours of the dots in a picture, by how far they are from grey."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return pixels[(np.ptp(pixels, axis=2) > 60)], pixels


@pytest.mark.parametrize("method", ["tsne", "pca", "umap"])
def test_without_labels_points_are_grey_or_coloured_by_cluster(method, photo_folder, tmp_path, monkeypatch, capsys):
    if method == "umap":
        pytest.importorskip("umap", reason="needs the extra [umap]")
    monkeypatch.chdir(tmp_path)
    titles = []
    monkeypatch.setattr(tsne.plt.Axes, "set_title", lambda self, title, **_: titles.append(title))
    arguments = ["pixels:16", str(photo_folder / "class_0"), "--method", method, "--threads", "1"]
    assert tsne.main(arguments) == 0
    assert np.load(tmp_path / "tsne.npy").shape == (8, 2)
    bright, pixels = colours_of(tmp_path / "tsne.png")
    assert len(bright) == 0 and (abs(pixels - 127.5) < 1).all(2).sum() > 8 * 20
    assert tsne.main([*arguments, "--clusters", "3", "--out", "clusters.png"]) == 0
    bright, _ = colours_of(tmp_path / "clusters.png")
    assert len(np.unique(bright // 40, axis=0)) >= 3
    assert "8 images" in titles[0] and "grey, since there are no labels" in titles[0]
    assert "colours are 3 clusters of the features by k-means, not labels" in titles[1]
    said = capsys.readouterr().out
    assert "no labels" in said and "3 clusters" in said


def test_clusters_are_those_that_there_are():
    vectors, labels = clusters(60)
    found, names, said = tsne._groups(Features(torch.from_numpy(vectors), torch.full((60,), -1), []), None, 4, 0)
    assert adjusted_rand_score(found, labels) == 1.0 and len(names) == 4 and "not labels" in said
    with pytest.raises(UserError, match="--clusters: 61 of 60 images"):
        tsne._groups(Features(torch.from_numpy(vectors), torch.zeros(60), []), None, 61, 0)


def test_few_images(photo_folder, tmp_path, monkeypatch):
    """Defaults suit a set of any size; what was asked for is done or refused."""
    monkeypatch.chdir(tmp_path)
    vectors, _ = clusters(12)
    assert flatten(vectors, "tsne").shape == (12, 2)
    assert np.array_equal(flatten(vectors, "tsne"), flatten(vectors, "tsne", perplexity=11 / 3))
    for asked in (0.0, -1.0, 12.0):
        with pytest.raises(UserError, match="--perplexity: more than 0 and less than the 12 images"):
            flatten(vectors, "tsne", perplexity=asked)
    with pytest.raises(UserError, match="2 images make no picture"):
        flatten(vectors[:2], "pca")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/x.png: cannot be written"):
        tsne.main(["pixels:16", str(photo_folder), "--method", "pca", "--threads", "1", "--out", "file/x.png"])


def test_images_without_a_label_are_left_out_and_counted(photo_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = sorted(str(path.relative_to(photo_folder)) for path in photo_folder.rglob("*.jpg"))
    (tmp_path / "x.txt").write_text("".join(f"{name} {-1 if i % 4 == 0 else i % 2}\n" for i, name in enumerate(names)))
    data = f"list:{tmp_path}/x.txt?root={photo_folder}"
    assert tsne.main(["pixels:16", data, "--method", "pca", "--threads", "1"]) == 0
    assert np.load(tmp_path / "tsne.npy").shape == (18, 2)
    assert "left out: 6 of 24 images" in capsys.readouterr().out
