"""How often I-JEPA's encoder sees each patch: ``python -m headrace.benchmarks.visibility [--out FILE.png]``.

Two maps of a 16 x 16 grid, by the masks of I-JEPA's authors and by ours; beside each the share of every row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from ..errors import run_command
from ..pipelines.spec import MaskSpec, PublishedBlocksMask, TargetBlocksMask
from ..pipelines.views.masks import draw_mask

GRID, BATCH = (16, 16), 32


def visibility(spec: MaskSpec, batches: int, seed: int = 0) -> torch.Tensor:
    """(rows, columns): the share of each patch in all that the encoder sees, over batches of 32 images; sums to 1."""
    counts = torch.zeros(spec.patches)
    for batch in range(batches):
        mask = draw_mask(spec, seed, 0, torch.arange(batch * BATCH, (batch + 1) * BATCH))
        counts += (~mask.hidden).sum(0)
    return (counts / counts.sum()).view(spec.grid)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace.benchmarks.visibility", description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="a PNG of the two maps")
    parser.add_argument("--batches", type=int, default=400)
    options = parser.parse_args(arguments)
    specs = {"as published": PublishedBlocksMask(grid=GRID), "unbiased": TargetBlocksMask(grid=GRID, kept=59)}
    maps = {name: visibility(spec, options.batches) for name, spec in specs.items()}
    for name, shares in maps.items():
        print(f"{name}: share of each row, from the top")
        print("  " + " ".join(f"{share:.3f}" for share in shares.sum(1).tolist()))
    if options.out:
        _draw(maps, options.out)
    return 0


def _draw(maps: dict[str, torch.Tensor], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    largest = max(shares.max() for shares in maps.values()) * 256
    for axes, (name, shares) in zip(figure.subplots(1, 2), maps.items()):
        image = axes.imshow(shares * 256, vmin=0, vmax=largest, cmap="viridis")
        axes.set(title=name, xticks=(), yticks=())
    figure.colorbar(image, ax=figure.axes, label="seen, relative to an even share")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(run_command(main))
