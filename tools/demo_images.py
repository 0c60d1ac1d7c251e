"""A small synthetic image set for the demo: confetti of one shape and one texture on a cluttered grey backdrop.

Ten classes, five shapes times two textures. Positions, sizes, rotations and colours of the pieces, backdrop and
lighting are drawn at random for every image, so that comparing pixels says little about the class, while the class
is evident to the eye. Every image is a pure function of ``(seed, split, index)``; nothing is downloaded.

Run as a script: ``python demo_images.py FOLDER [--train N] [--val N] [--seed N]``.
"""

import argparse
import colorsys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..cores import cores

SHAPES = ("cross", "disc", "ring", "star", "triangle")
TEXTURES = ("solid", "striped")
CLASSES = tuple(f"{shape}-{texture}" for shape in SHAPES for texture in TEXTURES)
SPLITS = ("train", "val")
PIECES = 3  # along each side of an image


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
        # Threads rather than processes: nothing to import again, and Pillow encodes without the interpreter lock.
        with ThreadPoolExecutor(cores()) as pool:
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
    return masked_demo_image(seed, split, index)[:2]


def masked_demo_image(seed, split, index):
    """The same, and which pixels more than half of which lie in a piece: bool of shape (height, width)."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    name = CLASSES[index % len(CLASSES)]
    shape, texture = name.split("-")
    width, height = (int(side) for side in rng.integers(144, 177, size=2))
    canvas, mask = _background(rng, width, height), np.zeros((height, width), bool)

    # A jittered grid at a random offset, one piece more along each side than fits: those at the border are cut off.
    cell = np.array([width, height]) / PIECES
    offset = rng.uniform(-0.5, 0.5, size=2)
    for place in np.ndindex(PIECES + 1, PIECES + 1):
        centre = (place + offset + rng.uniform(-0.12, 0.12, size=2)) * cell
        _draw_piece(rng, canvas, mask, shape, texture, centre, cell.min() * rng.uniform(0.38, 0.50))

    slope_x, slope_y = rng.uniform(-0.15, 0.15, size=2)
    light = slope_x * np.linspace(-0.5, 0.5, width)[None, :] + slope_y * np.linspace(-0.5, 0.5, height)[:, None]
    canvas *= (rng.uniform(0.90, 1.05) * (1 + light))[..., None]
    canvas += 0.012 * rng.standard_normal(canvas.shape, dtype=np.float32)
    return Image.fromarray((canvas.clip(0, 1) * 255).round().astype(np.uint8)), name, mask


def _background(rng, width, height):
    """Return a backdrop of soft blotches and sharp scraps: float32 RGB in 0..1, shape (height, width, 3).

    Its hue and saturation are fixed. A masked autoencoder predicts each patch relative to the patch's own spread, so
    in a flat patch the hue is all there is to predict: with random hues, the features would tell hues, not shapes.
    """
    blotches = np.stack([_colour(0.6, 0.15, rng.uniform(0.50, 0.66)) for _ in range(9)]).reshape(3, 3, 3)
    picture = Image.fromarray((blotches * 255).astype(np.uint8))
    # Drawn at twice the size and reduced, which smooths the edges.
    picture = picture.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(4, 8)):
        ink = tuple(int(channel) for channel in _colour(0.6, 0.15, rng.uniform(0.46, 0.70)) * 255)
        corners = rng.uniform(0, 1, size=2) * (2 * width, 2 * height) + rng.normal(0, 0.14 * width, size=(4, 2))
        corners = [tuple(corner) for corner in corners]
        if rng.uniform() < 0.5:
            draw.polygon(corners, fill=ink)
        else:
            draw.line(corners, fill=ink, width=int(rng.integers(3, 12)), joint="curve")
    return np.asarray(picture.reduce(2), dtype=np.float32) / 255


def _draw_piece(rng, canvas, mask, shape, texture, centre, radius):
    """Draw one piece with its shadow into ``canvas`` and ``mask``; ``centre`` (x, y), ``radius`` are in pixels."""
    first = np.maximum(centre - 1.4 * radius, 0).astype(int)
    rows, columns = (slice(low, max(int(high), 0)) for low, high in zip(first[::-1], (centre + 1.4 * radius)[::-1]))
    window = canvas[rows, columns]
    # Coordinates in pixels around the centre, as a row and a column.
    x = np.arange(window.shape[1], dtype=np.float32)[None, :] + np.float32(first[0] - centre[0])
    y = np.arange(window.shape[0], dtype=np.float32)[:, None] + np.float32(first[1] - centre[1])
    radius = np.float32(radius)
    turn = rng.uniform(0, 2 * np.pi)

    shadow = _outline(shape, *_rotate(x - 0.08 * radius, y - 0.10 * radius, turn), radius)
    window *= 1 - 0.35 * _coverage(shadow, softness=0.12 * radius)

    hue = rng.uniform()
    first_colour = _colour(hue, rng.uniform(0.15, 0.60), rng.uniform(0.85, 1.00))
    second_colour = _colour(hue + rng.uniform(-0.2, 0.2), rng.uniform(0.60, 0.95), rng.uniform(0.25, 0.50))
    if rng.uniform() < 0.5:
        first_colour, second_colour = second_colour, first_colour
    body = first_colour
    if texture == "striped":
        body = first_colour + (second_colour - first_colour) * _stripes(rng, x, y, radius)
    covered = _coverage(_outline(shape, *_rotate(x, y, turn), radius))
    window += (body - window) * covered
    mask[rows, columns] |= covered[..., 0] > 0.5


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


def _stripes(rng, x, y, radius):
    """Return where the stripes are, in 0..1, shape (height, width, 1): at a random angle, each as wide as its gap."""
    across, _ = _rotate(x, y, rng.uniform(0, 2 * np.pi))
    period = radius * np.float32(rng.uniform(0.50, 0.70))
    phase = (across / period + np.float32(rng.uniform())) % 1 - 0.5
    return _coverage((np.abs(phase) - 0.25) * period)


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
