"""The benchmark of loaders: what it compares is comparable, and what it writes can be read."""

import itertools
import time

import numpy as np
import pytest
import torch

from headrace.benchmarks import loaders, record
from headrace.errors import UserError
from headrace.pipelines.spec import ViewSpec

VIEWS = (
    ViewSpec(count=2, size=32, jitter=0.8, brightness=0.4, hue=0.1, gray=0.2, blur=0.5),
    ViewSpec("small", size=24),
)


@pytest.fixture
def job(photo_folder):
    return loaders.Job(photo_folder, VIEWS, workers=0, batch=4)


def test_every_contender_that_is_installed_gives_float_views_of_the_same_shapes(job):
    """In this process (no workers): what they cost is not the question here."""
    names = [
        name for name, peer in loaders.PEERS.items() if not peer.missing and name in ("torchvision", "torchvision v2")
    ]
    for name in names:
        batches = job.start(name)
        views = next(batches)
        batches.close()
        assert [tuple(view.shape) for view in views] == [(4, 3, 32, 32)] * 2 + [(4, 3, 24, 24)]
        assert all(view.dtype == torch.float32 for view in views) and not torch.equal(views[0], views[1])


def test_a_contender_with_other_views_is_caught(job, monkeypatch):
    job.workers = 1
    start = job.start

    def shifted(name):
        for views in start("headrace cpu"):
            yield [view + 1 for view in views] if name == "brighter" else views

    monkeypatch.setattr(job, "start", shifted)
    wrong = job.check(["headrace cpu", "brighter"])
    assert list(wrong) == ["brighter"]


def test_ours_must_be_right_or_nothing_is_measured(job, monkeypatch):
    oracle = loaders.reference_views
    off = lambda *arguments: {name: views + 0.1 for name, views in oracle(*arguments).items()}
    monkeypatch.setattr(loaders, "reference_views", off)
    with pytest.raises(AssertionError, match="grey levels from the reference"):
        job.check([])


def test_rates_count_images_and_all_processors_time():
    def busy():
        for _ in itertools.count():
            end = time.process_time() + 0.005
            while time.process_time() < end:
                pass
            yield None

    rate, cpu = loaders.measure(busy(), batch=10, seconds=0.5, warm=1)
    assert rate <= 10 / 0.005 * 1.01 and 10 * cpu >= 0.005e6 * 0.7 and cpu < 1.5e6 / rate + 300


def test_figures_are_medians_of_turns_in_turn(job, monkeypatch):
    seen, rates = [], iter([10, 1, 30, 3, 20, 2])
    monkeypatch.setattr(job, "start", lambda name: seen.append(name) or iter(()))
    monkeypatch.setattr(loaders, "measure", lambda *_: (next(rates), 5.0))
    figures = loaders.run(job, ["a", "b"], 1.0, 3)
    assert seen == ["a", "b"] * 3
    assert figures["a"] == {
        "images_per_second": 20.0,
        "p20": 14.0,
        "p80": 26.0,
        "views_per_second": 60.0,
        "cpu_us_per_image": 5.0,
    }


def test_rows_come_back_with_what_they_were_made_with_and_the_table_takes_the_last(tmp_path):
    for rate in (100.0, 1234.0):
        figure = {"images_per_second": rate, "p20": rate - 1, "p80": rate + 1, "cpu_us_per_image": 7.0}
        row = {"job": "mae", "contender": "cpu", **figure, "config": {"workers": 2}}
        record.append("ledger", row, ("numpy",), folder=tmp_path)
    first, last = record.read("ledger", folder=tmp_path)
    assert first["images_per_second"] == 100.0 and last["config"] == {"workers": 2}
    assert last["packages"]["numpy"] == np.__version__ and last["commit"] and last["cores"] and last["processor"]
    assert loaders.table([first, last]).splitlines()[-1] == "| cpu | 1,234 (1,233-1,235), 7 us |"
    assert record.read("none", folder=tmp_path) == []


def test_mistakes_on_the_command_line_are_said():
    with pytest.raises(UserError, match="--data is missing"):
        loaders.main([])
    with pytest.raises(UserError, match="torchvison is none of"):
        loaders.main(["--data", ".", "--peers", "torchvison"])
