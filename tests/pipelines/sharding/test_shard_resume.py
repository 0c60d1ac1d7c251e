"""Killed, interrupted, starved and shared runs of `shard`: the result is that of a run that nothing happened to."""

import fcntl
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.errors import UserError
from headrace.pipelines.shard import shard as shard_source
from headrace.pipelines.sharding import writer as writer_module
from headrace.pipelines.sharding.plan import ShardOptions
from headrace.pipelines.sources import open_source

COMMAND = "import sys; from headrace.pipelines.shard import main; from headrace.errors import run_command; "
COMMAND += "sys.exit(run_command(lambda: main(sys.argv[1:])))"
ARGUMENTS = ["--shard-mb", "1", "--workers", "2"]


def shard(source, out, workers=1, skip_bad=False, part=(0, 1), **options):
    options = ShardOptions(**({"shard_mb": 1} | options))
    return shard_source(source, out, options, workers=workers, skip_bad=skip_bad, part=part, progress=False)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def jpeg(seed):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path):
    """200 files of 14 kB in two classes: four shards of 1 MiB, the last with two images."""
    root = tmp_path / "images"
    for n in range(200):
        path = root / f"c{n % 2}/{n:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(n))
    return root


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """60 images under 6,000 names: 85 MB, a run of about a second."""
    root = tmp_path_factory.mktemp("many")
    for n in range(60):
        (root / f"{n:04d}.jpg").write_bytes(jpeg(n))
    for n in range(60, 6000):
        (root / f"{n:04d}.jpg").hardlink_to(root / f"{n % 60:04d}.jpg")
    return root


@pytest.fixture(scope="module")
def whole(many, tmp_path_factory):
    """What a run writes that nothing happens to."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(many, out).wait() == 0
    return tree(out)


def run(source, out, *more):
    command = [sys.executable, "-c", COMMAND, str(source), str(out), *ARGUMENTS, *more]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes)


def wait_for_finished_shards(process, out, count=1):
    while process.poll() is None and len(list(out.glob(".sharding/0*.json"))) < count:
        time.sleep(0.002)
    assert process.poll() is None, process.stderr.read()


def wait_until_group_is_gone(group):
    for _ in range(1000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


# killed and interrupted


def test_killed_at_random_moments_and_continued(many, whole, tmp_path):
    clock, finished = random.Random(0), 0
    out = tmp_path / "out"
    for _ in range(6):
        process = run(many, out)
        wait_for_finished_shards(process, out, finished + clock.randrange(4))  # not by the clock: machines differ
        time.sleep(clock.uniform(0, 0.02))
        process.kill()
        process.communicate()
        assert wait_until_group_is_gone(process.pid), "the workers outlived a killed run"
        finished = len(list(out.glob(".sharding/0*.json")))
        if out.exists():
            with pytest.raises(UserError, match="did not finish"):
                open_source(out)
    assert finished
    assert run(many, out).wait() == 0
    assert tree(out) == whole


def test_finished_shards_are_not_written_again(many, whole, tmp_path):
    out = tmp_path / "out"
    process = run(many, out)
    wait_for_finished_shards(process, out, 10)
    process.kill()
    process.communicate()
    assert wait_until_group_is_gone(process.pid)
    done = {record.stem for record in out.glob(".sharding/0*.json")}
    inodes = {stem: (out / f".sharding/{stem}.tar").stat() for stem in done}
    assert run(many, out).wait() == 0 and tree(out) == whole
    for stem, before in inodes.items():
        after = (out / f"train-{stem}.tar").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_interrupt_keeps_finished_shards(many, whole, tmp_path):
    out = tmp_path / "out"
    process = run(many, out)
    wait_for_finished_shards(process, out)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors
    assert wait_until_group_is_gone(process.pid) and list(out.glob(".sharding/0*.json"))
    process = run(many, out)
    assert process.wait() == 0 and "shards are finished already" in process.stderr.read() and tree(out) == whole


def test_killed_worker_ends_the_run(many, whole, tmp_path):
    out = tmp_path / "out"
    process = run(many, out)
    wait_for_finished_shards(process, out)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 2 and "a worker process was killed" in errors
    assert run(many, out).wait() == 0 and tree(out) == whole


def test_killed_while_moving_the_files_up(images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shard(images, tmp_path / "whole")
    steps = len(tree(tmp_path / "whole"))
    replace = Path.replace
    for moves in range(1, steps):  # stops before the last few renames, one more each time

        def stop(self, target, left=[moves]):  # noqa: B006
            if Path(target).parent == out:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            shard(images, out)
        monkeypatch.undo()
        with pytest.raises(UserError, match="did not finish"):
            open_source(out)
    shard(images, out)
    assert tree(out) == tree(tmp_path / "whole")


def test_a_damaged_finished_shard_is_written_again(images, tmp_path, monkeypatch):
    shard(images, tmp_path / "whole")
    shard(images, tmp_path / "out", part=(0, 2))
    with open(tmp_path / "out/.sharding/000000.tar", "ab") as file:
        file.truncate(5000)
    (tmp_path / "out/.sharding/000002.json").write_text('{"plan": ')
    assert shard(images, tmp_path / "out", part=(3, 4)) is None
    other = tmp_path / "out/.sharding/000003.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"plan": "another", "sha256": "wrong"}))
    shard(images, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


# other arguments, another source


def test_what_has_changed_is_told(images, tmp_path):
    out = tmp_path / "out"
    assert shard(images, out, part=(1, 2)) is None
    before = tree(out)

    def refused(words, **options):
        with pytest.raises(UserError, match=words) as caught:
            shard(images, out, **options)
        assert f"delete {out}" in str(caught.value) and tree(out) == before

    refused("  seed is 0 there, 3 here", seed=3)
    refused("  shard_mb is 1 there, None here\n  shard_samples is None there, 7 here", shard_mb=None, shard_samples=7)
    first = images / "c0/000.jpg"
    data, times = first.read_bytes(), (first.stat().st_atime_ns, first.stat().st_mtime_ns)
    first.write_bytes(data[:-2] + b"xx")
    refused("have been written to")
    first.write_bytes(data + b"x")
    refused("a name, a size or a class in the source has changed")
    first.unlink()
    refused("source.images is 200 there, 199 here")
    first.write_bytes(data)
    os.utime(first, ns=times)
    assert len(shard(images, out)["shards"]) == 4


def test_without_a_finished_shard_other_arguments_are_welcome(images, tmp_path):
    out = tmp_path / "out"
    shard(images, tmp_path / "whole", seed=3)
    (out / ".sharding").mkdir(parents=True)
    (out / ".sharding/plan.json").write_text('{"request": {}, "modified": ""}')
    (out / ".sharding/000000.tar").write_bytes(b"half")
    shard(images, out, seed=3)
    assert tree(out) == tree(tmp_path / "whole")


def test_foreign_files_beside_the_workspace_are_left_alone(images, tmp_path):
    out = tmp_path / "out"
    shard(images, out, part=(0, 2))
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty \\(mine.txt\\)"):
        shard(images, out)
    assert (out / "mine.txt").read_text() == "keep"


# the world changes under a run


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_file_that_vanishes_midway(images, tmp_path, monkeypatch, skip_bad):
    shard(images, tmp_path / "whole", seed=None)
    out, last = tmp_path / "out", images / "c1/199.jpg"
    data, times = last.read_bytes(), (last.stat().st_atime_ns, last.stat().st_mtime_ns)
    original = writer_module.ShardWriter.write

    def write(self, job, report):
        last.unlink(missing_ok=True)  # it is in the last shard
        return original(self, job, report)

    monkeypatch.setattr(writer_module.ShardWriter, "write", write)
    with pytest.raises(UserError, match="c1/199.jpg: gone since the run began; put it back and run the same again"):
        shard(images, out, seed=None, skip_bad=skip_bad)
    monkeypatch.undo()
    assert len(list(out.glob(".sharding/0*.json"))) == 3
    last.write_bytes(data)
    os.utime(last, ns=times)
    shard(images, out, seed=None)
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("change", [lambda data: data + b"more", lambda data: data[:-9]])
def test_a_file_that_changes_midway(images, tmp_path, monkeypatch, change):
    original = writer_module.ShardWriter.write

    def write(self, job, report):
        (images / "c1/199.jpg").write_bytes(change(jpeg(199)))
        return original(self, job, report)

    monkeypatch.setattr(writer_module.ShardWriter, "write", write)
    with pytest.raises(UserError, match="c1/199.jpg: no longer as large as when the run began"):
        shard(images, tmp_path / "out", seed=None)


def test_full_disk_keeps_finished_shards(images, tmp_path, monkeypatch):
    """The third tar meets a full disk in its middle; with --skip-bad, too, that is no bad image."""
    shard(images, tmp_path / "whole")
    out, flush = tmp_path / "out", writer_module._TarFile._flush

    def full(self):
        if str(self._file.name).endswith("000002.tar"):
            raise OSError(28, "No space left on device")
        flush(self)

    monkeypatch.setattr(writer_module._TarFile, "_flush", full)
    with pytest.raises(UserError, match="cannot write the shards \\(No space left on device\\); mend that and run"):
        shard(images, out, skip_bad=True)
    monkeypatch.undo()
    assert sorted(path.stem for path in out.glob(".sharding/0*.json")) == ["000000", "000001"]
    shard(images, out)
    assert tree(out) == tree(tmp_path / "whole")


def test_bad_images_found_late_keep_finished_shards(images, tmp_path):
    (images / "c1/199.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="1 of 200 files are no readable images:\n  c1/199.jpg: not an image"):
        shard(images, tmp_path / "out", seed=None)
    assert len(list((tmp_path / "out").glob(".sharding/0*.json"))) == 3
    manifest = shard(images, tmp_path / "out", seed=None, skip_bad=True)
    assert manifest["samples"] == 199 and manifest["skipped"][0]["path"] == "c1/199.jpg"


# several processes


def test_parts_together_are_the_whole(images, tmp_path):
    shard(images, tmp_path / "whole")
    assert shard(images, tmp_path / "out", part=(1, 2)) is None
    assert shard(images, tmp_path / "out", part=(1, 2)) is None
    manifest = shard(images, tmp_path / "out", part=(0, 2))
    assert manifest == json.loads((tmp_path / "whole/dataset.json").read_text())
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert shard(images, tmp_path / "out", part=(1, 2)) == manifest  # nothing is left to do for it
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_parts_at_the_same_time(many, whole, tmp_path, monkeypatch):
    """As torchrun and as Slurm would start them; whoever is last finishes, and all succeed."""
    out = tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "3")
    processes = []
    for number in ("0", "1"):
        monkeypatch.setenv("RANK", number)
        processes.append(run(many, out))
    processes.append(run(many, out, "--part", "2/3"))
    assert [process.wait() for process in processes] == [0, 0, 0] and tree(out) == whole


def test_two_runs_do_not_write_one_shard(images, tmp_path):
    shard(images, tmp_path / "out", part=(1, 2))
    lock = open(tmp_path / "out/.sharding/000002.lock", "a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another run is writing here"):
        shard(images, tmp_path / "out")
    lock.close()
    assert len(shard(images, tmp_path / "out")["shards"]) == 4
