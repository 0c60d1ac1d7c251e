"""What a run says about itself: collapse, k-NN on the way, traces, trackers, the list of recipes, smoke runs."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml

from headrace.errors import UserError
from headrace.models.algorithms.mae import MAE
from headrace.pipelines.sources import open_source
from headrace.train import pretrain
from headrace.train.engine.checkpoint import load_algorithm
from headrace.train.engine.distributed import Launch
from headrace.train.engine.interval import Interval
from headrace.train.engine.metrics import MetricsLog, read_metrics
from headrace.train.evaluation.embed import embed, evaluation_view
from headrace.train.evaluation.knn import knn_accuracy
from headrace.train.evaluation.sweep import sweep
from headrace.train.recipe import config, listing, recipe


def run(out, *overrides, name="mae_vit-tiny"):
    return pretrain.main([name, "--smoke", f"train.out={out}", *overrides])


def test_a_collapsed_run_is_told_so_once(tmp_path, monkeypatch, capsys):
    true_forward = MAE.forward

    def forward(self, batch, progress):
        output = true_forward(self, batch, progress)
        output.embedding = torch.ones_like(output.embedding)
        return output

    monkeypatch.setattr(MAE, "forward", forward)
    assert run(tmp_path, "train.log_every=2") == 0
    assert capsys.readouterr().err.count("the training has collapsed") == 1
    assert [row["metrics"]["spread"] for row in read_metrics(tmp_path)] == [0.0] * 10


def test_what_is_looked_at_is_the_mean_of_what_was_taken():
    """Steps 1, 2, 4 of four count; the third was left out, and its NaN with it."""
    loader = SimpleNamespace(stats=lambda: SimpleNamespace(wait_seconds=0.0))
    interval = Interval(Launch(0, 1, 0, 1, torch.device("cpu")), 8, loader)
    for loss, skipped in ((1.0, 0.0), (2.0, 0.0), (float("nan"), 1.0), (6.0, 0.0)):
        metrics = {"skipped": torch.tensor(skipped), "x": torch.tensor(2 * loss)}
        interval.add(
            SimpleNamespace(loss=torch.tensor(loss), metrics=metrics, embedding=None, views=None, patches=None)
        )
    row = interval.row(4, 0, 0.1, 10, torch.tensor(0.0))
    assert (row["loss"], row["metrics"]["x"], row["skipped"]) == (3.0, 6.0, 1)


def test_knn_on_the_way_is_that_of_the_encoder_at_the_end(photo_folder, tmp_path):
    """Of every second epoch of three steps; the last row's against the command's functions on the final weights."""
    arguments = [f"data.train={photo_folder}", f"data.val={photo_folder}", "train.knn_every=2", "train.max_steps=12"]
    assert run(tmp_path, *arguments, "data.threads=1") == 0
    scores = {row["step"]: row["metrics"]["knn"] for row in read_metrics(tmp_path) if "knn" in row["metrics"]}
    assert list(scores) == [6, 12]
    algorithm, source = load_algorithm(tmp_path)[1], open_source(str(photo_folder))
    features = embed(algorithm.encoder, source, evaluation_view(algorithm.inputs().views[0]), batch_size=8)
    assert scores[12] == pytest.approx(knn_accuracy(features, features))
    process = Launch(0, 1, 0, 1, torch.device("cpu"))
    view = evaluation_view(algorithm.inputs().views[0])
    rows = sweep(algorithm.encoder.train(), view, source, process, batch_size=7)  # 7 does not divide 24
    assert algorithm.encoder.training and (rows - features.vectors).abs().max() < 1e-5


def test_knn_needs_labels_of_the_same_classes(photo_folder, tmp_path):
    with pytest.raises(UserError, match="give data.val"):
        run(tmp_path, f"data.train={photo_folder}", "train.knn_every=1")


@pytest.mark.parametrize("window, steps", [("6:8", 3), ("1:1", 1), ("1:2", 2), ("19:30", 2)])
def test_a_window_of_steps_is_traced(tmp_path, window, steps):
    """The first step, too; and of a window that the run's 20 steps end in, what is left of it."""
    assert run(tmp_path, f"train.profile={window}") == 0
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert len([e for e in events if e.get("name") == "Optimizer.step#AdamW.step"]) == steps
    with pytest.raises(UserError, match="first:last"):
        run(tmp_path / "x", "train.profile=6-8")


def test_trackers_get_what_the_file_gets(tmp_path, monkeypatch):
    seen, closed = [], []

    class Writer:
        def __init__(self, folder, purge_step):
            seen.append((folder, purge_step))

        def add_scalar(self, key, value, step):
            seen.append((key, value, step))

        def close(self):
            closed.append(True)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    assert run(tmp_path, "train.trackers=[tensorboard,tensorboard]") == 0
    assert seen[0] == (str(tmp_path / "tensorboard"), 0) and closed == [True]
    rows = read_metrics(tmp_path)
    assert [(v, s) for k, v, s in seen[1:] if k == "loss"] == [(row["loss"], row["step"]) for row in rows]
    assert [v for k, v, _ in seen[1:] if k == "grad_norm"] == [row["metrics"]["grad_norm"] for row in rows]


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed: pip install wandb"):
        run(tmp_path, "train.trackers=[wandb]")


def test_every_recipe_is_listed_with_its_description(capsys):
    assert listing.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = sorted(path.stem for path in config.RECIPES.glob("*.yaml"))
    for folder in ("detect", "finetune", "segment"):
        names += sorted(f"{folder}/{path.stem}" for path in (config.RECIPES / folder).glob("*.yaml"))
    assert [line.split()[0] for line in lines] == names
    path = config.RECIPES / "simclr_resnet18.yaml"
    assert lines[names.index("simclr_resnet18")].endswith(yaml.safe_load(path.read_text())["description"])
    assert listing.main(["cifar"]) == 0 and "simclr_resnet18_cifar10" in capsys.readouterr().out
    with pytest.raises(UserError, match="none has 'zzz'"):
        listing.main(["zzz"])


@pytest.mark.parametrize("name", ["mae_vit-tiny", "simclr_resnet18"])
def test_a_smoke_run(name, tmp_path, photo_folder):
    """Twenty steps on generated images, the same curve twice; on a folder another one."""
    curves = []
    for out, overrides in (("a", []), ("b", []), ("c", [f"data.train={photo_folder}", "data.threads=1"])):
        assert run(tmp_path / out, *overrides, "optim.lr=3e-4", name=name) == 0
        rows = read_metrics(tmp_path / out)
        assert [row["step"] for row in rows] == [5, 10, 15, 20]
        curves.append([row["loss"] for row in rows])
    assert curves[0] == curves[1] != curves[2]
    state = pretrain.checkpoint.newest(tmp_path / "a")[1]
    assert recipe.load_recipe(str(tmp_path / "a" / "config.yaml"), []).plain() == state["config"]
    assert state["config"]["optim"]["name"] == {"mae_vit-tiny": "adamw", "simclr_resnet18": "sgd"}[name]


def test_an_algorithm_without_a_tiny_configuration_says_so(monkeypatch):
    monkeypatch.delattr(MAE.Config, "smoke")
    with pytest.raises(UserError, match="mae has no tiny configuration for --smoke"):
        run("unused")


def test_metrics_of_a_resumed_run_are_written_once(tmp_path):
    for first in (0, 2):
        log = MetricsLog(tmp_path, first, 4, True)
        for step in range(first + 1, 5):
            row = {"step": step, "loss": 1.0, "lr": 0.1, "images_per_s": 1.0, "data_wait": 0.0, "eta_s": 0.0}
            log.row(row)
        log.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
