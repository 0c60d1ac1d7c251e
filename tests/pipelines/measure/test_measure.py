"""Each column of an image against another way of computing it."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from headrace.pipelines.images.decode import DecodeError, decode
from headrace.pipelines.images.reduced import decode_reduced
from headrace.pipelines.measure.jpeg_quality import jpeg_quality
from headrace.pipelines.measure.measure import COLUMNS, MEASURED, add_hashes, measure, unreadable
from headrace.pipelines.measure.statistics import FIGURES, statistics

LYING = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # on its side: orientation 6


def encoded(pixels, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def pixels():
    return smooth(100, 140)


def test_figures_of_pixels(pixels):
    luma, found, _ = statistics(pixels)
    found = dict(zip(FIGURES, found))
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    assert (luma == grey).all()
    values = grey.astype(float)
    assert found["brightness"] == pytest.approx(values.mean() / 255)
    assert found["contrast"] == pytest.approx(values.std() / 255)
    edges = ndimage.laplace(values)[1:-1, 1:-1]
    assert found["sharpness"] == pytest.approx(edges.var())
    hsv = [colorsys.rgb_to_hsv(*(pixel / 255))[1] for pixel in pixels.reshape(-1, 3)[::1]]
    assert found["saturation"] == pytest.approx(np.mean(hsv))
    assert found["entropy"] == pytest.approx(stats.entropy(np.bincount(grey.ravel()), base=2))
    _, counts = np.unique(pixels.reshape(-1, 3) // 16, axis=0, return_counts=True)
    assert found["commonest"] == pytest.approx(counts.max() / counts.sum())


@pytest.mark.parametrize(
    "bars", [(12, 0, 0, 0), (0, 9, 0, 0), (10, 0, 10, 0), (8, 5, 8, 5), (0, 0, 0, 0), (30, 3, 2, 40)]
)
@pytest.mark.parametrize("color", [(0, 0, 0), (250, 250, 250)])
def test_bars_are_what_was_put_around(pixels, bars, color):
    top, left, bottom, right = bars
    height, width = pixels.shape[:2]
    framed = np.full((height + top + bottom, width + left + right, 3), color, np.uint8)
    framed[top : top + height, left : left + width] = pixels
    assert statistics(framed)[2] == (top, left, top + height, left + width)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 2), (50, 3)])
def test_images_of_one_colour_have_no_bars(size):
    luma, found, box = statistics(np.full((*size, 3), 77, np.uint8))
    assert box == (0, 0, *size) and (luma == 77).all()
    assert dict(zip(FIGURES, found)) == pytest.approx(
        {"brightness": 77 / 255, "contrast": 0, "sharpness": 0, "saturation": 0, "entropy": 0, "commonest": 1}
    )


@pytest.mark.parametrize("quality", [1, 5, 20, 49, 50, 51, 75, 90, 95, 99, 100])
@pytest.mark.parametrize("form", [{}, {"progressive": True}, {"subsampling": 0}])
def test_the_quality_that_a_jpeg_was_written_with(pixels, quality, form):
    assert jpeg_quality(encoded(pixels, "JPEG", quality=quality, **form)) == quality


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xdb\x00\x43\x00", b"\x89PNG\r\n"])
def test_no_quality_where_there_is_no_table(data):
    assert np.isnan(jpeg_quality(data))


@pytest.mark.parametrize(
    "kind, options", [("JPEG", {"quality": 95}), ("PNG", {}), ("JPEG", {"quality": 95, "exif": LYING})]
)
@pytest.mark.parametrize("size", [(600, 500), (127, 300), (128, 128), (255, 900), (1100, 2000)])
def test_reduced_pixels_are_those_of_a_smaller_image(kind, options, size):
    """The shorter side in [128, 256), upright, and pixels near those of an antialiased resize of all of them."""
    data = encoded(smooth(*size), kind, **options)
    whole, small = decode(data), decode_reduced(data, 128)
    side = min(whole.shape[:2])
    assert min(small.shape[:2]) == side if side < 256 else 128 <= min(small.shape[:2]) < 256
    wanted = np.asarray(Image.fromarray(whole).resize(small.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(small - wanted).mean() < 1.5


def test_a_row():
    pixels = smooth(300, 420)
    data = encoded(pixels, "JPEG", quality=80)
    row, thumb, inner = measure(np.frombuffer(data, np.uint8))
    assert (row["readable"], row["width"], row["height"], row["bytes"]) == (True, 420, 300, len(data))
    assert row["aspect"] == pytest.approx(1.4) and row["bytes_per_pixel"] == pytest.approx(len(data) / 126_000)
    assert row["jpeg_quality"] == pytest.approx(80, abs=1) and row["border"] == 0 and inner is None
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("L").resize((32, 32), Image.Resampling.LANCZOS))
    assert np.abs(thumb.astype(int) - whole).max() <= 3  # made of pixels that were reduced before
    assert list(MEASURED.names) == list(COLUMNS)


def test_what_is_inside_of_bars_is_the_picture():
    pixels = smooth(128, 128)
    framed = np.zeros((168, 148, 3), np.uint8)
    framed[20:-20, 10:-10] = pixels
    row, _, inner = measure(encoded(framed))
    assert row["border"] == pytest.approx(1 - 128 * 128 / (168 * 148))
    assert (inner == measure(encoded(pixels)).thumb).all()


def test_what_cannot_be_decoded():
    with pytest.raises(DecodeError, match="truncated"):
        measure(encoded(smooth(60, 60), "JPEG")[:-200])
    row = unreadable(123)
    assert row["bytes"] == 123 and not row["readable"] and not row["width"]
    assert all(np.isnan(row[name]) for name in MEASURED.names if MEASURED[name].kind == "f")


def test_hashes_of_a_reduced_image_are_near_those_of_the_whole():
    """Bits that differ from `imagehash.phash` of the whole image: a few of 64."""
    imagehash = pytest.importorskip("imagehash", reason="needs the extra [parity]")
    for seed in range(5):
        data = encoded(smooth(600, 800, seed), "JPEG", quality=90)
        row, thumb, _ = measure(data)
        rows = np.array([row])
        add_hashes(rows, thumb[None])
        theirs = int(str(imagehash.phash(Image.open(io.BytesIO(data)))), 16)
        assert (int(rows["dct_hash"][0]) ^ theirs).bit_count() <= 4
