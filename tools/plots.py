"""Pictures of a run: the loss curve, what an algorithm sees, what a masked autoencoder restores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")  # no display is needed, and none is opened
import matplotlib.pyplot as plt

from ..models.algorithms.mae import MAE
from ..pipelines.memory_loader import MemoryLoader
from ..pipelines.order import Order
from ..pipelines.spec import Batch, ByteSource, InputSpec, ViewSpec


def plot_loss(rows: Sequence[dict], path: Path, title: str) -> None:
    """Loss over steps from the rows of metrics.jsonl."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], color="tab:blue")
    axes.set(xlabel="step", ylabel="loss (mean over the logging interval)", title=title)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_views(source: ByteSource, inputs: InputSpec, path: Path, *, samples: int = 6, seed: int = 0) -> None:
    """One column a sample: the whole image, then every view as the algorithm gets it; hidden patches grey."""
    whole = ViewSpec(
        name="whole image", size=max(v.size for v in inputs.views), crop="center", center_fraction=1.0, flip=0
    )
    batch = _batch(source, InputSpec((whole, *inputs.views), inputs.mask), samples, seed)
    rows = []
    for view in (whole, *inputs.views):
        for copy in range(view.count):
            pixels = _pixels(batch.views[view.name][copy], view)
            name = view.name if view.count == 1 else f"{view.name} {copy + 1}"
            rows.append((name, pixels))
            if batch.mask is not None and view is not whole:
                rows.append((f"{name},\nhidden patches grey", _hide(pixels, batch)))
    _sheet(rows, path, "What the algorithm sees")


def plot_reconstruction(algorithm: MAE, source: ByteSource, path: Path, *, samples: int = 6, seed: int = 0) -> None:
    """One column a sample: input, what the encoder sees, visible patches completed by predictions."""
    view = algorithm.config.view
    centred = ViewSpec(
        name=view.name,
        size=view.size,
        crop="center",
        interpolation=view.interpolation,
        flip=0,
        mean=view.mean,
        std=view.std,
    )
    batch = _batch(source, InputSpec((centred,), algorithm.config.mask), samples, seed)
    images = batch.views[view.name][0]
    restored = algorithm.eval().reconstruct(images, batch.mask)
    pixels = _pixels(images, centred)
    rows = [
        ("input", pixels),
        ("masked input", _hide(pixels, batch)),
        ("reconstruction", _pixels(restored, centred)),
    ]
    note = "Hidden patches are predicted, visible ones pasted from the input."
    if algorithm.config.normalize_pixels:
        note += "\nThe network predicts patterns; each hidden patch's mean and contrast are taken from the input."
    _sheet(rows, path, note)


def _batch(source: ByteSource, inputs: InputSpec, samples: int, seed: int) -> Batch:
    order = Order(len(source), min(samples, len(source)), seed=seed)
    return next(MemoryLoader(source, inputs, order, seed=seed))


def _pixels(x: torch.Tensor, view: ViewSpec) -> torch.Tensor:
    """(B, 3, S, S) normalised -> (B, S, S, 3) in [0, 1]"""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (view.mean, view.std))
    return (x.cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1)


def _hide(pixels: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Hidden patches of (B, S, S, 3) made mid-grey."""
    hidden = batch.mask.hidden.cpu()
    grid = int(hidden.shape[1] ** 0.5)
    cell = pixels.shape[1] // grid
    cover = hidden.view(-1, grid, grid).repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    return torch.where(cover[..., None], 0.5, pixels)


def _sheet(rows: list[tuple[str, torch.Tensor]], path: Path, title: str) -> None:
    """One column a sample; a row is a name and its images (B, S, S, 3)."""
    samples = len(rows[0][1])
    size = (max(8, 1.6 * samples + 1.2), 1.6 * len(rows) + 0.7)
    figure, axes = plt.subplots(len(rows), samples, figsize=size, squeeze=False, layout="constrained")
    for row, (name, images) in enumerate(rows):
        for column, image in enumerate(images):
            axes[row, column].imshow(image.numpy(), interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
            axes[row, column].spines[:].set_visible(False)
        axes[row, 0].set_ylabel(name, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
