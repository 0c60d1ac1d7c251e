"""COCO 2017: images for pre-training, objects for the evaluation of detectors.

ROOT/{train,val,test,unlabeled}2017/<12 digits>.jpg      118,287 images in train, 5,000 in val
ROOT/annotations/instances_{train,val}2017.json          objects of 80 categories
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path

import numpy as np

from ...errors import UserError
from .annotations import Boxes, countable, read_json
from .files import FileSource
from .folder import images_under
from .lookup import choice, existing


class CocoSource(FileSource):
    """The images of one split, by name. `label` is -1; the annotations are read when they are first asked for.

    Raises `UserError` where images or annotations are missing.
    """

    def __init__(self, path: str | os.PathLike, *, split: str = "train") -> None:
        root = Path(path)
        choice(path, "split", split, ("train", "val", "test", "unlabeled"))
        folder = existing(root / f"{split}2017")
        paths, notes = images_under(folder, f"unpack {folder.name}.zip there")
        super().__init__(folder, paths, notes=notes)
        self.file = root / "annotations" / f"instances_{split}2017.json"

    def boxes(self, index: int) -> Boxes:
        """The objects of an image, with their segments, in the order of the file."""
        objects = self._objects
        rows = slice(objects["starts"][index], objects["starts"][index + 1])
        text, ends = objects["segments"], objects["ends"]
        segments = [json.loads(text[ends[at] : ends[at + 1]]) for at in range(rows.start, rows.stop)]
        return Boxes(objects["boxes"][rows], objects["labels"][rows], objects["crowd"][rows], segments)

    def countable(self, index: int) -> np.ndarray:
        """(N,) bool: which objects of an image can be learned from: no crowds, at least a pixel wide and high."""
        objects = self._objects
        rows = slice(objects["starts"][index], objects["starts"][index + 1])
        return countable(objects["boxes"][rows], objects["crowd"][rows])

    @property
    def categories(self) -> list[str]:
        """Names of the 80 categories by rank of their ids, which have gaps."""
        return self._objects["categories"]

    @property
    def category_ids(self) -> np.ndarray:
        """(80,) int64: COCO's id of each category, as result files want it."""
        return self._objects["category_ids"]

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) int64: COCO's id of each image; -1 for an image that the annotations do not know."""
        return self._objects["image_ids"]

    @cached_property
    def _objects(self) -> dict:
        """All annotations as arrays: 860,000 objects as Python's own would take gigabytes in every process."""
        content = read_json(existing(self.file), "images", "annotations", "categories")
        try:
            return self._arrays(content["images"], content["annotations"], content["categories"])
        except (KeyError, TypeError, ValueError) as fault:
            raise UserError(f"{self.file}: an entry is not as it should be ({fault!r}); download it again") from None

    def _arrays(self, images: list, annotations: list, categories: list) -> dict:
        position = {self.key(index): index for index in range(len(self))}
        absent = [one["file_name"] for one in images if one["file_name"] not in position]
        if absent:
            raise UserError(f"{self.root}: {len(absent):,} images of {self.file.name} are missing, e.g. {absent[0]}")
        index_of = {one["id"]: position[one["file_name"]] for one in images}
        image_ids = np.full(len(self), -1)
        image_ids[list(index_of.values())] = list(index_of)
        names = {one["id"]: one["name"] for one in categories}
        category_ids = np.array(sorted(names))
        annotations = sorted(annotations, key=lambda one: index_of[one["image_id"]])  # stable: the file's order within
        owner = [index_of[one["image_id"]] for one in annotations]
        corners = np.array([one["bbox"] for one in annotations], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]  # from left, top, width, height
        rank = {number: label for label, number in enumerate(category_ids.tolist())}
        segments = [json.dumps(one.get("segmentation")).encode() for one in annotations]
        return {
            "starts": np.searchsorted(owner, np.arange(len(self) + 1)),
            "boxes": corners,
            "labels": np.array([rank[one["category_id"]] for one in annotations], np.int64),
            "crowd": np.array([bool(one.get("iscrowd", 0)) for one in annotations], bool),
            "segments": b"".join(segments),
            "ends": np.cumsum([0, *map(len, segments)]),
            "image_ids": image_ids,
            "category_ids": category_ids,
            "categories": [names[number] for number in category_ids.tolist()],
        }
