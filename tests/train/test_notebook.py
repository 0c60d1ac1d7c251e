"""`headrace.pretrain`, `embed` and `knn` do what the commands do, and say what they would say."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import headrace
from headrace.cli import dispatch
from headrace.errors import UserError
from headrace.pipelines import ArraySource, ViewSpec
from headrace.train import notebook, read_metrics
from headrace.train.recipe.recipe import smoke_images


@pytest.fixture(scope="module")
def run(photo_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("notebook") / "run"
    return headrace.pretrain(
        "mae_vit-tiny", photo_folder, smoke=True, train={"max_steps": 3, "log_every": 1, "out": out}
    )


def test_pretrain_is_the_command(run, photo_folder, tmp_path):
    words = ["train.max_steps=3", "train.log_every=1", f"train.out={tmp_path}", f"data.train={photo_folder}"]
    assert dispatch(["pretrain", "mae_vit-tiny", "--smoke", *words]) == 0
    ours, theirs = (load_file(folder / "encoder.safetensors") for folder in (run, tmp_path))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [row["loss"] for row in read_metrics(run)] == [row["loss"] for row in read_metrics(tmp_path)]


def test_sections_in_any_spelling(photo_folder, tmp_path, capsys):
    """As mappings, by dotted names, images as an object: the start-up block says what was meant."""
    images = smoke_images().images[:20]
    out = headrace.pretrain(
        "simclr_resnet18",
        ArraySource(images, name="mine"),
        smoke=True,
        train={"max_steps": 1},
        **{"train.out": tmp_path / "a"},
    )
    assert out == tmp_path / "a" and "mine: 20 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"train": {"max_stps": 1}}, "argument: train.max_stps: unknown key; did you mean max_steps?"),
        ({"train": {"max_steps": "many"}}, "argument: train.max_steps: needs an integer"),
        ({"train": 5}, "pretrain: train: needs a mapping, as in train={'max_steps': 50}, got 5"),
        ({"trian": {"max_steps": 1}}, "trian: unknown key; did you mean train?"),
    ],
)
def test_faults_are_those_of_the_command(overrides, message):
    with pytest.raises(UserError) as caught:
        headrace.pretrain("mae_vit-tiny", smoke=True, **overrides)
    assert message in str(caught.value)


def test_embed_and_knn_are_the_commands(run, photo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dispatch(["embed", str(run), str(photo_folder)]) == 0
    (stored,) = (tmp_path / "features").iterdir()
    found = headrace.embed(run, photo_folder)
    assert np.array_equal(found.vectors, np.load(stored / "features.npy"))
    assert np.array_equal(found.labels, np.load(stored / "labels.npy"))
    assert found.keys == (stored / "keys.txt").read_text().splitlines() and found.left_out == []

    sets = ["--train", str(photo_folder), "--val", str(photo_folder), "--k", "1", "5"]
    assert dispatch(["knn", str(run), *sets]) == 0
    rows = json.loads((tmp_path / "evaluation.jsonl").read_text())["figures"]
    assert headrace.knn(run, photo_folder, photo_folder, k=[5, 1]) == rows


def test_embed_takes_a_module_and_arrays():
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    whole = ViewSpec(size=16, crop="center", center_fraction=1.0, flip=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    found = headrace.embed(torch.nn.Flatten(), (images, [0, 1, 0, 1, -1]), view=whole)
    assert np.allclose(found.vectors, images.transpose(0, 3, 1, 2).reshape(5, -1) / 255, atol=1e-6)
    assert found.labels.tolist() == [0, 1, 0, 1, -1]
    with pytest.raises(UserError, match="a module of your own needs a view"):
        headrace.embed(torch.nn.Flatten(), images)


def test_knn_of_arrays_whose_classes_are_not_the_same(capsys):
    """A validation set without the last class, and some of both without a label, which neither teach nor count."""
    levels = np.arange(12, dtype=np.uint8) * 20
    images = np.broadcast_to(levels[:, None, None, None], (12, 8, 8, 3)).copy()
    whole = ViewSpec(size=8, crop="center", center_fraction=1.0, flip=0.0, mean=(0, 0, 0), std=(1, 1, 1))
    towards = lambda x: torch.stack([x.mean((1, 2, 3)).cos(), x.mean((1, 2, 3)).sin()], 1)  # by angle, not by norm
    module = type("Angle", (torch.nn.Module,), {"forward": lambda self, x: towards(x)})()
    labels = np.repeat([0, 1, 2], 4)
    train, val = (images, np.where(levels == 0, -1, labels)), (images[:8] + 1, [0, 0, 0, -1, 1, 1, 0, 1])
    (row,) = headrace.knn(module, train, val, k=1, view=whole)
    assert row["top1"] == 6 / 7 and "1 of 12 images of arrays, which have no label" in capsys.readouterr().err


def test_knn_says_that_both_sets_are_one_and_refuses_what_is_no_number(capsys):
    images, labels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8), [0, 1] * 4
    options = {"view": ViewSpec(size=8), "k": 1}
    headrace.knn(torch.nn.Flatten(), (images, labels), (images, labels), **options)
    assert "these figures are of images that were learned from" in capsys.readouterr().err
    nothing = type("Nothing", (torch.nn.Flatten,), {"forward": lambda self, x: x.flatten(1) * torch.nan})()
    with pytest.raises(UserError, match="^train: Nothing gives features that are not finite"):
        headrace.knn(nothing, (images, labels), (images, labels), **options)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": 0}, "k: needs a whole number from 1 on, got 0"),
        ({"k": "1"}, "k: needs a whole number from 1 on, got '1'"),
        ({"k": []}, "k, temperature: need at least one each"),
        ({"temperature": 0}, "temperatures above 0"),
        ({"batch_size": 0}, "batch_size: needs a whole number from 1 on"),
        ({"threads": -1}, "threads: needs a whole number from 1 on"),
        ({"max_bad": 3}, "max_bad: needs a share"),
        ({"loader": "x"}, "loader: needs auto or cpu"),
        ({"view": 5}, "view: needs a name such as 'eval'"),
        ({"encoder": None}, "encoder: needs a run directory"),
    ],
)
def test_arguments_that_nobody_means_are_one_line(tmp_path, change, message):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"")
    given = {"encoder": torch.nn.Flatten(), "view": "eval", "k": 1} | change
    with pytest.raises(UserError) as caught:
        headrace.knn(given.pop("encoder"), str(tmp_path), str(tmp_path), **given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("device, wanted", [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0")])
def test_each_process_takes_a_gpu_of_its_own(device, wanted, monkeypatch):
    """`launch` is asked for a numbered one: torch can make no other the current one."""
    asked = []

    def launch(where, *_):
        asked.append(str(where))
        raise KeyboardInterrupt

    monkeypatch.setattr(notebook, "launch", launch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(KeyboardInterrupt):
        headrace.embed(torch.nn.Flatten(), images, view=ViewSpec(size=8), device=device)
    assert asked == [wanted]
