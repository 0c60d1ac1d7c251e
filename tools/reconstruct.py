"""What a masked autoencoder restores: ``headrace reconstruct <run or checkpoint> <data> [--out picture.png]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import UserError
from ..pipelines.sources import open_source
from ..train.checkpoint import load_algorithm
from .plots import plot_reconstruction


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace reconstruct", description=__doc__)
    parser.add_argument("checkpoint", help="a run directory, or a step-*.pt in it")
    parser.add_argument("data", help="any images that headrace reads: a folder, shards, ...")
    parser.add_argument("--out", type=Path, default=Path("reconstruction.png"), help="a PNG (reconstruction.png)")
    parser.add_argument("--samples", type=int, default=8, help="images shown, an even number (8)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of images and of the masks (0)")
    arguments = parser.parse_args(argv)
    if arguments.samples < 2 or arguments.samples % 2:
        raise UserError(f"--samples: must be 2, 4, 6, ..., not {arguments.samples}")
    if arguments.out.suffix.lower() != ".png":
        raise UserError(f"--out: {arguments.out} is no .png")
    path, algorithm = load_algorithm(arguments.checkpoint)
    source = open_source(arguments.data)
    plot_reconstruction(algorithm, source, arguments.out, samples=arguments.samples, seed=arguments.seed)
    print(f"{arguments.out}: {algorithm.config.name} of {path}")
    return 0
