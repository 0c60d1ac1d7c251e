"""One contract for all five loaders. What a loader cannot honour it declares with `exact = False`, and is held to less.

The same 24 photos lie in a folder (cpu, dali, memory), in three tars that are streamed (webdataset) and in a .beton.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headrace.pipelines.images.decode import decode
from headrace.pipelines.loaders.base import LoaderError
from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.loaders.stream import _hash
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import ChangingInputs, InputSpec, RandomMask, ViewSpec
from headrace.pipelines.views.masks import draw_mask
from headrace.pipelines.views.reference import reference_views

KINDS = ("cpu", "dali", "memory", "webdataset", "ffcv")
PAIR = ViewSpec("pair", count=2, size=32, scale=(0.6, 1.0), jitter=0.8, brightness=0.4, hue=0.1, gray=0.2, blur=0.5)
PLAIN = ViewSpec("plain", size=24, scale=(0.6, 1.0), interpolation="bicubic")
MASK = RandomMask(grid=(6, 6), ratio=0.5)
PAIR_AND_PLAIN = (PAIR, PLAIN)
INPUTS = InputSpec(PAIR_AND_PLAIN, MASK)
WITHIN = 5  # seconds in which a fault must reach the consumer


class Photos:
    """One loader's data: `name` opens it, `read` and `label` take the ids that this loader gives."""

    def __init__(self, name, folder, ids):
        self.name, self.ids, self._folder = name, ids, open_source(folder)
        self._index = {identity: index for index, identity in enumerate(ids)}

    def __len__(self):
        return len(self.ids)

    def read(self, identity):
        return self._folder.read(self._index[identity])

    def label(self, identity):
        return self._folder.label(self._index[identity])


@pytest.fixture(scope="module")
def write(tar_bytes, beton_bytes, tmp_path_factory):
    """write(files, kind): {name in a folder: bytes} -> Photos as that loader reads them."""

    def write(files, kind):
        root = tmp_path_factory.mktemp("contract")
        for name, data in files.items():
            (root / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "folder" / name).write_bytes(data)
        folder = open_source(root / "folder")
        names = [folder.key(index) for index in range(len(folder))]
        if kind == "webdataset":
            members = [f"{index:03d}.jpg" for index in range(len(names))]
            for shard in range(3):
                tar = {}
                for index in range(8 * shard, 8 * shard + 8):
                    tar[members[index]] = files[names[index]]
                    tar[f"{index:03d}.cls"] = b"%d" % folder.label(index)
                (root / f"{shard}.tar").write_bytes(tar_bytes(tar))
            ids = [_hash(f"{index // 8}.tar/{member}") for index, member in enumerate(members)]
            return Photos(f"file:{root}/{{0..2}}.tar#samples=24&classes=3", root / "folder", ids)
        if kind == "ffcv":
            rows = [(files[name], folder.label(index), 140, 140) for index, name in enumerate(names)]
            (root / "photos.beton").write_bytes(beton_bytes(rows))
            return Photos(root / "photos.beton", root / "folder", list(range(len(names))))
        return Photos(root / "folder", root / "folder", list(range(len(names))))

    return write


@pytest.fixture(scope="module")
def files(photo_folder):
    return {str(path.relative_to(photo_folder)): path.read_bytes() for path in sorted(photo_folder.rglob("*.jpg"))}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def photos(kind, files, write):
    return write(files, kind)


def make(kind, photos, batch=8, *, inputs=INPUTS, seed=3, wrap=lambda source: source, rank=0, world=1, **order):
    source = wrap(open_source(photos.name))
    order = Order(len(source), batch, seed=seed, **order)
    return make_loader(source, inputs, order, kind=kind, threads=2, seed=seed, rank=rank, world=world)


def take(loader, count):
    try:
        return [next(loader) for _ in range(count)]
    finally:
        loader.close()


def same(a, b):
    """The same batch, bit for bit."""
    assert (a.step, a.epoch) == (b.step, b.epoch) and torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels)
    assert all(torch.equal(a.views[name], b.views[name]) for name in ("pair", "plain"))
    assert all(torch.equal(getattr(a.mask, name), getattr(b.mask, name)) for name in ("hidden", "keep", "restore"))


def test_a_step_has_the_views_of_its_own_size_on_every_rank(kind, photos):
    """Sizes that change are those of loaders that have one size: crops are drawn alike, whatever is prepared ahead."""
    small = InputSpec((replace(PAIR, size=20), replace(PLAIN, size=40)), RandomMask(grid=(10, 10), ratio=0.5))
    which = torch.tensor([0, 1, 0, 0, 1], dtype=torch.uint8)
    inputs = ChangingInputs(PAIR_AND_PLAIN, MASK, several=(INPUTS, small), which=which)
    changing = take(make(kind, photos, inputs=inputs), 5)
    fixed = [take(make(kind, photos, inputs=one), 5) for one in (INPUTS, small)]
    for step, batch in enumerate(changing):
        same(batch, fixed[which[step]][step])
    if kind != "webdataset":  # whose order depends on the number of ranks
        for rank in range(2):
            for batch, whole in zip(take(make(kind, photos, inputs=inputs, rank=rank, world=2), 2), changing):
                mine = slice(4 * rank, 4 * rank + 4)
                assert all(torch.equal(batch.views[name], view[:, mine]) for name, view in whole.views.items())


def test_batches_are_what_was_drawn_for_their_ids(kind, photos):
    """Crops near the oracle's for loaders that are not `exact`, too: what differs is the filter, never the place."""
    loader = make(kind, photos)
    exact = {"cpu": True, "dali": True, "memory": True, "webdataset": False, "ffcv": False}
    assert loader.exact is exact[kind] and loader.steps_per_epoch == 3
    order = Order(24, 8, seed=3)
    batches = take(loader, 7)
    for step, batch in enumerate(batches):
        assert (batch.step, batch.epoch) == (step, step // 3)
        if kind != "webdataset":
            assert torch.equal(batch.ids, order.ids(step))
        assert batch.labels.tolist() == [photos.label(i) for i in batch.ids.tolist()]
        assert torch.equal(batch.mask.hidden, draw_mask(MASK, 3, batch.epoch, batch.ids).hidden)
        oracle = reference_views(photos, INPUTS, 3, batch.epoch, batch.ids)
        for view in (PAIR, PLAIN):
            ours = batch.views[view.name]
            assert ours.shape == (view.count, 8, 3, view.size, view.size) and ours.dtype == torch.float32
            assert ours[0].is_contiguous(memory_format=torch.channels_last)
            error = ((ours - oracle[view.name]) * torch.tensor(view.std).view(3, 1, 1) * 255).abs()
            assert error.mean() < (2.5 if kind == "ffcv" else 0.5)
            assert error.flatten().quantile(0.99) < (20 if kind == "ffcv" else 4.5)
    for first in (0, 3):
        assert sorted(torch.cat([batch.ids for batch in batches[first : first + 3]]).tolist()) == sorted(photos.ids)
    assert not torch.equal(batches[0].ids, batches[3].ids)


def test_the_seed_decides_and_a_state_is_a_handful_of_integers(kind, photos):
    loader = make(kind, photos)
    undisturbed = take(loader, 6)
    assert loader.stats().images == 48 and loader.stats().bad_images == 0 and loader.stats().wait_seconds > 0
    for one, other in zip(undisturbed, take(make(kind, photos), 2), strict=False):
        same(one, other)
    (other,) = take(make(kind, photos, seed=4), 1)
    assert not torch.equal(other.ids, undisturbed[0].ids)
    for step in (1, 3, 5):  # within, at the start of, and at the end of an epoch
        resumed = make(kind, photos)
        next(resumed)
        resumed.load_state_dict({"step": step})
        state = resumed.state_dict()
        assert len(state) < 5 and all(type(value) is int for value in state.values())
        same(take(resumed, 1)[0], undisturbed[step])


def test_ranks_make_the_same_steps_and_see_every_sample_once(kind, photos):
    ranks = [take(make(kind, photos, 12, rank=rank, world=3), 2) for rank in range(3)]
    seen = [i for batches in ranks for batch in batches for i in batch.ids.tolist()]
    assert sorted(seen) == sorted(photos.ids) and {batch.step for batches in ranks for batch in batches} == {0, 1}


def test_a_bad_image_is_replaced_counted_and_named(kind, files, write):
    """The third photo has lost its pixels; only decoding finds out."""
    names, damaged = list(files), dict(files)
    data = damaged[names[2]]
    table = data.index(b"\xff\xc4") + 4  # a Huffman table of nonsense
    damaged[names[2]] = data[:table] + b"\x00" + b"\xff" * 30 + data[table + 31 :]
    photos = write(damaged, kind)
    loader = make(kind, photos, shuffle=False)
    batches = take(loader, 6)
    assert loader.stats().bad_images == 1 and len(loader.stats().replaced) == 1
    named = {"webdataset": "0.tar/002.jpg", "ffcv": "00000002.jpg"}.get(kind, names[2])
    assert named in loader.stats().replaced[0]
    expected = [photos.ids[index] for index in (0, 1, 3, 3, 4, 5, 6, 7)]
    assert batches[0].ids.tolist() == batches[3].ids.tolist() == expected
    assert torch.equal(batches[0].labels[2], batches[0].labels[3])


class Faulty:
    """A source whose fault nobody foresaw."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        if name == "urls":  # what a stream is read by
            raise ValueError("storage on fire")
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def read(self, index):
        raise ValueError("storage on fire")

    pixels = read


@pytest.mark.parametrize("where", ["source", "draw"])
def test_a_fault_nobody_foresaw_surfaces_at_once(where, kind, photos, monkeypatch):
    def fail(*arguments, **options):
        raise ValueError("storage on fire")

    wrap = Faulty if where == "source" else lambda source: source
    if where == "draw":
        monkeypatch.setattr("headrace.pipelines.loaders.base.draw_views", fail)
    loader = make(kind, photos, wrap=wrap)
    began = time.monotonic()
    with pytest.raises((LoaderError, ValueError), match="storage on fire"):
        take(loader, 8)
    assert time.monotonic() - began < WITHIN


def test_close_ends_every_thread_whenever_it_comes(kind, photos):
    take(make(kind, photos), 1)  # the libraries' own pools start once a process
    before = set(threading.enumerate())
    for batches in (0, 1, 4):
        loader = make(kind, photos)
        for _ in range(batches):
            next(loader)
        loader.close()
        loader.close()
        assert set(threading.enumerate()) == before


SCRIPT = """
import sys
from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, ViewSpec

loaders = []
for kind, name in zip(sys.argv[1::2], sys.argv[2::2]):
    source = open_source(name)
    loaders.append(make_loader(source, InputSpec((ViewSpec(size=16),)), Order(len(source), 8), kind=kind, threads=2))
    next(loaders[-1])
print("ready", flush=True)
while True:
    for loader in loaders:
        next(loader)
"""


def test_nothing_is_left_of_a_killed_process(files, write):
    """One process with all five loaders at work; then SIGKILL."""
    shared = set(os.listdir("/dev/shm"))
    arguments = [str(word) for kind in KINDS for word in (kind, write(files, kind).name)]
    worker = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert worker.stdout.readline() == b"ready\n"
        mapped = Path(f"/proc/{worker.pid}/maps").read_text()
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.stdout.close()
        worker.wait()
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == worker.pid and fields[0] not in "ZX":
            alive.append(stat)
    assert alive == [] and not [name for name in set(os.listdir("/dev/shm")) - shared if name in mapped]


def test_the_beton_of_this_suite_is_that_of_its_photos(files, write):
    source = open_source(write(files, "ffcv").name)
    assert [source.read(i).tobytes() for i in range(24)] == [files[name] for name in sorted(files)]
    assert decode(source.read(0)).ndim == 3
