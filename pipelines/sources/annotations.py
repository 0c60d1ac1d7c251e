"""What annotation files say of an image beyond one label, and how JSON files are read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UserError


@dataclass(frozen=True)
class Boxes:
    """The objects of one image, N of them."""

    boxes: np.ndarray  # (N, 4) float32: left, top, right, bottom edges in pixels from the image's corner
    labels: np.ndarray  # (N,) int64: positions in the source's `categories`
    difficult: np.ndarray  # (N,) bool: no match counts for or against; VOC's "difficult", COCO's crowds
    segments: list | None = None  # N times COCO's own polygons or run lengths; None where there are only boxes


def countable(boxes: np.ndarray, difficult: np.ndarray) -> np.ndarray:
    """(N,) bool: which objects can be learned from: not difficult, at least a pixel wide and high."""
    return ~difficult & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)


def read_json(file: Path, *lists: str) -> dict:
    """The object in a JSON file, which holds a list under each of the names `lists`. `UserError` for anything else."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as fault:
        raise UserError(f"{file}: cannot be read ({fault}); download it again") from None
    for name in lists:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise UserError(f"{file}: no list {name!r} in it; give an annotation file")
    return content


def inside(name: str, where: Path) -> bytes:
    """A relative path that an annotation file names, encoded. Raises `UserError` for one that could leave its root."""
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise UserError(f"{where}: names the image {name!r}; only paths inside the images' folder are read")
    return os.fsencode(name)
