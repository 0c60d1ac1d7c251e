"""What an encoder's features tell apart: ``headrace pca <encoder> <images...>``, components of patches as colours."""

from __future__ import annotations

import argparse

import numpy as np
import torch

from ...errors import UserError
from ...models.dense.feature_map import feature_map
from .maps import add_arguments, look, save_values
from .plots import plot_rows


def principal_components(vectors: np.ndarray, count: int) -> np.ndarray:
    """(N, count) of (N, D): the coordinates along the directions of greatest variance, by singular values.

    A direction has no sign of its own: its largest entry is made positive.
    """
    centred = vectors - vectors.mean(0)
    left, strengths, directions = np.linalg.svd(centred, full_matrices=False)
    left, strengths, directions = left[:, :count], strengths[:count], directions[:count]
    signs = np.sign(directions[range(len(directions)), np.abs(directions).argmax(1)])
    return left * strengths * signs


def foreground_of(maps: np.ndarray) -> np.ndarray:
    """(B, rows, columns) bool of features (B, rows, columns, C): one side of the first component's zero.

    It is the side that has less of the images' borders, as in the pictures of DINOv2 (arXiv 2304.07193): a guess that
    holds where things stand in the middle.
    """
    side = principal_components(maps.reshape(-1, maps.shape[-1]), 1)[:, 0].reshape(maps.shape[:3]) > 0
    border = np.ones(maps.shape[1:3], dtype=bool)
    border[1:-1, 1:-1] = False
    return ~side if side[:, border].mean() > side[:, ~border].mean() else side


def component_colors(maps: np.ndarray, foreground: np.ndarray | None = None) -> np.ndarray:
    """(B, rows, columns, 3) in [0, 1] of features (B, rows, columns, C): three components as red, green and blue.

    They are those of all images together, or of their `foreground` alone, outside of which all is black. Each goes
    from its 1st to its 99th percentile.
    """
    chosen = np.ones(maps.shape[:3], dtype=bool) if foreground is None else foreground
    parts = principal_components(maps[chosen], 3)
    low, high = np.percentile(parts, (1, 99), axis=0)
    colors = np.zeros((*maps.shape[:3], 3))
    colors[chosen] = np.pad(
        np.clip((parts - low) / np.maximum(high - low, 1e-12), 0, 1), [(0, 0), (0, 3 - parts.shape[1])]
    )
    return colors


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace pca",
        description="What an encoder's features tell apart: the three greatest principal components of all patches as "
        "red, green and blue. Like colours are like features, across images, too.",
    )
    add_arguments(parser, "pca.png")
    parser.add_argument(
        "--layer", type=int, default=-1, help="block of a ViT, stage of others, from 0, or from the end: -1 (-1)"
    )
    parser.add_argument("--foreground", action="store_true", help="first split things from background, colour things")
    arguments = parser.parse_args(argv)
    seen = look(arguments)
    maps = feature_map(seen.encoder, seen.images, arguments.layer).float().permute(0, 2, 3, 1).cpu().numpy()
    if maps[..., 0].size < 4:
        raise UserError(f"pca: {maps[..., 0].size} patches in all have no three components; give --size or more images")
    foreground = foreground_of(maps.astype(np.float64)) if arguments.foreground else None
    if foreground is not None and foreground.sum() < 4:
        raise UserError("--foreground: fewer than four patches stand out; leave it out")
    colors = component_colors(maps.astype(np.float64), foreground)
    side = seen.pixels.shape[1]
    places = [(np.arange(side) * count // side) for count in maps.shape[1:3]]
    shown = torch.from_numpy((colors * 255).round().astype(np.uint8))[:, places[0]][:, :, places[1]]
    note = (
        f"{seen.name}, {maps.shape[3]} features of {maps.shape[1]} x {maps.shape[2]} patches: principal components 1, "
    )
    note += "2, 3 as red, green, blue, each from its 1st to its 99th percentile over all images."
    save_values(arguments.out, torch.from_numpy(colors))
    plot_rows([("image", seen.pixels), ("components", shown)], arguments.out, note)
    print(f"{arguments.out}: {len(maps)} images, {maps.shape[1]} x {maps.shape[2]} patches of {maps.shape[3]} features")
    return 0
