"""Average precision against its definition, costs and machines against scikit-learn, seeded draws, the command."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import precision_recall_curve

from headrace.pipelines.sources.voc import CATEGORIES
from headrace.train.evaluation import svm
from headrace.train.evaluation.embed import Features
from headrace.train.evaluation.svm import average_precision, few_rows, fit_svm, full, low_shot


def test_average_precision_by_hand():
    # ranked: hit, miss, hit, hit, miss -> precision at hits 1, 2/3, 3/4; made to fall: 1, 3/4, 3/4
    targets, scores = np.array([1, 0, 1, 1, 0]), np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    assert average_precision(targets, scores) == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)
    assert average_precision(targets[::-1], scores[::-1]) == average_precision(targets, scores)
    assert average_precision(np.zeros(3), np.arange(3.0)) == 0.0


def test_average_precision_is_the_area_under_scikit_learns_curve():
    rng = np.random.default_rng(0)
    for _ in range(20):
        targets, scores = rng.integers(0, 2, 60), rng.normal(size=60)
        precision, recall, _ = precision_recall_curve(targets, scores)  # recall falls
        falling = np.maximum.accumulate(precision)  # the best at any larger recall
        area = -np.sum(np.diff(recall) * falling[:-1])
        assert average_precision(targets, scores) == pytest.approx(area, abs=1e-9)


def toy(n, seed, classes=3, width=8):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, width))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    directions = np.random.default_rng(9).normal(size=(classes, width))
    return rows, (rows @ directions.T + 0.3 * rng.normal(size=(n, classes)) > 0.4).astype(np.int8)


def test_the_machine_minimises_its_formula():
    """|w|²/2 + C sum weight max(0, 1 - y f(x))², bias in |w|: at the optimum the gradient vanishes."""
    rows, targets = toy(80, 0)
    wanted = targets[:, 0] == 1
    machine = fit_svm(rows, wanted, 0.5, seed=0)
    x = np.hstack([rows, np.ones((80, 1))])
    w = np.append(machine.coef_[0], machine.intercept_[0])
    y, weight = np.where(wanted, 1, -1), np.where(wanted, 2, 1)
    slack = np.maximum(0, 1 - y * (x @ w))
    gradient = w - 2 * 0.5 * ((weight * slack * y)[:, None] * x).sum(0)
    assert np.abs(gradient).max() < 1e-2 * np.abs(w).max()


def test_full_and_what_does_not_count():
    (train, targets), (test, asked) = toy(150, 1), toy(120, 2)
    rows = full(train, targets, test, asked, costs=[0.01, 1.0])
    assert all(0.6 < row["AP"] <= 1.0 for row in rows) and {row["cost"] for row in rows} <= {0.01, 1.0}
    assert rows == full(train, targets, test, asked, costs=[0.01, 1.0])
    hard = asked.copy()
    machine = fit_svm(train, targets[:, 0] == 1, rows[0]["cost"], 0)
    wrong = np.argsort(-machine.decision_function(test) * (asked[:, 0] == 0))[:15]  # the highest of the absent ones
    hard[wrong, 0] = -1
    assert full(train, targets, test, hard, costs=[0.01, 1.0])[0]["AP"] > rows[0]["AP"]
    unsure = np.where((np.arange(150) % 10 == 0)[:, None] & (targets == 0), -1, targets)
    assert full(train, unsure, test, asked, costs=[1.0]) == full(train, targets, test, asked, costs=[1.0])


def test_few_rows_and_low_shot():
    (train, targets), (test, asked) = toy(150, 3), toy(100, 4)
    picked = few_rows(targets, 4, seed=1)
    for column, rows in enumerate(picked):
        assert len(set(rows.tolist())) == 4 + 4 * 2 and targets[rows[:4], column].all()
        assert not targets[rows[4:], column].any()
    assert all(np.array_equal(a, b) for a, b in zip(picked, few_rows(targets, 4, seed=1)))
    assert not all(np.array_equal(a, b) for a, b in zip(picked, few_rows(targets, 4, seed=2)))
    rows = low_shot(train, targets, test, asked, shots=[1, 16], draws=3, costs=[1.0])
    chance = np.mean([average_precision(own, np.random.default_rng(0).normal(size=100)) for own in asked.T])
    assert chance < rows[0]["mAP"] < rows[1]["mAP"] < 1 and rows[0]["spread"] > 0


def test_rows_are_divided_by_their_norm():
    import torch

    rows = svm.unit_rows(Features(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2), []))
    assert rows.tolist() == [pytest.approx([3 / 5.00001, 4 / 5.00001], rel=1e-12), [0.0, 0.0]]


def test_command(tmp_path, monkeypatch):
    """Twenty categories as twenty columns of a picture: raw pixels tell them apart."""
    monkeypatch.chdir(tmp_path)
    root, rng = tmp_path / "VOCdevkit" / "VOC2007", np.random.default_rng(0)
    for folder in ("JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, count in (("trainval", 60), ("test", 40)):
        present = rng.random((count, 20)) < 0.3
        names = [f"{split}{n:03d}" for n in range(count)]
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))
        for name, own in zip(names, present):
            pixels = np.where(own, 230, 20).astype(np.uint8)[None, :, None].repeat(20, 0).repeat(3, 2)
            Image.fromarray(pixels).resize((40, 40), Image.Resampling.NEAREST).save(
                root / f"JPEGImages/{name}.jpg", quality=98
            )
        for column, category in enumerate(CATEGORIES):
            lines = [f"{name} {1 if own[column] else -1}" for name, own in zip(names, present)]
            (root / f"ImageSets/Main/{category}_{split}.txt").write_text("\n".join(lines))
    command = ["pixels:40", str(tmp_path), "--threads", "1", "--jobs", "1", "--cost", "1", "0.1"]
    assert svm.main(command) == 0
    assert svm.main([*command, "--low-shot", "--shots", "1", "8", "--draws", "2"]) == 0
    whole, few = map(json.loads, (tmp_path / "evaluation.jsonl").read_text().splitlines())
    assert whole["figures"]["mAP"] > 0.95 and set(whole["figures"]["classes"]) == set(CATEGORIES)
    assert whole["encoder"]["view"]["squash"] and [row["shots"] for row in few["figures"]] == [1, 8]
    assert few["figures"][0]["mAP"] < few["figures"][1]["mAP"]
