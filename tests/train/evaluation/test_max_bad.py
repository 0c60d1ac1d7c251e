"""One setting says how many images may be undecodable, wherever images are read: by runs and by commands."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headrace.cli import dispatch
from headrace.errors import UserError
from headrace.models.algorithms import inputs_of
from headrace.pipelines.loaders.quarantine import Quarantine
from headrace.pipelines.sources import open_source
from headrace.tools.look.maps import look
from headrace.tools.look.samples import first_batch
from headrace.train import pretrain
from headrace.train.engine.distributed import Launch
from headrace.train.evaluation.embed import embed
from headrace.train.evaluation.embed_encoder import load_encoder
from headrace.train.evaluation.knn import knn_accuracy
from headrace.train.evaluation.score import knn_score
from headrace.train.evaluation.sweep import sweep
from headrace.train.recipe.recipe import load_recipe

BAD = (2, 3, 9, 16, 17, 20)  # 6 of 24


@pytest.fixture(scope="module")
def damaged(photo_folder, tmp_path_factory):
    """The photos with a quarter of them cut short, and the good ones alone."""
    root = tmp_path_factory.mktemp("damaged")
    for index, path in enumerate(sorted(photo_folder.rglob("*.jpg"))):
        for kind in ("all", "good"):
            copy = root / kind / path.relative_to(photo_folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if kind == "all" or index not in BAD:
                copy.write_bytes(path.read_bytes()[: 200 if index in BAD else None])
    return root


def refused(arguments, setting):
    with pytest.raises(UserError) as caught:
        dispatch(arguments)
    text = str(caught.value)
    assert "cannot be read or decoded" in text and f"or raise {setting}" in text and "\n" not in text


def test_commands(damaged, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    everything, good = str(damaged / "all"), str(damaged / "good")
    rest = ["--threads", "1", "--device", "cpu"]
    sets = lambda folder: ["pixels:8", "--train", folder, "--val", folder, *rest]
    fast = ["--epochs", "2", "--head-batch", "8", "--lr", "0.1", "--weight-decay", "0"]
    commands = {
        "embed": lambda folder: ["embed", "pixels:8", folder, *rest],
        "knn": lambda folder: ["knn", *sets(folder), "--k", "3", "7"],
        "linear": lambda folder: ["linear", *sets(folder), *fast],
        "tsne": lambda folder: ["tsne", "pixels:8", folder, "--method", "pca", *rest],
    }
    for name, command in commands.items():
        refused(command(everything), "--max-bad")
        assert dispatch([*command(everything), "--max-bad", "0.25"]) == 0, name
        said = capsys.readouterr().out
        assert said.count("left out: ") == (6 if name in ("embed", "tsne") else 10 + 1), name
        refused(command(everything), "--max-bad")  # that the features are there by now is no reason to let it pass
        refused([*command(everything), "--max-bad", "0.2"], "--max-bad")
        assert dispatch(command(good)) == 0
    rows = [json.loads(line)["figures"] for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    assert rows[0] == rows[1] and rows[2] == rows[3]
    with pytest.raises(SystemExit):
        dispatch([*commands["knn"](good), "--max-bad", "30"])
    assert "a share lies in [0, 1], not 30" in capsys.readouterr().err


def test_runs_with_labels(damaged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ["algorithm.view.size=32", "algorithm.backbone={patch_size: 8, width: 24, depth: 1, heads: 2}"]
    tiny += ["train.device=cpu", "train.batch_size=8", "data.threads=1", "train.max_steps=2", "train.precision=fp32"]
    tiny += [f"data.train={damaged}/good", f"data.val={damaged}/all"]
    command = ["finetune", "finetune/vit-tiny_cifar10", "scratch", *tiny]
    refused([*command, "train.out=a"], "data.max_bad")
    assert dispatch([*command, "train.out=b", "data.max_bad=0.3"]) == 0
    sets = ["--train", f"{damaged}/all", "--val", f"{damaged}/all", "--epochs", "1", "--head-batch", "8"]
    probe = ["linear", "b", *sets, "--protocol", "mae", "--threads", "1", "--device", "cpu", "--out"]
    refused([*probe, "c"], "data.max_bad")
    assert dispatch([*probe, "d", "--max-bad", "0.3"]) == 0


@pytest.mark.parametrize(
    "name", ["odc_resnet50_8xb64-steplr-440e_in1k", "deepcluster-sobel_resnet50_8xb64-steplr-200e_in1k"]
)
def test_methods_that_look_at_all_images_first(name, damaged, tmp_path):
    arguments = [name, "--smoke", f"data.train={damaged}/all", "data.threads=1", "train.max_steps=2"]
    assert pretrain.main([*arguments, "data.max_bad=0.3", f"train.out={tmp_path}/a"]) == 0
    with pytest.raises(UserError, match="that data.max_bad allows"):
        pretrain.main([*arguments, f"train.out={tmp_path}/b"])
    known = (tmp_path / "a/quarantine.jsonl").read_text().splitlines()
    assert len(known) == len(BAD)  # found by the look at all images, and told once


def test_scores_on_the_way_are_of_good_images(damaged):
    """A bad image is no neighbour and no query: its substitute under its label would be both."""
    overrides = [f"data.train={damaged}/all", f"data.val={damaged}/all", "train.knn_every=1", "train.max_steps=1"]
    encoder = load_encoder("pixels:8")

    recipe = load_recipe("simclr_resnet18_cifar10", [*overrides, "data.max_bad=0.3"])
    algorithm = SimpleNamespace(encoder=encoder.module, inputs=lambda: SimpleNamespace(views=(encoder.view,)))
    score = knn_score(recipe, Launch(), algorithm, open_source(damaged / "all"), 1)
    good = embed(encoder.module, open_source(damaged / "good"), encoder.view, threads=1)
    assert score() == {"knn": pytest.approx(knn_accuracy(good, good))}
    strict = load_recipe("simclr_resnet18_cifar10", overrides)
    with pytest.raises(UserError, match="that data.max_bad allows"):
        knn_score(strict, Launch(), algorithm, open_source(damaged / "all"), 1)()


def test_a_sweep_shares_what_a_run_knows(damaged):
    source, encoder = open_source(damaged / "all"), load_encoder("pixels:8")
    known = Quarantine(source, 0.3)
    rows = sweep(encoder.module, encoder.view, source, Launch(), batch_size=8, threads=1, quarantine=known)
    assert sorted(known.known()) == list(BAD) and rows.shape == (24, 192)
    good = embed(encoder.module, open_source(damaged / "good"), encoder.view, threads=1).vectors
    assert torch.allclose(rows[np.setdiff1d(range(24), BAD)], good)


def test_all_that_is_left_out_is_named(photo_folder, tmp_path):
    first = sorted(photo_folder.rglob("*.jpg"))[0].read_bytes()
    for index in range(130):
        (tmp_path / f"{index:03d}.jpg").write_bytes(first if index < 10 else first[:200])
    encoder = load_encoder("pixels:8")
    found = embed(encoder.module, open_source(tmp_path), encoder.view, threads=1, max_bad=0.95)
    assert len(found.vectors) == 10 and len(found.left_out) == 120


def test_pictures_are_of_good_images(damaged):
    """How many are too many is for training to say: what is looked at are all others."""
    source = open_source(damaged / "all")
    inputs = inputs_of(load_recipe("mae_vit-tiny_demo", ["algorithm.view.size=32"]).algorithm)
    shown = first_batch(source, inputs, 24, seed=0).ids.tolist()
    assert set(shown) == set(range(24)) - set(BAD)


def test_what_an_encoder_is_shown_leaves_bad_ones_out(damaged, tmp_path, capsys):
    asked = dict(images=[str(damaged / "all")], samples=24, size=None, device="cpu", out=tmp_path / "p.png")
    seen = look(SimpleNamespace(encoder="pixels:8", **asked))
    assert capsys.readouterr().out.count("left out: ") == len(BAD)
    good = look(SimpleNamespace(encoder="pixels:8", **asked | {"images": [str(damaged / "good")]}))
    assert seen.pixels.shape == (18, 8, 8, 3) and torch.equal(seen.pixels, good.pixels)


def test_doctor_allows_what_the_recipe_allows(damaged):
    arguments = ["doctor", f"{damaged}/all", "mae_vit-tiny_demo", "--seconds", "0.5", "data.loader=cpu"]
    arguments += ["train.batch_size=8", "train.device=cpu", "data.threads=1"]
    refused(arguments, "data.max_bad")
    assert dispatch([*arguments, "data.max_bad=0.3"]) == 0
