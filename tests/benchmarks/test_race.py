"""The race: who may take part, what memory is counted, and that what we and others train is the same."""

import json
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
from headrace.benchmarks.ledger import TABLES
from headrace.benchmarks.racers import MODEL_ONLY, SYSTEMS, ceiling, ours
from headrace.benchmarks.racers.heat import JOBS, Heat, Racer, as_authors, trained
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


def test_first_steps_are_compared_by_all_their_views():
    """Fifteen batches of two views: moments of all their values, the mean loss of the first twelve."""
    values = np.random.default_rng(0).normal(0.3, 2.0, (15, 2, 4, 3, 8, 8)).astype(np.float32)
    batches = iter(torch.from_numpy(values))
    model = torch.nn.Linear(3, 5)
    losses = iter([1.0, 2.0, 4.0, 9.0] * 3)
    racer = Racer(batches, lambda batch: torch.tensor(next(losses)), list, model)
    found = race.first_steps(racer, 15)
    assert found.pop("shapes") == [(4, 3, 8, 8)]
    wanted = {"parameters": 20, "mean": values.mean(dtype=float), "spread": values.std(dtype=float), "loss": 4.0}
    assert found == pytest.approx(wanted, rel=1e-6)


def test_linear_layers_are_drawn_as_their_authors_draw_them():
    """Xavier's uniform values: variance 2 / (inputs + outputs); nothing else is touched."""
    model = torch.nn.Sequential(torch.nn.Linear(300, 500), torch.nn.LayerNorm(500))
    as_authors(model)
    assert model[0].weight.var().item() == pytest.approx(2 / 800, rel=0.02)
    assert model[0].bias.abs().max() == 0 and torch.equal(model[1].weight, torch.ones(500))


def heat_row(job, contender, rate, peak, beside=0):
    config = {"title": "MAE" if "mae" in job else "SimCLR", "beside": beside, "batch": 8, "workers": 2}
    config |= {"repeat": 5, "seconds": 10.0}
    facts = {"headrace": "0.1.0", "commit": "abcdef0123", "packages": {"torch": "2.15.0", "lightly": "1.6.0"}}
    facts |= {"cuda": None, "device": "x86_64", "cores": 2, "processor": "CPU A", "command": ["x"], "run": job}
    own = {"time": "2026-01-02T03:04:05Z", "job": job, "contender": contender, "images_per_second": rate}
    own |= {"p20": 0.9 * rate, "p80": 1.1 * rate, "cpu_us_per_image": 12_345.0, "data_wait": 0.25, "peak_mb": peak}
    return own | {"parameters": 1000, "loss": 2.5, "config": config} | facts


def test_the_races_tables(tmp_path):
    rows = [heat_row("mae-224", "headrace", 90.0, 900), heat_row("mae-224", "lightly", 60.0, 800)]
    rows += [heat_row("simclr-224", "headrace", 30.0, 700), heat_row("simclr-224", "mmpretrain", 24.0, 900)]
    rows += [heat_row("simclr-224-beside-2", "headrace", 13.5, 700, beside=2)]
    (tmp_path / "race.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cells = lambda line: [cell.strip(" *") for cell in line.split("|")[1:-1]]  # noqa: E731
    found = [cells(line) for line in TABLES["race-ratios"](tmp_path) if line.startswith("|")]
    assert found[0] == ["whole steps, images/s", "headrace", "over lightly", "over mmpretrain"]
    assert found[2:] == [["MAE", "90.0", "1.50 x", ""], ["SimCLR", "30.0", "", "1.25 x"]]
    found = {tuple(cells(line)) for line in TABLES["race-targets"](tmp_path) if line.startswith("|")}
    assert ("MAE: 1.3 x lightly", "1.50 x", "yes") in found
    assert ("SimCLR: 1.5 x mmpretrain", "1.25 x", "no") in found
    assert ("simclr-32: 1.5 x lightly", "Not measured yet.", "") in found
    assert ("MAE: no more memory than any peer", "900 MB, lightly 800 MB", "no") in found
    # 13.5 of 30 images/s with two of four shares of the cores
    assert ("SimCLR, beside 2 busy processes: 0.8 of the share of the cores", "0.90", "yes") in found
    assert TABLES["race-ceilings"](tmp_path) == TABLES["race-parts"](tmp_path) == ["Not measured yet."]
    found = [cells(line) for line in TABLES["race"](tmp_path) if "lightly" in line]
    assert found == [["lightly 1.6.0", "60.0 (54.0-66.0)", "1.50 x", "12.35", "25.0%", "800", "1,000", "2.50", ""]]


def test_what_there_is_to_gain_without_data(tmp_path):
    """Rows of models alone take no part in the other tables."""
    rows = [heat_row("mae-224", name, rate, 900) for name, rate in (("headrace", 90.0), ("lightly", 60.0))]
    rows.append(heat_row("mae-224", "mmpretrain", 50.0, 900))
    plain = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "race.jsonl").write_text(plain)
    others = [TABLES[name](tmp_path) for name in ("race", "race-ratios", "race-targets")]
    shares = {"convolutions": 0.25, "matrix products": 0.625, "the rest": 0.125}
    rows = [heat_row("mae-224", name + MODEL_ONLY, rate, 900) for name, rate in (("headrace", 96.0), ("lightly", 80.0))]
    (tmp_path / "race.jsonl").write_text(plain + "".join(json.dumps(row | {"shares": shares}) + "\n" for row in rows))
    assert [TABLES[name](tmp_path) for name in ("race", "race-ratios", "race-targets")] == others
    cells = lambda line: [cell.strip() for cell in line.split("|")[1:-1]]  # noqa: E731
    found = [cells(line) for line in TABLES["race-ceilings"](tmp_path) if line.startswith("|")]
    assert found[0][3:] == ["that over lightly", "that over mmpretrain", "that over lightly, model only"]
    assert found[2:] == [["MAE", "90.0", "96.0", "1.60 x", "1.92 x", "1.20 x"]]
    found = [cells(line) for line in TABLES["race-parts"](tmp_path)]
    assert found[0] == ["share of a step", *shares]
    assert found[2:] == [[f"MAE: {name}", "25.0%", "62.5%", "12.5%"] for name in ("headrace", "lightly")]


def test_without_data_one_batch_comes_again_and_its_loader_ends():
    ended = []

    def batches():
        try:
            yield from (torch.full((1,), float(n)) for n in range(9))
        finally:
            ended.append(True)

    racer = ceiling.without_data(Racer(batches(), lambda batch: batch, list, torch.nn.Linear(1, 1)))
    assert ended == [True] and [next(racer.batches).item() for _ in range(3)] == [0.0] * 3


def test_a_step_is_split_by_its_operators():
    """Of a step that is one product of matrices nearly all is that; and of known times the shares are known."""
    matrix = torch.rand(600, 600)
    racer = Racer(iter([matrix] * 2), lambda batch: batch @ batch, list, torch.nn.Linear(1, 1))
    found = ceiling.shares(racer)
    assert tuple(found) == ceiling.PARTS and found["matrix products"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    times = {"aten::mkldnn_convolution": 2.0, "aten::convolution_backward": 4.0, "aten::addmm": 1.0, "aten::mm": 3.0}
    times |= {"aten::native_layer_norm_backward": 5.0, "aten::threshold_backward": 6.0, "aten::gelu": 1.0}
    times |= {"aten::_scaled_dot_product_flash_attention_for_cpu": 8.0, "aten::_fused_sgd_": 9.0, "aten::copy_": 11.0}
    wanted = [6.0, 4.0, 8.0, 5.0, 7.0, 9.0, 11.0]
    assert list(ceiling.grouped(times).values()) == pytest.approx([each / 50 for each in wanted])
