"""The figure against counts by hand; the command on a classifier that sees colours alone."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from headrace.errors import UserError
from headrace.pipelines.sources.cue_conflict import CATEGORIES, IMAGENET_CLASSES
from headrace.tools.look import shape_bias as tool
from headrace.tools.look.shape_bias import decide, shape_bias
from headrace.train import pretrain


def test_a_category_is_the_mean_of_its_classes():
    """One certain class of 49 birds loses against four bears of a twentieth each, although the sum is larger."""
    shares = torch.full((2, 1000), 1e-6)
    shares[0, IMAGENET_CLASSES["bird"][0]], shares[0, IMAGENET_CLASSES["bear"]] = 0.5, 0.05
    shares[1, IMAGENET_CLASSES["airplane"]] = 0.9
    assert [CATEGORIES[i] for i in decide(shares.log()).tolist()] == ["bear", "airplane"]


def test_counts_by_hand():
    shapes, textures = torch.tensor([0, 0, 1, 1, 2, 3]), torch.tensor([1, 1, 0, 2, 2, 0])
    decisions = torch.tensor([0, 1, 1, 1, 2, 5])  # shape, texture, shape, shape, (no conflict), neither
    got = shape_bias(decisions, shapes, textures)
    assert (got["shape decisions"], got["texture decisions"], got["images in conflict"]) == (3, 1, 5)
    assert got["share of shape"] == 0.75 and got["top1"] == pytest.approx(4 / 6)
    parts = [got["categories"][name] for name in CATEGORIES[:4]]
    assert parts == [0.5, 1.0, None, None]
    assert shape_bias(torch.full((6,), 9), shapes, textures)["share of shape"] is None


def test_command(tmp_path, monkeypatch, capsys):
    """A classifier whose only knowledge is that red is a texture of clocks and blue one of knives."""
    monkeypatch.chdir(tmp_path)
    colour = {"clock": (250, 0, 0), "knife": (0, 0, 250)}
    for shape in ("clock", "knife", "oven"):
        for texture in colour:
            path = tmp_path / "cue" / shape / f"{shape}1-{texture}2.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), colour[texture]).save(path)
    arguments = ["finetune/resnet18_cifar10", "--smoke", "train.max_steps=1", "train.out=run", "algorithm.classes=1000"]
    assert pretrain.main(arguments) == 0

    class Colours(torch.nn.Module):
        def forward(self, images):
            red = images[:, 0].mean((1, 2)) > images[:, 2].mean((1, 2))
            scores = torch.zeros(len(images), 1000)
            for name, own in (("clock", red), ("knife", ~red)):
                scores[:, IMAGENET_CLASSES[name]] = 9.0 * own[:, None]
            return scores

    true = tool.load_classifier("run")
    monkeypatch.setattr(tool, "load_classifier", lambda name: type(true)(name, Colours(), true.view, true.digest))
    assert tool.main(["run", "cue", "--threads", "1"]) == 0
    figures = json.loads((tmp_path / "evaluation.jsonl").read_text())["figures"]
    assert figures["share of shape"] == 0.0 and figures["texture decisions"] == 4
    assert figures["top1"] == pytest.approx(2 / 6)
    with open(tmp_path / "shape-bias" / "cue-conflict_run_session-1.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and rows[1]["imagename"] == "clock1-knife2.png"
    assert [row["object_response"] for row in rows] == ["clock", "knife"] * 3
    assert [row["trial"] for row in rows] == list("123456") and np.unique([row["subj"] for row in rows]) == ["run"]


def test_what_does_not_classify(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrain.main(["mae_vit-tiny", "--smoke", "train.max_steps=1", "train.out=mae"]) == 0
    ten = ["finetune/vit-tiny_cifar10", "--smoke", "train.max_steps=1", "train.out=ten", "algorithm.classes=10"]
    assert pretrain.main(ten) == 0
    for name, message in (("mae", "mae classifies nothing"), ("ten", "tells 10 classes apart")):
        with pytest.raises(UserError, match=message):
            tool.load_classifier(name)
