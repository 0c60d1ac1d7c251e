"""Cue-conflict images (Geirhos et al., arXiv 1811.12231): the shape of one thing with the texture of another.

ROOT/<shape>/<shape><i>-<texture><j>.png      16 categories, 80 images each
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from ...errors import UserError
from .files import FileSource, text
from .folder import images_under

# which of the 1,000 ImageNet classes, ranks of sorted wnids in three digits, count as each category; 207 take part
_IMAGENET = {
    "airplane": "404",
    "bear": "294-297",
    "bicycle": "444 671",
    "bird": "008 010-016 018-020 022-024 080-083 087-096 098-100 127-133 135-145",
    "boat": "472 554 625 814 914",
    "bottle": "440 720 737 898 899 901 907",
    "car": "436 511 817",
    "cat": "281-286",
    "chair": "423 559 765 857",
    "clock": "409 530 892",
    "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
    "elephant": "385 386",
    "keyboard": "508 878",
    "knife": "499",
    "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
}
CATEGORIES = list(_IMAGENET)
IMAGENET_CLASSES: dict[str, list[int]] = {
    category: [label for part in parts.split() for label in range(int(part[:3]), int(part[-3:]) + 1)]
    for category, parts in _IMAGENET.items()
}
_NAME = re.compile(rb"([a-z]+)/[a-z]+\d+-([a-z]+)\d+\.png")


class CueConflictSource(FileSource):
    """The images by path; `label` is the shape's category, `texture` that of the texture: positions in `CATEGORIES`.

    Raises `UserError` for an image whose name does not tell both.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        root = Path(path)
        paths, notes = images_under(root, "give the folder with the 16 categories")
        rank = {category.encode(): label for label, category in enumerate(CATEGORIES)}
        cues = []
        for name in paths:
            match = _NAME.fullmatch(name)
            if match is None or not rank.keys() >= set(match.groups()):
                hint = f"<shape>/<shape>1-<texture>2.png, both of {', '.join(CATEGORIES)}"
                raise UserError(f"{root}: {text(name)} is not {hint}")
            cues.append([rank[cue] for cue in match.groups()])
        shapes, self._textures = np.array(cues, np.int32).T
        super().__init__(root, paths, shapes, CATEGORIES, "folder", notes)

    def texture(self, index: int) -> int:
        """Category of the texture."""
        return int(self._textures[index])
