"""Shards behind an address against the same shards on a disk, with faults, kills, and without a network."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from readers import BATCH, equal, reader, taken
from servers import FAULTS, serving

from headrace.errors import UserError
from headrace.pipelines.check import check
from headrace.pipelines.identity import identity
from headrace.pipelines.remote import fetcher
from headrace.pipelines.sources import open_source, remote_shards
from headrace.pipelines.sources.subset import Subset

EPOCHS = 2 * 24 // BATCH  # steps of two epochs


@pytest.fixture(scope="module")
def local(shards):
    return taken(reader(str(shards)), EPOCHS)


def whole(server):
    """The shards that were asked for from their beginning."""
    return [path for path, asked in server.asked if path.endswith(".tar") and asked is None]


def in_process(code, *arguments, wait=True):
    """Python in a process of its own, which can be killed."""
    paths = [str(Path(__file__).parent.parent), *sys.path]
    code = f"import sys; sys.path[:0] = {paths!r}\n" + textwrap.dedent(code)
    ran = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    return ran.communicate(timeout=60)[0] if wait else ran


def test_batches_are_those_of_the_disk_and_every_shard_is_fetched_once(shards, local, cache):
    with serving(shards) as server:
        source = open_source(server.address)
        assert (len(source), source.classes) == (24, open_source(shards).classes)
        assert equal(local, taken(reader(source), EPOCHS))
        assert sorted(whole(server)) == [f"/train-{n:06d}.tar" for n in range(24)]
        asked = len(server.asked)
        assert equal(local, taken(reader(server.address, kind="memory"), EPOCHS)) and not source.notes
        assert [path for path, _ in server.asked[asked:]] == ["/dataset.json"]  # a second run fetches nothing else
    assert len(list(cache.glob("*.tar"))) == 24 and not list(cache.glob("*.part"))


def test_faults_lose_nothing(shards, local, tmp_path):
    """429, 500, reset, short body, stall: of every third request."""
    with serving(shards, share=0.34, stall=0.1) as server:
        quarantine = tmp_path / "quarantine.jsonl"
        assert equal(local, taken(reader(server.address, file=quarantine), EPOCHS))
        assert set(server.faults) == set(FAULTS) and not quarantine.exists()


def test_what_a_killed_process_had_fetched_of_a_shard_is_not_fetched_again(shards, cache, tmp_path):
    source, data = open_source(shards), (shards / "train-000003.tar").read_bytes()
    with serving(shards) as server:
        far = open_source(server.address)
        shard = far._fetcher.shards[3]
        begun = cache / f"{shard.sha256}-{shard.bytes}.part"
        begun.write_bytes(data[:2000])
        far.follow("reader", lambda step: [3], 0)
        assert bytes(far.read(3)) == bytes(source.read(3))
        assert ("/train-000003.tar", "bytes=2000-") in server.asked and not whole(server)
        far.leave("reader")
    # nor is it trusted
    with serving(shards) as server:
        far = open_source(server.address)
        (cache / f"{shard.sha256}-{shard.bytes}.tar").unlink()
        begun.write_bytes(b"x" + data[1:2000])
        far.follow("reader", lambda step: [3], 0)
        assert bytes(far.read(3)) == bytes(source.read(3)) and len(whole(server)) == 1
        far.leave("reader")


def test_a_server_without_ranges_serves(shards, local):
    with serving(shards, share=0.1, stall=0.1) as server:
        server.ranges = False
        assert equal(local[:4], taken(reader(server.address), 4))
        assert identity(open_source(server.address)) == identity(open_source(shards))


@pytest.mark.parametrize("damage", ["byte", "cut", "gone"])
def test_a_damaged_cache_is_noticed(damage, shards, local, cache):
    with serving(shards) as server:
        assert equal(local, taken(reader(server.address), EPOCHS))
        for file in sorted(cache.glob("*.tar"))[::3]:
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            if damage == "gone":
                file.unlink()
            else:
                file.write_bytes(data if damage == "byte" else data[:-600])
        before = len(whole(server))
        assert equal(local, taken(reader(server.address), EPOCHS))
        assert len(whole(server)) == before + 8


def test_a_damaged_index_or_glance_is_fetched_again(shards, cache, contents):
    with serving(shards) as server:
        here, far = open_source(shards), open_source(server.address)
        far.glance(range(3), range(3))
        for kind in ("*.index.npy", "*.glance.npz"):
            (kept,) = cache.glob(kind)
            data = kept.read_bytes()
            for damaged in (b"", data[:-40], bytes(len(data)), data[:-9] + b"x" + data[-8:]):
                next(cache.glob(kind)).write_bytes(damaged)
                assert contents(open_source(server.address)) == contents(here)


def test_two_who_share_a_full_cache_get_the_right_bytes(shards, local, cache, monkeypatch):
    """Room for one window and a little more, and two readers at different steps: they remove each other's shards."""
    sizes = [s["bytes"] for s in json.loads((shards / "dataset.json").read_text())["shards"]]
    bound = sum(sorted(sizes)[-18:])
    monkeypatch.setenv("HEADRACE_CACHE_GB", str(bound / 1e9))
    with serving(shards) as server:
        first, second = (reader(server.address) for _ in range(2))
        second.load_state_dict({"step": EPOCHS // 2})
        for step in range(EPOCHS // 2):
            for loader, at in ((first, step), (second, step + EPOCHS // 2)):
                batch = next(loader)
                assert batch.ids.tolist() == local[at][0] and batch.views["image"].equal(local[at][1])
        assert first.stats().bad_images == second.stats().bad_images == 0
        first.close()
        second.close()
        assert len(whole(server)) > 24 and sum(f.stat().st_size for f in cache.glob("*.tar")) <= bound


def test_a_shard_removed_by_others_while_it_is_read_comes_again(shards, local, cache):
    with serving(shards) as server:
        loader = reader(server.address)
        got = [next(loader) for _ in range(2)]
        for file in cache.glob("*.tar"):
            file.unlink()
        got += [next(loader) for _ in range(EPOCHS - 2)]
        loader.close()
        assert [b.ids.tolist() for b in got] == [one[0] for one in local]
        assert all(b.views["image"].equal(one[1]) for b, one in zip(got, local)) and loader.stats().bad_images == 0


def test_the_cache_keeps_its_bound(shards, local, cache, monkeypatch):
    """Room for a window and a little more; then for less than a window, which is said."""
    sizes = [s["bytes"] for s in json.loads((shards / "dataset.json").read_text())["shards"]]
    monkeypatch.setenv("HEADRACE_CACHE_GB", str(sum(sorted(sizes)[-18:]) / 1e9))
    most, stop = 0, threading.Event()

    def watch():
        nonlocal most
        while not stop.is_set():
            with_names = [file.name for file in list(cache.glob("*-*.*"))]
            held = sum(int(n.partition("-")[2].partition(".")[0]) for n in with_names if n.endswith((".tar", ".part")))
            most = max(most, held)
            time.sleep(0.001)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    with serving(shards) as server:
        assert equal(local, taken(reader(server.address), EPOCHS))
        stop.set()
        thread.join()
        # begun files of the four connections count before room is made for them
        assert sum(sizes) / 2 < most <= sum(sorted(sizes)[-18:]) + 4 * max(sizes)
        assert sum(f.stat().st_size for f in cache.glob("*.tar")) <= sum(sorted(sizes)[-18:])
        monkeypatch.setenv("HEADRACE_CACHE_GB", str(sum(sizes) / 1e9 / 8))
        with pytest.raises(UserError, match="cannot hold the shards that are read at a time; raise HEADRACE_CACHE_GB"):
            taken(reader(server.address, blocks=False), 20)
        monkeypatch.setenv("HEADRACE_CACHE_GB", "0.000001")
        with pytest.raises(UserError, match="does not fit in a cache of"):
            open_source(server.address)


def test_processes_share_a_cache(shards, local, cache):
    code = """
        from readers import reader, taken
        import torch
        torch.save(taken(reader(sys.argv[1]), 12), sys.argv[2])
    """
    with serving(shards) as server:
        out = [cache.parent / f"{number}.pt" for number in range(2)]
        cache.parent.mkdir(exist_ok=True)
        runs = [in_process(code, server.address, file, wait=False) for file in out]
        assert [run.wait(60) for run in runs] == [0, 0]
        assert sorted(whole(server)) == [f"/train-{n:06d}.tar" for n in range(24)]
    assert all(equal(local, torch.load(file)) for file in out)


def test_without_a_network_a_run_goes_on_from_the_cache(shards, local, monkeypatch, capsys):
    monkeypatch.setattr(remote_shards, "_OPENING", (0.2, 0.2))
    with serving(shards) as server:
        address = server.address
        far = open_source(address)
        expected = identity(far)
        assert equal(local, taken(reader(far), EPOCHS))
        assert expected == identity(open_source(shards))
    assert equal(local, taken(reader(address), EPOCHS))
    assert "not to be reached" in capsys.readouterr().err
    assert identity(open_source(address)) == expected
    with pytest.raises(
        UserError, match=r"127.0.0.1:9/dataset.json: Connection refused, for \d+ seconds; check the conn"
    ):
        open_source("http://127.0.0.1:9")


def test_a_silent_server_ends_the_run_and_no_sample_is_called_bad(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(fetcher, "PATIENCE", 0.5)
    with serving(shards) as server:
        far = open_source(server.address)
        server.answer = lambda request: (503, b"later")
        loader = reader(far, file=tmp_path / "quarantine.jsonl")
        began = time.monotonic()
        with pytest.raises(
            UserError, match="train-0000.*the server answers 503 .*, for . seconds; .*run the same again"
        ):
            next(loader)
        loader.close()
        assert 0.4 < time.monotonic() - began < 8 and not (tmp_path / "quarantine.jsonl").exists()
        server.answer = None
        assert len(taken(reader(far), 3)) == 3  # and the server may come back


def test_who_waits_is_let_go(shards):
    """Closing a loader, and hurrying it, while a server says nothing."""
    with serving(shards) as server:
        far = open_source(server.address)
        server.answer = lambda request: time.sleep(0.2) or (503, b"later")
        loader = reader(far)
        taking = threading.Thread(target=lambda: pytest.raises(UserError, next, loader))
        taking.start()
        time.sleep(0.3)
        began = time.monotonic()
        loader.close()
        taking.join(5)
        assert not taking.is_alive() and time.monotonic() - began < 3
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fetcher, "_HURRY", 0.1)
            loader = reader(far)
            threading.Timer(0.3, loader.hurry).start()
            with pytest.raises(UserError, match="the server answers 503"):
                next(loader)
            loader.close()


def test_a_lost_or_damaged_shard_counts_as_bad(shards, tmp_path):
    """As on a disk: its samples are replaced, and it is said which and why."""
    damaged = tmp_path / "set"
    damaged.mkdir()
    for file in shards.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "train-000004.tar").unlink()
    data = bytearray((damaged / "train-000009.tar").read_bytes())
    data[700] ^= 1
    (damaged / "train-000009.tar").write_bytes(data)
    with serving(damaged) as server:
        loader = reader(server.address)
        ids = [i for _ in range(6) for i in next(loader).ids.tolist()]
        replaced = " ".join(loader.stats().replaced)
        loader.close()
        assert not {4, 9} & set(ids) and len(loader.stats().replaced) == 2
        assert "train-000004.tar" in replaced and "404" in replaced
        assert "its bytes are not those of the manifest, 3 times in a row" in replaced
        report = check(server.address, workers=1)
        assert {(p.kind, p.shard) for p in report.problems} == {
            ("missing", "train-000004.tar"),
            ("checksum", "train-000009.tar"),
        }


def test_check_reads_what_is_served(shards, cache):
    with serving(shards, share=0.1, stall=0.1) as server:
        here, there = check(shards, decode=True, workers=1), check(server.address, decode=True, workers=1)
        assert there.sound and (there.samples, there.bytes, there.shards) == (here.samples, here.bytes, here.shards)
        assert not list(cache.glob("check-*"))
        with pytest.raises(UserError, match="nowhere/dataset.json: none there; give the folder that `headrace shard`"):
            check(f"{server.address}/nowhere")


def test_what_is_no_data_set_is_refused(shards, tmp_path, refused):
    with serving(tmp_path) as server:
        refused(server.address, "dataset.json", "404", "headrace shard")
        (tmp_path / "dataset.json").write_text("{}")
        refused(server.address, "not written by `headrace shard`")
        (tmp_path / "dataset.json").write_text("{")
        refused(server.address, "cannot be read")
        manifest = json.loads((shards / "dataset.json").read_text())
        manifest["shards"][0]["name"] = "../../x.tar"
        (tmp_path / "dataset.json").write_text(json.dumps(manifest))
        refused(server.address, "its list of shards is damaged")
        (tmp_path / "dataset.json").write_bytes((shards / "dataset.json").read_bytes())
        refused(server.address, "index.npy", "404")
        np.save(tmp_path / "index.npy", np.load(shards / "index.npy")[:-1])
        refused(server.address, "index.npy and dataset.json do not match")
        server.answer = lambda request: (403, b"no")
        refused(server.address, "the server answers 403", "who may read there")
    refused("s3://", "no address of a folder")


def test_few_samples_are_asked_for_alone(shards, cache):
    with serving(shards) as server:
        here, far = open_source(shards), Subset(open_source(server.address), [7, 2])
        assert [bytes(far.read(i)) for i in range(2)] == [bytes(here.read(i)) for i in (7, 2)]
        assert [far.key(i) for i in range(2)] == [here.key(i) for i in (7, 2)]
        assert not whole(server) and not list(cache.glob("*.tar"))
        again = len(server.asked)
        far.glance([0, 1], [0])
        far.glance([0, 1], [0])
        assert len(server.asked) == again + 3


def test_signals_end_a_run_that_waits(shards, tmp_path):
    """SIGTERM while the server is silent: the process ends within seconds, with one line."""
    with serving(shards) as server:
        command = [sys.executable, "-m", "headrace.cli", "pretrain", "simclr_resnet18", f"data.train={server.address}"]
        command += ["data.block=shard", f"train.out={tmp_path}/run", "train.batch_size=4", "train.epochs=1"]
        whole_shard = lambda request: request.path.endswith(".tar") and not request.headers.get("Range")
        server.answer = lambda request: (503, b"") if whole_shard(request) else None
        run = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
        deadline = time.monotonic() + 60
        while not any(p.endswith(".tar") and a is None for p, a in list(server.asked)) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=30)
        assert run.returncode == 2 and "the server answers 503" in said and "Traceback" not in said
