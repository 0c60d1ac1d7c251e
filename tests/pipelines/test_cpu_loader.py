"""Our own threads: the same pixels as Pillow, bounded work ahead, prompt errors, nothing left running."""

import importlib.util
import io
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from headrace.pipelines import cut, loaders
from headrace.pipelines.base_loader import LoaderError
from headrace.pipelines.cpu_loader import _AHEAD, CpuLoader
from headrace.pipelines.decode import DecodeError, decode
from headrace.pipelines.memory_loader import MemoryLoader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, ViewSpec

INPUTS = InputSpec((ViewSpec(name="a", count=2, size=32), ViewSpec(name="b", size=48, interpolation="bicubic")))


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


@pytest.mark.parametrize(
    "kind, resampling", [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
def test_crops_are_within_a_grey_level_of_pillow(kind, resampling):
    pixels = decode(jpeg(size=(210, 160), quality=95))
    rng = np.random.default_rng(1)
    for _ in range(40):
        left, top = int(rng.integers(0, 150)), int(rng.integers(0, 110))
        width, height = int(rng.integers(1, 211 - left)), int(rng.integers(1, 161 - top))
        out = np.full((48, 48, 3), 77, np.uint8)
        cut.crop_and_resize(pixels, (left, top, width, height), kind, out)
        crop = Image.fromarray(pixels).crop((left, top, left + width, top + height))
        difference = np.abs(out.astype(int) - np.asarray(crop.resize((48, 48), resampling)))
        assert difference.mean() < 0.2 and np.quantile(difference, 0.99) <= 1


def test_a_slow_consumer_gets_the_batches_of_the_simplest_loader(photo_folder):
    """Were a slot written while it is read, or a step lost between threads, the crops would differ."""
    source = open_source(photo_folder)
    order = Order(len(source), 10, seed=5)
    fast, simple = CpuLoader(source, INPUTS, order, seed=5, threads=3), MemoryLoader(source, INPUTS, order, seed=5)
    for step in range(9):
        batch, expected = next(fast), next(simple)
        assert batch.step == expected.step == step and torch.equal(batch.ids, expected.ids)
        assert all(torch.equal(batch.views[name], expected.views[name]) for name in ("a", "b"))
        if step == 4:
            time.sleep(0.2)  # everything ahead is ready by now
    fast.close()


class Counting:
    """Counts what is read; from `fail_at` on, reading fails in an unforeseen way."""

    def __init__(self, source, fail_at=10**9):
        self._source, self.reads, self.fail_at = source, 0, fail_at

    def read(self, index):
        self.reads += 1
        if self.reads > self.fail_at:
            raise ZeroDivisionError("on purpose")
        return self._source.read(index)

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)


def test_work_ahead_is_bounded_and_crosses_epochs(photo_folder):
    source = Counting(open_source(photo_folder))
    loader = CpuLoader(source, INPUTS, Order(24, 8), threads=2)
    for step in range(4):
        _, crops = loader._cut()
        loader._step += 1
        kept = {name: pixels.clone() for name, pixels in crops.items()}
        deadline = time.monotonic() + 5
        while source.reads < 8 * (step + 1 + _AHEAD) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert all(torch.equal(crops[name], kept[name]) for name in kept)  # nothing ahead is written in their place
        assert source.reads == 8 * (step + 1 + _AHEAD)  # in step 1, those of the next epoch's first batch, too
    loader.close()


def test_an_unforeseen_fault_reaches_the_consumer_at_its_step_and_again(photo_folder):
    before = set(threading.enumerate())
    loader = CpuLoader(Counting(open_source(photo_folder), fail_at=16), INPUTS, Order(24, 8, shuffle=False), threads=2)
    began = time.monotonic()
    assert [next(loader).step for _ in range(2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(LoaderError, match="read: .*photo_.*: ZeroDivisionError: on purpose"):
            next(loader)
    loader.close()
    assert time.monotonic() - began < 5 and set(threading.enumerate()) == before


def test_a_fault_in_a_decoding_thread_names_the_sample(photo_folder, monkeypatch):
    def fail(_):
        raise MemoryError("no room")

    monkeypatch.setattr(CpuLoader, "_decode", staticmethod(fail))
    loader = CpuLoader(open_source(photo_folder), INPUTS, Order(24, 8), threads=2)
    with pytest.raises(LoaderError, match="decode: .*photo_.*: MemoryError: no room"):
        next(loader)
    loader.close()


@pytest.mark.parametrize("batches", [0, 1])
def test_close_ends_every_thread_while_batches_are_in_preparation(batches, photo_folder):
    before = set(threading.enumerate())
    loader = CpuLoader(open_source(photo_folder), INPUTS, Order(24, 8), threads=3)
    for _ in range(batches):
        next(loader)
    assert batches == 0 or len(set(threading.enumerate()) - before) > 1
    loader.close()
    loader.close()
    assert set(threading.enumerate()) == before


def test_auto_prefers_our_threads_on_cpus_and_dali_on_gpus(photo_folder, monkeypatch):
    source, missing = open_source(photo_folder), set()
    find = importlib.util.find_spec
    monkeypatch.setattr(loaders.importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    assert loaders.choose_loader(source, "auto", "cpu") == ("cpu", "no GPU")
    assert loaders.choose_loader(source, "auto", "cuda")[0] == "dali"
    missing.add("simplejpeg")
    kind, why = loaders.choose_loader(source, "auto", "cpu")
    assert kind == "dali" and "simplejpeg" in why
    missing.add("nvidia")
    assert loaders.choose_loader(source, "auto", "cpu")[0] == "cpu"
    kind, why = loaders.choose_loader(source, "auto", "cuda")
    assert kind == "cpu" and "nvidia-dali" in why
    assert loaders.choose_loader(source, "cpu") == ("cpu", "asked for")
    with pytest.raises(Exception, match="dali is not installed"):
        loaders.choose_loader(source, "dali")
