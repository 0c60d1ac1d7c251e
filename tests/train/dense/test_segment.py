"""``headrace segment``: it trains, resumes and scores on real formats, made small; its recipes, its errors."""

import json

import numpy as np
import pytest
import torch
import trees
import yaml
from PIL import Image
from safetensors.torch import save_file

from headrace.benchmarks import processes
from headrace.errors import ProcessError, UserError
from headrace.models.algorithms.classifier import Classifier
from headrace.models.algorithms.segmenter import Segmenter
from headrace.models.backbones import ResNet
from headrace.pipelines.spec import ViewSpec
from headrace.train import pretrain
from headrace.train.dense import detect, segment
from headrace.train.dense.run import recipes
from headrace.train.engine import checkpoint
from headrace.train.engine.metrics import read_metrics
from headrace.train.recipe.config import plain
from headrace.train.recipe.recipe import load_recipe

SMALL = [
    "algorithm.backbone={name: resnet18, width: 8}",
    "algorithm.channels=16",
    "algorithm.auxiliary_channels=8",
    "algorithm.crop=64",
    "algorithm.scale=[96, 72]",
    "algorithm.ratio=[0.8, 1.25]",
    "train.batch_size=4",
    "train.log_every=1",
    "train.device=cpu",
    "data.threads=1",
]
VOC, CITY = "segment/fcn-d8_4xb4-20k_voc12aug-512x512", "segment/fcn-d8_4xb2-40k_cityscapes-769x769"
ADE = "segment/upernet-swin_8xb2-160k_ade20k-512x512"


@pytest.fixture
def command(voc12aug, tmp_path):
    def command(*given, recipe=VOC, data=(f"voc12aug:{voc12aug}", f"voc12aug:{voc12aug}?split=val"), out="run"):
        sets = [f"data.train={data[0]}", f"data.val={data[1]}", f"train.out={tmp_path / out}"]
        code = segment.main([recipe, "scratch", *sets, *SMALL, *given, "--results", str(tmp_path / "rows.jsonl")])
        rows = (tmp_path / "rows.jsonl").read_text().splitlines() if code == 0 else []
        return json.loads(rows[-1]) if rows else None

    return command


def test_it_learns_and_is_scored(command, tmp_path, capsys):
    options = ["train.max_steps=80", "optim.lr=0.05", "algorithm.dropout=0"]
    row = command(*options, "--picture", str(tmp_path / "some.png"))
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    assert np.mean(losses[-5:]) < 0.4 * np.mean(losses[:5])
    (figures,) = row["figures"]["rows"]
    assert figures["mIoU"] > 0.3 and figures["aAcc"] > 0.8
    counted = [iou for iou in row["figures"]["IoU"].values() if iou is not None]
    assert np.mean(counted) == pytest.approx(figures["mIoU"]) and len(row["figures"]["IoU"]) == 21
    assert row["protocol"].startswith("segment fcn") and row["data"]["images"] == 3 and row["seconds"] > 0
    assert f"{figures['mIoU']:.2%}" in capsys.readouterr().out
    assert Image.open(tmp_path / "some.png").height == 3 * 244
    again = command(*options)  # finished: tested once more
    assert again["figures"] == row["figures"] and again["encoder"] == row["encoder"]


@pytest.mark.parametrize("recipe", [CITY, ADE])
def test_other_sets_and_heads(command, tmp_path, recipe):
    if recipe == CITY:
        root, splits = trees.cityscapes(tmp_path / "city", {"train": 4, "val": 2}), ("train", "val")
        change = ["algorithm.slide=40", "algorithm.scale=[128, 64]"]
    else:
        root, splits = trees.ade20k(tmp_path / "ade", {"training": 4, "validation": 2}), ("training", "validation")
        change = ["algorithm.backbone={name: swin_tiny, width: 8, depths: [1,1,2,1], heads: [1,2,2,2], drop_path: 0}"]
        change += ["train.precision=fp32", "optim.lr=0.01", "optim.warmup=0", "algorithm.drop_path=0"]
    kind = recipe.split("_")[-1].split("-")[0]
    data = tuple(f"{kind}:{root}?split={split}" for split in splits)
    row = command("train.max_steps=16", *change, recipe=recipe, data=data)
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:2])
    assert row["figures"]["rows"][0]["aAcc"] > 0.3


def test_stopped_and_resumed_is_undisturbed(command, tmp_path, stopped_at):
    options = ["train.max_steps=5"]
    command(*options, out="whole")
    with stopped_at(2):
        command(*options, out="parts")
    assert checkpoint.newest(tmp_path / "parts")[1]["step"] == 3
    row = command(*options, out="parts")
    whole, parts = (checkpoint.newest(tmp_path / name)[1]["model"] for name in ("whole", "parts"))
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
    assert row["figures"]["rows"]


def test_two_processes_are_one(command, voc12aug, tmp_path):
    """The same weights after three steps, to rounding, and the same figures."""
    options = ["train.max_steps=3", "algorithm.dropout=0"]
    row = command(*options, out="one")
    worker = str(trees.Path(__file__).with_name("command_worker.py"))
    sets = [
        f"data.train=voc12aug:{voc12aug}",
        f"data.val=voc12aug:{voc12aug}?split=val",
        f"train.out={tmp_path / 'two'}",
    ]
    arguments = [worker, "segment", VOC, "scratch", *sets, *SMALL, *options, "--results", str(tmp_path / "two.jsonl")]
    assert processes.run(arguments, tmp_path / "log", world=2) == [0, 0], (tmp_path / "log").read_text()
    one, two = (checkpoint.newest(tmp_path / name)[1]["model"] for name in ("one", "two"))
    for key, value in one.items():
        assert torch.allclose(value.float(), two[key].float(), atol=1e-5, rtol=1e-3), key
    other = json.loads((tmp_path / "two.jsonl").read_text())
    assert other["figures"]["rows"][0] == pytest.approx(row["figures"]["rows"][0], abs=2e-3)


# figures


# samples


# heads and maps


@pytest.mark.parametrize("name", recipes("segment"))
def test_recipes(name):
    recipe = load_recipe(name, [])
    assert isinstance(recipe.algorithm, Segmenter.Config) and "description" in recipe.resolved
    assert recipe.train.max_steps in (20_000, 40_000, 160_000) and recipe.algorithm.backbone is None


# what goes wrong


def test_errors(command, voc12aug, tmp_path):
    def refused(*given, **options):
        with pytest.raises(UserError) as fault:
            command("train.max_steps=2", *given, **options)
        assert "\n" not in str(fault.value)
        return str(fault.value)

    assert "maps have strides 1 to 8" in refused("algorithm.backbone={name: resnet18, small_image_stem: true}")
    assert "upernet" in refused("algorithm.backbone={name: vit_tiny}")
    assert "data.block" in refused("data.block=4")
    assert "multiples of 32" in refused(
        "algorithm.backbone={name: swin_tiny}", "algorithm.head=upernet", "algorithm.crop=50"
    )
    with pytest.raises(UserError, match="finetune/vit-tiny_cifar10: trains a classifier; take one of segment/fcn"):
        segment.main(["finetune/vit-tiny_cifar10", "scratch"])
    city = trees.cityscapes(tmp_path / "city", {"train": 4, "val": 2})
    assert "other categories" in refused(data=(f"voc12aug:{voc12aug}", f"cityscapes:{city}?split=val"))
    folder = tmp_path / "plain"
    trees.save(trees.scene(0)[0], folder / "1.png")
    assert "no masks of classes" in refused(data=(str(folder), str(folder)))
    for mask in (city / "gtFine/train/ulm").glob("*000003*"):
        mask.unlink()
    assert "000003_000019_gtFine_labelIds.png: does not exist" in refused(
        "algorithm.slide=40", recipe=CITY, data=(f"cityscapes:{city}", f"cityscapes:{city}?split=val")
    )
    (city / "leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png").write_bytes(b"x")
    with pytest.raises(ProcessError, match="ulm_000001_000019_leftImg8bit.png: not an image"):
        data = (f"cityscapes:{city}?split=val", f"cityscapes:{city}?split=val")
        command("train.max_steps=2", "train.batch_size=2", "algorithm.slide=40", recipe=CITY, data=data, out="broken")


# encoders


@pytest.mark.parametrize("name", ["segment", "detect"])
def test_an_encoder_brings_its_weights_and_its_normalisation(name, voc12aug, tmp_path):
    """From the file that a run leaves, and from that of a run whose recipe has another kind of encoder."""
    torch.manual_seed(0)
    backbone = ResNet.Config("resnet18", width=8)
    view = ViewSpec(size=96, mean=(0.5,) * 3, std=(0.25,) * 3)
    classifier = Classifier(Classifier.Config(backbone=backbone, view=view, classes=3))
    given = {key: value.contiguous() for key, value in classifier.encoder.state_dict().items()}
    about = {"config": yaml.safe_dump(plain(classifier.config))}
    save_file(given, tmp_path / "encoder.safetensors", metadata=about)
    if name == "segment":
        recipe, data = VOC, (f"voc12aug:{voc12aug}", f"voc12aug:{voc12aug}?split=val")
        small = SMALL[1:]
    else:
        root = trees.coco(tmp_path / "coco", {"train": 4, "val": 1})
        recipe, data = "detect/mask-rcnn-fpn_8xb2-1x_coco", (f"coco:{root}", f"coco:{root}?split=val")
        small = ["algorithm.width=16", "algorithm.regions=32", "algorithm.short=[72]", "algorithm.test_short=72"]
        small += ["train.batch_size=4", "train.device=cpu", "data.threads=1"]
    options = [*small, "train.max_steps=1", "optim.lr=1e-12", f"train.out={tmp_path / 'run'}"]
    sets = [f"data.train={data[0]}", f"data.val={data[1]}", "--results", str(tmp_path / "rows.jsonl")]
    command = {"segment": segment, "detect": detect}[name]
    assert command.main([recipe, str(tmp_path / "encoder.safetensors"), *sets, *options]) == 0
    trained = checkpoint.load_algorithm(tmp_path / "run")[1]
    assert trained.config.mean == (0.5,) * 3 and trained.config.std == (0.25,) * 3
    assert trained.config.backbone == backbone and trained.config.image_size == 96
    found = trained.encoder.state_dict()
    weights = [key for key in given if "running" not in key and "num_batches" not in key]
    assert all(torch.allclose(found[key], given[key], atol=1e-6) for key in weights)
    given.pop("body.conv1.weight")
    save_file(given, tmp_path / "encoder.safetensors", metadata=about)
    with pytest.raises(UserError, match="lacks 1 of the backbone's tensors, such as body.conv1.weight"):
        command.main(
            [recipe, str(tmp_path / "encoder.safetensors"), *sets, *options[:-1], f"train.out={tmp_path / 'b'}"]
        )


def test_a_vit_of_a_run_segments(command, voc12aug, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrain.main(["mae_vit-tiny", "--smoke", "train.max_steps=1", f"train.out={tmp_path / 'mae'}"]) == 0
    sets = [f"data.train=voc12aug:{voc12aug}", f"data.val=voc12aug:{voc12aug}?split=val", "algorithm.head=upernet"]
    options = [*SMALL[1:], "train.max_steps=1", f"train.out={tmp_path / 'run'}", "algorithm.backbone.drop_path=0.1"]
    assert segment.main([VOC, str(tmp_path / "mae"), *sets, *options]) == 0
    trained = checkpoint.load_algorithm(tmp_path / "run")[1]
    assert trained.config.backbone.drop_path == 0.1 and trained.config.backbone.patch_size == 8
