"""The header of JPEG XL against what was encoded; and that nothing is decoded to learn it."""

import numpy as np
import pytest

from headrace.pipelines.images import jpegxl
from headrace.pipelines.images.decode import DecodeError, TooManyPixels, _formats, decode, open_image

jxl = pytest.importorskip("imagecodecs", reason="needs the extra [formats]")

# width, height: multiples of 8 up to 256, each ratio that the header can name, and sides of 1, 2, 3 and 4 bytes
SIZES = [(1, 1), (8, 8), (16, 24), (256, 256), (120, 100), (400, 300), (450, 300), (160, 90), (125, 100), (200, 100)]
SIZES += [(300, 17), (20, 3000), (9000, 2), (512, 264), (3, 513), (2, 270_000)]


@pytest.mark.parametrize("size", SIZES)
def test_size(size):
    data = jxl.jpegxl_encode(np.zeros((size[1], size[0], 3), np.uint8), lossless=True)
    assert jpegxl.header(data) == size
    if data.startswith(jpegxl._CONTAINER):  # as the largest one is
        return
    stream = (len(data) + 12).to_bytes(4, "big") + b"jxlp" + bytes(4) + data  # in boxes, behind another one
    assert jpegxl.header(jpegxl._CONTAINER + b"\0\0\0\x0cftypjxl " + stream) == size


def test_too_many_pixels_are_refused_before_anything_is_decoded(monkeypatch):
    data = jxl.jpegxl_encode(np.zeros((300, 400), np.uint8), lossless=True)
    _formats()
    monkeypatch.setattr(jxl, "jpegxl_decode", lambda *arguments, **options: pytest.fail("decoded"))
    with pytest.raises(TooManyPixels, match="400x300"):
        open_image(data, most=119_999)
    assert open_image(data, most=120_000).size == (400, 300)


def test_a_truncated_file_is_a_bad_image():
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    data = jxl.jpegxl_encode(noise, lossless=True)
    for length in (1, 3, 12, len(data) // 2, len(data) - 1):
        with pytest.raises(DecodeError):
            decode(data[:length])
    assert (decode(data) == noise).all()
