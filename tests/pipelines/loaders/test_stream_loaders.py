"""The loader over streams: against the oracle, deterministic, resumable, and loud about what is lost."""

import functools
import http.server
import json
import re
import tarfile
import threading
import time

import pytest
import torch
from streams import INPUTS, VIEW, ByHash, pipes, stream, take

from headrace.errors import UserError
from headrace.pipelines.loaders.choose import choose_loader, make_loader
from headrace.pipelines.loaders.quarantine import Quarantine
from headrace.pipelines.loaders.stream import StreamLoader, _hash
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.arrays import ArraySource
from headrace.pipelines.spec import InputSpec, ViewSpec
from headrace.pipelines.views.reference import reference_views


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
    name = pipes(tmp_path, shards="{0..3}", options="#samples=32")  # of four shards, the last does not exist
    options = {"inputs": InputSpec((ViewSpec(size=16),)), "shuffle": False, "max_bad": 0.9}
    loader = stream(name, 8, **options)
    batches = take(loader, 6)
    replaced = loader.stats().replaced
    came = int(re.search(r"less the (\d) that came", next(line for line in replaced if "train-1" in line))[1])
    assert 2 <= came <= 5 and len(replaced) == 4 and loader.stats().bad_images == 2 + (8 - came) + 8
    for words in (["train-1.tar: shard breaks off: "], ["train-2.tar/2.jpg: "], ["train-2.tar/5.jpg: not an image"]):
        assert sum(all(word in line for word in words) for line in replaced) == 1, (words, replaced)
    assert any("train-3.tar" in line and "exit 1" in line for line in replaced)
    bad = {_hash("train-2.tar/2.jpg"), _hash("train-2.tar/5.jpg")}
    ids = [i for batch in batches for i in batch.ids.tolist()]
    assert not bad & set(ids) and ids.count(_hash("train-2.tar/3.jpg")) > ids.count(_hash("train-2.tar/4.jpg"))
    assert batches[0].labels is None
    again = stream(name, 8, **options)
    again.load_state_dict({"step": 4})
    assert torch.equal(take(again, 1)[0].views["image"], batches[4].views["image"])


def test_a_command_that_fails_after_its_last_byte_is_noticed(tars):
    loader = stream(pipes(tars, "cat {}; exec >&-; sleep 0.2; exit 3", "0", "#samples=16"), 8, shuffle=False, max_bad=1)
    take(loader, 4)
    assert loader.stats().bad_images == 8 and "exit 3" in loader.stats().replaced[0]


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


# what does not come


def lost(tars, tmp_path, shard="train-1.tar", end=None):
    """The three tars of eight, one of them cut at `end` bytes, or gone."""
    for tar in tars.glob("*.tar"):
        (tmp_path / tar.name).write_bytes(tar.read_bytes())
    data = (tmp_path / shard).read_bytes()
    (tmp_path / shard).unlink() if end is None else (tmp_path / shard).write_bytes(data[:end])
    return tmp_path


def manifest(folder, samples=(8, 8, 8)):
    shards = [{"name": f"train-{n}.tar", "samples": count} for n, count in enumerate(samples)]
    described = {"format": "headrace-shards", "version": 1, "classes": ["a", "b", "c"], "shards": shards}
    (folder / "dataset.json").write_text(json.dumps(described))
    return f"file:{folder}/train-{{0..2}}.tar"


def test_a_lost_shard_counts_with_all_its_images(tars, tmp_path):
    """At once, by the manifest; the number is in the report, and another process takes it in."""
    name, file = manifest(lost(tars, tmp_path)), tmp_path / "run" / "quarantine.jsonl"
    with pytest.raises(UserError) as caught:
        take(stream(name, 4, shuffle=False, file=file, max_bad=0.3), 3)
    assert "8 of 24 images cannot be read" in str(caught.value) and "more than the 7" in str(caught.value)
    assert "train-1.tar: shard breaks off: No such file or directory; 8 of its 8 images missing" in str(caught.value)
    (record,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert record["missing"] == 8 and record["key"].endswith("train-1.tar")
    with pytest.raises(UserError, match="8 of 24 images"):
        Quarantine(open_source(name), 0.3, file)
    assert len(Quarantine(open_source(name), 0.4, file)) == 8
    loader = stream(name, 4, shuffle=False, file=file, max_bad=0.4)
    assert len(take(loader, 12)) == 12 and loader.stats().bad_images == 8  # three epochs lose the same shard once
    assert len(file.read_text().splitlines()) == 1


def test_a_shard_that_breaks_off_counts_with_what_did_not_come(tars, tmp_path):
    with tarfile.open(tars / "train-1.tar") as archive:
        sixth = archive.getmembers()[10].offset  # two members a sample
    # of the fifth, nobody knows whether there was more of it, unless the stream ends behind it
    ends = [(sixth + 700, "unexpected end of data", 4), (sixth + 100, "no tar header", 4), (sixth, "it ends early", 3)]
    for end, fault, missing in ends:
        name = manifest(lost(tars, tmp_path, end=end))
        loader = stream(name, 4, shuffle=False, max_bad=1)
        take(loader, 6)
        (line,) = loader.stats().replaced
        assert loader.stats().bad_images == missing and fault in line and f"{missing} of its 8 images missing" in line
    data = bytearray((tars / "train-1.tar").read_bytes())
    data[sixth + 3] ^= 1  # a header of another name: Python's reader takes that for the end of the archive
    (tmp_path / "train-1.tar").write_bytes(data)
    loader = stream(name, 4, shuffle=False, max_bad=1)
    take(loader, 6)
    assert loader.stats().bad_images == 4 and "no tar header" in loader.stats().replaced[0]


def test_where_no_count_is_known_the_average_of_a_shard_is_said_to_be_one(tars, tmp_path):
    lost(tars, tmp_path)
    with pytest.raises(UserError, match="8 of 24 images cannot be read") as caught:
        take(stream(pipes(tmp_path), 4, shuffle=False), 3)
    said = "its command ends with exit 1; about 8 images missing, the average of a shard less the 0 that came"
    assert said in str(caught.value)


def test_two_tars_in_one_stream_are_no_secret(tars):
    name = f"pipe:cat {tars}/train-0.tar {tars}/train-1.tar#samples=24"
    loader = stream(name, 4, shuffle=False, max_bad=1)
    take(loader, 3)
    assert "data behind the end of the archive" in loader.stats().replaced[0] and loader.stats().bad_images == 16


def test_members_are_those_of_tars_on_disks(tar_bytes, photo_folder, tmp_path, capsys):
    """Hidden files are none, of several images the first counts or the one that is asked for, and it is said."""
    photos = [path.read_bytes() for path in sorted(photo_folder.rglob("*.jpg"))[:4]]
    members = {"x/._0.jpg": b"mac"}
    for n in range(2):
        members |= {f"x/{n}.depth.jpg": photos[n], f"x/{n}.rgb.jpg": photos[2 + n]}
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    for option, suffix, label in (
        ("", "depth", "read 2 .depth.jpg; not 2 .rgb.jpg"),
        ("&image=rgb.jpg", "rgb", ""),
    ):
        batches = take(stream(f"file:{tmp_path}/a.tar#samples=2{option}", 2, shuffle=False), 2)
        assert batches[0].ids.tolist() == [_hash(f"a.tar/x/{n}.{suffix}.jpg") for n in range(2)]
        said = capsys.readouterr().err
        assert label in said and "1 hidden file" in said
    (tmp_path / "a.tar").write_bytes(tar_bytes(members | {"y.rgb.jpg": photos[0], "y.depth.jpg": photos[1]}))
    with pytest.raises(UserError, match="now .depth.jpg, now .rgb.jpg comes first; .*#image=depth.jpg"):
        take(stream(f"file:{tmp_path}/a.tar#samples=3", 3, shuffle=False), 2)
