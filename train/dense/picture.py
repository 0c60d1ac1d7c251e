"""Predictions beside the truth, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...errors import UserError
from .image import read_image

_HEIGHT, _GAP = 240, 4  # pixels


def colours(count: int) -> np.ndarray:
    """(count, 3) uint8: well apart, the first black (a background)."""
    hues = np.arange(count) * 0.618034 % 1 * 255
    bands = np.stack([hues, np.full(count, 190), np.full(count, 235)], -1).astype(np.uint8)
    bands[0, 2] = 0
    return np.asarray(Image.fromarray(bands[None], "HSV").convert("RGB"))[0]


def draw_masks(source: Any, found: Sequence[tuple[int, torch.Tensor, torch.Tensor]], file: Path, classes: int) -> None:
    """A row for each (index, predicted (H, W), true (H, W)): the image, the prediction over it, the truth over it."""
    table = np.full((256, 3), 255, np.uint8)
    table[:classes] = colours(classes)
    rows = []
    for index, *masks in found:
        image = read_image(source, index)
        over = [Image.blend(image, Image.fromarray(table[mask.numpy().astype(np.uint8)]), 0.6) for mask in masks]
        rows.append([image, *over])
    _save(rows, file)


def draw_boxes(source: Any, found: Sequence[tuple[int, dict[str, torch.Tensor]]], file: Path) -> None:
    """A row for each (index, detections): the detections (boxes, labels, scores, perhaps masks), and the truth."""
    table, rows = colours(len(source.categories) + 1)[1:], []
    for index, one in found:
        image, truth = read_image(source, index), source.boxes(index)
        pixels = np.array(image)
        for mask, label in zip(one.get("masks", ()), one["labels"].tolist()):
            inside = mask.numpy().astype(bool)
            pixels[inside] = pixels[inside] // 2 + table[label] // 2
        names = [f"{source.categories[n]} {s:.2f}" for n, s in zip(one["labels"].tolist(), one["scores"].tolist())]
        drawn = _boxes(Image.fromarray(pixels), one["boxes"].tolist(), names, table[one["labels"].numpy()])
        names = [source.categories[label] for label in truth.labels]
        rows.append([drawn, _boxes(image, truth.boxes.tolist(), names, table[truth.labels])])
    _save(rows, file)


def _boxes(image: Image.Image, boxes: list[list[float]], names: list[str], shades: np.ndarray) -> Image.Image:
    pen = ImageDraw.Draw(image)
    for box, name, shade in zip(boxes, names, shades):
        pen.rectangle(box, outline=tuple(shade.tolist()), width=2)
        pen.text((box[0] + 3, box[1] + 2), name, fill="white", stroke_width=1, stroke_fill="black")
    return image


def _save(rows: list[list[Image.Image]], file: Path) -> None:
    """Rows of images of one height each, one below the other."""
    rows = [[one.resize((round(one.width * _HEIGHT / one.height), _HEIGHT)) for one in row] for row in rows]
    width = max(sum(one.width + _GAP for one in row) for row in rows)
    sheet = Image.new("RGB", (width, len(rows) * (_HEIGHT + _GAP)), "white")
    for number, row in enumerate(rows):
        left = 0
        for one in row:
            sheet.paste(one, (left, number * (_HEIGHT + _GAP)))
            left += one.width + _GAP
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(file)
    except (OSError, ValueError) as fault:
        raise UserError(f"{file}: the picture could not be written ({fault}); give another --picture") from None
    print(f"{file}: {len(rows)} images")
