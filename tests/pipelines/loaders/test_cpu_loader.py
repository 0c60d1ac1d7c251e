"""Our own threads: whole views in memory of their own, bounded work ahead, prompt errors, nothing left running."""

import gc
import importlib.util
import threading
import time

import pytest
import torch
from serial_loader import SerialLoader

from headrace.errors import UserError
from headrace.kernels import use
from headrace.kernels.augment import reference
from headrace.pipelines.loaders import choose as loaders
from headrace.pipelines.loaders.base import LoaderError
from headrace.pipelines.loaders.cpu import AHEAD, CpuLoader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, ViewSpec
from headrace.pipelines.views.reference import reference_views

INPUTS = InputSpec((ViewSpec(name="a", count=2, size=32), ViewSpec(name="b", size=48, interpolation="bicubic")))


def test_a_slow_consumer_gets_the_batches_of_the_simplest_loader(photo_folder):
    """Were a slot written while it is read, or a step lost between threads, the crops would differ."""
    source = open_source(photo_folder)
    order = Order(len(source), 10, seed=5)
    fast, simple = CpuLoader(source, INPUTS, order, seed=5, threads=3), SerialLoader(source, INPUTS, order, seed=5)
    for step in range(9):
        batch, expected = next(fast), next(simple)
        assert batch.step == expected.step == step and torch.equal(batch.ids, expected.ids)
        assert all(torch.equal(batch.views[name], expected.views[name]) for name in ("a", "b"))
        if step == 4:
            time.sleep(0.2)  # everything ahead is ready by now
    fast.close()


def test_batches_that_are_kept_stay_and_memory_of_others_is_used_again(photo_folder):
    source = open_source(photo_folder)
    loader = CpuLoader(source, INPUTS, Order(len(source), 8), threads=2)
    kept = [next(loader) for _ in range(5)]
    copies = [{name: view.clone() for name, view in batch.views.items()} for batch in kept]
    for _ in range(6):
        next(loader)
    for batch, copy in zip(kept, copies, strict=True):
        assert all(torch.equal(batch.views[name], copy[name]) for name in copy)
    assert len({batch.views["a"].data_ptr() for batch in kept}) == 5
    part = kept[0].views["a"][1, 3:5]  # as good as the whole: the memory is shared
    expected = part.clone()
    del kept, batch
    gc.collect()
    places = set()
    for _ in range(12):
        places.add(next(loader).views["a"].data_ptr())
    assert len(places) <= 5 + AHEAD + 1 and torch.equal(part, expected)
    loader.close()


def test_views_of_every_kind_are_those_of_the_reference(photo_folder):
    """Whole views in one call, rare crops finished one by one, turned ones batch by batch."""
    common = dict(size=32, jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.5, gray=0.3)
    views = (
        ViewSpec("plain", count=2, **common),
        ViewSpec("first", gray_first=True, gray_weights="mean", **common),
        ViewSpec("window", crop="window", resize=40, padding=4, **common),
        ViewSpec("taps", antialias=False, interpolation="bicubic", **common),
        ViewSpec("turned", rotate=10.0, **common),
    )
    source, inputs = open_source(photo_folder), InputSpec(views)
    loader = CpuLoader(source, inputs, Order(len(source), 8), threads=2, seed=4)
    batch = next(loader)
    loader.close()
    oracle = reference_views(source, inputs, 4, 0, batch.ids)
    for view in views:
        error = ((batch.views[view.name] - oracle[view.name]) * torch.tensor(view.std).view(3, 1, 1) * 255).abs()
        rounded = view.name in ("taps", "turned")  # a crop's byte may be rounded the other way, a corner turned so
        assert error.quantile(0.995) < (3 if rounded else 0.05) and error.max() < (256 if rounded else 0.1), view.name


def test_a_chosen_implementation_of_augment_is_the_one_that_runs(photo_folder):
    calls = []

    def mine(pixels, table, **options):
        calls.append(len(pixels))
        return reference.augment(pixels, table, **options)

    source = open_source(photo_folder)
    with use("augment", mine):
        loader = CpuLoader(source, INPUTS, Order(len(source), 8), threads=2)
        chosen = next(loader)
    loader.close()
    assert calls == [16, 16, 8, 8]  # the first call of a shape is tried before it counts
    loader = CpuLoader(source, INPUTS, Order(len(source), 8), threads=2)
    own = next(loader)
    loader.close()
    assert calls == [16, 16, 8, 8]  # the first call of a shape is tried before it counts
    assert all(torch.allclose(own.views[name], chosen.views[name], atol=1e-5) for name in ("a", "b"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_are_the_rounded_ones(dtype, photo_folder):
    source, made = open_source(photo_folder), []
    for kind in (dtype, torch.float32):
        loader = CpuLoader(source, INPUTS, Order(len(source), 8), threads=2, dtype=kind)
        made.append(next(loader).views["a"])
        loader.close()
    assert made[0].dtype == dtype and torch.equal(made[0], made[1].to(dtype))
    assert made[0][0].is_contiguous(memory_format=torch.channels_last)


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
        while source.reads < 8 * (step + 1 + AHEAD) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert all(torch.equal(crops[name], kept[name]) for name in kept)  # nothing ahead is written in their place
        assert source.reads == 8 * (step + 1 + AHEAD)  # in step 1, those of the next epoch's first batch, too
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
    missing.add("simplejpeg")  # which proves images sound before DALI is given them
    assert loaders.choose_loader(source, "auto", "cpu") == ("cpu", "no GPU")
    kind, why = loaders.choose_loader(source, "auto", "cuda")
    assert kind == "cpu" and "pip install simplejpeg" in why
    with pytest.raises(UserError, match="data.loader: dali is given .*: pip install simplejpeg"):
        loaders.choose_loader(source, "dali", "cuda")
    missing.add("nvidia")
    assert loaders.choose_loader(source, "auto", "cpu")[0] == "cpu"
    kind, why = loaders.choose_loader(source, "auto", "cuda")
    assert kind == "cpu" and "nvidia-dali" in why
    assert loaders.choose_loader(source, "cpu") == ("cpu", "asked for")
    with pytest.raises(Exception, match="dali is not installed"):
        loaders.choose_loader(source, "dali")
