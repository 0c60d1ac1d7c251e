"""Figures of a validation set that is partly in the training set come with a warning."""

import json

import numpy as np
import pytest
from PIL import Image

from headrace.cli import dispatch


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Two labelled sets; three images of `val` are in `train`, two of them coarser."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(24):
        pixels = sum(
            np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((64, 64)), float) / 3
            for n in (4, 8, 24)
        )
        image, kind = Image.fromarray(pixels.astype(np.uint8)), "ab"[number % 2]
        for name, quality in (("train", 90), ("val", 40)):
            if (number < 15 and name == "train") or (number >= 12 and name == "val"):
                path = tmp_path / name / kind / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, quality=quality)


def test_a_leak_is_told_where_it_is_known(sets, capsys):
    words = ["knn", "pixels:16", "--train", "train", "--val", "val", "--k", "1"]
    assert dispatch(words) == 0 and "know found" not in capsys.readouterr().out
    assert dispatch(["know", "train", "--against", "val", "--workers", "1", "--json", "found.json"]) == 0
    assert json.loads(open("found.json").read())["against"][0]["found"] == 3
    capsys.readouterr()
    assert dispatch(words) == 0
    assert "3 of 12 images of val are in train, or nearly, as headrace know found" in capsys.readouterr().out
    assert dispatch([*words[:4], "--val", "train", *words[6:]]) == 0  # another set: nothing is known of it
    assert "know found" not in capsys.readouterr().out
