"""The loader over streams: against the oracle, deterministic, resumable, and never the reason why a run hangs."""

import functools
import http.server
import json
import threading
import time

import pytest
import torch

from headrace.errors import UserError
from headrace.pipelines.loaders.choose import choose_loader, make_loader
from headrace.pipelines.loaders.stream import StreamLoader, _hash
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.arrays import ArraySource
from headrace.pipelines.spec import InputSpec, RandomMask, ViewSpec
from headrace.pipelines.views.reference import reference_views

VIEW = ViewSpec(count=2, size=48, interpolation="bicubic")
INPUTS = InputSpec((VIEW,), RandomMask(grid=(6, 6), ratio=0.5))


@pytest.fixture(scope="module")
def tars(photo_folder, tar_bytes, tmp_path_factory):
    """Three tars of eight photos, with class indices, and the manifest that tells their number."""
    folder = tmp_path_factory.mktemp("tars")
    photos = sorted(photo_folder.rglob("*.jpg"))
    for shard in range(3):
        files = {}
        for index in range(8 * shard, 8 * shard + 8):
            files |= {f"{index:03d}.jpg": photos[index].read_bytes(), f"{index:03d}.cls": b"%d" % (index % 3)}
        (folder / f"train-{shard}.tar").write_bytes(tar_bytes(files))
    return folder


@pytest.fixture(scope="module")
def address(tars):
    """The tars behind a web server on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if self.path != "/dataset.json":
                return super().do_GET()
            shards = [{"name": f"train-{n}.tar", "samples": 8} for n in range(3)]
            manifest = {"format": "headrace-shards", "version": 1, "classes": ["a", "b", "c"], "shards": shards}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(manifest).encode())

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tars))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("no_proxy", "127.0.0.1")
        yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def stream(name, batch=6, *, seed=3, inputs=INPUTS, rank=0, world=1, **order):
    source = open_source(name)
    order = Order(len(source), batch, seed=seed, **order)
    return StreamLoader(source, inputs, order, seed=seed, rank=rank, world=world, threads=2)


def pipes(folder, command="cat {}", shards="{0..2}", options="#samples=24&classes=3"):
    return "pipe:" + command.format(folder / f"train-{shards}.tar") + options


def take(loader, count):
    try:
        return [next(loader) for _ in range(count)]
    finally:
        loader.close()


class ByHash:
    """The same images, found by the ids that a stream gives them."""

    def __init__(self, folder):
        self._source = open_source(folder)
        self._index = {_hash(self._source.key(i)): i for i in range(len(self._source))}

    def __len__(self):
        return len(self._index)

    def read(self, index):
        return self._source.read(self._index[index])

    def label(self, index):
        return self._source.label(self._index[index])

    @property
    def ids(self):
        return set(self._index)


@pytest.mark.parametrize("kind", ["http", "pipe", "file"])
def test_streams_match_the_oracle(kind, tars, address):
    files = f"file:{tars}/train-{{0..2}}.tar#samples=24&classes=3"
    name = {"http": address + "/train-{0..2}.tar", "pipe": pipes(tars), "file": files}[kind]
    source = ByHash(tars)
    loader = stream(name)
    assert loader.steps_per_epoch == 4 and not loader.exact
    batches = take(loader, 9)
    for batch in batches:
        oracle = reference_views(source, INPUTS, 3, batch.epoch, batch.ids)["image"]
        error = (batch.views["image"] - oracle).abs() * torch.tensor(VIEW.std).view(3, 1, 1) * 255
        assert error.mean() < 0.3 and error.max() < 14
        assert batch.labels.tolist() == [source.label(i) for i in batch.ids.tolist()]
        assert (batch.mask.hidden.sum(1) == 18).all()
    epochs = [torch.cat([b.ids for b in batches[start : start + 4]]).tolist() for start in (0, 4)]
    assert [set(epoch) for epoch in epochs] == [source.ids, source.ids] and epochs[0] != epochs[1]
    assert [b.step for b in batches] == list(range(9)) and batches[8].epoch == 2


def test_a_resumed_stream_continues_as_if_nothing_had_been(tars):
    undisturbed = take(stream(pipes(tars)), 7)
    for step in (2, 4, 5):  # within, at the start of, and within another epoch
        resumed = stream(pipes(tars))
        next(resumed)
        resumed.load_state_dict({"step": step})
        for batch in take(resumed, 2):
            expected = undisturbed[batch.step]
            assert batch.step >= step and torch.equal(batch.ids, expected.ids)
            assert torch.equal(batch.views["image"], expected.views["image"])
            assert torch.equal(batch.mask.keep, expected.mask.keep)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_every_rank_makes_the_same_steps_over_its_own_shards(world, tars):
    loaders = [stream(pipes(tars), 2 * world, rank=rank, world=world) for rank in range(world)]
    steps = loaders[0].steps_per_epoch
    ids = [torch.cat([batch.ids for batch in take(loader, steps)]).tolist() for loader in loaders]
    assert all(loader.steps_per_epoch == steps for loader in loaders) and {len(own) for own in ids} == {2 * steps}
    if world == 3:  # a shard for each: every image once
        assert sorted(sum(ids, [])) == sorted(ByHash(tars).ids)


def test_order_and_views_depend_on_the_seed_alone(tars):
    plain = take(stream(pipes(tars), shuffle=False), 4)
    names = [f"train-{i // 8}.tar/{i:03d}.jpg" for i in range(24)]
    assert torch.cat([b.ids for b in plain]).tolist() == [_hash(name) for name in names]
    assert not torch.equal(take(stream(pipes(tars), seed=4), 1)[0].ids, take(stream(pipes(tars)), 1)[0].ids)


def damaged(tars, tmp_path, tar_bytes, photo_folder):
    """A good shard, one cut in the middle of its fifth member, one with an undecodable and an unreadable image."""
    photos = [path.read_bytes() for path in sorted(photo_folder.rglob("*.jpg"))[:8]]
    (tmp_path / "train-0.tar").write_bytes((tars / "train-0.tar").read_bytes())
    (tmp_path / "train-1.tar").write_bytes((tars / "train-1.tar").read_bytes()[: 8 * 512 + 20_000 // 2])
    broken = photos[2][: photos[2].index(b"\xff\xda")] + b"\xff\xd9"  # only decoding finds out
    members = {f"{n}.jpg": broken if n == 2 else b"no image" if n == 5 else data for n, data in enumerate(photos)}
    (tmp_path / "train-2.tar").write_bytes(tar_bytes(members))


def test_damage_is_counted_named_and_replaced(tars, tmp_path, tar_bytes, photo_folder):
    damaged(tars, tmp_path, tar_bytes, photo_folder)
    name = pipes(tmp_path, shards="{0..3}", options="#samples=500")  # of four shards, the last does not exist
    loader = stream(name, 8, inputs=InputSpec((ViewSpec(size=16),)), shuffle=False)
    batches = take(loader, 6)
    replaced = loader.stats().replaced
    assert loader.stats().bad_images == len(replaced) == 4
    for words in (["train-1.tar: shard breaks off: "], ["train-2.tar/2.jpg: "], ["train-2.tar/5.jpg: not an image"]):
        assert sum(all(word in line for word in words) for line in replaced) == 1, (words, replaced)
    assert any("train-3.tar" in line and "exit 1" in line for line in replaced)
    bad = {_hash("train-2.tar/2.jpg"), _hash("train-2.tar/5.jpg")}
    ids = [i for batch in batches for i in batch.ids.tolist()]
    assert not bad & set(ids) and ids.count(_hash("train-2.tar/3.jpg")) > ids.count(_hash("train-2.tar/4.jpg"))
    assert batches[0].labels is None
    again = stream(name, 8, inputs=InputSpec((ViewSpec(size=16),)), shuffle=False)
    again.load_state_dict({"step": 4})
    assert torch.equal(take(again, 1)[0].views["image"], batches[4].views["image"])


def test_a_command_that_fails_after_its_last_byte_is_noticed(tars):
    loader = stream(pipes(tars, "cat {}; exec >&-; sleep 0.2; exit 3", "0", "#samples=100"), 8, shuffle=False)
    take(loader, 4)
    assert loader.stats().bad_images == 1 and "exit 3" in loader.stats().replaced[0]


@pytest.mark.parametrize("name", ["pipe:exit 7#samples=9", "http", "pipe:printf nonsense#samples=9"])
def test_a_stream_without_images_ends_the_run_at_once(name, address):
    began = time.monotonic()
    with pytest.raises(UserError, match="not one image in .* shards"):
        take(stream(f"{address}/none-{{0..1}}.tar#samples=900" if name == "http" else name), 1)
    assert time.monotonic() - began < 5


def test_a_fault_in_the_reading_thread_reaches_the_consumer(tars, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(StreamLoader, "_sample", fail)
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        take(stream(pipes(tars)), 1)
    assert time.monotonic() - began < 5


def test_close_ends_threads_and_commands_even_when_the_stream_is_silent(tars, tmp_path):
    """Batches come, then nothing: `sleep` holds the pipe open, in a pipeline of several processes."""
    before = set(threading.enumerate())
    flag = tmp_path / "alive"
    command = f"cat {{}} | (cat; head -c 0 /dev/null; touch {flag}; sleep 60)"
    loader = stream(pipes(tars, command, shards="0"), 4, shuffle=False)
    next(loader)
    while not flag.exists():
        time.sleep(0.01)
    began = time.monotonic()
    loader.close()
    loader.close()
    assert time.monotonic() - began < 5
    assert set(threading.enumerate()) == before


def test_auto_takes_streams_and_says_why(tars, address):
    source = open_source(address + "/train-{0..2}.tar")
    assert len(source) == 24 and source.classes == ["a", "b", "c"]
    assert choose_loader(source, "auto", "cuda") == ("webdataset", "the images are streamed")
    loader = make_loader(source, INPUTS, Order(24, 6), kind="webdataset", threads=1)
    assert take(loader, 1)[0].views["image"].shape == (2, 6, 3, 48, 48)
    for kind, other in (("cpu", source), ("dali", source), ("memory", source), ("webdataset", open_source(tars))):
        with pytest.raises(UserError, match="data.loader: .*(data.loader=webdataset|data.train=file:)"):
            choose_loader(other, kind)
    for kind in ("cpu", "dali"):
        with pytest.raises(UserError, match="data.loader=memory"):
            choose_loader(ArraySource([]), kind)
    assert choose_loader(open_source(tars), "auto")[0] == "cpu"


def test_addresses_that_do_not_say_enough_are_refused(refused, address):
    refused("pipe:cat x.tar", "pipe:cat x.tar#samples=")
    refused(address + "/nowhere/train-{0..2}.tar", "dataset.json", "404", "#samples=")
    refused(address + "/train-{0..3}.tar", "train-3.tar", "not among the 3 shards")
    refused("pipe:cat x.tar#samples=0", "at least 1")
