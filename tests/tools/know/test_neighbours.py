"""What an encoder's features say of a set, against brute force in numpy, and planted faults."""

import json

import numpy as np
import pytest
import torch
from html_pages import assert_stands_alone
from pictures import jpeg, picture, write_pictures
from PIL import Image

from headrace.cli import dispatch
from headrace.errors import UserError
from headrace.pipelines.measure.measure import MEASURED
from headrace.tools.know import neighbours
from headrace.tools.know.neighbours import ByEncoder, Vectors, around_kept, far_rule, groups_of, meaning, nearest_rows


class Labelled:
    """A source of labels alone."""

    name = "labelled"

    def __init__(self, labels, classes=3):
        self.labels, self.classes = labels, [f"class {n}" for n in range(classes)]

    def __len__(self):
        return len(self.labels)

    def label(self, index):
        return int(self.labels[index])


def vectors(points, ids=None, block=1000):
    points = torch.from_numpy(np.asarray(points, np.float32))
    return Vectors(list(points.split(block)), np.arange(len(points)) if ids is None else ids)


def rows_of(images):
    rows = np.zeros(images, MEASURED)
    rows["width"] = rows["height"] = 32
    return rows


def blobs(counts, spread=0.25, width=16, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, (len(counts), width)) + 2  # a direction that all of them share
    labels = np.repeat(np.arange(len(counts)), counts)
    return centres[labels] + rng.normal(0, spread, (len(labels), width)), labels


def cosines_of(points, others=None, mean=None):
    """(N, M) in float64: of rows at unit length, less the mean of `points`' rows, by the formula."""
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    mean = unit(points).mean(0) if mean is None else mean
    return unit(unit(points if others is None else others) - mean) @ unit(unit(points) - mean).T


@pytest.mark.parametrize("block", [7, 40, 1000])
def test_neighbours_are_those_of_brute_force(block):
    points, _ = blobs([20, 20, 23], spread=1.0)
    own = vectors(points, block=block)
    cosines, rows = nearest_rows(own, own, 5, own.mean())
    all_of_them = cosines_of(points)
    np.fill_diagonal(all_of_them, -2)
    wanted = np.argsort(-all_of_them, axis=1)[:, :5]
    assert (rows.numpy() == wanted).all()
    assert cosines.numpy() == pytest.approx(np.take_along_axis(all_of_them, wanted, 1), abs=1e-5)
    others = vectors(points[:9] + 0.1, block=block)
    cosines, rows = nearest_rows(own, others, 4, own.mean())
    between = cosines_of(points, points[:9] + 0.1)
    assert (rows.numpy() == np.argsort(-between, axis=1)[:, :4]).all()
    few = vectors(points[:3])
    assert nearest_rows(few, few, 20, few.mean())[1].shape == (3, 2)


def test_what_is_left_out_is_close_to_what_is_kept():
    rng = np.random.default_rng(1)
    ids = np.sort(rng.permutation(60)[:50])
    near = ids[rng.integers(0, 50, (50, 4))]
    close, rank = rng.random((50, 4)) < 0.3, rng.permutation(60)
    found = around_kept(60, ids, near, close, rank)
    linked = np.zeros((60, 60), bool)
    for row, column in np.argwhere(close):
        linked[ids[row], near[row, column]] = linked[near[row, column], ids[row]] = True
    wanted = {}
    for image in sorted(ids, key=lambda image: rank[image]):
        if image not in wanted:
            wanted |= {other: image for other in np.flatnonzero(linked[image]) if other not in wanted}
            wanted[image] = image
    assert {image: kept for image, kept in enumerate(found.tolist()) if kept >= 0} == wanted
    groups = groups_of(found)
    assert sorted(len(group) for group in groups) == sorted(n for n in np.bincount(found[found >= 0]) if n > 1)
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)


def test_a_chain_is_not_one_group():
    """Ten in a row, each close to the next alone: the first is kept for the second, not for the third."""
    near = np.stack([np.arange(10) - 1, np.arange(10) + 1], 1) % 10
    close = np.ones((10, 2), bool)
    close[0, 0] = close[9, 1] = False
    assert around_kept(10, np.arange(10), near, close, np.arange(10)).tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]


@pytest.fixture(scope="module")
def faulty():
    """Three kinds of a hundred images; six with the label of another kind, four unlike all others, two that are one."""
    points, kinds = blobs([100, 100, 100])
    labels = kinds.copy()
    wrong = np.array([3, 40, 120, 170, 230, 290])
    labels[wrong] = (labels[wrong] + 1) % 3
    far = np.array([10, 111, 222, 250])
    points[far] = np.random.default_rng(9).normal(0, 8, (4, points.shape[1]))
    points[60] = points[55] * 1.5
    return points, kinds, labels, wrong, far


def test_planted_faults_are_found(faulty):
    points, kinds, labels, wrong, far = faulty
    found = meaning(ByEncoder(None), Labelled(labels), rows_of(300), vectors(points, block=64))
    assert set(found.rule.rows(found.columns).tolist()) == set(far.tolist())
    doubts = {doubt.image: doubt for doubt in found.doubts}
    assert set(doubts) - set(far.tolist()) == set(wrong.tolist())
    for image in wrong.tolist():
        assert doubts[image].label == kinds[image] and doubts[image].share > 0.9 and len(doubts[image].nearest) == 20
    assert set(np.flatnonzero(found.columns["label_doubtful"])) == set(doubts)


def test_figures_are_those_of_formulas(faulty):
    points, _, labels, _, _ = faulty
    ids = np.delete(np.arange(300), [7, 8])  # two that cannot be decoded
    labels = labels.copy()
    labels[50:60] = -1
    found = meaning(ByEncoder(None, neighbours=12), Labelled(labels), rows_of(300), vectors(points[ids], ids))
    cosines = cosines_of(points[ids])
    np.fill_diagonal(cosines, -2)
    nearest = np.argsort(-cosines, axis=1)[:, :12]
    near = np.take_along_axis(cosines, nearest, 1)
    assert np.isnan(found.columns["neighbour_distance"][[7, 8]]).all()
    assert found.columns["neighbour_distance"][ids] == pytest.approx(1 - near.mean(1), abs=1e-5)
    agreement = found.columns["label_agreement"]
    for row, image in enumerate(ids):
        theirs, weights = labels[ids[nearest[row]]], np.exp(near[row] / 0.07)
        votes = np.array([weights[theirs == label].sum() for label in range(3)]) / weights[theirs >= 0].sum()
        if labels[image] < 0:
            assert np.isnan(agreement[image])
        else:
            assert agreement[image] == pytest.approx(votes[labels[image]], abs=1e-4)
            assert found.columns["label_doubtful"][image] == (votes[labels[image]] < 0.1 and votes.max() >= 0.6)


def test_near_duplicates_and_images_of_another_set(faulty):
    points, _, labels, _, _ = faulty
    own, cosine = vectors(points), 0.97
    theirs = vectors(np.concatenate([points[[5, 77]] * 3, -points[:2]]), np.array([0, 2, 3, 5]))
    found = meaning(ByEncoder(None, 299, cosine), Labelled(labels), rows_of(300), own, [theirs])
    close, kept = cosines_of(points) >= cosine, {}
    for image in range(300):
        if image not in kept:
            kept |= {other: image for other in np.flatnonzero(close[image]).tolist() if other not in kept}
    assert found.columns["embedding_duplicate"].tolist() == [kept[image] != image for image in range(300)]
    assert kept[60] == kept[55] and 10 < found.columns["embedding_duplicate"].sum() < 250
    assert sorted(map(len, found.groups)) == sorted(n for n in np.bincount(list(kept.values())) if n > 1)
    between = cosines_of(points, np.concatenate([points[[5, 77]] * 3, -points[:2]])) >= cosine
    query, ours = np.nonzero(between)
    assert found.pairs[0].tolist() == sorted([int(o), int(theirs.ids[q])] for q, o in zip(query, ours))
    assert {5, 77} <= set(np.flatnonzero(found.columns["embedding_leaked"]).tolist())


def test_images_that_are_all_alike_have_no_outlier():
    assert not len(far_rule(np.full(9, 0.2, np.float32)).rows({"neighbour_distance": np.full(9, 0.2, np.float32)}))
    assert not len(far_rule(np.full(2, np.nan)).rows({"neighbour_distance": np.full(2, np.nan)}))
    one = meaning(ByEncoder(None), Labelled([0]), rows_of(1), vectors(np.ones((1, 4))))
    assert np.isnan(one.columns["neighbour_distance"]).all() and one.doubts == one.groups == []


def test_the_command(tmp_path, monkeypatch, capsys):
    """Features of pixels: plain colours in two classes, one under the wrong name, one image twice, one broken."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    files = {}
    for number in range(40):
        colour = np.array([(200, 40, 40), (40, 60, 200)][number % 2])
        image = (colour + rng.normal(0, 1, 3) * 12 + rng.normal(0, 6, (24, 24, 3))).clip(0, 255).astype(np.uint8)
        files[f"{'rb'[number % 2 if number != 6 else 1]}/{number:02d}.png"] = jpeg(Image.fromarray(image), 95)
    files |= {"b/z.jpg": jpeg(picture(5), 95), "b/broken.jpg": b"no image"}
    write_pictures(tmp_path / "own", files)
    write_pictures(tmp_path / "val", {"r/1.jpg": files["r/02.png"], "b/2.jpg": jpeg(picture(6))})
    words = ["know", "own", "--encoder", "pixels:8", "--neighbours", "10", "--cosine", "0.999", "--workers", "1"]
    monkeypatch.setattr(neighbours, "_BLOCK", 15)
    assert dispatch([*words, "--against", "val", "--json", "found.json"]) == 0
    said, found = capsys.readouterr().out, json.loads(open("found.json").read())
    by = found["encoder"]
    assert (by["name"], by["neighbours"], by["cosine"]) == ("pixels:8", 10, 0.999)
    assert [(one["key"], one["class"], one["neighbours"]) for one in by["doubtful_labels"]] == [("b/06.png", "b", "r")]
    assert ["r/02.png", "r/1.jpg"] in by["against"][0]["pairs"]
    assert "b/z.jpg" in found["outliers"]["far from all others"]["keys"]
    assert "by pixels:8: 1 labels that the nearest images do not have" in said
    assert found["columns"]["neighbour_distance"]["known"] == 41
    page = assert_stands_alone(open("know/know.html").read())
    assert "not label_doubtful" in [text for _, text in page.all("code")]

    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("features/*/features.npy")}
    assert len(kept) == 4  # three blocks of ours, one of theirs
    first = [next(iter(kept))]
    for path in first:  # as if it had been interrupted there
        for file in path.parent.iterdir():
            file.unlink()
        path.parent.rmdir()
    columns = {path: path.read_bytes() for path in tmp_path.glob("own/columns/*.npy")}
    assert dispatch([*words, "--against", "val"]) == 0
    assert {path: path.read_bytes() for path in tmp_path.glob("own/columns/*.npy")} == columns
    again = {path: path.stat().st_mtime_ns for path in tmp_path.glob("features/*/features.npy")}
    assert {path for path in kept if again[path] != kept[path]} == set(first)

    for wrong, told in (
        (["own", "--cosine", "0.9"], "give --encoder"),
        ([*words[1:], "--cosine", "2"], "--cosine: more than 0"),
        ([*words[1:], "--neighbours", "0"], "--neighbours: must be at least 1"),
        (["own", "--encoder", "nothing"], "nothing"),
    ):
        with pytest.raises(UserError, match=told) as fault:
            dispatch(["know", *wrong])
        assert "\n" not in str(fault.value)
