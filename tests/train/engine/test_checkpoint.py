"""Checkpoints that are cut short, damaged, too large for the disk, or written by two runs at once."""

import errno
import json
import os
import signal
import time

import pytest
import torch

from headrace.errors import UserError
from headrace.models.algorithms.mae import MAE
from headrace.train import pretrain
from headrace.train.engine import checkpoint
from headrace.train.engine.metrics import read_metrics
from headrace.train.engine.run_directory import locked
from headrace.train.engine.signals import StopRequest
from headrace.train.engine.step import Stepper


def run(out, *overrides):
    return pretrain.main(["mae_vit-tiny", f"train.out={out}", *overrides, "--smoke"])


def weights(out):
    return checkpoint.newest(out)[1]["model"]


def losses(out):
    return [(row["step"], row["loss"]) for row in read_metrics(out)]


def state(step):
    return {"model": {"w": torch.full((50_000,), float(step))}, "step": step}


def test_which_checkpoints_stay(tmp_path):
    for step in range(1, 13):
        checkpoint.save(tmp_path, step, state(step), keep=2, keep_every=5)
    assert [int(p.stem[5:]) for p in checkpoint.checkpoints(tmp_path)] == [5, 10, 11, 12]


def test_a_flipped_bit_is_noticed(tmp_path):
    """torch.load alone gives the damaged tensor without a word."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(step), keep=2)
    path = tmp_path / "step-00000002.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert not (torch.load(path, weights_only=True)["model"]["w"] == 2).all()
    with pytest.warns(UserWarning, match="checksum of .* is wrong"):
        assert checkpoint.newest(tmp_path)[1]["step"] == 1


def test_the_writer_keeps_what_it_was_given(tmp_path):
    """Weights that change while the file is being written do not change the file."""
    writer, given = checkpoint.Writer(tmp_path, keep=3), state(1)
    writer.save(1, given)
    given["model"]["w"] += 1
    writer.finish()
    assert (checkpoint.load(tmp_path / "step-00000001.pt")["model"]["w"] == 1).all()


def full_disk(monkeypatch, steps):
    """torch.save fails as on a full disk, half-way through, for these steps."""
    true_save = torch.save

    def save(value, file):
        if value["step"] in steps:
            file.write(b"PK" * 1000)
            raise OSError(errno.ENOSPC, "No space left on device")
        true_save(value, file)

    monkeypatch.setattr(torch, "save", save)


def test_a_full_disk_does_not_end_a_run(tmp_path, monkeypatch):
    full_disk(monkeypatch, steps={10, 15})
    with pytest.warns(UserWarning, match="No space left on device.*the run goes on"):
        assert run(tmp_path, "train.save_every=5", "train.keep=5") == 0
    assert [int(p.stem[5:]) for p in checkpoint.checkpoints(tmp_path)] == [5, 20]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_full_disk_at_the_end_is_an_error(tmp_path, monkeypatch):
    full_disk(monkeypatch, steps={20})
    with pytest.raises(UserError, match="step-00000020.pt: the checkpoint could not be written .*free some space"):
        run(tmp_path, "train.save_every=15")
    assert [int(p.stem[5:]) for p in checkpoint.checkpoints(tmp_path)] == [15]
    monkeypatch.undo()
    assert run(tmp_path, "train.save_every=15") == 0 and checkpoint.newest(tmp_path)[1]["step"] == 20


def test_two_runs_in_one_directory(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(UserError, match=f"another run writes here .process {os.getpid()} on "):
            run(tmp_path / "run")
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock"]
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_ends_with_0(number, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(number)
    assert run(tmp_path / "whole", "train.log_every=1") == 0
    true_step = Stepper.__call__

    def step(self, batch, progress):
        if progress.step == 6:
            os.kill(os.getpid(), number)
        return true_step(self, batch, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "__call__", step)
        assert run(tmp_path / "parts") == 0
    said = capsys.readouterr()
    assert f"stopped by {signal.Signals(number).name} after step 7" in said.err
    assert checkpoint.newest(tmp_path / "parts")[1]["step"] == 7
    assert not (tmp_path / "parts" / "encoder.safetensors").exists()
    assert signal.getsignal(number) == before
    assert run(tmp_path / "parts") == 0
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_ctrl_c_again_ends_at_once_and_what_is_ignored_stays_so(monkeypatch):
    """torchrun hands a Ctrl-C on that the terminal has sent as well: that is one press."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest(None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.agreed()
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            assert stop.agreed() and stop.signal == "SIGINT"
            later = time.monotonic() + 2
            monkeypatch.setattr(time, "monotonic", lambda: later)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, before)


def poisoned(monkeypatch, steps):
    true_forward = MAE.forward

    def forward(self, batch, progress):
        output = true_forward(self, batch, progress)
        if progress.step in steps:
            output.loss = output.loss * float("nan")
        return output

    monkeypatch.setattr(MAE, "forward", forward)


def test_some_steps_without_a_finite_loss_are_left_out_and_said(tmp_path, monkeypatch, capsys):
    poisoned(monkeypatch, {7, 8})
    assert run(tmp_path) == 0
    rows = {row["step"]: row for row in read_metrics(tmp_path)}
    assert rows[10]["skipped"] == 2 and "skipped" not in rows[5] and rows[10]["loss"] == pytest.approx(1, abs=0.5)
    assert "2 steps left out, their gradient was not finite" in capsys.readouterr().out


def test_too_many_of_them_end_the_run_with_the_batch_on_disk(tmp_path, monkeypatch):
    poisoned(monkeypatch, set(range(6, 99)))
    with pytest.raises(
        UserError, match="step 15: .*not finite in 9 steps in a row.*not-finite-step-00000015-rank-0.pt"
    ):
        run(tmp_path, "train.max_skipped=5", "train.save_every=5")
    batch = torch.load(tmp_path / "not-finite-step-00000015-rank-0.pt", weights_only=True)
    assert batch["step"] == 14 and batch["views"]["image"].shape == (1, 8, 3, 32, 32)
    saved = checkpoint.newest(tmp_path)[1]
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_what_is_left_of_the_environment(tmp_path):
    run(tmp_path)
    (start,) = (json.loads(line) for line in (tmp_path / "environment.jsonl").read_text().splitlines())
    assert start["packages"]["torch"] == torch.__version__.split("+")[0] and start["processes"] == 1
    assert set(start["kernels"]) >= {"patch_loss", "augment"}


def test_recipe_wins_over_the_checkpoint_in_what_the_optimizer_is_told(tmp_path):
    run(tmp_path, "train.max_steps=4", "optim.weight_decay=0.2")
    run(tmp_path, "train.max_steps=8", "optim.weight_decay=0.3", "train.accept_changes=true")
    groups = checkpoint.newest(tmp_path)[1]["optimizer"]["param_groups"]
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.3]
