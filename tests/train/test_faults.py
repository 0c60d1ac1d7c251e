"""What happens to a run on damaged data, and what is left when a run is killed."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from headrace.benchmarks import processes
from headrace.errors import UserError
from headrace.train import pretrain
from headrace.train.engine import checkpoint
from headrace.train.engine.metrics import read_metrics

TINY = [
    "mae_vit-tiny",
    "algorithm.view.size=32",
    "algorithm.backbone.patch_size=8",
    "algorithm.backbone.width=24",
    "algorithm.backbone.depth=2",
    "algorithm.backbone.heads=2",
    "algorithm.decoder.width=16",
    "algorithm.decoder.depth=1",
    "algorithm.decoder.heads=2",
    "train.batch_size=8",
    "train.device=cpu",
    "train.log_every=1",
    "data.threads=1",
]


@pytest.fixture
def damaged(photo_folder, tmp_path):
    """24 photos, of which four are bad: two by their header, two only for a decoder."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for index, path in enumerate(sorted(photo_folder.rglob("*.jpg"))):
        data = path.read_bytes()
        if index in (5, 13):
            data = data[:-50]
        elif index in (6, 20):
            data = data[: data.index(b"\xff\xda")] + b"\xff\xd9"
        (folder / f"{index:02}.jpg").write_bytes(data)
    return folder


def quarantined(out):
    return sorted(json.loads(line)["index"] for line in (out / "quarantine.jsonl").read_text().splitlines())


@pytest.mark.parametrize("loader", ["dali", "memory"])
def test_a_resumed_run_on_damaged_data_equals_the_undisturbed(loader, damaged, tmp_path, capsys):
    """Whether the quarantine of the first part is there or lost."""

    def run(out, steps):
        arguments = [f"data.train={damaged}", f"train.out={tmp_path / out}", f"train.max_steps={steps}"]
        arguments += ["optim.warmup=0", "optim.final_lr=1", f"data.loader={loader}", "data.max_bad=0.2"]
        return pretrain.main([*TINY, *arguments])

    assert run("whole", 10) == 0
    assert quarantined(tmp_path / "whole") == [5, 6, 13, 20]
    said = capsys.readouterr().out
    assert f"4 images could not be decoded and were replaced by others ({tmp_path}/whole/quarantine.jsonl)" in said
    assert said.count(".jpg: ") == 4
    for out in ("kept", "lost"):
        assert run(out, 4) == 0
        if out == "lost":
            (tmp_path / out / "quarantine.jsonl").unlink()
        assert run(out, 10) == 0
        assert quarantined(tmp_path / out) == [5, 6, 13, 20]
        curves = [[row["loss"] for row in read_metrics(tmp_path / run)] for run in (out, "whole")]
        assert curves[0] == curves[1]
        weights = [checkpoint.newest(tmp_path / run)[1]["model"] for run in (out, "whole")]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def test_a_new_run_forgets_the_quarantine_of_an_old_one(photo_folder, tmp_path):
    record = {"index": 0, "shard": None, "key": "class_0/photo_00.jpg", "offset": None, "reason": "since repaired"}
    (tmp_path / "quarantine.jsonl").write_text(json.dumps(record) + "\n")
    arguments = [*TINY, f"data.train={photo_folder}", f"train.out={tmp_path}", "train.max_steps=1"]
    assert pretrain.main(arguments) == 0
    assert not (tmp_path / "quarantine.jsonl").exists()
    second = record | {"index": 3, "key": "class_0/photo_09.jpg"}
    with pytest.raises(UserError, match="2 of 24 images .*photo_00.jpg: since repaired"):  # of a resumed one, it counts
        (tmp_path / "quarantine.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(second) + "\n")
        pretrain.main([*arguments, "train.max_steps=2"])


def test_two_processes_share_the_quarantine_and_the_cap(damaged, tmp_path):
    """Neither process finds more than the cap alone; the one that notices says so, whichever it is."""

    def run(out, max_bad):
        arguments = [*TINY, f"data.train={damaged}", "train.max_steps=6", f"data.max_bad={max_bad}"]
        log = tmp_path / f"{out}.log"
        codes = processes.run([*arguments, f"train.out={tmp_path / out}"], log, world=2)
        return codes, log.read_text()

    codes, said = run("fine", 0.2)
    assert codes == [0, 0], said
    assert quarantined(tmp_path / "fine") == [5, 6, 13, 20]
    assert "4 images could not be decoded" in said
    codes, said = run("stopped", 0.13)
    assert codes == [2, 2] and "4 of 24 images cannot be read or decoded" in said
    assert not (tmp_path / "stopped" / "encoder.safetensors").exists()


def session_members(session):
    """Processes that live in a session; the dead that nobody has waited for do not count."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(folder.name)
    return found


@pytest.mark.parametrize("loader", ["dali", "cpu"])
def test_sigkill_leaves_no_process_and_no_shared_memory(loader, photo_folder, tmp_path):
    shared = set(os.listdir("/dev/shm"))
    command = [sys.executable, "-m", "headrace.cli", "pretrain", *TINY, f"data.train={photo_folder}"]
    command += [f"data.loader={loader}", "train.max_steps=100000", f"train.out={tmp_path / 'run'}"]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        assert any(line.startswith(b"step 3/") for line in trainer.stdout), "the run ended before it was killed"
        assert session_members(trainer.pid)
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.stdout.close()
        trainer.wait()
    deadline = time.monotonic() + 5
    while session_members(trainer.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert session_members(trainer.pid) == []
    assert {name for name in os.listdir("/dev/shm") if name not in shared and not _in_use(name)} == set()


def _in_use(name):
    """Other programs of this machine use /dev/shm, too: what somebody alive has mapped is theirs."""
    file = os.path.realpath(f"/dev/shm/{name}")
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if file in maps.read_text():
                return True
        except OSError:
            continue
    return False


def test_a_run_by_shards_resumes(photo_folder, tmp_path):
    """`data.block` from the recipe to the order: another curve than the full shuffle's, and the same after a resume."""
    folder, photos = tmp_path / "shards", sorted(photo_folder.rglob("*.jpg"))
    folder.mkdir()
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for photo in photos[6 * shard : 6 * shard + 6]:
                tar.add(photo, photo.name)

    def run(out, *overrides):
        arguments = [f"data.train={folder}", f"train.out={tmp_path / out}", "optim.warmup=0", "optim.final_lr=1"]
        assert pretrain.main([*TINY, *arguments, *overrides]) == 0
        return [row["loss"] for row in read_metrics(tmp_path / out)]

    whole = run("whole", "data.block=shard", "train.max_steps=6")
    run("parts", "data.block=shard", "train.max_steps=4")
    assert run("parts", "data.block=shard", "train.max_steps=6") == whole
    assert run("equal", "data.block=6", "train.max_steps=6") == whole
    assert run("full", "train.max_steps=6") != whole
