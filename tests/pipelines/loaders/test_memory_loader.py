"""Images kept on the device: the views of every other loader, each image read once, and what is bad set aside."""

import numpy as np
import pytest
import torch
from serial_loader import SerialLoader

from headrace.kernels import use
from headrace.pipelines.images.decode import image_size
from headrace.pipelines.loaders.device import to_device
from headrace.pipelines.loaders.memory import MemoryLoader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.arrays import ArraySource
from headrace.pipelines.spec import InputSpec, RandomMask, ViewSpec
from headrace.pipelines.views.reference import reference_views

COLOURS = dict(jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, gray=0.2)
PAIR = ViewSpec("pair", count=2, size=24, scale=(0.2, 1.0), **COLOURS, blur=0.5, blur_sigma=(0.1, 1.0), solarize=0.2)
PLAIN = ViewSpec("plain", size=20, interpolation="bicubic")


class KeepsThere(MemoryLoader):
    """As on a GPU."""

    _crops_on = ("cpu",)


class Sized:
    """A folder that knows the sizes of its images, counts what is read, and may have them wrong."""

    def __init__(self, folder, sizes=None):
        self._folder, self.reads = open_source(folder), []
        self.name, self.classes, self.label, self.key = (
            getattr(self._folder, name) for name in ("name", "classes", "label", "key")
        )
        self.sizes = sizes or {}

    def __len__(self):
        return len(self._folder)

    def read(self, index):
        self.reads.append(index)
        return self._folder.read(index)

    def size(self, index):
        return self.sizes.get(index) or image_size(self._folder.read(index))


def test_views_are_the_oracles(photo_folder):
    source, inputs = Sized(photo_folder), InputSpec((PAIR, PLAIN), RandomMask(grid=(2, 2), ratio=0.5))
    batches = KeepsThere(source, inputs, Order(24, 12, seed=3), seed=3)
    host = MemoryLoader(source, inputs, Order(24, 12, seed=3), seed=3)
    for _ in range(3):  # into the second epoch
        batch, other = next(batches), next(host)
        assert torch.equal(batch.ids, other.ids) and torch.equal(batch.labels, other.labels)
        assert torch.equal(batch.mask.keep, other.mask.keep)
        oracle = reference_views(source, inputs, 3, batch.epoch, batch.ids)
        for view, worst in ((PAIR, 25), (PLAIN, 14)):
            error = (batch.views[view.name] - oracle[view.name]) * torch.tensor(view.std).view(3, 1, 1) * 255
            assert error.abs().mean() < 0.3 and error.abs().max() < worst


def test_on_the_host_views_are_those_of_the_simplest_loader(photo_folder):
    """In the first epoch, of images that threads decode, and in later ones, of those that are held."""
    source, inputs = Sized(photo_folder), InputSpec((PAIR, PLAIN))
    order = Order(24, 8, seed=3)
    host = MemoryLoader(source, inputs, order, seed=3, threads=3)
    simple = SerialLoader(open_source(photo_folder), inputs, order, seed=3)
    reads = []
    for _ in range(12):
        batch, expected = next(host), next(simple)
        assert torch.equal(batch.ids, expected.ids)
        assert all(torch.equal(batch.views[name], expected.views[name]) for name in ("pair", "plain"))
        reads.append(len(source.reads))
    host.close()
    assert (
        set(source.reads) == set(range(24)) and reads[5] == reads[-1] <= 2 * 24
    )  # some are read again, if planned early


def test_every_image_is_read_once(photo_folder):
    source = Sized(photo_folder)
    batches = KeepsThere(source, InputSpec((PLAIN,)), Order(24, 8))
    for _ in range(9):
        next(batches)
    assert sorted(source.reads) == list(range(24))


def test_an_image_that_is_not_as_large_as_its_index_says_is_replaced(photo_folder):
    """Written as it is, it would reach into its neighbour."""
    source = Sized(photo_folder, {5: (3, 4)})
    batches = KeepsThere(source, InputSpec((PLAIN,)), Order(24, 24, shuffle=False), seed=1)
    batch = next(batches)
    ids = batch.ids.tolist()
    assert 5 not in ids and ids[:5] == [0, 1, 2, 3, 4] and batches.stats().bad_images == 1
    assert "(3, 4) in its header or its index" in batches.stats().replaced[0]
    oracle = reference_views(source, InputSpec((PLAIN,)), 1, 0, batch.ids)["plain"]
    assert (batch.views["plain"] - oracle).abs().mean() < 0.01


def test_kernels_all_the_way():
    """Triton for both operators gives what the references give, to a grey level."""
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = np.random.default_rng(0).integers(0, 256, (4, 14, 14, 3), dtype=np.uint8)
    view = ViewSpec("v", count=2, size=12, **COLOURS, blur=0.5, blur_sigma=(0.1, 1.0))
    views = {}
    for impl in ("reference", "triton"):
        with use("crop_resize", impl), use("augment", impl):
            batches = KeepsThere(ArraySource(images), InputSpec((view,)), Order(4, 4), device=device)
            views[impl] = next(batches).views["v"]
    assert views["triton"][0].is_contiguous(memory_format=torch.channels_last)
    error = (views["triton"] - views["reference"]).abs() * 255 * 0.229
    assert error.max() < 2 and error.mean() < 0.01  # a byte that is rounded the other way, through the jitter


def test_the_dtype_of_views():
    images = np.random.default_rng(0).integers(0, 256, (4, 14, 14, 3), dtype=np.uint8)
    exact, half = (
        next(MemoryLoader(ArraySource(images), InputSpec((PLAIN,)), Order(4, 4), dtype=dtype)).views["plain"]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert exact.dtype == torch.float32 and torch.equal(half, exact.bfloat16())


def test_one_buffer_holds_tensors_of_every_dtype():
    tensors = [
        torch.tensor([-1, 2**40]),
        torch.rand(3, 5),
        torch.empty(0, 4),
        torch.tensor([True, False, True]),
        torch.arange(12, dtype=torch.int32).view(3, 4).t(),  # strided
        torch.tensor(7),
    ]
    moved = to_device(tensors, torch.device("cpu"))
    for before, after in zip(tensors, moved, strict=True):
        assert torch.equal(before, after) and before.dtype == after.dtype and after.is_contiguous()
        assert after.untyped_storage().data_ptr() == moved[0].untyped_storage().data_ptr()
        assert after.storage_offset() * after.element_size() % 16 == 0
