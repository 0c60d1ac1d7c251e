"""PASCAL VOC 2007 and 2012: image classification with several labels, and detection.

ROOT/VOC<year>/JPEGImages/<id>.jpg
ROOT/VOC<year>/ImageSets/Main/<split>.txt              an id per line
ROOT/VOC<year>/ImageSets/Main/<class>_<split>.txt      ``id code``: 1 present, -1 absent, 0 difficult
ROOT/VOC<year>/Annotations/<id>.xml                    objects with their boxes

2007: trainval 5,011 images, test 4,952. ROOT is the folder VOCdevkit, or the one that holds it. A set of one's own in
this form, with names of its own, is read for its boxes; it needs no ``<class>_<split>.txt``.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ...errors import UserError
from .annotations import Boxes, countable
from .files import FileSource
from .lists import check_first, read_lines
from .lookup import choice, existing

CATEGORIES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow "
    "diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
).split()
YEARS = {"2007": ("2007",), "2012": ("2012",), "07+12": ("2007", "2012")}
_CODES = {"1": 1, "-1": 0, "0": -1}  # 0, difficult, is what the targets leave out; -1, absent, is their 0
_EDGES = ("xmin", "ymin", "xmax", "ymax")


class VocSource(FileSource):
    """The images of one split, by year and id; `year` 2007, 2012 or 07+12, `split` train, val, trainval or test.

    An image has several labels or none, so `label` is -1: `target` has all of them, `boxes` the objects. Both read
    annotations on first use; pre-training needs none.

    Raises `UserError` where the list or the images are missing.
    """

    def __init__(self, path: str | os.PathLike, *, year: str = "2007", split: str = "trainval") -> None:
        root = devkit(Path(path))
        choice(path, "year", year, YEARS)
        choice(path, "split", split, ("train", "val", "trainval", "test"))
        self._split, self._years, self.ids = split, YEARS[year], []  # "<year>/<id>"
        if not any((root / f"VOC{one}").is_dir() for one in YEARS[year]) and (root / "JPEGImages").is_dir():
            raise UserError(
                f"{path}: is the folder of one year; call it VOC{YEARS[year][0]}, and give the one around it"
            )
        for one in YEARS[year]:
            ids = read_ids(root / f"VOC{one}/ImageSets/Main/{split}.txt")
            self.ids += [f"{one}/{name}" for name in sorted(ids)]
        paths = [b"VOC%s/JPEGImages/%s.jpg" % tuple(map(os.fsencode, name.split("/"))) for name in self.ids]
        super().__init__(root, paths)
        _check_suffix(self)
        check_first(self, root)

    def target(self, index: int) -> np.ndarray:
        """(20,) int8: 1 where an object of the category is to be seen, 0 where not, -1 where it does not count.

        -1 is for categories with difficult objects only, and for images that the category's file leaves out.
        """
        return self._targets[index]

    @cached_property
    def _targets(self) -> np.ndarray:
        row = {name: number for number, name in enumerate(self.ids)}
        targets = np.full((len(self.ids), len(CATEGORIES)), -1, np.int8)
        for year in dict.fromkeys(name.split("/")[0] for name in self.ids):
            for column, category in enumerate(CATEGORIES):
                file = self.root / f"VOC{year}/ImageSets/Main/{category}_{self._split}.txt"
                for line in read_lines(existing(file)):
                    name, _, code = line.partition(" ")
                    at = row.get(f"{year}/{name}")
                    if at is None or code.strip() not in _CODES:
                        kinds = f"a line is an id in {self._split}.txt, and 1, -1 or 0"
                        raise UserError(f"{file}: {line!r} is no image of {self._split} with 1, -1 or 0; {kinds}")
                    targets[at, column] = _CODES[code.strip()]
        return targets

    @cached_property
    def categories(self) -> list[str]:
        """VOC's twenty; or, where an annotation of any split names another, all names that there are, sorted."""
        folders = [self.root / f"VOC{year}/Annotations" for year in self._years]
        files = [file for folder in folders for file in sorted(folder.glob("*.xml"))]
        names = {_name(one, where) for file in files for one, where in _objects(file)}
        return CATEGORIES if names <= {*CATEGORIES} else sorted(names)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.categories)}

    def boxes(self, index: int) -> Boxes:
        """The objects in the image's XML file. VOC counts pixels from 1, and boxes include the last; here edges from 0.

        Raises `UserError` for a file that is missing or damaged.
        """
        year, name = self.ids[index].split("/")
        file = self.root / f"VOC{year}/Annotations/{name}.xml"
        objects = _objects(file)
        boxes = np.array([_edges(*one) for one in objects], np.float32).reshape(-1, 4)
        boxes[:, :2] -= 1
        difficult = np.array([one.findtext("difficult", "0").strip() == "1" for one, _ in objects], bool)
        return Boxes(boxes, np.array([self._places[_name(*one)] for one in objects], np.int64), difficult)

    def countable(self, index: int) -> np.ndarray:
        """(N,) bool: which objects of an image can be learned from: not difficult, at least a pixel wide and high."""
        found = self.boxes(index)
        return countable(found.boxes, found.difficult)


def _check_suffix(source: VocSource) -> None:
    """Raises `UserError` where the images are there, but are no .jpg."""
    first = Path(source.path(0))
    others = sorted(first.parent.glob(f"{first.stem}.*")) if not first.exists() else []
    if others:
        raise UserError(f"{others[0]}: images of VOC end in .jpg; make them JPEGs, or give the set in COCO's form")


def _objects(file: Path) -> list[tuple[ElementTree.Element, str]]:
    """The objects of an annotation file, each with the beginning of a message about it. Raises `UserError`."""
    try:
        objects = ElementTree.parse(file).getroot().findall("object")
    except OSError as fault:
        raise UserError(f"{file}: no annotation of VOC ({fault.strerror}); each image in the list needs one") from None
    except (ElementTree.ParseError, ValueError, LookupError) as fault:  # an encoding that nobody knows
        raise UserError(f"{file}: no annotation of VOC: no XML ({fault}); mend it, or unpack it again") from None
    return [(one, f"{file}: no annotation of VOC: object {number}") for number, one in enumerate(objects, 1)]


def _name(one: ElementTree.Element, where: str) -> str:
    name = unicodedata.normalize("NFC", (one.findtext("name") or "").strip())
    if not name:
        raise UserError(f"{where} has no <name>; mend it")
    return name


def _edges(one: ElementTree.Element, where: str) -> list[float]:
    """The edges of an object's box as its file has them."""
    texts = {edge: one.findtext(f"bndbox/{edge}") for edge in _EDGES}
    for edge, text in texts.items():
        if not _is_number(text):
            raise UserError(f"{where} has no number in <bndbox><{edge}> but {text!r}; mend it")
    return list(map(float, texts.values()))


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False


def devkit(path: Path) -> Path:
    """The folder with VOC2007 and VOC2012 in it: `path` itself or VOCdevkit inside."""
    return path / "VOCdevkit" if (path / "VOCdevkit").is_dir() else path


def read_ids(file: Path) -> list[str]:
    """The image ids in a list of a split. Raises `UserError` for a missing list, and for an id that is a path."""
    ids = read_lines(existing(file))
    for name in ids:
        if re.fullmatch(r"[\w-]+", name) is None:
            kinds = "letters, digits, _ and -, without a folder or a suffix"
            raise UserError(f"{file}: {name!r} is no image id; a line is one id of {kinds}")
    if not ids:
        raise UserError(f"{file}: no image in it; a line is the id of an image")
    return ids
