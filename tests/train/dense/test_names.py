"""Categories of the two sets go together by name, whatever their order: what is found and what is true are compared."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trees

from headrace.errors import UserError
from headrace.models.algorithms.detector import Detector
from headrace.models.algorithms.segmenter import Segmenter
from headrace.pipelines.sources import open_source
from headrace.train.dense import detect, segment
from headrace.train.dense.names import match

PROCESS = SimpleNamespace(rank=0, world=1, device=torch.device("cpu"), is_main=True)


def test_what_goes_together():
    def said(train, val):
        return match(SimpleNamespace(name="a", categories=train), SimpleNamespace(name="b", categories=val))

    assert said(["x", "y"], ["y", "x"]) is None and said(["e\u0301"], ["\u00e9"]) is None
    assert said(["x", "y", "z"], ["z"]) == "data.val: has no category 'x', 'y'; figures are means over the others"
    with pytest.raises(UserError, match="^data.val: b has other categories than a: 'y'; .*go together by name"):
        said(["x"], ["x", "y"])


@pytest.mark.parametrize("form", ["voc", "coco"])
def test_a_detector_that_finds_all_is_perfect_in_any_order(form, tmp_path, monkeypatch):
    """Of a set of one's own in VOC's form, or of COCO's: training had more categories, in another order."""
    root = getattr(trees, form)(tmp_path, {"2007": {"test": 4}} if form == "voc" else {"val": 4})
    for file in root.rglob("*.xml"):  # bottle, cat, sofa
        file.write_text(file.read_text().replace("cat", "helmet").replace("sofa", "axle"))
    val = open_source(f"{form}:{root}?split={'test' if form == 'voc' else 'val'}")
    assert set(val.categories) <= ({"axle", "bottle", "helmet"} if form == "voc" else {"person", "dog", "bottle"})
    names = ["zebra", *reversed(val.categories), "crane"]

    def score(learned):
        images = iter(range(4))

        def predict(*given):
            truth = val.boxes(next(images))
            labels = [names.index(val.categories[label]) for label in truth.labels]
            boxes = torch.tensor(np.concatenate([truth.boxes, [[0, 0, 9, 9]]]), dtype=torch.float32)
            return {"boxes": boxes, "labels": torch.tensor([*labels, 0]), "scores": torch.ones(len(boxes))}

        monkeypatch.setattr(detect, "predict", predict)
        (row, *_), _ = detect.score(SimpleNamespace(config=Detector.Config()), val, None, PROCESS, 1, learned)
        return row["AP" if form == "coco" else "AP (COCO)"]

    assert score(names) == pytest.approx(1)
    assert score([*val.categories, "zebra", "crane"]) < 0.7  # the same numbers mean others


def test_a_segmenter_that_finds_all_is_perfect_in_any_order(tmp_path, monkeypatch):
    val = open_source(f"voc12aug:{trees.voc12aug(tmp_path, {'val': 3, 'train': 1, 'aug': 1})}?split=val")
    names = ["unseen", *reversed(val.categories)]
    truths = [torch.from_numpy(val.target(index)).long() for index in range(3)]
    table = torch.tensor([names.index(name) for name in val.categories] + [0] * (256 - len(val.categories)))
    images = iter(range(3))
    monkeypatch.setattr(segment, "predict", lambda *given: table[truths[next(images)]])
    config = Segmenter.Config(classes=len(names))
    (row,), more = segment.score(SimpleNamespace(config=config), val, None, PROCESS, 1, names)
    assert row["mIoU"] == row["aAcc"] == 1 and more["IoU"]["background"] == 1 and more["IoU"]["unseen"] is None
