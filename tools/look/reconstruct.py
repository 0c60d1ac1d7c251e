"""What a masked autoencoder restores: ``headrace reconstruct <run or checkpoint> <data> [--out picture.png]``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch

from ...errors import UserError
from ...models.algorithm import Algorithm
from ...models.reconstruct import AS_PREDICTED, UP_TO_CONTRAST
from ...pipelines.sources import open_source
from ...pipelines.spec import ByteSource, InputSpec
from ...places import new_file
from ...train.engine.checkpoint import load_algorithm
from ...train.evaluation.embed import evaluation_view
from .plots import plot_rows
from .samples import GREY, first_batch, to_pixels

_VISIBLE = 232  # grey of patches that have no error since they were not hidden


@dataclass(frozen=True)
class Restoration:
    """Rows of pictures, one column a sample."""

    rows: dict[str, torch.Tensor]  # image, masked, reconstruction, error of each patch: (B, S, S, 3) uint8
    errors: list[float]  # of each sample, the mean over its hidden patches
    note: str


def restore(
    algorithm: Algorithm, source: ByteSource, *, samples: int = 6, seed: int = 0, norm_pix: str | None = None
) -> Restoration:
    """The first samples of an epoch, whole, hidden as in training and restored; `samples` is even for MixMIM.

    `norm_pix`, where patches are predicted normalised: "undo" gives each its mean and contrast back, which are taken
    from the input, "raw" shows what is predicted. Raises `UserError` for an algorithm that predicts no pictures, and
    for a `norm_pix` that changes nothing.
    """
    if algorithm.pictures is None:
        raise UserError(f"{algorithm.config.name}: {algorithm.no_pictures}, so there is nothing to reconstruct")
    note = algorithm.pictures
    if norm_pix is not None and note != UP_TO_CONTRAST:
        raise UserError(f"--norm-pix: the patches that {algorithm.config.name} predicts here are not normalised")
    if norm_pix == "raw":
        note = AS_PREDICTED
    (training,), mask = algorithm.inputs().views, algorithm.inputs().mask
    view = evaluation_view(training)
    batch = first_batch(source, InputSpec((view,), mask), samples, seed=seed)
    images = batch.views[view.name][0]
    found = algorithm.eval().reconstruct(images, batch.mask, contrast=norm_pix != "raw")
    pixels = to_pixels(images, view)
    most = found.error[found.hidden].max().item()
    heat = torch.from_numpy(matplotlib.colormaps["inferno"]((found.error / max(most, 1e-30)).cpu().numpy(), bytes=True))
    hidden, heat = (_enlarged(patches.cpu(), view.size) for patches in (found.hidden[..., None], heat[..., :3]))
    rows = {
        "image": pixels,
        "masked": torch.where(hidden, GREY, pixels),
        "reconstruction": to_pixels(found.images, view),
        "error of each patch": torch.where(hidden, heat, _VISIBLE),
    }
    mean = (found.error * found.hidden).sum(1) / found.hidden.sum(1)
    scale = f"Errors in the loss's own scale, dark 0 to bright {most:.3g}; visible patches are pasted from the input."
    return Restoration(rows, mean.tolist(), f"{note}\n{scale}")


def _enlarged(patches: torch.Tensor, size: int) -> torch.Tensor:
    """(B, P, C) -> (B, size, size, C): each patch's value at all of its pixels."""
    side = round(patches.shape[1] ** 0.5)
    patches = patches.unflatten(1, (side, side))
    return patches.repeat_interleave(size // side, 1).repeat_interleave(size // side, 2)


def plot_reconstruction(algorithm: Algorithm, source: ByteSource, path: Path, **options) -> Restoration:
    """The rows of `restore` as a PNG."""
    found = restore(algorithm, source, **options)
    plot_rows(list(found.rows.items()), path, found.note)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace reconstruct", description=__doc__)
    parser.add_argument("checkpoint", help="a run directory, or a step-*.pt in it")
    parser.add_argument("data", help="any images that headrace reads: a folder, shards, ...")
    parser.add_argument("--out", type=new_file, default="reconstruction.png", help="a PNG (reconstruction.png)")
    parser.add_argument("--samples", type=int, default=8, help="images shown, an even number (8)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images and of the masks (0)")
    parser.add_argument(
        "--norm-pix",
        choices=("undo", "raw"),
        help="of patches predicted normalised: undo it with each patch's own mean and contrast, which the network has "
        "not seen (the default), or show what it predicts",
    )
    arguments = parser.parse_args(argv)
    if arguments.samples < 2 or arguments.samples % 2:
        raise UserError(f"--samples: must be 2, 4, 6, ..., not {arguments.samples}")
    if arguments.out.suffix.lower() != ".png":
        raise UserError(f"--out: {arguments.out} is no .png")
    path, algorithm = load_algorithm(arguments.checkpoint)
    options = {"samples": arguments.samples, "seed": arguments.seed, "norm_pix": arguments.norm_pix}
    found = plot_reconstruction(algorithm, open_source(arguments.data), arguments.out, **options)
    mean = sum(found.errors) / len(found.errors)
    print(f"{arguments.out}: {algorithm.config.name} of {path}, mean error of hidden patches {mean:.4g}")
    return 0
