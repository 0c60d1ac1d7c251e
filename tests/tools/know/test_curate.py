"""Clusters against scikit-learn, what is drawn from them by hand, and a choice that evens out an uneven set."""

import numpy as np
import pytest
import torch
from PIL import Image

from headrace.cli import dispatch
from headrace.errors import UserError
from headrace.tools.know.curate import class_entropy, levels_for
from headrace.tools.know.hierarchy import Hierarchy, balanced, build, cut, weights
from headrace.tools.know.kmeans import assigned, kmeans


def blobs(counts, spread=0.3, seed=0, width=8):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 3, (len(counts), width))
    labels = np.repeat(np.arange(len(counts)), counts)
    return torch.from_numpy((centres[labels] + rng.normal(0, spread, (len(labels), width))).astype(np.float32)), labels


def test_kmeans_is_as_good_as_another_library():
    cluster = pytest.importorskip("sklearn.cluster", reason="needs the extra [dev]")
    points, _ = blobs([40] * 12, spread=1.5)
    found = kmeans(points, 12, seed=0, iterations=100)
    away = torch.cdist(points.double(), found.centroids.double())
    assert (found.nearest == away.argmin(1)).all()
    assert found.distances.numpy() == pytest.approx(away.min(1).values.square().numpy(), rel=1e-3, abs=1e-3)
    theirs = cluster.KMeans(12, n_init=1, random_state=0).fit(points.numpy()).inertia_
    assert float(found.distances.sum()) < 1.15 * theirs
    for number in range(12):  # a fixed point of Lloyd's iterations
        mean = points[found.nearest == number].mean(0)
        assert found.centroids[number].numpy() == pytest.approx(mean.numpy(), abs=1e-4)


def test_kmeans_in_blocks_and_again(monkeypatch):
    points, _ = blobs([30] * 5)
    whole = kmeans(points, 5, seed=3)
    monkeypatch.setattr("headrace.tools.know.kmeans._NUMBERS", 64)
    assert torch.equal(kmeans(points, 5, seed=3).nearest, whole.nearest)
    assert len(kmeans(points[:3], 5, seed=0).centroids) == 3
    assert assigned(points[:2], points[:2]).nearest.tolist() == [0, 1]


def test_a_centroid_without_points_finds_some():
    points = torch.cat([torch.zeros(50, 2), torch.tensor([[9.0, 9.0], [-9.0, 5.0]])])
    assert len(kmeans(points, 3, seed=1).nearest.unique()) == 3


@pytest.mark.parametrize(
    "sizes, count, wanted",
    [([5, 5, 5], 15, [5, 5, 5]), ([100, 1, 1], 9, [7, 1, 1]), ([3, 8, 20], 9, [3, 3, 3]), ([4, 4], 0, [0, 0])],
)
def test_cuts_by_hand(sizes, count, wanted):
    assert cut(np.array(sizes), count, np.random.default_rng(0)).tolist() == wanted


def test_what_remains_goes_to_some_that_have_more():
    seen = set()
    for seed in range(20):
        parts = cut(np.array([10, 1, 10, 10]), 9, np.random.default_rng(seed)).tolist()
        assert parts[1] == 1 and sorted(parts) == [1, 2, 3, 3]
        seen.add(tuple(parts))
    assert len(seen) == 3


def test_draws_from_a_hierarchy_by_hand():
    """Two clusters at the top, one of a single leaf of 20 points, one of leaves of 60 and 4: 10 and 10; 6 and 4."""
    hierarchy = Hierarchy([np.repeat([0, 1, 2], [20, 60, 4]), np.array([0, 1, 1])])
    chosen = balanced(hierarchy, 20, seed=0)
    assert len(set(chosen.tolist())) == 20
    assert np.bincount(hierarchy.parents[0][chosen]).tolist() == [10, 6, 4]
    chances = weights(hierarchy, 20)
    assert chances[[0, 20, 80]].tolist() == pytest.approx([0.5, 0.1, 1.0]) and chances.sum() == pytest.approx(20)
    assert weights(hierarchy, 84).tolist() == pytest.approx([1] * 84)
    assert balanced(hierarchy, 100, seed=0).tolist() == list(range(84))


def test_an_uneven_set_is_evened_out():
    """Ten classes, 1,000 to 10 points: as even as their points allow, where chance repeats the unevenness."""
    counts = np.geomspace(1000, 10, 10).astype(int)
    points, labels = blobs(counts)
    hierarchy = build(points, [120, 30, 10], seed=0, rounds=4)
    curated = class_entropy(labels[balanced(hierarchy, 100, seed=0)])
    chance = class_entropy(labels[np.random.default_rng(0).permutation(len(labels))[:100]])
    assert chance < 2.75 and curated > 3.1


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(66):
        kind = 0 if number < 60 else number % 3
        color = np.array([(220, 30, 30), (30, 220, 30), (30, 30, 220)][kind]) + rng.integers(-20, 20, (16, 16, 3))
        path = tmp_path / "own" / "abc"[kind] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(color.clip(0, 255).astype(np.uint8)).save(path)
    (tmp_path / "own/a/0.png").write_bytes(b"no image")
    words = ["curate", "pixels:8", "own", "--levels", "12", "3", "--keep", "0.1", "--max-bad", "0.1"]
    assert dispatch(words) == 0
    said = capsys.readouterr().out
    assert "curated (6 of 66 images)" in said and "left out: a/0.png" in said
    curated, balance = (np.load(f"own/columns/{name}.npy") for name in ("curated", "balance"))
    assert curated.sum() == 6 and not curated[0] and balance[0] == 0 and balance.sum() == pytest.approx(6.5, abs=1)
    classes = np.repeat([0, 1, 2], [62, 2, 2])
    assert np.bincount(classes[curated]).tolist() == [2, 2, 2]
    assert dispatch(words) == 0 and (np.load("own/columns/curated.npy") == curated).all()
    for wrong, told in ((["--levels", "3", "12"], "each has fewer clusters"), (["--levels", "100"], "ask for fewer")):
        with pytest.raises(UserError, match=told):
            dispatch([*words[:3], *wrong, "--max-bad", "0.1"])


def test_levels_of_ones_own_size():
    assert levels_for(60_000) == [3000, 300, 30] and levels_for(10) == [1] and levels_for(10**7)[0] == 4096
