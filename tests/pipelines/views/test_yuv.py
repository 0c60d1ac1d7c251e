"""Planes against their formulas in float64 and the planes that a JPEG was made of; crops of them against Pillow's."""

import io

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from headrace.kernels.augment import parameter_table
from headrace.pipelines.images.jpeg import chroma_halved
from headrace.pipelines.images.planes import Planes, planes_size
from headrace.pipelines.spec import ViewSpec
from headrace.pipelines.views.cpu_augment import ViewMaker, resize
from headrace.pipelines.views.cut import decode_fast
from headrace.pipelines.views.yuv import to_planes, to_rgb

SIZES = [(1, 1), (1, 2), (2, 1), (3, 5), (8, 3000), (40, 61), (64, 48)]


def image(height, width, seed=0, coarse=6):
    noise = np.random.default_rng(seed).integers(0, 256, (height // coarse + 2, width // coarse + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def split(planes):
    rows, columns = -(-planes.height // 2), -(-planes.width // 2)
    area = planes.height * planes.width
    luma = planes.flat[:area].reshape(planes.height, planes.width)
    return luma, *planes.flat[area:].reshape(2, rows, columns)


def halved(plane):
    """Means of 2 x 2, the last row and column repeated where there is no other."""
    plane = np.pad(plane, [(0, side % 2) for side in plane.shape], mode="edge")
    return (plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4


def upsampled(plane, height, width):
    """Three parts of the sample itself and one of the nearest other, along both sides."""
    for axis, side in ((0, height), (1, width)):
        near = np.arange(side) // 2
        other = np.clip(near - 1 + 2 * (np.arange(side) % 2), 0, plane.shape[axis] - 1)
        plane = 0.75 * plane.take(near, axis) + 0.25 * plane.take(other, axis)
    return plane


@pytest.mark.parametrize("height, width", SIZES)
def test_planes_are_the_formulas(height, width):
    pixels = image(height, width, coarse=1)
    planes = to_planes(pixels)
    assert planes.flat.size == planes_size(height, width) and planes.shape == (height, width, 3)
    luma, blue, red = split(planes)
    r, g, b = pixels.astype(np.float64).transpose(2, 0, 1)
    assert np.abs(luma - (0.299 * r + 0.587 * g + 0.114 * b)).max() <= 0.502
    for found, exact in (
        (blue, 128 - 0.168735892 * r - 0.331264108 * g + 0.5 * b),
        (red, 128 + 0.5 * r - 0.418687589 * g - 0.081312411 * b),
    ):
        assert np.abs(found - halved(exact)).max() <= 0.501
    cb, cr = (upsampled(plane.astype(np.float64), height, width) - 128 for plane in (blue, red))
    exact = np.stack([luma + 1.402 * cr, luma - 0.344136286 * cb - 0.714136286 * cr, luma + 1.772 * cb], -1)
    assert np.abs(to_rgb(planes) - exact.clip(0, 255)).max() <= 0.501


@pytest.mark.parametrize(
    "subsampling, known", [("4:2:0", (True, True)), ("4:2:2", (True, False)), ("4:4:4", (False, False))]
)
def test_what_a_jpeg_has_halved_is_told_by_its_header(subsampling, known):
    buffer = io.BytesIO()
    Image.fromarray(image(20, 30)).save(buffer, "JPEG", subsampling=subsampling)
    assert chroma_halved(np.frombuffer(buffer.getvalue(), np.uint8)) == known == chroma_halved(buffer.getvalue())


@pytest.mark.parametrize("height, width", [(64, 96), (63, 95)])
def test_chroma_that_a_jpeg_stores_is_found_again(height, width):
    """Planes in the middle of their range, so that no colour is cut off, through a JPEG of the best quality."""
    rows, columns = -(-height // 2), -(-width // 2)
    stored = [(image(h, w, seed)[..., 0] * 0.4 + 76).astype(np.uint8)
              for seed, (h, w) in enumerate([(height, width), (rows, columns), (rows, columns)])]  # fmt: skip
    data = simplejpeg.encode_jpeg_yuv_planes(*stored, quality=100)
    assert chroma_halved(data) == (True, True)
    found = split(to_planes(decode_fast(data), (True, True)))
    for mine, theirs in zip(found, stored, strict=True):
        error = np.abs(mine.astype(int) - theirs)
        assert error.mean() < 0.6 and error[1:-1, 1:-1].max() <= 2
    blurred = split(to_planes(decode_fast(data)))[1]  # means would blur it once more
    assert np.abs(blurred.astype(int) - stored[1]).mean() > 1.5 * np.abs(found[1].astype(int) - stored[1]).mean()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("height, width", SIZES)
def test_crops_of_planes_are_pillows_of_the_same_image(height, width, interpolation):
    planes = to_planes(image(height, width, 3) // 2 + 64)  # no colour is cut off, here after and there before a resize
    flat = planes.flat.copy()
    flat.flags.writeable = False  # as a map is
    planes, whole = Planes(flat, height, width), Image.fromarray(to_rgb(planes))
    method = getattr(Image.Resampling, interpolation.upper())
    boxes = [(0, 0, width, height), (width // 3, height // 4, max(1, width // 2), max(1, height // 2))]
    boxes += [(width - 1, height - 1, 1, 1), (width // 2, 0, width - width // 2, max(1, height // 3))]
    for left, top, w, h in boxes:
        for size in (5, 16, 37):
            out = np.full((size, size, 3), 77, np.uint8)
            resize(planes, (left, top, w, h), interpolation, out)
            exact = whole.crop((left, top, left + w, top + h)).resize((size, size), method)
            error = np.abs(out.astype(int) - np.asarray(exact))
            assert error.max() <= 3 and error.mean() < 0.5


def test_views_of_planes_are_those_of_their_crops():
    """Flip and colours come after the crop: made in one call, they are what they are in two."""
    view = ViewSpec(size=24, jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=1.0)
    planes, maker = to_planes(image(70, 91, 5)), ViewMaker(view)
    boxes = np.array([[[3, 5, 60, 50]], [[11, 0, 31, 70]]], np.int32)
    table = parameter_table(
        jitter=torch.tensor([[1.2, 0.8, 0.7, 0.05]] * 2),
        order=torch.tensor([[0, 1, 2, 3], [3, 1, 0, 2]], dtype=torch.int8),
        gray=torch.zeros(2, dtype=torch.bool),
        sigma=torch.tensor([1.3, 0.0]),
        solarize=torch.zeros(2, dtype=torch.bool),
        flip=torch.tensor([True, False]),
    ).numpy()
    made, apart = (np.empty((2, 24, 24, 3), np.float32) for _ in range(2))
    maker.views(planes, boxes, table, 0, made)
    crops = np.empty((2, 24, 24, 3), np.uint8)
    for copy in range(2):
        resize(planes, boxes[copy, 0], "bilinear", crops[copy])
    maker.finish(crops, table, 0, 2, apart)
    assert np.abs(made - apart).max() * 255 * 0.229 < 1.5  # weights of a mirrored row are summed in another order
    assert np.abs(made - apart).mean() * 255 * 0.229 < 0.01
