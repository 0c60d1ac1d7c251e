"""Stored pixels whose crops a GPU cuts: rows of them on their way there, and images that stay there."""

import dataclasses

import numpy as np
import pytest
import torch

from headrace.pipelines.images.planes import Planes, planes_size
from headrace.pipelines.loaders.cpu import Buffers, CpuLoader
from headrace.pipelines.loaders.memory import MemoryLoader
from headrace.pipelines.loaders.packed import Packed
from headrace.pipelines.order import Order
from headrace.pipelines.pixels.command import write_pixels
from headrace.pipelines.pixels.layout import Request
from headrace.pipelines.pixels.sidecars import open_pixels
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, ViewSpec

# As bytes: normalised by nothing, neither coloured nor turned.
SMALL = ViewSpec("small", count=2, size=24, jitter=0.0, mean=(0.0,) * 3, std=(1 / 255,) * 3)
INPUTS = InputSpec((SMALL, ViewSpec("large", size=48, interpolation="bicubic", mean=(0.0,) * 3, std=(1 / 255,) * 3)))


class CutsThere(CpuLoader):
    _crops_on = ("cpu",)  # where the kernel's reference stands for it


class KeepsThere(MemoryLoader):
    _crops_on = ("cpu",)


@pytest.fixture(scope="module", params=["rgb", "yuv420"])
def stored(request, photo_folder, tar_bytes, tmp_path_factory):
    """(source, its pixels): two tars of odd and even sides, one sample of which has no pixels, as it is damaged."""
    folder, paths = tmp_path_factory.mktemp(request.param), sorted(photo_folder.rglob("*.jpg"))[:12]
    for number in range(2):
        files = {f"{k}.jpg": path.read_bytes() for k, path in enumerate(paths[6 * number : 6 * number + 6])}
        if number:
            files["3.jpg"] = files["3.jpg"][: len(files["3.jpg"]) // 3]
        (folder / f"train-{number}.tar").write_bytes(tar_bytes(files))
    write_pixels(folder, Request(request.param), workers=1, progress=False)
    source = open_source(folder)
    return source, open_pixels(source, "require")


def batches(kind, source, pixels, steps=5, inputs=INPUTS):
    loader = kind(source, inputs, Order(12, 5, seed=3), seed=3, threads=2, pixels=pixels)
    found = [next(loader) for _ in range(steps)]
    loader.close()
    return loader, found


def assert_alike(found, expected, form):
    """Of planes to a level, at roundings of other sums, a few in a thousand. Of RGB, which is rounded between its
    passes, and of which the threads take the other one first where that costs less, to some levels."""
    most, share = (3.01, 0.1) if form == "rgb" else (1.01, 5e-3)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.ids, theirs.ids) and 9 not in ours.ids
        for view in INPUTS.views:
            apart = (ours.views[view.name] - theirs.views[view.name]).abs()
            assert apart.max() < most and (apart > 0.5).float().mean() < share


def test_crops_of_rows_are_those_of_the_images(stored):
    there, found = batches(CutsThere, *stored)
    assert there._rows and there._bad.indices() == [9]
    assert_alike(found, batches(CpuLoader, *stored)[1], stored[1].form)


def test_images_kept_there_are_kept_as_they_are_stored_and_nowhere_else(stored):
    source, pixels = stored
    there, found = batches(KeepsThere, source, pixels)
    assert_alike(found, batches(CpuLoader, *stored)[1], stored[1].form)
    sides = [pixels.size(n) or (0, 0) for n in range(12)]
    stored_bytes = sum(3 * h * w if pixels.form == "rgb" else planes_size(h, w) for h, w in sides)
    assert stored_bytes <= there._images.pixels.numel() < stored_bytes + 4
    assert there._pixels._kept == {}


@pytest.mark.parametrize("kind", [CutsThere, KeepsThere])
def test_crops_without_antialiasing_are_cut_there_from_rgb_and_here_from_planes(kind, stored):
    """By PyTorch's own resize here, which rounds halves to even."""
    inputs = InputSpec((dataclasses.replace(SMALL, antialias=False),))
    there, found = batches(kind, *stored, inputs=inputs)
    assert (there._rows, getattr(there, "_images", True) is not None) == (
        (True, True) if stored[1].form == "rgb" else (False, kind is CutsThere)
    )
    expected = batches(CpuLoader, *stored, inputs=inputs)[1]
    for ours, theirs in zip(found, expected, strict=True):
        apart = (ours.views["small"] - theirs.views["small"]).abs()
        assert apart.max() < 1.01 and (apart > 0.5).float().mean() < 2e-2


def test_no_other_rows_are_sent(stored, monkeypatch):
    """Half of each image, in the middle."""
    inputs = InputSpec((ViewSpec(size=16, scale=(0.2, 0.2), ratio=(1.0, 1.0), jitter=0.0),))
    sent = []
    monkeypatch.setattr(
        Packed, "crops", lambda self, pixels, *rest: sent.append((self, pixels)) or crops(self, pixels, *rest)
    )
    batches(CutsThere, *stored, inputs=inputs)
    for packed, pixels in sent:
        whole = Packed(packed.form, packed.sizes)
        assert pixels.numel() == packed.length < 0.7 * whole.length


crops = Packed.crops


def test_whole_planes_and_some_rows_of_them_lie_where_they_are_said_to():
    random, sizes, rows = np.random.default_rng(5), [(5, 7), (8, 3), (1, 1)], [(2, 4), (0, 8), (0, 1)]
    images = [Planes(random.integers(0, 256, planes_size(h, w), np.uint8), h, w) for h, w in sizes]
    for taken in (None, rows):
        packed = Packed("yuv420", sizes, taken)
        out = np.zeros(packed.length, np.uint8)
        for number, image in enumerate(images):
            for start, flat in packed.pieces(number, image):
                out[start : start + len(flat)] = flat
        for number, ((height, width), image) in enumerate(zip(sizes, images)):
            first, end = (0, height) if taken is None else taken[number]
            half, area = (width + 1) // 2, height * width
            places = packed.offsets[number].tolist()
            assert np.array_equal(
                out[places[0] + first * width : places[0] + end * width], image.flat[first * width : end * width]
            )
            for plane, begin in enumerate((area, area + (height + 1) // 2 * half)):
                some = range(max(first - 1, 0) // 2, min((end + 1) // 2 + (end < height), (height + 1) // 2))
                for row in some:
                    at = places[1 + plane] + row * half
                    assert np.array_equal(
                        out[at : at + half], image.flat[begin + row * half : begin + (row + 1) * half]
                    )


def test_a_buffer_that_has_grown_serves_smaller_batches():
    buffers = Buffers((0,), torch.uint8, pin=False)
    first = buffers.take(100)
    assert len(first) == 100
    place = first.data_ptr()
    del first
    second = buffers.take(120)  # within the fourth that it was given more
    assert len(second) == 120 and second.data_ptr() == place
    other = buffers.take(80)
    assert other.data_ptr() != place and len(other) == 80
    del second, other
    assert len(buffers.take(400)) == 400
