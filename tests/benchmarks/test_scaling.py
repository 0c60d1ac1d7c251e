"""Scaling, evaluation and the speedrun: what they compute from measurements."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headrace.benchmarks import evaluation, racers, record, scaling, speedrun
from headrace.benchmarks.racers import heat as racers_heat
from headrace.errors import UserError
from headrace.pipelines.sources.arrays import ArraySource
from headrace.pipelines.sources.shards import ShardSource
from headrace.train.engine.optim import Schedules
from headrace.train.recipe.recipe import load_recipe


def test_gains_are_over_the_smallest_number():
    one, two = scaling._scaled("job", "images_per_second", {1: [100.0, 90.0, 110.0], 2: [150.0, 160.0, 140.0]})
    assert one["gain"] == one["efficiency"] == 1.0
    assert two["gain"] == 1.5 and two["efficiency"] == 0.75 and two["images_per_second"] == 150.0


def test_orders_and_indices_are_written_down(tmp_path, capsys):
    for part, largest in (("order", "4"), ("index", "3")):
        arguments = ["--parts", part, "--largest", largest, "--repeat", "1", "--out", str(tmp_path)]
        assert scaling.main(arguments) == 0
    rows = {(row["job"], row["contender"]): row for row in record.read("scaling", tmp_path)}
    full = rows["order", "10,000 samples, full shuffle"]
    three = rows["order", "10,000 samples, three sets"]
    assert three["ids"] == 9 and three["ids_ms"] > 0
    assert full["ids"] == 9 and full["ranks"] == 1024 and full["ids_ms"] > 0
    assert rows["index", "1,000 samples"]["bytes_per_sample"] == pytest.approx(28, abs=0.3)


def test_the_index_that_is_written_is_one(tmp_path):
    scaling.write_index(tmp_path, 25)
    source = ShardSource(tmp_path)
    assert len(source) == 25 and source.label(24) == 24 and source.size(3) == (375, 500)
    assert len(source.read(24)) == 110_000


def test_threads_and_processes_need_images():
    with pytest.raises(UserError, match="processes and threads need images"):
        scaling.main([])


def test_threads_are_measured_in_turn(photo_folder, monkeypatch):
    seen = []
    make = scaling.make_loader
    monkeypatch.setattr(scaling, "make_loader", lambda *a, **o: seen.append(o["threads"]) or make(*a, **o))
    rows = list(scaling.threads(photo_folder, [1, 2], 0.05, 2, 4))
    assert seen == [1, 2, 1, 2] and [row["contender"] for row in rows] == ["1", "2"]


def test_extrapolation_is_exact_where_costs_are_what_it_takes_them_for():
    """a seconds a neighbour and b more with each query."""
    a, b = 3e-6, 2e-8
    took = lambda neighbours, queries: neighbours * (a + b * queries)  # noqa: E731
    found = evaluation.extrapolated(took(1000, 20), took(1000, 60), (20, 60), 1000, 50_000, 7_000)
    assert found == pytest.approx(took(50_000, 7_000))


def test_rows_of_the_evaluation(tmp_path, capsys):
    small = ["--slice", "300", "--queries", "10", "20", "--repeat", "1", "--memory", "0.01", "--images", "40"]
    small += ["--epochs", "2", "--steps", "11", "--recipe", "mae_vit-tiny_cifar10", "--out", str(tmp_path)]
    assert evaluation.main(small) == 0
    knn, linear = record.read("evaluation", tmp_path)
    assert knn["memory_bound_mb"] == pytest.approx(0.01 * 2**30 / 1e6, abs=0.1)
    seconds = knn["seconds_few"], knn["seconds"]  # rounded to 0.1 ms, which 50,000 queries make half an hour
    hours = evaluation.extrapolated(*seconds, (10, 20), 300, evaluation.NEIGHBOURS, evaluation.QUERIES) / 3600
    assert knn["estimated_hours"] == pytest.approx(hours, abs=2)
    whole = 10 * 2 * linear["published_epoch_seconds"]
    assert linear["estimated_published_seconds"] == pytest.approx(whole, rel=0.01, abs=0.01)
    assert linear["estimated_speedup"] == pytest.approx(whole / linear["seconds"], rel=0.01, abs=0.01)


def test_the_clock_starts_with_the_process():
    clock = speedrun.Clock()
    assert 0.5 < clock.seconds < 36_000  # torch alone takes longer to import
    clock.lap("a")
    time.sleep(0.05)
    clock.lap("b")
    time.sleep(0.02)
    clock.lap("a")
    assert clock.stages["b"] == pytest.approx(0.05, abs=0.03)
    assert sum(clock.stages.values()) == pytest.approx(clock.seconds, abs=0.05)


def test_training_ends_in_time_and_its_schedule_with_it():
    """However fast steps are, the last one comes at the end of the schedule."""
    now, seen = [0.0], []

    class Training(speedrun.Training):
        def __init__(self):
            self.device, self.step = torch.device("cpu"), 0
            self.loader = iter(lambda: None, 1)

        def stepper(self, batch, progress):
            seen.append(progress.fraction)
            now[0] += 0.5 if len(seen) < 20 else 1.5  # steps become slower

    training = Training()
    training.run(lambda: 60.0 - now[0])
    assert 60 <= now[0] < 61.5 and training.step == len(seen) == 19 + 34
    assert seen[0] == 0 and seen == sorted(seen) and seen[-1] > 0.97
    assert seen[19] == pytest.approx(9.5 / 60, abs=1e-3)
    with pytest.raises(UserError, match="no time is left to train"):
        training.run(lambda: -1.0)


def test_images_of_several_sizes_are_refused(photo_folder):
    from headrace.pipelines.sources import open_source

    with pytest.raises(UserError, match="images of one size"):
        speedrun.decoded(open_source(photo_folder), None)


def test_what_evaluating_takes_grows_with_images_and_epochs(monkeypatch):
    """Features of 300 + 100 images at 2 ms, heads at 1 ms an image and epoch, from 256 of the first."""
    now = [0.0]
    monkeypatch.setattr(speedrun, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def embed(module, source, view, process):
        now[0] += 0.002 * len(source)
        return SimpleNamespace(rows=len(source))

    def sweep(bank, queries, classes, epochs, device):
        now[0] += 0.001 * bank.rows * epochs

    monkeypatch.setattr(speedrun, "embed", embed)
    monkeypatch.setattr(speedrun, "sweep_heads", sweep)
    monkeypatch.setattr(speedrun, "evaluation_view", lambda view: view)
    views = SimpleNamespace(views=[None])
    algorithm = SimpleNamespace(encoder=None, inputs=lambda: views, train=lambda: None)
    sets = [ArraySource(np.zeros((n, 4, 4, 3), np.uint8), [0] * n) for n in (300, 100)]
    process = SimpleNamespace(device="cpu")
    assert speedrun.expected(algorithm, sets, 7, process) == pytest.approx(0.002 * 400 + 0.001 * 300 * 7)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--by", "lightly", "--train-images", "10"], "--train must be a folder"),
        (["--by", "lightly", "--recipe", "mae_vit-tiny_cifar10"], "trains simclr, byol here, not mae"),
    ],
)
def test_what_a_peer_cannot_do_is_one_line(tmp_path, monkeypatch, options, said):
    monkeypatch.setattr(racers.System, "missing", False)
    command = ["--train", str(tmp_path), "--val", str(tmp_path), "--device", "cpu", *options]
    with pytest.raises(UserError, match=said):
        speedrun.main(command)


def test_a_peer_learns_by_the_clock_and_around_our_encoder(tmp_path, monkeypatch):
    """Its optimizer has the schedule's rate at the time that has passed, times nothing; its waiting is counted."""
    recipe = load_recipe("simclr_resnet18_cifar10", ["algorithm.backbone.width=8", "train.batch_size=4"])
    algorithm, seen = (
        SimpleNamespace(encoder=object(), inputs=lambda: SimpleNamespace(views=[recipe.algorithm.view])),
        [],
    )
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0, weight_decay=0.5)

    def made(heat):
        assert heat.encoder is algorithm.encoder and heat.data == tmp_path and heat.job.batch == 4

        def batches():
            while True:
                time.sleep(0.02)
                yield "batch"

        step = lambda batch: seen.append((batch, optimizer.param_groups[0]["lr"]))  # noqa: E731
        return racers_heat.Racer(batches(), step, list, torch.nn.Identity(), optimizer)

    monkeypatch.setattr(racers.System, "load", lambda self, method: made)
    training = speedrun.PeerTraining(recipe, algorithm, tmp_path, 40, "lightly")
    training.take(2, 0.5)
    rate = Schedules(recipe.optim, 4, 10_000, 100).lrs[5000]
    assert seen == [("batch", pytest.approx(float(rate)))] * 2
    assert training.steps_per_epoch == 10 and 0.04 <= training.waited < 1
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
