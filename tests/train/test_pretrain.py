"""Whole runs: exact resume, several processes, and what a run leaves behind."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import headrace
from headrace import kernels
from headrace.benchmarks import processes
from headrace.errors import UserError
from headrace.train import pretrain
from headrace.train.engine import checkpoint
from headrace.train.engine.metrics import read_metrics
from headrace.train.engine.step import Stepper
from headrace.train.recipe.recipe import load_recipe

ROOT = Path(headrace.__file__).parent
TINY_MAE = [
    "algorithm.view.size=32",
    "algorithm.backbone.patch_size=8",
    "algorithm.backbone.width=24",
    "algorithm.backbone.depth=2",
    "algorithm.backbone.heads=2",
    "algorithm.decoder.width=16",
    "algorithm.decoder.depth=1",
    "algorithm.decoder.heads=2",
]
TINY_SIMCLR = [
    "algorithm.view.size=32",
    "algorithm.backbone.small_image_stem=true",
    "algorithm.hidden=32",
    "algorithm.projection=16",
]
RUNS = {"mae": ["mae_vit-tiny", *TINY_MAE], "simclr": ["simclr_resnet18", *TINY_SIMCLR]}


def run(name, data, out, *overrides):
    arguments = [
        *RUNS[name],
        f"data.train={data}",
        f"train.out={out}",
        "train.batch_size=8",
        "train.device=cpu",
        "train.log_every=1",
        "data.threads=1",
        *overrides,
    ]
    return pretrain.main(arguments)


def losses(out):
    return [row["loss"] for row in read_metrics(out)]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_gradients_of_one(name, photo_folder, tmp_path):
    worker = Path(__file__).with_name("gradients_worker.py")
    files = [tmp_path / f"{n}.pt" for n in (1, 2)]
    for n, file in zip((1, 2), files):
        arguments = [str(argument) for argument in (worker, name, photo_folder, file)]
        assert processes.run(arguments, tmp_path / "log", world=n) == [0] * n, (tmp_path / "log").read_text()
    one, two = (torch.load(file, weights_only=True) for file in files)
    assert one.keys() == two.keys()
    largest = max(g.norm() for key, g in one.items() if not key.startswith("buffer"))
    for key in one:
        scale = max(one[key].float().norm().item(), 1e-3 * largest.item())
        assert (one[key].float() - two[key].float()).norm().item() < 2e-4 * scale, key


def test_interrupted_and_resumed_equals_undisturbed(photo_folder, tmp_path, monkeypatch):
    """The run dies at a random step; neither the curve nor the weights show it."""
    steps, every = 9, 2
    assert run("mae", photo_folder, tmp_path / "whole", f"train.max_steps={steps}") == 0
    stop = int(np.random.default_rng().integers(every + 1, steps))
    true_step = Stepper.__call__

    def dying_step(self, batch, progress):
        if progress.step == stop - 1:
            raise RuntimeError("killed")
        return true_step(self, batch, progress)

    overrides = (f"train.max_steps={steps}", f"train.save_every={every}")
    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "__call__", dying_step)
        with pytest.raises(RuntimeError, match="killed"):
            run("mae", photo_folder, tmp_path / "broken", *overrides)
    assert run("mae", photo_folder, tmp_path / "broken", *overrides) == 0
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole"), f"died at step {stop}"
    weights = [checkpoint.newest(tmp_path / out)[1]["model"] for out in ("broken", "whole")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def test_what_a_run_leaves(photo_folder, tmp_path):
    out = tmp_path / "run"
    assert run("mae", photo_folder, out, "train.max_steps=6", "train.save_every=1", "train.keep=2") == 0
    assert [p.name for p in checkpoint.checkpoints(out)] == ["step-00000005.pt", "step-00000006.pt"]
    state = torch.load(out / "step-00000006.pt", weights_only=True)
    assert state["step"] == 6 and state["loader"] == {"step": 6}
    encoder = load_file(out / "encoder.safetensors")
    assert encoder and all(torch.equal(value, state["model"][f"vit.{key}"]) for key, value in encoder.items())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(0 <= row["data_wait"] <= 1 and row["images_per_s"] > 0 for row in rows)
    assert (out / "config.yaml").exists()
    again = load_recipe(str(out / "config.yaml"), [])
    assert again.plain() == state["config"]
    path, algorithm = checkpoint.load_algorithm(out)
    assert path.name == "step-00000006.pt"
    assert torch.equal(algorithm.encoder.norm.weight, encoder["norm.weight"])


def test_finished_runs_do_nothing_more(photo_folder, tmp_path):
    assert run("mae", photo_folder, tmp_path, "train.max_steps=3") == 0
    before = (tmp_path / "step-00000003.pt").stat().st_mtime_ns
    assert run("mae", photo_folder, tmp_path, "train.max_steps=3") == 0
    assert (tmp_path / "step-00000003.pt").stat().st_mtime_ns == before and len(losses(tmp_path)) == 3


def test_a_truncated_newest_checkpoint_is_passed_over(photo_folder, tmp_path):
    assert run("mae", photo_folder, tmp_path, "train.max_steps=4", "train.save_every=2") == 0
    whole = losses(tmp_path)
    newest = tmp_path / "step-00000004.pt"
    newest.write_bytes(newest.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="step-00000004.pt: not a readable checkpoint"):
        assert run("mae", photo_folder, tmp_path, "train.max_steps=4", "train.save_every=2") == 0
    assert losses(tmp_path) == whole and checkpoint.load(newest)["step"] == 4


def test_resume_never_and_foreign_runs_are_refused(photo_folder, tmp_path):
    assert run("mae", photo_folder, tmp_path, "train.max_steps=1") == 0
    with pytest.raises(UserError, match="holds the checkpoints of a run"):
        run("mae", photo_folder, tmp_path, "train.max_steps=2", "train.resume=never")
    with pytest.raises(UserError, match="another algorithm section"):
        run("mae", photo_folder, tmp_path, "train.max_steps=2", "algorithm.mask_ratio=0.5")
    with pytest.raises(UserError, match="no such checkpoint"):
        run("mae", photo_folder, tmp_path / "new", "train.max_steps=2", "train.resume=nowhere.pt")


def test_an_encoder_says_that_the_run_has_ended(photo_folder, tmp_path, monkeypatch):
    """A run that is made longer has none until its new end, and none is written over."""
    short, longer = (("train.max_steps=1",), ("train.max_steps=3", "train.save_every=1"))
    assert run("mae", photo_folder, tmp_path / "a", *short) == 0
    true_step = Stepper.__call__

    def dying_step(self, batch, progress):
        if progress.step == 2:
            raise RuntimeError("killed")
        return true_step(self, batch, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "__call__", dying_step)
        with pytest.raises(RuntimeError, match="killed"):
            run("mae", photo_folder, tmp_path / "a", *longer)
    assert not (tmp_path / "a" / "encoder.safetensors").exists()
    assert run("mae", photo_folder, tmp_path / "a", *longer) == 0
    (tmp_path / "b").mkdir()
    foreign = (tmp_path / "a" / "encoder.safetensors").rename(tmp_path / "b" / "encoder.safetensors")
    before = foreign.read_bytes()
    for resume in ("auto", "never"):
        with pytest.raises(UserError, match="holds an encoder without the checkpoints of its run"):
            run("mae", photo_folder, tmp_path / "b", "train.max_steps=1", f"train.resume={resume}")
    assert foreign.read_bytes() == before


def test_resume_from_a_path_continues_there(photo_folder, tmp_path):
    assert run("mae", photo_folder, tmp_path / "a", "train.max_steps=4", "train.save_every=2", "train.keep=5") == 0
    start = tmp_path / "a" / "step-00000002.pt"
    assert run("mae", photo_folder, tmp_path / "b", "train.max_steps=4", f"train.resume={start}") == 0
    assert losses(tmp_path / "b") == losses(tmp_path / "a")[2:]


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'executed'}",))

    torch.save({"model": Payload()}, tmp_path / "step-00000001.pt")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "step-00000001.pt")
    assert not (tmp_path / "executed").exists()


def test_loss_falls(tmp_path):
    """Colour ramps without per-patch normalisation: what is visible tells what is hidden."""
    data = tmp_path / "ramps"
    data.mkdir()
    across, down = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64))
    for index in range(48):
        base, right, below = np.random.default_rng(index).uniform(-1, 1, (3, 3))
        ramp = 128 + 60 * base + 60 * right * across[..., None] + 60 * below * down[..., None]
        Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(data / f"{index}.png")
    overrides = ("train.max_steps=150", "train.batch_size=48", "optim.lr=0.03", "algorithm.normalize_pixels=false")
    assert run("mae", data, tmp_path / "run", *overrides) == 0
    curve = losses(tmp_path / "run")
    assert np.mean(curve[-10:]) < 0.4 * np.mean(curve[:10])


def test_bad_images_are_reported_at_the_end(photo_folder, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for index, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[:9]):
        (data / f"{index}.jpg").write_bytes(path.read_bytes()[: 300 if index == 4 else None])
    assert run("mae", data, tmp_path / "run", "train.max_steps=3") == 0
    assert "1 images could not be decoded" in capsys.readouterr().out


def test_a_recipe_swaps_a_kernel(photo_folder, tmp_path, monkeypatch):
    """A user's function by its dotted path, forward only: it is what computes the loss."""
    (tmp_path / "recipe_kernels.py").write_text(
        "from headrace.kernels.patch_loss.reference import patch_loss as reference\n"
        "def doubled(*arguments, **options):\n"
        "    return 2 * reference(*arguments, **options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        run("mae", photo_folder, tmp_path / "own", "train.max_steps=1", "kernels.patch_loss=recipe_kernels.doubled")
    finally:
        kernels.configure({})
    run("mae", photo_folder, tmp_path / "built-in", "train.max_steps=1")
    assert losses(tmp_path / "own")[0] == pytest.approx(2 * losses(tmp_path / "built-in")[0], rel=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_curve_of_one(name, photo_folder, tmp_path):
    """To rounding, and with the options that change how gradients travel."""
    arguments = [
        *RUNS[name],
        f"data.train={photo_folder}",
        "train.batch_size=8",
        "train.max_steps=3",
        "train.log_every=1",
        "train.device=cpu",
        "data.threads=1",
        "optim.lr=0.0001",  # a rate at which the loss does not leap and rounding stays rounding
    ]
    for world, option in (
        (1, "train.unused_parameters=false"),
        (2, "train.unused_parameters=false"),
        (2, "train.unused_parameters=true"),
    ):
        out = tmp_path / f"{world}{option[-4:]}"
        codes = processes.run([*arguments, f"train.out={out}", option], tmp_path / "log", world=world)
        assert codes == [0] * world, (tmp_path / "log").read_text()
        assert losses(out) == pytest.approx(losses(tmp_path / "1alse"), rel=1e-3)
        norms = [[row["metrics"]["grad_norm"] for row in read_metrics(run)] for run in (out, tmp_path / "1alse")]
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_indivisible_batch_on_two_processes(photo_folder, tmp_path):
    arguments = [*RUNS["mae"], f"data.train={photo_folder}", f"train.out={tmp_path / 'x'}", "train.batch_size=7"]
    codes = processes.run([*arguments, "train.max_steps=1", "train.device=cpu"], tmp_path / "log", world=2)
    line = "headrace: train.batch_size: 7 images do not divide among 2 processes; use a multiple of 2"
    assert codes == [2, 2] and (tmp_path / "log").read_text().count(line) == 1
    assert not (tmp_path / "x").exists()
