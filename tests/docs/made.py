"""Data sets of others, in small."""

from pathlib import Path

import numpy as np
from PIL import Image

from headrace.pipelines.sources.voc import CATEGORIES


def make_deep(root: Path) -> None:
    """Eight images of four bands in `tiles`, and eight gray ones of sixteen bits in `scans`."""
    for name in ("tiles", "scans"):
        (root / name).mkdir()
    for number in range(8):
        image = np.random.default_rng(number).integers(0, 10000, (6, 6, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint16)
        np.save(root / "tiles" / f"{number}.npy", image)
        Image.fromarray(image[..., 0]).save(root / "scans" / f"{number}.png")


def make_voc(root: Path) -> None:
    """VOC 2007 with three photos in each split; every photo shows the categories that its number is divisible by."""
    folder = root / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, first in (("trainval", 1), ("test", 4)):
        numbers = range(first, first + 3)
        (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{n:06}\n" for n in numbers))
        for column, category in enumerate(CATEGORIES, 1):
            lines = [f"{n:06} {1 if n % column == 0 else -1}\n" for n in numbers]
            (folder / f"ImageSets/Main/{category}_{split}.txt").write_text("".join(lines))
        for n in numbers:
            pixels = np.random.default_rng(n).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"JPEGImages/{n:06}.jpg")
            box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
            thing = f"<object><name>aeroplane</name><difficult>0</difficult>{box}</object>"
            size = "<size><width>50</width><height>40</height><depth>3</depth></size>"
            (folder / f"Annotations/{n:06}.xml").write_text(f"<annotation>{size}{thing}</annotation>")
