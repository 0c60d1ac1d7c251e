"""Sheets of pictures: samples with what was drawn for them, and rows of images."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Rectangle

from .figures import save_figure
from .samples import Sample, crop_color

_TILE = 2.6  # inches of a tile in a sheet of samples, and the letters that fit above and below it
_TITLE, _LETTERS = 37, 42


def plot_samples(samples: Sequence[Sample], path: Path, title: str) -> None:
    """One row a sample: the whole image with its crops outlined, then every view and what was drawn for it."""
    columns = 1 + max(len(sample.tiles) for sample in samples)
    captions = [[_wrap(sample.facts), *(_wrap(*tile.lines) for tile in sample.tiles)] for sample in samples]
    text = [0.13 * max(caption.count("\n") + 1 for caption in row) for row in captions]  # inches
    size = (_TILE * columns, sum(text) + (_TILE + 0.25) * len(samples) + 0.5)
    figure, grid = plt.subplots(
        len(samples),
        columns,
        figsize=size,
        squeeze=False,
        layout="constrained",
        height_ratios=[_TILE + t for t in text],
    )
    for sample, row, below in zip(samples, grid, captions):
        pictures = [sample.whole, *(tile.pixels for tile in sample.tiles)]
        key = sample.key if len(sample.key) <= _TITLE else f"…{sample.key[1 - _TITLE :]}"
        titles = [key, *(tile.title for tile in sample.tiles)]
        colors = [None, *(crop_color(tile.crop) for tile in sample.tiles)]
        for axes, picture, name, color, caption in zip(row, pictures, titles, colors, below):
            axes.imshow(picture, interpolation="nearest", extent=None if color else (0, sample.width, sample.height, 0))
            axes.set(xticks=[], yticks=[], anchor="NW")
            axes.set_title(name, fontsize=8, loc="left", pad=3)
            axes.set_xlabel(caption, fontsize=7, loc="left", labelpad=3)
            axes.spines[:].set(visible=color is not None, color=color, linewidth=2)
        for number, (left, top, width, height) in enumerate(sample.boxes):
            for color, line in (("black", 3.4), (crop_color(number), 2)):  # the dark edge shows it on bright photos
                row[0].add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=color, linewidth=line))
        for axes in row[len(pictures) :]:
            axes.remove()
    figure.suptitle(textwrap.fill(title, _LETTERS * columns), fontsize=8)
    save_figure(figure, path)


def _wrap(*lines: str) -> str:
    return "\n".join(part for line in lines for part in textwrap.wrap(line, _LETTERS, break_on_hyphens=False))


def plot_rows(rows: list[tuple[str, torch.Tensor]], path: Path, title: str) -> None:
    """One column a sample; a row is a name and its images (B, S, S, 3) uint8."""
    samples = len(rows[0][1])
    size = (max(8, 1.6 * samples + 1.2), 1.6 * len(rows) + 0.7)
    figure, axes = plt.subplots(len(rows), samples, figsize=size, squeeze=False, layout="constrained")
    for row, (name, images) in enumerate(rows):
        for column, image in enumerate(images):
            axes[row, column].imshow(image.numpy(), interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].spines[:].set_visible(False)
        axes[row, 0].set_ylabel(name, fontsize=9)
    lines = [textwrap.fill(line, round(13 * size[0])) for line in title.splitlines()]
    figure.suptitle("\n".join(lines), fontsize=9)
    save_figure(figure, path)
