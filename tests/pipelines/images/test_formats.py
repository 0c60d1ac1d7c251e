"""What each image format means: the rows of the table in docs/data.md that `test_views.py` does not compare."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from headrace.pipelines.images.decode import decode, image_size
from headrace.pipelines.views.cut import decode_fast

BASE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(
    (56, 40), Image.Resampling.BICUBIC
)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_alpha_is_dropped_not_blended():
    pixels = np.dstack([np.asarray(BASE), np.full((40, 56), 0, np.uint8)])  # wholly transparent
    assert np.array_equal(decode(encoded(Image.fromarray(pixels), "PNG")), np.asarray(BASE))
    gray = np.dstack([np.asarray(BASE.convert("L")), np.full((40, 56), 9, np.uint8)])
    assert np.array_equal(decode(encoded(Image.fromarray(gray), "PNG"))[..., 2], gray[..., 0])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_counts(kind):
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "blue")]
    data = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert (decode(data) == (255, 0, 0)).all() and image_size(data) == (12, 16)


def test_ycck_is_turned_into_cmyk_first():
    """The same file read as CMYK and, by its Adobe marker, as YCCK, whose colours are then converted by the formula."""
    cmyk = bytearray(encoded(BASE.convert("CMYK"), "JPEG", quality=95, subsampling=0))
    marker = cmyk.index(b"Adobe") + 11
    assert cmyk[marker] == 0
    # Pillow hands out inverted what an Adobe file holds
    y, cb, cr, k = (255 - np.asarray(c).astype(float) for c in Image.open(io.BytesIO(bytes(cmyk))).split())
    assert (k == 255).all()  # no black ink in this file
    cmyk[marker] = 2
    red, green = y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
    inks = np.clip(np.stack([red, green, y + 1.772 * (cb - 128)], axis=-1), 0, 255)
    assert np.abs(decode_fast(bytes(cmyk)) - (255 - inks)).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    data = encoded(BASE, "JPEG", quality=95, exif=exif)
    plain = np.asarray(Image.open(io.BytesIO(encoded(BASE, "JPEG", quality=95))))
    upright = {
        1: plain,
        2: plain[:, ::-1],
        3: plain[::-1, ::-1],
        4: plain[::-1],
        5: plain.transpose(1, 0, 2),
        6: plain[::-1].transpose(1, 0, 2),
        7: plain[::-1, ::-1].transpose(1, 0, 2),
        8: plain[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    assert np.array_equal(decode_fast(data), upright) and image_size(data) == upright.shape[:2]


def test_cmyk_is_converted_without_a_profile():
    inks = np.random.default_rng(1).integers(0, 256, (6, 6, 4)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    data = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0)
    expected = (255.0 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    assert np.abs(decode_fast(data) - expected).max() < 8


def test_of_sixteen_bits_the_upper_eight_count():
    """Colour too, which Pillow cannot write: one row of two pixels by hand."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    row = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">6H", 0x1234, 0x80FF, 0xFF00, 0x00FF, 0x7F80, 0xFFFF)))
    pixels = decode(b"\x89PNG\r\n\x1a\n" + head + row + chunk(b"IEND", b""))
    assert pixels.tolist() == [[[0x12, 0x80, 0xFF], [0x00, 0x7F, 0xFF]]]


def test_pgm_is_gray():
    gray = BASE.convert("L")
    assert np.array_equal(decode(encoded(gray, "PPM")), np.dstack([np.asarray(gray)] * 3))
