"""The benchmark of what a little pre-training is worth: everybody is scored on the same images, by the commands."""

import numpy as np
import pytest
from PIL import Image

from headrace.benchmarks import accuracy, record
from headrace.pipelines.sources import open_source

TINY = ("algorithm.backbone={name: vit_tiny, patch_size: 8, width: 24, depth: 1, heads: 2}",)
COLOURS = {"blue": (20, 20, 220), "green": (20, 220, 20), "red": (220, 20, 20)}


@pytest.fixture
def colours(tmp_path):
    """Plain colours with noise: twelve to learn from and four to classify, of each of three."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for name, colour in COLOURS.items():
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                noise = rng.normal(0, 20, (32, 32, 3)) + colour
                image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
                image.save(tmp_path / part / name / f"{index}.jpg")
    return tmp_path


def test_a_subset_is_drawn_at_regular_steps(colours, tmp_path):
    whole = open_source(colours / "train")
    part = open_source(accuracy.subset(whole, 9, tmp_path / "part"))
    assert part.classes == whole.classes and [part.label(i) for i in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [bytes(part.read(i)) for i in range(9)] == [bytes(whole.read(i)) for i in range(0, 36, 4)]
    assert len(open_source(accuracy.subset(whole, 99, tmp_path / "all"))) == 36


def test_rows_are_what_the_commands_say(colours, tmp_path, monkeypatch, capsys):
    method = accuracy.METHODS[1]._replace(backbone=TINY, options=("algorithm.decoder={width: 16, depth: 1, heads: 2}",))
    monkeypatch.setattr(accuracy, "METHODS", (method,))
    starts, tune = [], accuracy.finetune.main
    monkeypatch.setattr(accuracy.finetune, "main", lambda argv: starts.append(argv[1]) or tune(argv))
    small = ["--steps", "2", "--batch", "12", "--head-epochs", "20", "--finetune-epochs", "1", "--train-images", "24"]
    sets = ["--train", str(colours / "train"), "--val", str(colours / "val")]
    assert accuracy.main([*sets, *small, "--out", str(tmp_path)]) == 0
    pixels, untrained, trained = record.read("accuracy", tmp_path)
    assert pixels["knn"] == pixels["linear"] == 100.0 and "finetuned" not in pixels  # colours tell the classes apart
    printed = capsys.readouterr().out
    for row in (untrained, trained):
        for name in ("knn", "linear", "finetuned"):
            assert row[name] == pytest.approx(100 * round(row[name] * 12 / 100) / 12, abs=0.006)  # of twelve images
            assert f"{row[name]:.2f}%" in printed
    assert untrained["contender"].endswith("untrained") and trained["contender"] == "the same after MAE"
    assert "pretrain_seconds" in trained and "pretrain_seconds" not in untrained
    assert starts[0] == "scratch" and starts[1].endswith("MAE")
    assert trained["config"]["images"] == [24, 12] and trained["config"]["recipe"] == "mae_vit-tiny_cifar10"
