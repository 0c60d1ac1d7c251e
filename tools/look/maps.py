"""What attention and pca share: an encoder, a few images as it sees them, and sheets of what is laid over them."""

from __future__ import annotations

import argparse
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...errors import UserError
from ...models.dense.feature_map import multiple_of
from ...pipelines.sources import open_source
from ...pipelines.sources.files import FileSource
from ...pipelines.sources.subset import Subset
from ...pipelines.spec import ByteSource
from ...places import new_file, write_file
from ...train.engine.distributed import pick_device
from ...train.evaluation.embed import embed
from ...train.evaluation.embed_encoder import ENCODER_HELP, load_encoder
from ...train.evaluation.evaluate import say_left_out
from .samples import to_pixels


@dataclass(frozen=True)
class Seen:
    """An encoder in evaluation mode and what it is shown."""

    name: str
    encoder: nn.Module
    images: torch.Tensor  # (B, 3, S, S) normalised, on the encoder's device
    pixels: torch.Tensor  # the same, (B, S, S, 3) uint8 on the CPU


def add_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("encoder", help=ENCODER_HELP)
    parser.add_argument("images", nargs="+", help="image files; or one folder, shards, or another source")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="how many images of a source (%(default)s)")
    parser.add_argument("--size", type=int, metavar="S", help="side of the images in pixels (that of the training)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=new_file, default=out, help=f"a PNG; an .npy of the values beside it ({out})")


def look(arguments: argparse.Namespace) -> Seen:
    """What the arguments name. Raises `UserError` for what is not there, or no image, or does not fit the encoder."""
    if arguments.out.suffix.lower() != ".png":
        raise UserError(f"--out: {arguments.out} is no .png")
    if arguments.samples < 1:
        raise UserError(f"--samples: must be at least 1, not {arguments.samples}")
    found = load_encoder(arguments.encoder)  # by whose rules images are read
    source = some_images(arguments.images, arguments.samples)
    size = arguments.size or found.view.size
    if size < 1 or size % multiple_of(found.module):
        raise UserError(f"--size: {arguments.encoder} takes multiples of {multiple_of(found.module)} px, not {size}")
    view = replace(found.view, size=size, center_fraction=1.0)  # nothing of the middle square is cut away
    shown = embed(nn.Identity(), source, view, loader="cpu", threads=1, max_bad=1.0)
    say_left_out(shown.left_out)
    device = pick_device(arguments.device)
    return Seen(found.name, found.module.to(device), shown.vectors.to(device), to_pixels(shown.vectors, view))


def some_images(names: list[str], count: int) -> ByteSource:
    """Files as they are named, or `count` images of a source, at equal distances."""
    if all(Path(name).is_file() and not name.endswith((".tar", ".beton")) for name in names):
        source = FileSource("", [os.fsencode(Path(name).absolute()) for name in names])
        source.name = ", ".join(names)
        return source
    if len(names) > 1:
        missing = next((name for name in names if not Path(name).exists()), None)
        raise UserError(
            f"{missing}: no such file" if missing else f"{names[0]}: give several image files, or one source alone"
        )
    source = open_source(names[0])
    return Subset(
        source, [len(source) * i // count for i in range(count)] if count < len(source) else range(len(source))
    )


def overlay(pixels: torch.Tensor, maps: torch.Tensor, share: float = 0.65) -> torch.Tensor:
    """Maps (B, rows, columns), each from 0 to its own maximum, as colours over (B, S, S, 3) uint8 pixels."""
    scaled = maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-30)
    large = F.interpolate(scaled[:, None].float(), pixels.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    colors = matplotlib.colormaps["inferno"](large.clamp(0, 1).cpu().numpy())[..., :3] * 255
    return ((1 - share) * pixels + share * torch.from_numpy(colors)).round().to(torch.uint8)


def save_values(path: Path, values: torch.Tensor) -> None:
    """`values` as the .npy beside a picture."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, values.cpu().numpy())
        write_file(path.with_suffix(".npy"), buffer.getvalue())
    except OSError as fault:
        raise UserError(f"--out: {path.with_suffix('.npy')} cannot be written ({fault.strerror})") from None
