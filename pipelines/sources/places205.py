"""Places205 in its published layout or as plain folders with lists.

ROOT/trainvalsplit_places205/{train,val,test}_places205.csv   blank-separated ``path label`` in spite of the name
ROOT/data/vision/torralba/deeplearning/images256/             where these paths start

ROOT/meta/{train,val,test}.txt                                 ``path label``
ROOT/{train,val,test}/                                         where these paths start
"""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import UserError
from .files import FileSource
from .lists import check_first, class_names, read_list
from .lookup import choice


class Places205Source(FileSource):
    """One split of Places205: train, val, or test, which has no labels. Classes are called after their folders.

    Raises `UserError` where the list or the images are missing.
    """

    def __init__(self, path: str | os.PathLike, *, split: str = "train") -> None:
        root = Path(path)
        choice(root, "split", split, ("train", "val", "test"))
        published, plain = f"trainvalsplit_places205/{split}_places205.csv", f"meta/{split}.txt"
        if (file := root / published).exists():
            images = root / "data/vision/torralba/deeplearning/images256"
        elif (file := root / plain).exists():
            images = root / split
        else:
            raise UserError(f"{root}: neither {published} nor {plain} in it; give the folder that holds one of them")
        paths, labels = read_list(file, images)
        if split == "test":
            labels = None
        names = None if labels is None else class_names(paths, labels)
        super().__init__(images, paths, labels, names, "none" if labels is None else "list")
        check_first(self, file)
