"""A small synthetic photo-like image set for the demo: textured shapes on cluttered backgrounds.

Ten classes, five shapes times two textures. Position, size, rotation, colours, background and lighting are drawn
at random for every image, so that comparing pixels says little about the class, while the class is evident to the
eye. Every image is a pure function of ``(seed, split, index)``; nothing is downloaded.

Run as a script: ``python demo_images.py FOLDER [--train N] [--val N] [--seed N]``.
"""

import argparse
import colorsys
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("cross", "disc", "ring", "star", "triangle")
TEXTURES = ("dotted", "striped")
CLASSES = tuple(f"{shape}-{texture}" for shape in SHAPES for texture in TEXTURES)
SPLITS = ("train", "val")


def write_demo_images(folder, *, train=3000, val=600, seed=0):
    """Write the image set to ``folder/<split>/<class>/<index>.jpg`` and return ``folder`` as a ``Path``.

    ``train`` and ``val`` are numbers of images; the classes take turns, so they are balanced to within one image.
    The set appears at ``folder`` in one rename once it is complete. A set that is there already is left as it is,
    whatever numbers and seed it was made with.
    """
    folder = Path(folder)
    if _is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        root = Path(scratch, "set")
        for split in SPLITS:
            for name in CLASSES:
                (root / split / name).mkdir(parents=True)

        def write(split, index):
            picture, name = demo_image(seed, split, index)
            picture.save(root / split / name / f"{index:05d}.jpg", quality=85)

        jobs = [(split, index) for split, count in zip(SPLITS, (train, val)) for index in range(count)]
        # Threads are enough: numpy and Pillow let go of the interpreter lock while they draw and encode.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(write, *zip(*jobs)):
                pass
        try:
            root.rename(folder)
        except OSError:
            if not _is_complete(folder):  # otherwise another process wrote the same set first
                raise
    return folder


def _is_complete(folder):
    return (folder / SPLITS[-1]).is_dir()


def demo_image(seed, split, index):
    """Return image number ``index`` of ``split`` ("train" or "val"), an RGB ``PIL.Image``, and its class name.

    Each side is 144 to 176 pixels long.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    name = CLASSES[index % len(CLASSES)]
    shape, texture = name.split("-")
    width, height = (int(side) for side in rng.integers(144, 177, size=2))
    hue = rng.uniform()
    canvas = _background(rng, width, height, hue)

    # Coordinates in pixels around the object's centre, in the object's own rotation.
    radius = min(width, height) * rng.uniform(0.30, 0.42)
    centre_x, centre_y = np.array([width, height]) * rng.uniform(0.42, 0.58, size=2)
    column = np.arange(width, dtype=np.float32)[None, :] - np.float32(centre_x)
    row = np.arange(height, dtype=np.float32)[:, None] - np.float32(centre_y)
    turn = rng.uniform(0, 2 * np.pi)

    shadow_x, shadow_y = radius * rng.uniform(-0.16, 0.16, size=2)
    shadow = _outline(shape, *_rotate(column - shadow_x, row - shadow_y, turn), radius)
    canvas *= 1 - 0.45 * _coverage(shadow, softness=0.12 * radius)

    distance = _outline(shape, *_rotate(column, row, turn), radius)
    fill = _texture(rng, texture, column, row, radius)
    # Far in hue from the background, one colour light and one dark, so that shape and texture both stand out.
    front = hue + rng.uniform(0.25, 0.75)
    light = _colour(front, rng.uniform(0.15, 0.60), rng.uniform(0.85, 1.00))
    dark = _colour(front + rng.uniform(-0.2, 0.2), rng.uniform(0.60, 0.95), rng.uniform(0.30, 0.55))
    if rng.uniform() < 0.5:
        light, dark = dark, light
    body = dark + (light - dark) * fill
    canvas += (body - canvas) * _coverage(distance)

    slope_x, slope_y = rng.uniform(-0.25, 0.25, size=2)
    canvas *= rng.uniform(0.80, 1.05) * (1 + slope_x * column / width + slope_y * row / height)[..., None]
    canvas += rng.normal(0, 0.012, size=canvas.shape)
    return Image.fromarray((canvas.clip(0, 1) * 255).round().astype(np.uint8)), name


def _background(rng, width, height, hue):
    """Return a cluttered backdrop around ``hue``: float32 RGB in 0..1, shape (height, width, 3)."""
    blotches = np.stack([_colour(hue + rng.uniform(-0.12, 0.12), rng.uniform(0.15, 0.55), rng.uniform(0.35, 0.90))
                         for _ in range(9)]).reshape(3, 3, 3)
    picture = Image.fromarray((blotches * 255).astype(np.uint8))
    # Drawn at twice the size and reduced, which smooths the edges.
    picture = picture.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(8, 17)):
        colour = _colour(hue + rng.uniform(-0.2, 0.2), rng.uniform(0.1, 0.6), rng.uniform(0.25, 0.95))
        corners = rng.uniform(0, 1, size=2) * (2 * width, 2 * height) + rng.normal(0, 0.14 * width, size=(4, 2))
        ink = tuple(int(channel) for channel in colour * 255)
        if rng.uniform() < 0.5:
            draw.polygon([tuple(corner) for corner in corners], fill=ink)
        else:
            draw.line([tuple(corner) for corner in corners], fill=ink, width=int(rng.integers(3, 12)), joint="curve")
    return np.asarray(picture.reduce(2), dtype=np.float32) / 255


def _outline(shape, x, y, radius):
    """Return the signed distance to the outline of ``shape``, in pixels and negative inside; ``radius`` in pixels."""
    reach = np.hypot(x, y)
    if shape == "disc":
        return reach - 0.90 * radius
    if shape == "ring":
        return np.abs(reach - 0.74 * radius) - 0.25 * radius
    if shape == "cross":
        x, y = np.abs(x), np.abs(y)
        return np.maximum(np.maximum(x, y) - 0.95 * radius, np.minimum(x, y) - 0.30 * radius)
    if shape == "star":
        return _spikes(x, y, reach, 5, 1.1 * radius, 0.48 * radius)
    # The inner corners of a "star" with three points lie on the sides of a triangle when they are half as far out.
    return _spikes(x, y, reach, 3, 1.2 * radius, 0.60 * radius)


def _spikes(x, y, reach, points, outer, inner):
    """Return the distance to a star whose points lie ``outer`` and whose inner corners ``inner`` from the centre."""
    half = np.pi / points
    angle = np.abs((np.arctan2(y, x) + half) % (2 * half) - half)  # folded: 0 at a point, half at an inner corner
    edge_x, edge_y = inner * np.cos(half) - outer, inner * np.sin(half)
    along_x, along_y = reach * np.cos(angle) - outer, reach * np.sin(angle)
    return (along_y * -edge_x + along_x * edge_y) / np.hypot(edge_x, edge_y)


def _texture(rng, texture, column, row, radius):
    """Return the share of the first colour in the texture, in 0..1, shape (height, width, 1)."""
    x, y = _rotate(column, row, rng.uniform(0, 2 * np.pi))
    period = radius * rng.uniform(0.26, 0.40)
    x, y = (x / period + rng.uniform()) % 1 - 0.5, (y / period + rng.uniform()) % 1 - 0.5
    distance = np.abs(x) - 0.25 if texture == "striped" else np.hypot(x, y) - 0.33
    return _coverage(distance * period)


def _coverage(distance, softness=0.5):
    """Return how much of each pixel lies inside, shape (height, width, 1), fading over +-``softness`` pixels."""
    return np.clip(0.5 - distance / (2 * softness), 0, 1)[..., None]


def _rotate(x, y, angle):
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * x + sine * y, cosine * y - sine * x


def _colour(hue, saturation, value):
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the demo's synthetic image set.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=3000, help="number of training images")
    parser.add_argument("--val", type=int, default=600, help="number of validation images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_demo_images(options.folder, train=options.train, val=options.val, seed=options.seed)
