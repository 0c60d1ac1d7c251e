"""Average precision as PASCAL VOC defines it (Everingham et al., IJCV 2010)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...pipelines.sources.annotations import Boxes


def voc_figures(truth: Sequence[Boxes], found: Sequence[dict[str, np.ndarray]], classes: int) -> dict[str, float]:
    """Means over the classes that have objects, at an overlap of 0.5, of the area under the curve (VOC from 2010 on)
    and of the mean precision at recalls 0, 0.1 .. 1 (2007). `found` has boxes (N, 4), labels and scores of each image.
    """
    pairs = [matches(truth, found, label) for label in range(classes)]
    pairs = [average_precisions(hits, positives) for hits, positives in pairs if positives]
    area, eleven = np.mean(pairs, axis=0).tolist() if pairs else (0.0, 0.0)
    return {"AP50 (11 points)": eleven, "AP50 (area)": area}


def matches(truth: Sequence[Boxes], found: Sequence[dict], label: int, overlap: float = 0.5) -> tuple[np.ndarray, int]:
    """(which detections of a class hit an object, by falling score; how many objects there are to find).

    A detection belongs to the object that it overlaps most; of several detections of one the best counts. Those of
    difficult objects are left out, as are the objects.
    """
    own = [one.labels == label for one in truth]
    boxes = [one.boxes[rows] for one, rows in zip(truth, own)]
    difficult = [one.difficult[rows] for one, rows in zip(truth, own)]
    taken = [np.zeros(len(one), bool) for one in boxes]
    mine = [np.flatnonzero(one["labels"] == label) for one in found]
    images = np.repeat(np.arange(len(found)), [len(rows) for rows in mine])
    places = np.concatenate(mine)
    scores = np.array([found[image]["scores"][place] for image, place in zip(images, places)])
    hits = []
    for at in np.argsort(-scores, kind="stable"):
        image = images[at]
        ious = overlaps(found[image]["boxes"][places[at]], boxes[image])
        best = int(ious.argmax()) if len(ious) else -1
        if best < 0 or ious[best] <= overlap:
            hits.append(False)
        elif not difficult[image][best]:
            hits.append(not taken[image][best])
            taken[image][best] = True
    return np.array(hits, bool), int(sum((~one).sum() for one in difficult))


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) intersections over unions of a box (4,) with boxes (N, 4)."""
    sides = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0, None)
    inside = sides.prod(1)
    return inside / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - inside)


def average_precisions(hits: np.ndarray, positives: int) -> tuple[float, float]:
    """(area, eleven points) of detections by falling score, of which `hits` (N,) bool are right, among `positives`."""
    right = hits.cumsum()
    precision, recall = right / np.arange(1, len(hits) + 1), right / positives
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at each recall the best that any larger recall has
    points = [best[recall >= step / 10 - 1e-9].max(initial=0.0) for step in range(11)]
    return float(best[hits].sum() / positives), float(np.mean(points))
