"""Bad samples: what stands in for them, what is recorded, when a run stops; and faults that nobody foresaw."""

import json
import multiprocessing
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import UserError
from headrace.pipelines.loaders.base import LoaderError
from headrace.pipelines.loaders.cpu import CpuLoader
from headrace.pipelines.loaders.dali import DaliLoader
from headrace.pipelines.loaders.memory import MemoryLoader
from headrace.pipelines.loaders.quarantine import QUARANTINE_FILE, Quarantine
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.arrays import ArraySource
from headrace.pipelines.spec import InputSpec, ViewSpec

LOADERS = {"dali": DaliLoader, "cpu": CpuLoader, "memory": MemoryLoader}
INPUTS = InputSpec((ViewSpec(size=16),))


def no_scan(data):
    """Header and end marker without pixels: only a decoder finds out."""
    return data[: data.index(b"\xff\xda")] + b"\xff\xd9"


@pytest.fixture
def shards(tmp_path, photo_folder, tar_bytes):
    """A writer of tars: per shard the images, `bad` maps the number of an image to what is done to it."""
    photos = [path.read_bytes() for path in sorted(photo_folder.rglob("*.jpg"))]

    def write(per_shard=6, count=4, bad=()):
        bad = dict(bad)
        for shard in range(count):
            numbers = range(shard * per_shard, (shard + 1) * per_shard)
            files = {f"{n:03d}.jpg": bad.get(n, lambda data: data)(photos[n % len(photos)]) for n in numbers}
            (tmp_path / f"set-{shard}.tar").write_bytes(tar_bytes(files))
        return tmp_path

    return write


def read(loader, steps):
    try:
        return [next(loader) for _ in range(steps)]
    finally:
        loader.close()


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("loader", LOADERS)
def test_the_substitute_is_of_the_same_shard_and_recorded_once(loader, shards, tmp_path):
    folder = shards(bad={5: lambda data: data[:-300], 10: no_scan, 11: lambda data: b""})
    source = open_source(folder)
    file = tmp_path / "run" / QUARANTINE_FILE
    quarantine = Quarantine(source, 0.2, file)
    batches = read(LOADERS[loader](source, INPUTS, Order(24, 6, shuffle=False), quarantine=quarantine), 12)
    expected = [[0, 1, 2, 3, 4, 0], [6, 7, 8, 9, 6, 6], list(range(12, 18)), list(range(18, 24))]
    assert [batch.ids.tolist() for batch in batches] == expected * 3
    found = sorted(records(file), key=lambda record: record["index"])
    assert [record["index"] for record in found] == [5, 10, 11]
    assert [record["shard"] for record in found] == ["set-0.tar", "set-1.tar", "set-1.tar"]
    assert [record["key"] for record in found] == [source.key(n) for n in (5, 10, 11)]
    for record in found[:2]:
        stored = (folder / record["shard"]).read_bytes()[record["offset"] :]
        assert stored.startswith(source.read(record["index"]).tobytes())
    assert "truncated" in found[0]["reason"] and "undecodable" in found[1]["reason"] and "empty" in found[2]["reason"]


def test_the_substitute_in_a_folder_is_the_next_of_the_source(photo_folder, tmp_path):
    for index, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[:5]):
        (tmp_path / f"{index}.jpg").write_bytes(path.read_bytes() if index < 4 else b"no image")
    source = open_source(tmp_path)
    quarantine = Quarantine(source, path=tmp_path / "run" / QUARANTINE_FILE)
    (batch,) = read(MemoryLoader(source, INPUTS, Order(5, 5, shuffle=False), quarantine=quarantine), 1)
    assert batch.ids.tolist() == [0, 1, 2, 3, 0]
    (record,) = records(tmp_path / "run" / QUARANTINE_FILE)
    assert record["shard"] is None and record["offset"] is None and record["key"] == "4.jpg"


@pytest.mark.parametrize("loader", LOADERS)
def test_too_many_bad_images_stop_the_run(loader, shards, tmp_path):
    folder = shards(bad={n: no_scan for n in range(3, 24, 4)})
    file = tmp_path / "run" / QUARANTINE_FILE
    source = open_source(folder)
    with pytest.raises(UserError) as caught:
        quarantine = Quarantine(source, 0.13, file)  # three are let pass
        read(LOADERS[loader](source, INPUTS, Order(24, 8), quarantine=quarantine), 3)
    message = str(caught.value)
    count = len(records(file))  # the loader may have been ahead of the message
    named = int(re.search(r"(\d+) of 24 images cannot", message)[1])
    assert "\n" not in message and 4 <= named <= count <= 6 and "than the 3 that data.max_bad allows" in message
    assert message.count("undecodable pixels") == 3 and str(file) in message
    with pytest.raises(UserError, match=f"{count} of 24 images"):  # and is not started again as it is
        Quarantine(source, 0.13, file)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("damage", ["vanished", "cut", "emptied", "cut while open"])
def test_a_shard_that_is_lost_while_reading(loader, damage, shards, tmp_path):
    """The samples of a lost shard are replaced by different ones of the next."""
    folder = shards()
    source, tar = open_source(folder), folder / "set-1.tar"
    if damage == "cut while open":
        source.read(6)
    tar.unlink() if damage == "vanished" else os.truncate(tar, 0 if damage == "emptied" else 1024)
    quarantine = Quarantine(source, 0.25, tmp_path / QUARANTINE_FILE)
    batches = read(LOADERS[loader](source, INPUTS, Order(24, 6, shuffle=False), quarantine=quarantine), 8)
    expected = [list(range(6)), list(range(12, 18)), list(range(12, 18)), list(range(18, 24))]
    assert [batch.ids.tolist() for batch in batches] == expected * 2
    assert sorted(record["index"] for record in records(tmp_path / QUARANTINE_FILE)) == list(range(6, 12))
    reason = "No such file" if damage == "vanished" else "its size has changed"
    assert all(r["shard"] == "set-1.tar" and reason in r["reason"] for r in records(tmp_path / QUARANTINE_FILE))


@pytest.mark.parametrize("loader", LOADERS)
def test_substitutes_do_not_depend_on_when_the_damage_was_found(loader, shards, tmp_path):
    """From any step on, with the quarantine of before or without: the ids and pixels of the undisturbed run."""
    source = open_source(shards(bad={1: no_scan, 2: lambda d: d[:99], 9: no_scan, 17: lambda d: b"", 23: no_scan}))
    order, file = Order(24, 6, seed=4), tmp_path / QUARANTINE_FILE

    def make(path, **rest):
        return LOADERS[loader](source, INPUTS, order, seed=4, quarantine=Quarantine(source, 0.3, path), **rest)

    whole = read(make(file), 12)
    assert len(records(file)) == 5
    for start in (3, 7):
        for path in (file, None):
            parts = [make(path, rank=rank, world=2) for rank in range(2)]
            for part in parts:
                part.load_state_dict({"step": start})
            parts = [read(part, 3) for part in parts]
            for step in range(3):
                assert torch.equal(torch.cat([part[step].ids for part in parts]), whole[start + step].ids)
                pixels = torch.cat([part[step].views["image"] for part in parts], dim=1)
                assert torch.equal(pixels, whole[start + step].views["image"])
    assert len(records(file)) == 5


@given(
    shards=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    bad=st.sets(st.integers(0, 35)),
    wanted=st.integers(0, 35),
)
@settings(max_examples=100, deadline=None)
def test_candidates(shards, bad, wanted):
    """Every sample once, the own one first, then its shard; a good one is found if there is one."""
    ends = np.cumsum(shards)
    source = ArraySource(np.zeros((int(ends[-1]), 1, 1, 3), np.uint8))

    def neighbours(index):
        shard = int(np.searchsorted(ends, index, side="right"))
        return int(ends[shard] - shards[shard]), int(ends[shard])

    source.neighbours = neighbours
    wanted %= len(source)
    candidates = list(Quarantine(source).candidates(wanted))
    first, last = neighbours(wanted)
    assert candidates[0] == wanted and sorted(candidates) == list(range(len(source)))
    assert sorted(candidates[: last - first]) == list(range(first, last))
    good = set(range(len(source))) - bad
    if good & set(range(first, last)):
        assert first <= next(index for index in candidates if index in good) < last


def _add(path, numbers, barrier):
    barrier.wait(60)
    quarantine = Quarantine(ArraySource(np.zeros((400, 1, 1, 3), np.uint8)), 1.0, path)
    for number in numbers:
        quarantine.add(number, f"by {os.getpid()}")


def test_many_processes_share_a_file(tmp_path):
    """Whole lines, each sample once, and everyone counts what the others found."""
    path = tmp_path / QUARANTINE_FILE
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    shared, own = np.arange(50), np.arange(50, 200).reshape(3, 50)  # the first process has the shared ones alone
    found = [shared, *(np.concatenate([shared, mine]) for mine in own)]
    orders = [np.random.default_rng(n).permutation(ids).tolist() for n, ids in enumerate(found)]
    processes = [context.Process(target=_add, args=(path, order, barrier)) for order in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = records(path)
    assert sorted(record["index"] for record in found) == list(range(200))
    assert len({record["reason"] for record in found}) >= 3


def test_a_quarantine_of_other_data_or_a_torn_one_is_passed_over(tmp_path):
    path = tmp_path / QUARANTINE_FILE
    source = ArraySource(np.zeros((40, 1, 1, 3), np.uint8))
    Quarantine(source, 1.0, path).add(3, "bad\nin two lines")
    line = path.read_text()
    assert line.count("\n") == 1
    path.write_text(line + line.replace("arrays[3]", "other").replace("3", "4") + '["no record"]\n' + line[:20])
    again = Quarantine(source, 1.0, path)
    assert len(again) == 1 and 3 in again
    again.add(5, "after the torn line")
    assert len(Quarantine(source, 1.0, path)) == 2 and path.read_text().count("\n") == 5
    path.write_text(line.replace('"index": 3', '"index": 400'))
    assert len(Quarantine(source, 1.0, path)) == 0


class Faulty:
    """A source whose `fault` nobody foresaw."""

    def __init__(self, source, fault):
        self._source, self._fault = source, fault

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def read(self, index):
        if index == 7:
            raise self._fault
        return self._source.read(index)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", [RuntimeError, KeyError, MemoryError])
def test_an_unforeseen_fault_surfaces_with_its_place(loader, kind, shards):
    fault = kind("storage on fire")
    source = open_source(shards())
    batches = LOADERS[loader](Faulty(source, fault), INPUTS, Order(24, 4, shuffle=False))
    began = time.monotonic()
    with pytest.raises(LoaderError, match=rf"read: set-1.tar/007.jpg of set-1.tar: {type(fault).__name__}: .*on fire"):
        read(batches, 6)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("loader", LOADERS)
def test_a_fault_in_drawing_surfaces(loader, shards, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no dice")

    monkeypatch.setattr("headrace.pipelines.loaders.base.draw_views", fail)
    with pytest.raises(LoaderError, match="draw: step 0: RuntimeError: no dice"):
        read(LOADERS[loader](open_source(shards()), INPUTS, Order(24, 4)), 1)


def test_a_fault_of_dali_itself_surfaces(shards, monkeypatch):
    """One that no image explains."""
    batches = DaliLoader(open_source(shards()), INPUTS, Order(24, 4))

    def fail():
        raise RuntimeError("device lost")

    monkeypatch.setattr(batches._pipeline, "run", fail)
    with pytest.raises(LoaderError, match="decode: step 0: device lost"):
        read(batches, 1)


def threads():
    return {int(name) for name in os.listdir("/proc/self/task")}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("fails", [False, True])
def test_no_thread_survives_close(loader, fails, shards):
    folder = shards(bad={9: no_scan})
    source = open_source(folder)
    extra = {} if loader == "memory" else {"threads": 3}
    read(LOADERS[loader](source, INPUTS, Order(24, 4), **extra), 1)  # the libraries' own pools, once a process
    before = threads()
    source = Faulty(source, ValueError("no")) if fails else source
    batches = LOADERS[loader](source, INPUTS, Order(24, 4), **extra)
    if fails:
        with pytest.raises(LoaderError):
            read(batches, 12)
    else:
        read(batches, 12)
    deadline = time.monotonic() + 5
    while threads() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    left = threads() - before
    assert not left, [Path(f"/proc/self/task/{thread}/comm").read_text() for thread in left]
