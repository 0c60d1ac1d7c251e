"""COCO's masks and average precision, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...errors import UserError
from ...pipelines.images.decode import DecodeError, check_size
from ...pipelines.sources.coco import CocoSource

_FIGURES = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")


def _tools() -> Any:
    try:
        from pycocotools import coco, cocoeval, mask
    except ImportError:
        raise UserError("headrace detect: needs pycocotools; pip install headrace[detect]") from None
    return coco, cocoeval, mask


def decoded(segment: list | dict, width: int, height: int) -> np.ndarray:
    """(H, W) uint8, 1 inside, of an object's polygons or run lengths as an annotation file has them.

    Raises `DecodeError` for others: pycocotools compares run lengths that do not add up to an image for ever.
    """
    mask = _tools()[2]
    check_size(width, height)  # of what the file says; an image that was read is within the limit
    try:
        if isinstance(segment, list):
            parts = mask.frPyObjects(segment, height, width) if segment else []
            return mask.decode(mask.merge(parts)) if parts else np.zeros((height, width), np.uint8)
        counts, size = segment["counts"], list(segment["size"])
        if size != [height, width] or isinstance(counts, list) and sum(counts) != height * width:
            raise ValueError(f"run lengths for {size[0]} x {size[1]} px")
        return mask.decode(mask.frPyObjects(segment, height, width) if isinstance(counts, list) else segment)
    except (ValueError, TypeError, KeyError) as fault:
        raise DecodeError(f"no mask of the image's {height} x {width} px ({fault})") from None


def encoded(masks: torch.Tensor) -> list[dict]:
    """Run lengths of (N, H, W) bool."""
    columns = np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8))
    return _tools()[2].encode(columns)


def coco_truth(source: Any) -> Any:
    """A source's annotations as pycocotools has them: the annotation file itself, or, of VOC, boxes in its form, where
    a difficult object is a crowd. Image ids are the file's, or positions."""
    with contextlib.redirect_stdout(io.StringIO()):
        if isinstance(source, CocoSource):
            return _checked(_tools()[0].COCO(source.file), source.file)
        truth, annotations = _tools()[0].COCO(), []
        for index in range(len(source)):
            found = source.boxes(index)
            for box, label, difficult in zip(found.boxes.tolist(), found.labels.tolist(), found.difficult.tolist()):
                left, top, right, bottom = box
                sides = [right - left, bottom - top]
                one = {"id": len(annotations) + 1, "image_id": index, "category_id": label, "iscrowd": int(difficult)}
                annotations.append({**one, "bbox": [left, top, *sides], "area": sides[0] * sides[1]})
        truth.dataset = {
            "images": [{"id": index} for index in range(len(source))],
            "annotations": annotations,
            "categories": [{"id": label, "name": name} for label, name in enumerate(source.categories)],
        }
        truth.createIndex()
        return truth


def _checked(truth: Any, file: Any) -> Any:
    """Raises `UserError` for run lengths that are not as long as their image: see `decoded`."""
    for one in truth.anns.values():
        if isinstance(one.get("segmentation"), dict):
            image = truth.imgs[one["image_id"]]
            try:
                decoded(one["segmentation"], image["width"], image["height"])
            except (DecodeError, KeyError) as fault:
                raise UserError(f"{file}: annotation {one['id']}: {fault}; download it again") from None
    return truth


def coco_results(source: Any, index: int, found: dict) -> list[dict]:
    """Detections of an image, {"boxes" (N, 4), "labels", "scores", perhaps "runs": run lengths}, as result files have
    them."""
    known = isinstance(source, CocoSource)
    image = int(source.image_ids[index]) if known else index
    results = []
    for number, (box, label, score) in enumerate(zip(*(found[key].tolist() for key in ("boxes", "labels", "scores")))):
        category = int(source.category_ids[label]) if known else label
        one = {"image_id": image, "category_id": category, "score": score}
        one["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        results.append(one | ({"segmentation": found["runs"][number]} if "runs" in found else {}))
    return results


def coco_figures(truth: Any, results: Sequence[dict], kind: str) -> dict[str, float | None]:
    """AP, AP50, AP75 and AP by size, in [0, 1], of boxes (`kind` bbox) or masks (segm); None where no object is so."""
    if not results:
        return dict.fromkeys(_FIGURES, 0.0)
    # what came with a mask would be taken for one, and its box and area made anew
    plain = [{key: value for key, value in one.items() if kind == "segm" or key != "segmentation"} for one in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _tools()[1].COCOeval(truth, truth.loadRes(plain), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: None if value < 0 else float(value) for name, value in zip(_FIGURES, evaluation.stats)}
