"""Weights & Biases by its public interface: what a run hands over, and the newest release where it is installed."""

import sys
from types import SimpleNamespace

import pytest

from headrace.errors import UserError
from headrace.train.engine.trackers import make_tracker


class Public(SimpleNamespace):
    """What `wandb` promises: `init`, `Error`, and of a run `log` and `finish`. Anything else is an AttributeError."""

    Error = type("Error", (Exception,), {})

    def __init__(self):
        super().__init__(begun=[], logged=[], finished=0)

    def init(self, **options):
        self.begun.append(options)
        return SimpleNamespace(log=lambda values, step: self.logged.append((step, values)), finish=self._finish)

    def _finish(self):
        self.finished += 1


def test_a_resumed_run_continues_the_same_run(tmp_path, monkeypatch):
    wandb = Public()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for step in (1, 2):
        tracker = make_tracker("wandb", tmp_path, "mae", {"lr": 0.1}, step - 1)
        tracker(step, {"loss": 0.5})
        tracker.close()
    first, second = wandb.begun
    assert first["reinit"] == "create_new"  # a run that is going on is not returned in place of ours
    assert first == second and len(first["id"]) == 16 and first["resume"] == "allow"
    assert (first["name"], first["config"], first["dir"]) == ("mae", {"lr": 0.1}, str(tmp_path))
    assert wandb.logged == [(1, {"loss": 0.5}), (2, {"loss": 0.5})] and wandb.finished == 2


def test_a_kill_before_the_name_was_written(tmp_path, monkeypatch):
    wandb = Public()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (tmp_path / "wandb-id").touch()
    make_tracker("wandb", tmp_path, "mae", {}, 0)
    assert wandb.begun[0]["id"] == (tmp_path / "wandb-id").read_text() != ""


def test_what_it_refuses_is_one_line(tmp_path, monkeypatch):
    wandb = Public()

    def refuse(**options):
        raise wandb.Error("api_key not configured (no-tty).\ncall wandb.login")

    wandb.init = refuse
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(UserError, match=r"^train.trackers: wandb: api_key not configured .*; log in by `wandb login`"):
        make_tracker("wandb", tmp_path, "mae", {}, 0)


def test_the_release_that_is_installed(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra [wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        tracker = make_tracker("wandb", tmp_path, "mae", {"lr": 0.1}, step - 1)
        tracker(step, {"loss": 0.5})
        tracker.close()
    own = (tmp_path / "wandb-id").read_text()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*/run-{own}.wandb"))) == 2


def test_a_run_of_the_user_is_left_alone(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs the extra [wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(project="another", dir=str(tmp_path)) as theirs:
        (tmp_path / "run").mkdir()
        tracker = make_tracker("wandb", tmp_path / "run", "mae", {"lr": 0.1}, 0)
        tracker(1, {"loss": 0.5})
        tracker.close()
        theirs.log({"own": 1})
        assert "loss" not in theirs.summary.keys() and theirs.summary["own"] == 1
    own = (tmp_path / "run" / "wandb-id").read_text()
    assert len(list((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{own}.wandb"))) == 1
