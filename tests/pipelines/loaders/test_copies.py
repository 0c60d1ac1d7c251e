"""Copies on a stream of their own, by a stand-in for CUDA that says what was asked of it in which order."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from headrace.pipelines.images.decode import image_size
from headrace.pipelines.loaders.cpu import AHEAD, Buffers, CpuLoader
from headrace.pipelines.loaders.device import CopyStream
from headrace.pipelines.loaders.memory import MemoryLoader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, ViewSpec

INPUTS = InputSpec((ViewSpec(name="a", count=2, size=32), ViewSpec(name="b", size=48, interpolation="bicubic")))


class Event:
    def __init__(self, done):
        self.done = done

    def query(self):
        return self.done

    def synchronize(self):
        self.done = True


class Cuda:
    """What `CopyStream` takes of `torch.cuda`; work of a stream is over at once, or when its event is told so."""

    def __init__(self, done=True):
        self.said, self.events, self.done, self.turns = [], [], done, 0
        self._now = threading.local()

    def Stream(self, device):
        stream = type("Stream", (), {})()
        stream.record_event = self._record
        return stream

    def _record(self):
        assert self.now == "copies", "an event of another stream than that of the copies"
        self.said.append("recorded")
        self.events.append(Event(self.done))
        return self.events[-1]

    @property
    def now(self):
        return getattr(self._now, "stream", "steps")

    @contextmanager
    def stream(self, stream):
        self._now.stream = "copies"
        self.turns += 1
        yield
        self._now.stream = "steps"

    def current_stream(self, device):
        stream = type("Stream", (), {})()
        stream.wait_event = lambda event: self.said.append(f"{self.now} wait for {self.events.index(event)}")
        return stream


class There:
    """A tensor of the GPU."""

    def __init__(self, cuda, value):
        self.cuda, self.value = cuda, value

    def record_stream(self, stream):
        self.cuda.said.append("kept for steps")

    def permute(self, *axes):
        return self.value.permute(*axes)


class Host:
    """A pinned tensor."""

    def __init__(self, cuda, value):
        self.cuda, self.value = cuda, value

    def to(self, device, non_blocking):
        assert non_blocking
        self.cuda.said.append(f"copied by {self.cuda.now}")
        return There(self.cuda, self.value.clone())


def test_copies_come_before_their_event_and_steps_wait_for_it():
    cuda = Cuda()
    copies = CopyStream(torch.device("meta"), cuda)
    sent = copies.send({"a": Host(cuda, torch.ones(2)), "b": Host(cuda, torch.ones(3))})
    assert cuda.said == ["copied by copies"] * 2 + ["recorded"]
    copies.send({"a": Host(cuda, torch.ones(2))})  # of the next batch
    del cuda.said[:]
    assert set(copies.receive(sent)) == {"a", "b"}
    assert cuda.said == ["steps wait for 0"] + ["kept for steps"] * 2


def test_memory_is_lent_until_it_has_been_read():
    cuda, buffers = Cuda(done=False), Buffers((4,), torch.uint8, pin=False)
    copies = CopyStream(torch.device("meta"), cuda)
    places = []
    for _ in range(3):
        images = buffers.take()
        places.append(images.data_ptr())
        copies.send({"a": images})
        del images
        gc.collect()
    assert len(set(places)) == 3  # none has been read
    cuda.events[0].done = True
    copies.send({})
    assert buffers.take().data_ptr() == places[0]
    cuda.events[2].done = True  # but the second has not
    copies.send({})
    assert buffers.take().data_ptr() not in places[1:]
    copies.close()
    gc.collect()
    taken = [buffers.take() for _ in range(4)]
    assert {images.data_ptr() for images in taken} >= set(places)


class ToGpu(CpuLoader):
    """As for a GPU, but for views, which are finished as on a CPU."""

    def __init__(self, *args, cuda, **rest):
        super().__init__(*args, **rest)
        self.cuda, self.fault = cuda, None
        loader = self

        class Copies(CopyStream):
            def send(self, tensors):
                if loader.fault is not None:
                    raise loader.fault
                return super().send({key: Host(cuda, value) for key, value in tensors.items()})

            def receive(self, sent):
                return {key: there.value for key, there in super().receive(sent).items()}

        self._copies, self._sender = Copies(self.device, cuda), ThreadPoolExecutor(1, "headrace-copy")


def test_batches_are_those_of_a_cpu_and_the_next_ones_are_sent_ahead(photo_folder):
    source, order = open_source(photo_folder), Order(24, 8, seed=5)
    cuda = Cuda()
    there, here = ToGpu(source, INPUTS, order, cuda=cuda, threads=2), CpuLoader(source, INPUTS, order, threads=2)
    kept = []
    for step in range(7):
        batch, expected = next(there), next(here)
        kept.append((batch, expected))
        assert batch.step == step
        assert all(future.result().sent.result() for future in there._coming.values())
        assert len(cuda.events) == step + 1 + AHEAD
        assert f"steps wait for {step}" in cuda.said
    for batch, expected in kept:
        assert all(torch.equal(batch.views[name], expected.views[name]) for name in ("a", "b"))
    there.load_state_dict({"step": 2})
    assert torch.equal(next(there).views["a"], kept[2][1].views["a"])
    for loader in (there, here):
        loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("headrace-copy")]


def test_a_fault_of_a_copy_reaches_the_consumer_and_the_next_try_may_succeed(photo_folder):
    loader = ToGpu(open_source(photo_folder), INPUTS, Order(24, 8, seed=5), cuda=Cuda(), threads=2)
    loader.fault = RuntimeError("CUDA error: out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        next(loader)
    loader.fault = None
    loader.load_state_dict({"step": 0})
    assert next(loader).step == 0
    loader.close()


def test_a_bad_image_is_replaced_before_anything_is_sent(photo_folder, tmp_path):
    folder = tmp_path / "photos"
    for number, path in enumerate(sorted(photo_folder.rglob("*.jpg"))):
        target = folder / path.relative_to(photo_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        target.write_bytes(data[: len(data) // 3] if number == 7 else data)
    source, order = open_source(folder), Order(24, 12, seed=1)
    there, here = ToGpu(source, INPUTS, order, cuda=Cuda(), threads=2), CpuLoader(source, INPUTS, order, threads=2)
    for _ in range(4):
        batch, expected = next(there), next(here)
        assert torch.equal(batch.ids, expected.ids) and 7 not in batch.ids
        assert all(torch.equal(batch.views[name], expected.views[name]) for name in ("a", "b"))
    for loader in (there, here):
        loader.close()


def test_images_kept_on_the_device_are_decoded_by_all_threads_and_written_beside_the_steps(photo_folder):
    names, second = set(), threading.Event()

    class Keeps(MemoryLoader):
        _crops_on = ("cpu",)

        def _image(self, index, held):
            raise AssertionError("that of images on the host")

        def _attempt(self, stage, index, *rest):
            if stage == "decode":
                names.add(threading.current_thread().name)
                if len(names) > 1:
                    second.set()
                second.wait(30)  # on a busy machine one thread could be done before another has begun
            return super()._attempt(stage, index, *rest)

    source = open_source(photo_folder)
    sizes = [image_size(source.read(index)) for index in range(24)]
    source.size = sizes.__getitem__
    loader, cuda = Keeps(source, INPUTS, Order(24, 12, seed=1), threads=3), Cuda()
    loader._images._copies = CopyStream(torch.device("cpu"), cuda)
    host = MemoryLoader(open_source(photo_folder), INPUTS, Order(24, 12, seed=1), threads=3)
    for _ in range(5):
        batch, expected = next(loader), next(host)
        assert torch.equal(batch.ids, expected.ids)
        worst = max((batch.views[name] - expected.views[name]).abs().max() for name in ("a", "b"))
        assert worst < 3 / 255 / 0.22  # crops of `crop_resize`: rounded in another place
    assert len(names) > 1 and all(name.startswith("headrace-cut") for name in names)
    assert 24 <= cuda.turns < 2 * 24 and all(loader._images.present)
    for one in (loader, host):
        one.close()
