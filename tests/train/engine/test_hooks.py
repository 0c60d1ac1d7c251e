"""What an algorithm is called for: prepare, start_epoch with features of the whole set, after_backward, after_step."""

import pytest
import torch

from headrace.models.algorithms.mae import MAE
from headrace.train import pretrain
from headrace.train.engine import checkpoint
from headrace.train.evaluation.embed import embed as embed_alone
from headrace.train.evaluation.embed import evaluation_view
from headrace.train.recipe.recipe import smoke_images


class Calls:
    """Every call in order: (name, step), and what it saw."""

    def __init__(self, monkeypatch):
        self.order, self.rows, self.samples = [], {}, []
        monkeypatch.setattr(MAE, "prepare", lambda algorithm, samples: self.samples.append(samples))
        for name in ("after_backward", "after_step"):
            monkeypatch.setattr(MAE, name, self.note(name))
        monkeypatch.setattr(MAE, "start_epoch", self.start_epoch)
        self.gradients = []

    def note(self, name):
        def hook(algorithm, progress):
            self.order.append((name, progress.step))
            if name == "after_backward":
                self.gradients.append(algorithm.decoder.predict.bias.grad.norm().item())
                for p in algorithm.vit.parameters():  # dropped: the encoder stays as it is
                    p.grad = None

        return hook

    @property
    def start_epoch(self):
        def start_epoch(algorithm, progress, embed):
            self.order.append(("start_epoch", progress.step))
            self.rows[progress.step] = embed(algorithm.encoder, evaluation_view(algorithm.config.view))
            assert algorithm.training

        return start_epoch


def run(out, *overrides):
    assert pretrain.main(["mae_vit-tiny", "--smoke", f"train.out={out}", *overrides]) == 0


def test_hooks_of_a_run_and_of_its_continuation(tmp_path, monkeypatch):
    """Epochs are 8 steps long; the run is cut at step 11 and continued, which begins no epoch."""
    calls = Calls(monkeypatch)
    run(tmp_path, "train.max_steps=11")
    run(tmp_path, "train.max_steps=17")
    steps = [(name, step) for step in range(17) for name in ("start_epoch", "after_backward", "after_step")]
    assert calls.order == [(name, step) for name, step in steps if name != "start_epoch" or step % 8 == 0]
    assert calls.samples == [64, 64] and min(calls.gradients) > 0
    _, algorithm = checkpoint.load_algorithm(tmp_path)
    torch.manual_seed(0)
    untrained = MAE(algorithm.config)
    assert torch.equal(algorithm.vit.norm.weight, untrained.vit.norm.weight)  # its gradients were dropped
    assert not torch.equal(algorithm.decoder.norm.weight, untrained.decoder.norm.weight)
    alone = embed_alone(algorithm.encoder, smoke_images(), evaluation_view(algorithm.config.view))
    for rows in calls.rows.values():  # of an encoder that did not change
        assert rows.shape == (64, algorithm.encoder.features)
        assert (rows - alone.vectors).abs().max() < 1e-5


def test_what_start_epoch_draws_is_a_function_of_seed_and_epoch(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(MAE, "start_epoch", lambda algorithm, progress, embed: drawn.append(torch.rand(()).item()))
    run(tmp_path / "a")
    run(tmp_path / "b", "train.max_steps=16")
    run(tmp_path / "b")
    run(tmp_path / "c", "train.seed=1", "train.max_steps=8")
    assert drawn[:3] == drawn[3:6] and len(set(drawn[:3])) == 3 and drawn[6] != pytest.approx(drawn[0])
