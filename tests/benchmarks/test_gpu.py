"""The command for a day with a GPU: deadlines hold, a crash is written down and the next stage runs."""

import time
from pathlib import Path

import pytest
import torch

from headrace.benchmarks import gpu, record
from headrace.errors import UserError


def stage(name, code, seconds=600.0, needs=0.0):
    return gpu.Stage(name, seconds, lambda left: ["-c", code], needs)


def test_a_crash_and_a_hang_are_written_down_and_the_next_stage_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "_END", 1.0)
    todo = [
        stage("crash", "import os; print('so far', flush=True); os.abort()"),
        stage("error", "raise SystemExit('no such thing')"),
        stage("hang", "import time; time.sleep(60)", seconds=20.0),  # of ten minutes: 1 s of half a minute
        stage("works", "print('fine')"),
    ]
    began = time.monotonic()
    gpu.run(todo, 0.5, tmp_path)
    assert time.monotonic() - began < 15
    rows = {row["contender"]: row for row in record.read("gpu", tmp_path)}
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "crash": "failed",
        "error": "failed",
        "hang": "out of time",
        "works": "done",
    }
    assert rows["crash"]["said"] == "so far\n" and rows["crash"]["code"] == -6
    assert "no such thing" in rows["error"]["said"] and 1.0 <= rows["hang"]["seconds"] < 4


def test_what_a_stage_started_ends_with_it(tmp_path):
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    row = gpu.attempt(["-c", child], 2.0, tmp_path / "log")
    assert row["outcome"] == "out of time"
    time.sleep(0.2)
    state = Path("/proc", row["said"].strip(), "stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_stage_without_enough_time_is_named_and_not_started(tmp_path):
    rows = gpu.run([stage("long", "open('ran', 'w')", needs=100.0)], 1.0, tmp_path)
    assert rows[0]["outcome"] == "no time left" and record.read("gpu", tmp_path)[0]["contender"] == "long"
    assert not (tmp_path / "long.log").exists()


def test_time_is_shared_in_proportion_and_the_last_gets_the_rest(tmp_path, monkeypatch):
    limits = {}

    def attempt(command, limit, log):
        limits[command[0]] = limit
        return {"outcome": "done", "seconds": 0.0}

    monkeypatch.setattr(gpu, "attempt", attempt)
    todo = [gpu.Stage(name, seconds, lambda left, name=name: [name]) for name, seconds in (("a", 200), ("b", 1e9))]
    gpu.run(todo, 5, tmp_path)
    assert limits["a"] == pytest.approx(100) and limits["b"] == pytest.approx(300 - gpu._END, abs=2)


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_mistakes_are_said(tmp_path):
    with pytest.raises(UserError, match="no folders train and test"):
        gpu.main(["--dry-run", "--out", str(tmp_path), "--cifar", str(tmp_path)])
    with pytest.raises(UserError, match="--stages: none of kernels"):
        gpu.main(["--dry-run", "--out", str(tmp_path), "--stages", "kernal"])


def test_the_rehearsal_runs_its_stages(tmp_path):
    """Each as the command that it will be, in processes of their own; the speedrun apart, a race with the clock."""
    out = tmp_path / "out"
    options = ["--dry-run", "--minutes", "10", "--out", str(out)]
    assert gpu.main(options) == 0, [(row["contender"], row["said"]) for row in record.read("gpu", out)]
    assert {row["contender"] for row in record.read("gpu", out)} == {
        "kernels",
        "steps mae",
        "augmentation",
        "loaders",
    }
    for ledger in ("steps", "augment_gpu", "loaders_gpu"):
        assert record.read(ledger, out), ledger
