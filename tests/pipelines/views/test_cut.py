"""Fast decoding is Pillow's, bit for bit, and so are crops."""

import io

import numpy as np
import pytest
from PIL import Image

from headrace.pipelines.images.decode import DecodeError, decode
from headrace.pipelines.views import cut


def jpeg(mode="RGB", size=(61, 43), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, "JPEG", **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_equal_pillow_bit_for_bit_without_pillow(subsampling, progressive, monkeypatch):
    files = [
        jpeg(subsampling=subsampling, progressive=progressive, quality=quality, size=size)
        for quality in (30, 95)
        for size in ((61, 43), (64, 48), (17, 1), (1, 1))
    ]
    files.append(jpeg("L", progressive=progressive))
    expected = [decode(file) for file in files]
    monkeypatch.setattr(cut, "decode", lambda _: pytest.fail("went through Pillow"))
    for file, pixels in zip(files, expected, strict=True):
        file.flags.writeable = False  # as a view of a memory map
        assert np.array_equal(cut.decode_fast(file), pixels)


def test_what_libjpeg_alone_gets_wrong_goes_through_pillow(monkeypatch):
    exif = Image.Exif()
    exif[0x112] = 6
    damaged = jpeg().tobytes()
    middle = damaged.index(b"\xff\xda") + 80
    damaged = np.frombuffer(damaged[:middle] + b"\xff\xd9" + damaged[middle:], np.uint8)  # ends early: a warning
    for file in (jpeg("CMYK"), jpeg(exif=exif), damaged):
        assert np.array_equal(cut.decode_fast(file), decode(file))
    for broken in (jpeg()[:200], np.frombuffer(b"no image", np.uint8)):
        with pytest.raises(DecodeError):
            cut.decode_fast(broken)
    monkeypatch.setattr(cut, "simplejpeg", None)
    assert np.array_equal(cut.decode_fast(jpeg()), decode(jpeg()))
