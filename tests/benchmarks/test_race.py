"""The race: who may take part, what memory is counted, and that what we and others train is the same."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from headrace.benchmarks import race
from headrace.benchmarks.racers import SYSTEMS, ours
from headrace.benchmarks.racers.heat import JOBS, Heat, trained
from headrace.train.recipe.recipe import load_recipe

OURS = {"parameters": 1000, "loss": 5.0, "mean": 0.1, "spread": 1.1, "shapes": [[4, 3, 32, 32]]}


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, ""),
        ({"loss": 5.4, "mean": 0.2}, ""),
        ({"parameters": 1010}, "parameters: 1010, ours 1000"),
        ({"loss": 6.0}, "loss: 6, ours 5"),
        ({"mean": 0.3}, "mean: 0.3, ours 0.1"),
        ({"spread": 0.9}, "spread: 0.9, ours 1.1"),
        ({"shapes": [[4, 3, 16, 16]]}, "its views are [[4, 3, 16, 16]], ours [[4, 3, 32, 32]]"),
    ],
)
def test_who_differs_does_not_race(change, said):
    assert race.unlike(OURS | change, OURS) == said


def test_memory_is_that_of_the_whole_family():
    """A child's child holds 200 MB."""
    grandchild = "import time; held = bytearray(b'x' * 200_000_000); print('held', flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout.readline() == b"held\n"
        found = race.megabytes(child.pid)
        subprocess.run(["pkill", "-g", str(child.pid)], check=True)
    assert 195 < found < 260


def test_busy_processes_end():
    def count():
        command = ["pgrep", "-P", str(os.getpid()), "-f", race._BUSY]
        return len(subprocess.run(command, stdout=subprocess.PIPE).stdout.split())

    with race.busy(2):
        time.sleep(0.3)
        assert count() == 2
    assert count() == 0


def test_a_plain_loop_takes_the_optimizers_step():
    """Two steps of gradient descent on (w - 3)^2 from 0 at a rate of 0.25: 1.5, then 2.25."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    told = []
    loss = lambda batch: (model(batch) - 3).square().sum()  # noqa: E731
    racer = trained(model, iter([]), loss, optimizer, list, lambda: told.append(model.weight.item()))
    assert [racer.step(torch.ones(1, 1)).item() for _ in range(2)] == [9.0, 2.25]
    assert told == [1.5, 2.25]
    assert racer.parameters == 1


def test_our_simclr_is_a_resnet_with_a_head(tmp_path):
    """As many parameters as torchvision's ResNet-18 without its classifier, and two layers with their normalisation."""
    for n in range(4):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 60 * n, np.uint8)).save(tmp_path / "a" / f"{n}.jpg")
    recipe = load_recipe("simclr_resnet18", ["train.batch_size=2", "algorithm.view.size=32", "train.precision=fp32"])
    racer = ours.simclr(Heat(JOBS["simclr-224"], recipe, tmp_path, 1))
    theirs = torchvision.models.resnet18()
    body = sum(p.numel() for p in theirs.parameters()) - sum(p.numel() for p in theirs.fc.parameters())
    assert racer.parameters == body + 512 * 512 + 2 * 512 + 512 * 128 + 2 * 128


def test_every_job_has_a_rival():
    for name, job in JOBS.items():
        assert sum(job.method in system.methods for system in SYSTEMS.values()) > 1, name


def test_jobs_are_recipes():
    for job in JOBS.values():
        recipe = load_recipe(job.recipe, [f"train.batch_size={job.batch}", *job.changes])
        assert recipe.algorithm.name == job.method
    small = recipe_of("dino-224").algorithm.small
    assert (small.count, small.size) == (6, 96)


def recipe_of(name):
    return load_recipe(JOBS[name].recipe, JOBS[name].changes)


def test_missing_images_are_one_line(capsys):
    from headrace.errors import run_command

    assert run_command(lambda: race.main(["--jobs", "mae-32"])) == 2
    assert "race: --data-32: missing: a folder of images" in capsys.readouterr().err
