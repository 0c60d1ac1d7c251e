"""Figures of a validation set that is partly in the training set come with a warning."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.cli import dispatch
from headrace.pipelines.plan.given import as_source
from headrace.train.evaluation.leakage import leak_remarks


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


@pytest.fixture
def known(sets, capsys):
    """The sets, of which it is known; `others`, of which there is nothing to know."""
    rng = np.random.default_rng(1)
    for kind in "ab":
        (path := Path("others") / kind).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path / "1.png")
    assert dispatch(["know", "train", "--against", "val", "--workers", "1"]) == 0
    capsys.readouterr()

    def said(train):
        return leak_remarks(as_source(train), as_source("val"))

    return said


LEAKED = "images of val are in train of {}, or nearly, as headrace know found"


def test_a_leak_of_one_of_several_sets(known):
    plan = {"first": {"source": "others"}, "second": {"source": "train"}}
    (line,) = known(plan)
    assert line.startswith("3 of 12 " + LEAKED.format("first + second"))
    Path("mix.yaml").write_text("sets: {first: others, second: train}")
    (line,) = known("plan:mix.yaml")
    assert line.startswith("3 of 12 " + LEAKED.format("plan:mix.yaml"))
    assert known({"others": {"source": "others"}}) == []


def test_a_filter_that_leaves_no_such_image(known):
    assert known({"train": {"source": "train", "where": "not leaked"}}) == []  # a name that is a folder's as well
    (line,) = known({"own": {"source": "train", "where": "width > 3"}})
    assert line.startswith("3 of 12")
    (line,) = known({"own": {"source": "train", "where": "class_name == 'a'"}})
    assert line.startswith("up to 3 of 12")
    shutil.move("train/columns", "elsewhere")  # a table that the plan names
    assert known({"own": {"source": "train", "table": "elsewhere", "where": "not leaked"}}) == []
    (line,) = known({"own": {"source": "train", "table": "elsewhere"}})
    assert line.startswith("3 of 12")
    Path("elsewhere/leaked.npy").unlink()
    assert known({"own": {"source": "train", "table": "elsewhere", "where": "width > 3"}})[0].startswith("up to 3")


def test_a_table_beside_a_plan_is_about_the_plan_as_it_was(sets, capsys):
    Path("mix.yaml").write_text("sets: {own: train}")
    assert dispatch(["know", "plan:mix.yaml", "--against", "val", "--workers", "1"]) == 0
    (line,) = leak_remarks(as_source("plan:mix.yaml"), as_source("val"))
    assert line.startswith("3 of 12 images of val are in plan:mix.yaml, or nearly")
    assert dispatch(["know", "train", "--against", "val", "--workers", "1"]) == 0
    Path("mix.yaml").write_text("sets: {own: {source: train, where: not leaked}}")
    assert leak_remarks(as_source("plan:mix.yaml"), as_source("val")) == []


def test_evaluations_of_a_plan_tell_it(known, capsys):
    Path("mix.yaml").write_text("sets: {first: others, second: train}")
    assert dispatch(["knn", "pixels:16", "--train", "plan:mix.yaml", "--val", "val", "--k", "1"]) == 0
    assert LEAKED.format("plan:mix.yaml") in capsys.readouterr().out
