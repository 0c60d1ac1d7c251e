"""Features and classes of patches: images squashed to one square, masks at their own size."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ...errors import UserError, notice
from ...models.dense.feature_map import feature_map, multiple_of
from ...pipelines.images.decode import DecodeError, image_size
from ...pipelines.images.rules import add_rules, use_options
from ...pipelines.sources import open_source
from ...pipelines.sources.segmentation import IGNORED
from ..dense.names import match, places
from ..engine.distributed import Launch
from ..evaluation.embed_encoder import ENCODER_HELP, Encoder, load_encoder
from ..evaluation.embed_store import stored_features
from ..evaluation.evaluate import add_computing, add_outputs, options_of, positive, require_finite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("encoder", help=ENCODER_HELP)
    kinds = "voc12aug:PATH, cityscapes:PATH or ade20k:PATH"
    parser.add_argument("--train", required=True, help=f"images with masks of classes to learn from: {kinds}")
    parser.add_argument("--val", required=True, help="images with masks of the same classes to be judged by")
    text = "side of the square that images are squashed to, in pixels (that of the encoder's view)"
    parser.add_argument("--size", type=positive, help=text)
    text = "block of a ViT, stage of others, from 0, or from the end: -1 (-1)"
    parser.add_argument("--layer", type=int, default=-1, help=text)
    parser.add_argument("--seed", type=int, default=0)
    add_rules(parser)
    add_computing(parser)
    add_outputs(parser)


class Patches(nn.Module):
    """An encoder's map as one row an image: (B, 3, S, S) -> (B, rows * columns * D), patch after patch."""

    def __init__(self, encoder: nn.Module, layer: int) -> None:
        super().__init__()
        self.encoder, self.layer = encoder, layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return feature_map(self.encoder, images, self.layer).permute(0, 2, 3, 1).flatten(1)


@dataclass(frozen=True)
class PatchSet:
    """A source of images and masks, and the features of its patches."""

    source: Any
    vectors: torch.Tensor  # (N, P, D) float32, memory-mapped; P patches, row after row
    grid: tuple[int, int]  # rows and columns of patches
    side: int  # of the squares, in pixels
    numbers: np.ndarray  # (256,) uint8: classes of the source's masks -> those that are learned, or `IGNORED`

    def __len__(self) -> int:
        return len(self.vectors)

    def mask(self, index: int) -> np.ndarray:
        """(H, W) uint8, of the size of the image. Raises `UserError` for one that is not."""
        mask = self.source.target(index)
        try:
            size = image_size(self.source.read(index))
        except (OSError, DecodeError) as fault:
            raise UserError(
                f"{self.source.name}: {self.source.key(index)}: {fault}; unpack its archive again"
            ) from None
        if size != mask.shape:
            raise UserError(f"{self.source.name}: {self.source.key(index)} is {size} px, but its mask {mask.shape}")
        return self.numbers[mask]

    def squashed(self, index: int, cells: int) -> np.ndarray:
        """(rows * cells, columns * cells) uint8: the mask, of each pixel the class nearest to its middle."""
        rows, columns = self.grid
        size = (columns * cells, rows * cells)
        return np.asarray(Image.fromarray(self.mask(index)).resize(size, Image.Resampling.NEAREST))

    def classes(self, process: Launch, threads: int) -> torch.Tensor:
        """(N, P) uint8: the class that most pixels of a patch have, the lower of two; `IGNORED` is one of them.

        Several processes share the work, and all get all of it.
        """
        cells = -(-self.side // min(self.grid))

        def of(index: int) -> np.ndarray:
            return majority(self.squashed(index, cells), self.grid)

        with ThreadPoolExecutor(threads) as pool:
            own = list(pool.map(of, range(process.rank, len(self), process.world)))
        found = np.empty((len(self), self.vectors.shape[1]), np.uint8)
        for rank, part in enumerate(process.gather(own)):
            found[rank :: process.world] = part
        return torch.from_numpy(found)


def majority(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(rows * columns,) uint8: the value that most pixels have, of each of equal cells of a mask (H, W)."""
    rows, columns = grid
    cells = mask.reshape(rows, mask.shape[0] // rows, columns, -1).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    keys = np.arange(len(cells))[:, None] * 256 + cells
    return np.bincount(keys.ravel(), minlength=len(cells) * 256).reshape(-1, 256).argmax(1).astype(np.uint8)


def opened(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Both sources, with masks. Raises `UserError` before anything is computed."""
    sources = open_source(arguments.train), open_source(arguments.val)
    for flag, source in zip(("--train", "--val"), sources):
        if not hasattr(source, "target") or source.target(0).ndim != 2:
            raise UserError(
                f"{flag}: {source.name} has no masks of classes; give voc12aug:PATH, cityscapes:PATH or ade20k:PATH"
            )
    if said := match(*sources, flag="--val"):
        notice(said)
    return sources


def encoder_of(arguments: argparse.Namespace) -> tuple[Encoder, Patches, tuple[int, int]]:
    """The encoder with the view that is used, the module that gives its patches, and their rows and columns.

    Raises `UserError` for one without maps, and for a size that it does not take.
    """
    encoder = load_encoder(arguments.encoder)
    use_options(arguments)  # instead of the encoder's own
    size, multiple = arguments.size or encoder.view.size, multiple_of(encoder.module)
    if size % multiple:
        near = max(multiple, round(size / multiple) * multiple)
        raise UserError(f"--size: {encoder.name} takes multiples of {multiple} px, such as {near}, not {size}")
    try:
        blank = torch.zeros(1, len(encoder.view.mean), size, size)
        rows, columns = feature_map(encoder.module, blank, arguments.layer).shape[2:]
    except (AssertionError, RuntimeError, ValueError) as fault:  # others' models say it in many ways
        why = f" ({str(fault).splitlines()[0]})" if str(fault) else ""
        raise UserError(f"--size: {encoder.name} does not take images of {size} px{why}") from None
    encoder.view = replace(encoder.view, size=size, crop="window", resize=size, squash=True)
    return encoder, Patches(encoder.module, arguments.layer).eval(), (rows, columns)


def patch_sets(
    arguments: argparse.Namespace, process: Launch, sources: Sequence[Any], found: tuple[Encoder, Patches, tuple]
) -> list[PatchSet]:
    """Both sets with features, from a folder of caches if they are there. Raises `UserError` for bad images."""
    encoder, patches, grid = found
    stored = replace(encoder, module=patches, digest=f"{encoder.digest} patches {arguments.layer}")
    names, sets = sources[0].categories, []
    for flag, source in zip(("--train", "--val"), sources):
        features = stored_features(stored, source, arguments.features, **options_of(arguments, process))
        if features.left_out:
            raise UserError(f"{source.name}: {features.left_out[0]}; unpack its archive again, all images are needed")
        require_finite(features, flag, encoder)
        numbers = np.full(256, IGNORED, np.uint8)
        numbers[: len(source.categories)] = places(source.categories, names)  # match: every one has a place
        vectors = features.vectors.unflatten(1, (grid[0] * grid[1], -1))
        sets.append(PatchSet(source, vectors, grid, encoder.view.size, numbers))
    return sets


def described(arguments: argparse.Namespace, grid: tuple[int, int], sources: Sequence[Any]) -> tuple[dict, dict]:
    """Data and settings, as `record` takes them."""
    train, val = sources
    data = {"train": train.name, "val": val.name, "images": [len(train), len(val)]}
    return data, {"layer": arguments.layer, "grid": list(grid), "seed": arguments.seed}
