"""``headrace detect``: models against torchvision's, figures against pycocotools and by hand, training in small."""

import contextlib
import io
import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
import trees
from gradient_worker import images
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import average_precision_score

from headrace.benchmarks import processes
from headrace.errors import UserError
from headrace.models.algorithm import Progress
from headrace.models.algorithms.detector import Detector
from headrace.models.backbones import ResNet, ViT
from headrace.models.backbones.hivit import HiViT
from headrace.models.backbones.swin import Swin
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.annotations import Boxes
from headrace.pipelines.spec import Batch
from headrace.train import checkpoint, svm
from headrace.train.dense import detect
from headrace.train.dense.boxes import Annotated, Picture, collate
from headrace.train.dense.coco import decoded
from headrace.train.dense.run import recipes
from headrace.train.dense.voc import average_precisions, matches, overlaps, voc_figures
from headrace.train.metrics import read_metrics
from headrace.train.recipe import load_recipe
from headrace.train.step import Stepper

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
RESNET = ResNet.Config("resnet18", width=8, zero_init_residual=False)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return trees.coco(tmp_path_factory.mktemp("coco"), {"train": 8, "val": 5})


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    splits = {"2007": {"trainval": 5, "test": 5}, "2012": {"trainval": 4}}
    return trees.voc(tmp_path_factory.mktemp("voc"), splits)


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


def test_stopped_and_resumed_is_undisturbed(command, tmp_path, monkeypatch):
    command("train.max_steps=4", out="whole")

    def step(self, batch, progress):
        if progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return true_step(self, batch, progress)

    true_step = Stepper.__call__
    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "__call__", step)
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


def named_as_ours(state):
    names = (("backbone.body.", "maps.encoder.body."), ("backbone.", "pyramid."))
    names += (("rpn.", "proposals."), ("roi_heads.", "heads."))
    return {next(b + key.removeprefix(a) for a, b in names if key.startswith(a)): v for key, v in state.items()}


def test_a_model_is_torchvisions(monkeypatch):
    """maskrcnn_resnet50_fpn with its weights: the same detections, and in training the same losses."""
    torch.manual_seed(0)
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=128, box_detections_per_img=10
    )
    ours = Detector(Detector.Config(backbone=ResNet.Config("resnet50"), classes=3, norm=False))
    ours.load_state_dict(named_as_ours(theirs.state_dict()))
    for name in ("_pre_nms_top_n", "_post_nms_top_n"):
        for model in (ours.proposals, theirs.rpn):
            setattr(model, name, {"training": 40, "testing": 40})
    for model in (ours.heads, theirs.roi_heads):
        model.detections_per_img = 10
        model.fg_bg_sampler.batch_size_per_image = 32
    pixels = torch.rand(3, 64, 96)
    target = {"boxes": torch.tensor([[5.0, 5, 40, 50], [50, 20, 90, 60]]), "labels": torch.tensor([1, 3])}
    target["masks"] = (torch.rand(2, 64, 96) > 0.4).to(torch.uint8)
    seen, (changed,) = theirs.transform([pixels], [target])
    with torch.inference_mode():
        expected = theirs.eval()([pixels])[0]
        (found,) = ours.eval().detect(seen.tensors, seen.image_sizes)
    assert len(expected["boxes"]) == 10 and torch.equal(found["labels"] + 1, expected["labels"])
    assert torch.allclose(found["boxes"], expected["boxes"], atol=1e-3)
    assert torch.allclose(found["scores"], expected["scores"], atol=1e-5)
    pasted = torchvision.models.detection.roi_heads.paste_masks_in_image(found["masks"], found["boxes"], (64, 96))
    assert torch.allclose(pasted, expected["masks"], atol=1e-4)

    monkeypatch.setattr(F, "l1_loss", lambda a, b, **how: F.smooth_l1_loss(a, b, beta=1 / 9, **how))  # as theirs
    torch.manual_seed(1)
    features = theirs.train().backbone(seen.tensors)
    boxes, expected = theirs.rpn(seen, features, [changed])
    expected |= theirs.roi_heads(features, boxes, seen.image_sizes, [changed])[1]
    torch.manual_seed(1)
    one = {**changed, "labels": changed["labels"] - 1, "size": seen.image_sizes[0]}
    batch = Batch({"image": seen.tensors[None]}, torch.arange(1), None, None, 0, 0, [one])
    found = ours.train()(batch, Progress(0, 1, 1))
    names = {"objects": "objectness", "anchors": "rpn_box_reg", "class": "classifier", "box": "box_reg", "mask": "mask"}
    for own, their in names.items():
        assert found.metrics[own].item() == pytest.approx(expected[f"loss_{their}"].item(), rel=1e-4), own
    assert found.loss.item() == pytest.approx(sum(expected.values()).item(), rel=1e-4)


def test_sizes_of_published_models():
    def size(model):
        return sum(p.numel() for p in model.parameters())

    with torch.device("meta"):
        build = torchvision.models.detection
        plain = build.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81)
        second = build.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=81)
        resnet = ResNet.Config("resnet50")
        assert size(Detector(Detector.Config(backbone=resnet, norm=False))) == size(plain)
        # torchvision's second version has one more convolution before the proposals
        assert size(Detector(Detector.Config(backbone=resnet))) == size(second) - (256 * 256 * 9 + 256)
        c4 = Detector(Detector.Config(backbone=resnet, head="c4", masks=False, classes=20))
        proposals = 1024 * 1024 * 9 + 1024 + (1024 + 1) * 15 + (1024 + 1) * 60
        assert size(c4) == size(c4.encoder) + proposals + 2 * 2048 + (2048 + 1) * (21 + 84)
        assert size(c4.encoder) == 23_508_032


def test_c4_sees_regions_through_the_last_stage_and_the_extra_norm():
    torch.manual_seed(0)
    detector = Detector(Detector.Config(backbone=RESNET, head="c4", width=16, classes=3)).eval()
    detector.extra_norm.running_mean.uniform_(-1, 1)
    body, pixels = detector.encoder.body, torch.randn(1, 3, 64, 96)
    boxes = torch.tensor([[4.0, 8, 60, 50], [30, 30, 90, 60]])
    with torch.inference_mode():
        third = body.layer3(body.layer2(body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(pixels)))))))
        features = detector._features(pixels)
        assert torch.allclose(features["0"], third)
        regions = detector.heads.regions(detector.heads.box_roi_pool, features, [boxes], [(64, 96)])
        pooled = torchvision.ops.roi_align(third, [boxes], 14, spatial_scale=1 / 16)
        assert torch.allclose(regions, detector.extra_norm(body.layer4(pooled)), atol=1e-5)
        assert regions.shape == (2, 64, 7, 7)
        assert torch.allclose(detector.heads.box_head(regions), regions.mean((2, 3)), atol=1e-6)
        (found,) = detector.detect(pixels, [(64, 96)])
    assert found["masks"].shape[1:] == (1, 14, 14)


@pytest.mark.parametrize(
    "backbone, head",
    [
        (RESNET, "fpn"),
        (RESNET, "c4"),
        (ViT.Config(width=24, depth=2, heads=2), "fpn"),
        (Swin.Config("swin_tiny", width=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 2)), "fpn"),
        (HiViT.Config("hivit_tiny", width=32, depths=(1, 1, 2), heads=2), "fpn"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_parameter_takes_part(backbone, head):
    """Several processes rely on it."""
    torch.manual_seed(0)
    detector = Detector(Detector.Config(backbone=backbone, head=head, width=16, classes=3, regions=32, image_size=64))
    pixels, objects = images()
    output = detector.train()(
        Batch({"image": pixels[None]}, torch.arange(4), None, None, 0, 0, objects), Progress(0, 1, 1)
    )
    output.loss.backward()
    assert [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []
    assert output.loss.item() == pytest.approx(sum(value.item() for value in output.metrics.values()), rel=1e-5)


# samples


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_are_those_of_the_masks(coco, flip):
    """After resizing and flipping, as before; and what is inside them is the object."""
    source = open_source(f"coco:{coco}")
    config = Detector.Config(short=(150,), long=400, test_short=72, mean=(0.0,) * 3, std=(1.0,) * 3)
    for index in range(len(source)):
        sample = Picture(config)(source, index, [0.0, 0.1 if flip else 0.9])
        one, (height, width) = sample["object"], sample["object"]["size"]
        assert (height, width) == (150, 200) == sample["image"].shape[1:] and one["masks"].shape[1:] == (150, 200)
        assert len(one["boxes"]) == 2  # crowds are nothing to learn from
        boxes = torchvision.ops.masks_to_boxes(one["masks"])
        assert (one["boxes"] - boxes - torch.tensor([0, 0, 1, 1])).abs().max() <= 3  # one pixel before it was resized
        for mask, label in zip(one["masks"], one["labels"].tolist()):
            kind = list(trees.COCO_KINDS).index(int(source.category_ids[label]))
            colour = sample["image"][:, mask.bool()].median(1).values * 255
            assert (colour - torch.tensor(trees.SHADES[kind])).abs().max() < 12
    plain, turned = (Picture(config)(source, 0, [0.0, draw])["object"] for draw in (0.9, 0.1))
    assert torch.equal(plain["masks"].flip(2), turned["masks"])
    expected = plain["boxes"].clone()
    expected[:, [0, 2]] = 200 - plain["boxes"][:, [2, 0]]
    assert torch.equal(turned["boxes"], expected)


def test_run_lengths_and_polygons():
    square = np.zeros((6, 8), bool)
    square[1:4, 2:7] = True
    polygon = [[2, 1, 7, 1, 7, 4, 2, 4]]
    assert (decoded(polygon, 8, 6) == square).all()
    flat = square.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [0]])))
    runs = np.diff(np.concatenate([[0], edges, [48]])).tolist()
    assert (decoded({"counts": runs, "size": [6, 8]}, 8, 6) == square).all()
    assert decoded([], 8, 6).sum() == 0


def test_what_is_drawn_and_what_is_left_out(voc):
    source = open_source(f"voc:{voc}?year=07+12")
    config = Detector.Config(masks=False, short=(60, 80), long=100, test_short=72)
    short = {min(Picture(config)(source, 0, [draw, 0.9])["object"]["size"]) for draw in (0.0, 0.4, 0.6, 0.99)}
    assert short == {60, 75}  # 80 x 107 exceeds the long side
    counts = [len(Picture(config)(source, index, [0.0, 0.9])["object"]["boxes"]) for index in range(9)]
    assert counts == [1 if number % 4 == 0 else 2 for number in [1, 2, 3, 4, 5, 1, 2, 3, 4]]  # difficult ones

    class Sparse:
        name, classes = "sparse", None

        def __len__(self):
            return 3

        def countable(self, index):
            return np.array([[], [False], [False, True]][index], bool)

    assert Annotated(Sparse()).ids == [2]
    batch = collate([Picture(config)(source, index, [0.0, 0.9]) for index in range(2)], 32)
    assert batch["views"]["image"].shape == (1, 2, 3, 64, 96) and (batch["views"]["image"][0, :, :, 60:] == 0).all()


# figures


def perfect(source, index, kinds=("boxes", "runs")):
    found = source.boxes(index)
    kept = source.countable(index)
    one = {"boxes": torch.from_numpy(found.boxes[kept]), "labels": torch.from_numpy(found.labels[kept])}
    one["scores"] = torch.linspace(0.9, 0.8, kept.sum())
    if "runs" in kinds:
        masks = [decoded(found.segments[at], 96, 72) for at in np.flatnonzero(kept)]
        one["runs"] = detect.encoded(torch.from_numpy(np.stack(masks)).bool())
    return one


def test_coco_figures_are_those_of_pycocotools(coco):
    """Hand-made detections, in the file's own words: some right, shifted, doubled, of another class, and in a crowd."""
    source, rng = open_source(f"coco:{coco}?split=val"), np.random.default_rng(0)
    content = json.loads((coco / "annotations/instances_val2017.json").read_text())
    by_image, lines = {}, []
    for one in content["annotations"]:
        if not one["iscrowd"]:
            shift = float(rng.choice([0, 2, 6]))
            box = [one["bbox"][0] + shift, *one["bbox"][1:]]
            lines.append((one["image_id"], one["category_id"], box, float(rng.uniform())))
            if rng.uniform() < 0.4:
                lines.append((one["image_id"], int(rng.choice([1, 18, 44])), box, float(rng.uniform())))
        else:
            lines.append((one["image_id"], 1, [one["bbox"][0] + 1, one["bbox"][1] + 1, 8, 8], 0.99))
    results = [dict(zip(("image_id", "category_id", "bbox", "score"), line)) for line in lines]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(coco / "annotations/instances_val2017.json")
        expected = COCOeval(truth, truth.loadRes(results), "bbox")
        expected.evaluate(), expected.accumulate(), expected.summarize()
    for image, category, box, score in lines:
        by_image.setdefault(image, []).append((category, box, score))
    ids, found = source.category_ids.tolist(), []
    for image in source.image_ids.tolist():
        own = by_image.get(image, [])
        corners = [[x, y, x + w, y + h] for _, (x, y, w, h), _ in own]
        one = {"boxes": torch.tensor(corners), "labels": torch.tensor([ids.index(c) for c, _, _ in own])}
        found.append({**one, "scores": torch.tensor([score for _, _, score in own], dtype=torch.float64)})
    (row,) = detect.figures(source, found)
    names = ("AP", "AP50", "AP75", "AP small", "AP medium")
    assert [row[name] for name in names] == pytest.approx(expected.stats[:5].tolist(), abs=1e-6)
    assert 0.2 < row["AP"] < 0.9 and row["AP large"] is None


def test_the_truth_scores_all(coco, voc):
    source = open_source(f"coco:{coco}?split=val")
    found = [perfect(source, index) for index in range(len(source))]
    rows = detect.figures(source, found)
    assert [row["AP"] for row in rows] == pytest.approx([1.0, 1.0]) and rows[1]["AP75"] == pytest.approx(1)
    crowd = next(index for index in range(len(source)) if source.boxes(index).difficult.any())
    more = {"boxes": torch.tensor([[82.0, 62, 94, 71]]), "labels": torch.tensor([0]), "scores": torch.tensor([0.99])}
    boxes = [{key: value for key, value in one.items() if key != "runs"} for one in found]
    for index, loss in ((crowd, False), ((crowd + 1) % len(source), True)):  # inside a crowd it does not count
        added = list(boxes)
        added[index] = {key: torch.cat([boxes[index][key], more[key]]) for key in more}
        assert (detect.figures(source, added)[0]["AP"] < 0.99) == loss
    source = open_source(f"voc:{voc}?split=test")
    (row,) = detect.figures(source, [perfect(source, index, ()) for index in range(len(source))])
    assert list(row.values()) == pytest.approx([1.0] * 4)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    (row,) = detect.figures(source, [nothing] * len(source))
    assert list(row.values()) == [0.0] * 4


def test_voc_by_hand():
    """Three objects and a difficult one; by score: right, a second time, difficult, wrong, right."""
    square = [0.0, 0, 10, 10]
    far, other = [50.0, 50, 70, 70], [100.0, 0, 110, 10]
    truth = [
        Boxes(np.float32([square, far]), np.array([0, 0]), np.array([False, True])),
        Boxes(np.float32([square, other]), np.array([0, 0]), np.array([False, False])),
    ]
    found = [
        {"boxes": np.float32([square, square, far]), "scores": np.array([0.9, 0.8, 0.7]), "labels": np.zeros(3, int)},
        {"boxes": np.float32([far, other]), "scores": np.array([0.6, 0.5]), "labels": np.zeros(2, int)},
    ]
    hits, positives = matches(truth, found, 0)
    assert hits.tolist() == [True, False, False, True] and positives == 3
    # precisions 1, 1/2, 1/3, 1/2 at recalls 1/3, 1/3, 1/3, 2/3
    area, eleven = average_precisions(hits, positives)
    assert area == pytest.approx((1 + 1 / 2) / 3) and eleven == pytest.approx((4 * 1 + 3 * 1 / 2) / 11)
    row = voc_figures(truth, found, classes=2)  # the second class has no object
    assert row == pytest.approx({"AP50 (11 points)": eleven, "AP50 (area)": area})


def test_average_precision_against_others():
    rng = np.random.default_rng(3)
    for _ in range(20):
        hits = rng.uniform(size=30) < 0.4
        hits[0] = True
        scores = np.linspace(1, 0, 30)
        area, _ = average_precisions(hits, int(hits.sum()))
        assert area == pytest.approx(svm.average_precision(hits.astype(int), scores))
    falling = np.array([1, 1, 1, 0, 1, 0, 0, 1], bool)  # precision falls from hit to hit: nothing to make fall
    assert average_precisions(falling, 5)[0] == pytest.approx(average_precision_score(falling, np.linspace(1, 0, 8)))


def test_overlaps_count_pixels_as_the_devkit_does():
    """Boxes of the devkit include their last pixel and count from 1: (xmax - xmin + 1) wide. Ours are edges from 0."""
    ours = overlaps(np.array([0.0, 0, 10, 10]), np.array([[5.0, 5, 15, 15], [20, 20, 30, 30]]))
    assert ours.tolist() == pytest.approx([25 / 175, 0])  # devkit: 1..10 and 6..15 share 5 x 5 pixels


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
