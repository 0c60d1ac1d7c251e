"""Whole training steps: counted operations, turns, waiting and memory are what they claim."""

import mmap
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from headrace.benchmarks import jobs, record, steps
from headrace.errors import UserError
from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.sources.arrays import ArraySource
from headrace.pipelines.spec import InputSpec, LoaderStats, ViewSpec
from headrace.train.recipe.recipe import smoke_images

TINY = ["algorithm.view.size=32", "algorithm.backbone={name: vit_tiny, patch_size: 8, width: 24, depth: 2, heads: 2}"]


def test_operations_are_those_counted_by_hand():
    """A linear layer: 2 B I O forward, as many for the weights' gradient, none for that of the data; attention's two
    products of T x T twice that backward."""
    x = torch.randn(5, 7)
    layer = nn.Linear(7, 3)
    assert steps.flops(lambda: layer(x).sum().backward()) == 2 * (2 * 5 * 7 * 3)
    q, k, v = (torch.randn(2, 4, 6, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 4 * 6 * 6 * 8
    attention = nn.functional.scaled_dot_product_attention
    assert steps.flops(lambda: attention(q, k, v).sum().backward()) == 2 * product + 4 * product


def test_a_share_of_the_peak():
    row = steps.rated({"step_gflop": 3.0, "step_ms": 20.0}, peak=600e9)
    assert row["flops_fraction"] == pytest.approx(3e9 / 0.02 / 600e9) and row["peak_tflops"] == 0.6


def test_the_peak_is_that_of_a_product_of_matrices(monkeypatch):
    """2 n^3 operations in the time that is measured."""
    monkeypatch.setattr(steps.bench, "measure", lambda *_, **__: SimpleNamespace(p20=1e4))
    assert steps.peak_flops(torch.device("cpu"), "fp32") == pytest.approx(2 * 2048**3 / 0.01)


class Loader:
    """Ten milliseconds a batch, if it is real."""

    def __init__(self, seconds):
        self.seconds, self.waited = seconds, 0.0

    def __next__(self):
        time.sleep(self.seconds)
        self.waited += self.seconds

    def stats(self):
        return LoaderStats(wait_seconds=self.waited)


class Turns(steps.Run):
    """A step of ten milliseconds."""

    def __init__(self):
        self.recipe, self.batch, self.device, self.seen = SimpleNamespace(name="it"), 4, torch.device("cpu"), []
        self.loaders = {"synthetic": Loader(0.0), "real": Loader(0.01)}

    def stepper(self, batch, progress):
        time.sleep(0.01)

    def choose(self, which):
        self.seen.append(which)


def test_variants_take_turns_and_waiting_is_told_from_computing():
    run = Turns()
    rows = {row["contender"]: row for row in steps.measure(run, ("synthetic", "real"), ("reference", "auto"), 5, 3)}
    assert run.seen == ["reference", "auto"] * 2 * 4
    assert [rows[f"{data} data, auto kernels"]["data_wait"] for data in ("synthetic", "real")] == [
        0.0,
        pytest.approx(0.5, abs=0.12),
    ]
    rates = [rows[f"{data} data, auto kernels"]["images_per_second"] for data in ("synthetic", "real")]
    assert 150 < rates[0] <= 400 and 100 < rates[1] <= 200 and rows["real data, auto kernels"]["step_ms"] >= 20


def test_a_variant_that_fails_is_named_and_the_others_go_on(capsys):
    class Failing(Turns):
        def choose(self, which):
            if which == "reference":
                raise MemoryError("too large")

    rows = list(steps.measure(Failing(), ("synthetic",), ("reference", "auto"), 1, 2))
    assert [row["contender"] for row in rows] == ["synthetic data, auto kernels"]
    assert capsys.readouterr().err == "it: synthetic, reference: MemoryError: too large\n"


def test_memory_is_counted_from_when_it_is_asked():
    """Pages from the system itself: an allocator may have kept as many of earlier tests."""
    with mmap.mmap(-1, 60_000_000) as before:
        before.write(b"x" * 60_000_000)
    peak = steps.PeakMemory(torch.device("cpu"))
    low = peak.megabytes()
    with mmap.mmap(-1, 40_000_000) as more:
        for page in range(0, 40_000_000, mmap.PAGESIZE):
            more[page] = 1
    assert 35 < peak.megabytes() - low < 80


def test_a_synthetic_loader_gives_the_first_batch_of_the_real_one():
    images, inputs = ArraySource(smoke_images().images), InputSpec((ViewSpec(size=16),))
    make = lambda: make_loader(images, inputs, Order(len(images), 8), kind="memory")  # noqa: E731
    expected, synthetic = next(make()), jobs.Synthetic(make())
    for batch in (next(synthetic), next(synthetic)):
        assert torch.equal(batch.views["image"], expected.views["image"]) and torch.equal(batch.ids, expected.ids)
    assert synthetic.stats().wait_seconds == 0


def test_rows_of_a_recipe(photo_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(steps, "peak_flops", lambda *_: 1e11)
    options = ["--images", str(photo_folder), "--batch", "4", "--steps", "1", "--rounds", "1", "--device", "cpu"]
    assert steps.main(["mae_vit-tiny", *TINY, *options, "--out", str(tmp_path)]) == 0
    synthetic, real = record.read("steps", tmp_path)
    assert synthetic["contender"] == "synthetic data, auto kernels" and real["contender"] == "real data, auto kernels"
    assert synthetic["step_gflop"] == real["step_gflop"] > 0.001 and real["config"]["images"] == 24
    assert real["flops_fraction"] == pytest.approx(real["step_gflop"] / real["step_ms"] * 1e12 / 1e11, abs=1e-3)
    assert real["config"]["recipe"]["train"]["batch_size"] == 4 and real["precision"] == "fp32"


def test_a_recipe_that_fails_does_not_end_the_others(tmp_path, capsys, monkeypatch):
    def one(recipe, *_):
        if recipe.name == "simclr_resnet18":
            raise MemoryError("too large")
        row = {"job": recipe.name, "contender": "x", "images_per_second": 1.0, "p20": 1.0, "p80": 1.0, "step_ms": 1.0}
        return [row | {"data_wait": 0.0, "peak_mb": 1.0, "step_gflop": 1.0}]

    monkeypatch.setattr(steps, "one", one)
    monkeypatch.setattr(steps, "peak_flops", lambda *_: 1e12)
    assert steps.main(["simclr_resnet18", "mae_vit-tiny", "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert [row["job"] for row in record.read("steps", tmp_path)] == ["mae_vit-tiny"]
    assert "simclr_resnet18: MemoryError: too large" in capsys.readouterr().err


def test_real_data_needs_images():
    with pytest.raises(UserError, match="--data real: needs --images"):
        steps.main(["mae_vit-tiny", "--data", "real", "--device", "cpu"])
