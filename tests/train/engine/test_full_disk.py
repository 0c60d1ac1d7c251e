"""Every file of a run on a disk that is full, and a console that has gone: what docs/reliability.md says of them."""

import errno
import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.benchmarks import processes
from headrace.errors import UserError
from headrace.pipelines.loaders.quarantine import Quarantine
from headrace.pipelines.sources.arrays import ArraySource
from headrace.train import pretrain
from headrace.train.engine import checkpoint, loop, profiler
from headrace.train.engine.metrics import read_metrics
from headrace.train.engine.run_directory import append_line
from headrace.train.evaluation.evaluate import Stopwatch, record

WORKER = str(Path(__file__).with_name("full_disk_worker.py"))
RUN = ["mae_vit-tiny", "--smoke", "train.log_every=1", "train.save_every=5", "train.keep=9"]


def run(first, last, out, *overrides):
    """(exit code, what was said) of a run whose disk is full from step `first` to step `last`."""
    log = out.with_suffix(".log")
    log.unlink(missing_ok=True)
    (code,) = processes.run([WORKER, first, last, *RUN, f"train.out={out}", *overrides], log)
    return code, log.read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("full_disk") / "whole"
    assert run("never", "end", out)[0] == 0
    return checkpoint.newest(out)[1]["model"]


def steps(out):
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(out)]


def same(out, whole):
    found = checkpoint.newest(out)[1]["model"]
    return found.keys() == whole.keys() and all(torch.equal(found[key], whole[key]) for key in whole)


def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def test_on_the_way_it_costs_a_checkpoint_and_rows_wait(whole, tmp_path):
    """The console of these runs is a file on that disk, too."""
    code, said = run("7", "13", tmp_path / "run")
    assert code == 0 and "Traceback" not in said
    assert steps(tmp_path / "run") == [5, 15, 20] and same(tmp_path / "run", whole)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 21))
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_until_the_end_it_is_one_line_and_the_same_command_ends_the_run(whole, tmp_path):
    code, said = run("17", "end", tmp_path / "run")
    assert code == 2 and "Traceback" not in said
    assert "headrace: " in said and "step-00000020.pt: the checkpoint could not be written" in said
    assert steps(tmp_path / "run") == [5, 10, 15] and not (tmp_path / "run" / "encoder.safetensors").exists()
    assert len(read_metrics(tmp_path / "run")) == 17
    assert run("never", "end", tmp_path / "run")[0] == 0
    assert same(tmp_path / "run", whole) and len(read_metrics(tmp_path / "run")) == 20


def test_an_encoder_that_cannot_be_written(whole, tmp_path):
    code, said = run("encoder", "end", tmp_path / "run")
    assert code == 2 and "encoder.safetensors: cannot be written (File too large); free some space" in said
    assert not list((tmp_path / "run").glob("encoder*"))
    assert run("never", "end", tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / "encoder.safetensors").exists() and same(tmp_path / "run", whole)


def test_at_the_start_a_run_is_refused_and_leaves_all_as_it_was(tmp_path):
    code, said = run("start", "end", tmp_path / "new")
    assert code == 2 and "config.yaml: cannot be written" in said and "Traceback" not in said
    assert not (tmp_path / "new").exists()
    assert run("never", "end", tmp_path / "old", "train.max_steps=5")[0] == 0
    before = files(tmp_path / "old")
    code, said = run("start", "end", tmp_path / "old", "train.max_steps=10")
    assert code == 2 and "Traceback" not in said and files(tmp_path / "old") == before


@pytest.mark.parametrize("what", ["a file in the way", "a name that is too long"])
def test_a_folder_that_cannot_be_made_is_one_line(what, tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run" if what == "a file in the way" else tmp_path / ("x" * 300)
    with pytest.raises(UserError, match="cannot be written .*choose another train.out"):
        pretrain.main([*RUN, f"train.out={out}"])


class Full:
    """No file grows inside of this context."""

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_quarantine_without_a_file_is_kept_in_memory(tmp_path):
    source = ArraySource(np.zeros((9, 2, 2, 3), np.uint8), name="nine")
    quarantine = Quarantine(source, 0.5, tmp_path / "quarantine.jsonl")
    quarantine.add(1, "bad")
    with pytest.warns(UserWarning, match="quarantine.jsonl: cannot be written .*replaced all the same"), Full():
        quarantine.add(2, "bad")
    quarantine.add(3, "bad")
    assert [index in quarantine for index in range(5)] == [False, True, True, True, False]
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [1, 3]
    with pytest.raises(UserError, match="5 of 9"), pytest.warns(UserWarning), Full():
        for index in (4, 5):
            quarantine.add(index, "bad")


def test_a_row_of_an_evaluation_is_whole_or_not_there(tmp_path):
    from headrace.pipelines.spec import ViewSpec
    from headrace.train.evaluation.embed_encoder import Encoder

    encoder = Encoder("e", torch.nn.Identity(), ViewSpec(), "0")
    file = tmp_path / "evaluation.jsonl"
    append_line(file, "{}")
    with pytest.raises(UserError, match="evaluation.jsonl: cannot be written .*another --results"), Full():
        record(file, "knn", encoder, {}, {}, {"top1": 0.5}, Stopwatch())
    assert file.read_text() == "{}\n"
    record(file, "knn", encoder, {}, {}, {"top1": 0.5}, Stopwatch())
    assert json.loads(file.read_text().splitlines()[1])["figures"] == {"top1": 0.5}


def test_a_tracker_that_fails_is_left_out(tmp_path, monkeypatch, capsys):
    calls = []

    class Broken:
        def __call__(self, step, values):
            calls.append(step)
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            raise AssertionError("was left out")

    monkeypatch.setattr(pretrain, "make_tracker", lambda *_: Broken())
    assert pretrain.main([*RUN, f"train.out={tmp_path}", "train.max_steps=3", "train.trackers=[tensorboard]"]) == 0
    assert calls == [1] and len(read_metrics(tmp_path)) == 3
    assert "Broken failed ([Errno 28] No space left on device) and is left out" in capsys.readouterr().err


def test_a_batch_that_cannot_be_left_is_said_to_be_lost(tmp_path, monkeypatch):
    from headrace.models.algorithms.mae import MAE

    true_forward, true_save = MAE.forward, torch.save

    def forward(self, batch, progress):
        output = true_forward(self, batch, progress)
        output.loss = output.loss * float("nan")
        return output

    def save(value, file):
        if "views" in value:
            raise OSError(errno.ENOSPC, "No space left on device")
        true_save(value, file)

    monkeypatch.setattr(MAE, "forward", forward)
    monkeypatch.setattr(loop.torch, "save", save)
    with pytest.raises(
        UserError, match="3 steps in a row.*this batch is lost, for it could not be written as .*rank-0"
    ):
        pretrain.main([*RUN, f"train.out={tmp_path}", "train.max_skipped=3"])
    assert not list(tmp_path.glob("not-finite*"))


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="trace.json: cannot be written"), Full():
        with profiler.profiled("1:2", tmp_path, True) as after:
            for step in range(3):
                after(step)
    assert not (tmp_path / "trace.json").exists()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_console_that_has_gone_ends_no_run(stream, tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, stream, Gone())
    assert pretrain.main([*RUN, f"train.out={tmp_path}", "train.max_steps=2", "train.trackers=[]"]) == 0
    assert len(read_metrics(tmp_path)) == 2 and (tmp_path / "encoder.safetensors").exists()


def test_a_command_whose_output_nobody_takes_ends_with_its_own_code():
    code = "from headrace.errors import run_command; raise SystemExit(run_command(lambda: print('x' * 99) or 3))"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", code], stdout=full, env=environment).returncode == 3
