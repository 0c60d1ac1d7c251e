"""Pictures with details, and what becomes of copies, in thumbnails and in files."""

import io

import numpy as np
from PIL import Image


def picture(seed, size=(160, 120)):
    """Random shapes of four scales on top of each other: no two are alike."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (3, 8, 24, 60)]
    total = sum(
        weight * np.asarray(layer.resize(size, Image.Resampling.BICUBIC), float)
        for weight, layer in zip((0.45, 0.25, 0.15, 0.15), layers)
    )
    return Image.fromarray(np.clip((total - 128) * 1.6 + 128, 0, 255).astype(np.uint8))


def jpeg(image, quality=90):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_pictures(folder, files):
    """{name: image or bytes} as files below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else jpeg(content))
    return folder
