"""Images of any size and format -> a tree of small JPEGs, so that a demo does not decode for hours."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ..cores import cores
from ..errors import UserError
from ..pipelines.images.decode import DecodeError, decode
from ..pipelines.spec import ByteSource

SIDE = 192  # pixels of the longer side
LIMIT = 4000  # images


def write_thumbnails(source: ByteSource, folder: Path) -> list[str]:
    """Writes at most `LIMIT` images of the source, chosen at random, each at most `SIDE` pixels long, to `folder`.

    Labelled images go to a folder per class. The tree appears under its name when it is complete. Returns what had to
    be left out, as "key: reason"; raises `UserError` if that is everything.
    """
    scratch = folder.with_name(f".{folder.name}-unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    chosen = np.random.default_rng(0).permutation(len(source))[:LIMIT]
    print(f"making {len(chosen):,} thumbnails of {source.name}", flush=True)

    def write(index: int) -> str | None:
        try:
            image = Image.fromarray(decode(source.read(index)))
        except (OSError, DecodeError) as fault:
            return f"{source.key(index)}: {fault}"
        image.thumbnail((SIDE, SIDE))
        label = source.label(index)
        parent = scratch if label < 0 else scratch / source.classes[label]
        parent.mkdir(parents=True, exist_ok=True)
        image.save(parent / f"{index:08d}.jpg", quality=90)
        return None

    with ThreadPoolExecutor(cores()) as pool:  # Pillow decodes and resizes without the interpreter lock
        left_out = [line for line in pool.map(write, sorted(chosen.tolist())) if line]
    if len(left_out) == len(chosen):
        raise UserError(f"{source.name}: none of {len(chosen)} images can be decoded, e.g. {left_out[0]}")
    scratch.rename(folder)
    return left_out
