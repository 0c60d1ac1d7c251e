"""Semantic segmentation: images, and a mask of class indices for each. 255: pixels that do not count.

voc12aug: VOC 2012 with the masks of SBD: 20 categories, and background as class 0
ROOT/VOC2012/JPEGImages/<id>.jpg
ROOT/VOC2012/ImageSets/Segmentation/{train,val,trainval,aug}.txt    an id per line
ROOT/VOC2012/SegmentationClass/<id>.png                             masks of train, val
ROOT/VOC2012/SegmentationClassAug/<id>.png                          masks of aug

cityscapes: 2,975 and 500 street scenes, 19 classes
ROOT/leftImg8bit/{train,val,test}/<city>/<name>_leftImg8bit.png
ROOT/gtFine/{train,val}/<city>/<name>_gtFine_labelTrainIds.png      or, as published, <name>_gtFine_labelIds.png

ade20k: scene parsing, 20,210 and 2,000 images, 150 classes
ROOT/{images,annotations}/{training,validation}/<name>.jpg, .png    0: none of the classes, 1 .. 150
ROOT/objectInfo150.txt                                              their names
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..images.budget import reserve
from ..images.decode import TooManyPixels, open_image
from . import voc
from .files import FileSource
from .folder import images_under
from .lists import check_first, read_lines
from .lookup import choice, existing

IGNORED = 255
# Cityscapes numbers 34 kinds of things, of which these 19 count; their position here is the class
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_CATEGORIES = (
    "road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain "
    "sky person rider car truck bus train motorcycle bicycle"
).split()


def read_mask(file: Path) -> np.ndarray:
    """(H, W) uint8 class indices: gray values, or the entries of a palette, not its colours. Raises `UserError`."""
    try:
        image = open_image(file.read_bytes())
        if image.mode not in ("L", "P"):
            raise ValueError(f"pixels of kind {image.mode}, not one index each")
        with reserve(image.width * image.height):
            return np.array(image)
    except FileNotFoundError:
        raise UserError(f"{file}: does not exist; unpack the masks there") from None
    except TooManyPixels as fault:
        raise UserError(f"{file}: {fault}") from None
    except Exception as fault:  # Pillow raises almost anything on damaged files
        raise UserError(f"{file}: no readable mask ({fault}); unpack it again") from None


class Voc12AugSource(FileSource):
    """`split` train: the images of the lists train and aug, in this order; val, trainval: those of VOC itself."""

    categories = ["background", *voc.CATEGORIES]

    def __init__(self, path: str | os.PathLike, *, split: str = "train") -> None:
        root = voc.devkit(Path(path)) / "VOC2012"
        choice(path, "split", split, ("train", "val", "trainval"))
        lists = root / "ImageSets/Segmentation"
        self.ids = voc.read_ids(lists / f"{split}.txt")
        self._official = len(self.ids)
        if split == "train":
            self.ids += voc.read_ids(lists / "aug.txt")
        super().__init__(root, [b"JPEGImages/%s.jpg" % os.fsencode(name) for name in self.ids])
        check_first(self, lists)

    def target(self, index: int) -> np.ndarray:
        """(H, W) uint8: 0 background, 1 + position in VOC's categories, 255 ignored. Raises `UserError`."""
        folder = "SegmentationClass" if index < self._official else "SegmentationClassAug"
        return read_mask(self.root / folder / f"{self.ids[index]}.png")


class CityscapesSource(FileSource):
    """One split: train, val or test, of which the masks are not published. Sorted by city and name."""

    categories = CITYSCAPES_CATEGORIES

    def __init__(self, path: str | os.PathLike, *, split: str = "train") -> None:
        root = Path(path)
        choice(path, "split", split, ("train", "val", "test"))
        self._masks = root / "gtFine" / split
        images = existing(root / "leftImg8bit" / split)
        found, notes = images_under(images, "unpack leftImg8bit_trainvaltest.zip there")
        paths = [name for name in found if name.endswith(b"_leftImg8bit.png")]
        if not paths:
            raise UserError(f"{images}: no <city>/..._leftImg8bit.png in it; unpack leftImg8bit_trainvaltest.zip there")
        if rest := len(found) - len(paths):
            notes.append(f"passed over: {rest:,} images that are no ..._leftImg8bit.png")
        super().__init__(images, paths, notes=notes)

    def target(self, index: int) -> np.ndarray:
        """(H, W) uint8: positions in `categories`, 255 for everything else. Raises `UserError`."""
        stem = self.key(index).removesuffix("leftImg8bit.png") + "gtFine_"
        if (file := self._masks / f"{stem}labelTrainIds.png").exists():
            return read_mask(file)
        table = np.full(256, IGNORED, np.uint8)
        table[list(_CITYSCAPES_IDS)] = range(len(_CITYSCAPES_IDS))
        return table[read_mask(self._masks / f"{stem}labelIds.png")]


class Ade20kSource(FileSource):
    """`split` training or validation of the scene parsing challenge, in the order of the names."""

    def __init__(self, path: str | os.PathLike, *, split: str = "training") -> None:
        root = Path(path)
        choice(path, "split", split, ("training", "validation"))
        self._masks = root / "annotations" / split
        images = existing(root / "images" / split)
        paths, notes = images_under(images, "unpack ADEChallengeData2016.zip there")
        super().__init__(images, paths, notes=notes)
        self.categories = _ade20k_names(root / "objectInfo150.txt")

    def target(self, index: int) -> np.ndarray:
        """(H, W) uint8: positions in `categories`, 255 for pixels of none. Raises `UserError`."""
        return read_mask((self._masks / self.key(index)).with_suffix(".png")) - np.uint8(1)  # 0 becomes 255


def _ade20k_names(file: Path) -> list[str]:
    """The last column of a table with a header; numbers where there is no such file."""
    if not file.exists():
        return [str(number) for number in range(1, 151)]
    names = [line.split("\t")[-1].split(",")[0].strip() for line in read_lines(file)[1:]]
    if len(names) != 150:
        raise UserError(f"{file}: {len(names)} classes, not 150; unpack ADEChallengeData2016.zip again")
    return names
