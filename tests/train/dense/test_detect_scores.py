"""Boxes as they are read and as they are scored: against pycocotools, scikit-learn, and by hand."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
import torchvision
import trees
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import average_precision_score

from headrace.models.algorithms.detector import Detector
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.annotations import Boxes
from headrace.train.dense import detect
from headrace.train.dense.boxes import Annotated, Picture, collate
from headrace.train.dense.coco import decoded
from headrace.train.dense.voc import average_precisions, matches, overlaps, voc_figures
from headrace.train.evaluation import svm


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
