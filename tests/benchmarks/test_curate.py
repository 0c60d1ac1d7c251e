"""The benchmark of balanced choices: sets are as uneven as is said, and everybody is judged on the same images."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from headrace.benchmarks import curate, record
from headrace.errors import UserError
from headrace.tools.know.curate import class_entropy


def test_an_uneven_set_by_hand():
    labels = np.tile(np.arange(3), 100)
    kept = curate.uneven(labels, 100)
    assert np.bincount(labels[kept]).tolist() == [100, 10, 1] and (np.diff(kept) > 0).all()
    chosen = curate.by_label(labels[kept], 31, 0)
    assert np.bincount(labels[kept][chosen]).tolist() == [20, 10, 1]
    assert (
        curate.by_chance(31, 111, 0).sum() == 31
        and (curate.by_chance(31, 111, 0) != curate.by_chance(31, 111, 1)).any()
    )


def test_rows_and_what_is_not_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("val", 6)):
        for name, colour in {"blue": (20, 20, 220), "red": (220, 20, 20)}.items():
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                noise = (rng.normal(0, 20, (32, 32, 3)) + colour).clip(0, 255).astype(np.uint8)
                Image.fromarray(noise).save(tmp_path / part / name / f"{index}.jpg")
    words = ["--train", "train", "--val", "val", "--work", "work", "--out", "out", "--ratio", "4", "--keep", "0.4"]
    words += ["--bank", "20", "--queries", "12", "--steps", "2", "--batch", "8", "--seeds", "0"]
    asked, train = [], curate.pretrain.main

    def stopped(argv):
        asked.append(argv)
        return train(argv) if len(asked) < 3 else 0  # a run that is told to stop leaves no encoder

    monkeypatch.setattr(curate.pretrain, "main", stopped)
    with pytest.raises(UserError, match="not finished; the same command goes on there"):
        curate.main(words)
    assert len(asked) == 3
    monkeypatch.setattr(curate.pretrain, "main", lambda argv: asked.append(argv) or train(argv))
    assert curate.main(words) == 0 and len(asked) == 5  # the third again, and the fourth
    rows = {row["contender"]: row for row in record.read("curate", tmp_path / "out")}
    assert list(rows) == [
        "all of them",
        "curated by pixels:16",
        "by chance",
        "curated by SimCLR on all",
        "even by label",
    ]
    assert rows["all of them"]["images"] == 50 and rows["all of them"]["smallest_class"] == 10
    shares = (0.8, 0.2)
    assert rows["all of them"]["entropy_of_classes"] == pytest.approx(-sum(p * math.log2(p) for p in shares))
    assert rows["even by label"]["entropy_of_classes"] == 1.0 and rows["even by label"]["smallest_class"] == 10
    chance = np.load("work/uneven/columns/random_0.npy")
    assert rows["by chance"]["entropy_of_classes"] == pytest.approx(class_entropy(np.repeat([0, 1], [40, 10])[chance]))
    assert "knn" not in rows["curated by pixels:16"]
    told = [json.loads(line)["figures"][0]["top1"] for line in open("work/evaluation.jsonl")]
    for row in (rows["all of them"], rows["by chance"], rows["even by label"]):
        assert row["knn"] in [pytest.approx(100 * share, rel=1e-4) for share in told]
