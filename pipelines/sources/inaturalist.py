"""iNaturalist: images in folders, labels in a JSON file of `images` and `annotations`.

ROOT/{train,val}2018.json                      437,513 and 24,426 images of 8,142 species
ROOT/train_val2018/<group>/<species>/<id>.jpg   the `file_name`s start at ROOT
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...errors import UserError
from .annotations import inside, read_json
from .files import FileSource
from .lists import HIGHEST_LABEL, check_first
from .lookup import choice


class INatSource(FileSource):
    """One split of the 2018 edition under `path`, or the images of any JSON file of its kind, beside which they lie.

    Images in the order of the file; the label is the category's id, which counts from 0. Classes carry the names of
    `categories`, where the file has them.

    Raises `UserError` for images without, or with more than, one annotation.
    """

    def __init__(self, path: str | os.PathLike, *, split: str = "") -> None:
        path = Path(path)
        if path.is_file():
            if split:
                raise UserError(f"{path}: is one split already; leave split= out, or give the folder")
            root, file = path.parent, path
        else:
            root, file = path, path / f"{choice(path, 'split', split or 'train', ('train', 'val'))}2018.json"
        content = read_json(file, "images", "annotations")
        images, annotations = content["images"], content["annotations"]
        try:
            classes = {int(one["id"]): str(one["name"]) for one in content.get("categories", [])}
            category = {one["image_id"]: int(one["category_id"]) for one in annotations}
            ids, files = [one["id"] for one in images], [one["file_name"] for one in images]
        except (KeyError, TypeError, ValueError) as fault:
            raise UserError(f"{file}: an entry is not as it should be ({fault!r}); download it again") from None
        if len(annotations) != len(category) or category.keys() != set(ids) or len(ids) != len(category):
            odd = next((one for one in ids if one not in category), None)
            found = f"image {odd} has no annotation" if odd is not None else "some have several, or belong to no image"
            raise UserError(f"{file}: needs one annotation an image, but {found}; download it again")
        if not ids:
            raise UserError(f"{file}: no image in it; download it again")
        labels = np.array([category[one] for one in ids])
        highest = max([int(labels.max()), *classes])
        if labels.min() < 0 or highest > HIGHEST_LABEL:
            raise UserError(f"{file}: categories {labels.min()} to {highest}, not from 0 to at most {HIGHEST_LABEL}")
        names = [classes.get(number, str(number)) for number in range(highest + 1)]
        super().__init__(root, [inside(name, file) for name in files], labels.astype(np.int32), names, "annotations")
        self.name = str(file)
        check_first(self, file)
