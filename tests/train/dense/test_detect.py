"""``headrace detect``: it trains, resumes and scores on real formats, made small; its recipes, its errors."""

import json
import sys

import numpy as np
import pytest
import torch
import trees
from PIL import Image

from headrace.benchmarks import processes
from headrace.errors import UserError
from headrace.models.algorithms.detector import Detector
from headrace.train.dense import detect
from headrace.train.dense.coco import decoded
from headrace.train.dense.run import recipes
from headrace.train.engine import checkpoint
from headrace.train.engine.metrics import read_metrics
from headrace.train.recipe.recipe import load_recipe

SMALL = [
    "algorithm.backbone={name: resnet18, width: 8}",
    "algorithm.width=16",
    "algorithm.regions=32",
    "algorithm.short=[72, 96]",
    "algorithm.test_short=72",
    "algorithm.long=160",
    "train.batch_size=4",
    "train.log_every=1",
    "train.device=cpu",
    "data.threads=1",
    "optim.lr_batch=null",
    "optim.warmup=0.1",
]
COCO_RECIPE, VOC_RECIPE = "detect/mask-rcnn-fpn_8xb2-1x_coco", "detect/faster-rcnn-c4_8xb2-24k_voc0712"


@pytest.fixture
def command(coco, voc, tmp_path):
    sets = {
        COCO_RECIPE: (f"coco:{coco}", f"coco:{coco}?split=val"),
        VOC_RECIPE: (f"voc:{voc}?year=07+12", f"voc:{voc}?split=test"),
    }

    def command(*given, recipe=COCO_RECIPE, data=None, out="run"):
        train, val = data or sets[recipe]
        where = [f"data.train={train}", f"data.val={val}", f"train.out={tmp_path / out}"]
        code = detect.main([recipe, "scratch", *where, *SMALL, *given, "--results", str(tmp_path / "rows.jsonl")])
        rows = (tmp_path / "rows.jsonl").read_text().splitlines() if code == 0 else []
        return json.loads(rows[-1]) if rows else None

    return command


@pytest.mark.parametrize("recipe", [COCO_RECIPE, VOC_RECIPE])
def test_it_learns_and_is_scored(command, tmp_path, recipe):
    options = ["train.max_steps=24", "optim.lr=0.05", "optim.milestones=['20 steps']"]
    row = command(*options, "--picture", str(tmp_path / "some.png"), recipe=recipe)
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    rows = row["figures"]["rows"]
    if recipe == COCO_RECIPE:
        assert [one["of"] for one in rows] == ["boxes", "masks"] and rows[0]["AP large"] is None
        assert all(0 <= one[key] <= 1 for one in rows for key in ("AP", "AP50", "AP75"))
    else:
        assert 0 <= rows[0]["AP50 (11 points)"] <= 1 and 0 <= rows[0]["AP50 (area)"] <= 1
    assert row["data"]["images"] == 5 and Image.open(tmp_path / "some.png").height == 5 * 244
    again = command(*options, recipe=recipe)
    assert again["figures"] == row["figures"] and again["encoder"]["digest"] == row["encoder"]["digest"]


def test_stopped_and_resumed_is_undisturbed(command, tmp_path, stopped_at):
    command("train.max_steps=4", out="whole")
    with stopped_at(1):
        command("train.max_steps=4", out="parts")
    assert checkpoint.newest(tmp_path / "parts")[1]["step"] == 2
    command("train.max_steps=4", out="parts")
    whole, parts = (checkpoint.newest(tmp_path / name)[1]["model"] for name in ("whole", "parts"))
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []


@pytest.mark.parametrize("head", ["fpn", "c4"])
def test_two_processes_give_the_gradient_of_one(tmp_path, head):
    """With other numbers of objects on either: averages are over samples, not over processes."""
    worker = str(trees.Path(__file__).with_name("gradient_worker.py"))
    for world in (1, 2):
        codes = processes.run([worker, head, str(tmp_path / f"{world}.pt")], tmp_path / "log", world=world)
        assert codes == [0] * world, (tmp_path / "log").read_text()
    one, two = (torch.load(tmp_path / f"{world}.pt") for world in (1, 2))
    largest = max(value.norm() for key, value in one.items() if "buffer" not in key)
    for key, value in one.items():
        assert (two[key].float() - value.float()).norm() < 1e-3 * value.float().norm() + 1e-5 * largest, key


def test_both_processes_test(command, coco, tmp_path):
    row = command("train.max_steps=2", out="run")
    worker = str(trees.Path(__file__).with_name("command_worker.py"))
    sets = [f"data.train=coco:{coco}", f"data.val=coco:{coco}?split=val", f"train.out={tmp_path / 'run'}"]
    arguments = [worker, "detect", COCO_RECIPE, "scratch", *sets, *SMALL, "train.max_steps=2"]
    arguments += ["--results", str(tmp_path / "two.jsonl")]
    assert processes.run(arguments, tmp_path / "log", world=2) == [0, 0], (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "two.jsonl").read_text())["figures"] == row["figures"]


# models


# samples


# figures


@pytest.mark.parametrize("name", recipes("detect"))
def test_recipes(name):
    recipe = load_recipe(name, [])
    assert isinstance(recipe.algorithm, Detector.Config) and recipe.algorithm.backbone is None
    assert recipe.train.batch_size == 16 and recipe.optim.schedule == "multistep"


# what goes wrong


def test_errors(command, coco, voc, tmp_path, monkeypatch):
    def refused(*given, **options):
        with pytest.raises(UserError) as fault:
            command("train.max_steps=2", *given, **options)
        assert "\n" not in str(fault.value)
        return str(fault.value)

    sets = (f"voc:{voc}", f"voc:{voc}?split=test")
    assert "has no masks; take a recipe of Faster R-CNN" in refused(data=sets)
    assert "other categories" in refused(data=(f"coco:{coco}", sets[1]))
    assert "use fpn for this encoder" in refused("algorithm.head=c4", "algorithm.backbone={name: vit_tiny}")
    assert "has no boxes; give coco:PATH or voc:PATH" in refused(data=(str(coco / "val2017"),) * 2)
    with pytest.raises(UserError, match="detect/faster-rcnn"):
        detect.main(["mae_vit-tiny", "scratch"])
    broken = trees.coco(tmp_path / "broken", {"train": 4, "val": 5})
    data = (f"coco:{broken}", f"coco:{broken}?split=val")
    (broken / "train2017/000000000107.jpg").unlink()
    assert "1 images of instances_train2017.json are missing, e.g. 000000000107.jpg" in refused(data=data)
    (broken / "annotations/instances_val2017.json").unlink()
    assert "instances_val2017.json: does not exist" in refused(data=(f"coco:{coco}", data[1]))
    content = json.loads((coco / "annotations/instances_val2017.json").read_text())
    crowd = next(one for one in content["annotations"] if one["iscrowd"])
    crowd["segmentation"]["counts"][0] += 1
    (broken / "annotations/instances_val2017.json").write_text(json.dumps(content))
    assert f"annotation {crowd['id']}: no mask of the image's 72 x 96 px" in refused(data=(f"coco:{coco}", data[1]))
    assert not (tmp_path / "run").exists()  # before the training
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"pip install headrace\[detect\]"):
        decoded([], 4, 4)
