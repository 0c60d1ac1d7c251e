"""Files of others in the place of a checkpoint: every command that takes one says what it is and what to do."""

import importlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from headrace.cli import COMMANDS
from headrace.errors import UserError
from headrace.models.algorithms.mae import MAE
from headrace.train import pretrain
from headrace.train.engine import checkpoint
from headrace.train.recipe import config

WEIGHTS = {"blocks.0.weight": torch.ones(2, 2), "blocks.0.bias": torch.ones(2)}
IMPORT = "headrace import takes the encoder out of checkpoints of other libraries"


def zipped(file):
    np.savez(file, a=np.ones(3))
    file.with_suffix(".pt.npz").rename(file)


def cut(file):
    torch.save({"model": WEIGHTS}, file)
    file.write_bytes(file.read_bytes()[:-200])


KINDS = {
    "model alone": (lambda f: torch.save({"model": WEIGHTS}, f), f"another library, with model in it; {IMPORT}"),
    "model and config": (
        lambda f: torch.save({"model": WEIGHTS, "config": {"lr": 1}, "epoch": 3}, f),
        f"another library, with model, config, epoch in it; {IMPORT}",
    ),
    "state_dict": (
        lambda f: torch.save({"state_dict": WEIGHTS}, f),
        f"another library, with state_dict in it; {IMPORT}",
    ),
    "bare tensors": (lambda f: torch.save(WEIGHTS, f), f"the bare tensors of a model .*; {IMPORT}"),
    "a module": (lambda f: torch.save(torch.nn.Linear(2, 2), f), f"holds Python objects.*; {IMPORT}"),
    "a module inside": (lambda f: torch.save({"model": torch.nn.Linear(2, 2)}, f), f"holds Python objects.*; {IMPORT}"),
    "of an old torch": (
        lambda f: torch.save(WEIGHTS, f, _use_new_zipfile_serialization=False),
        f"a pickle, .*never unpickled here; {IMPORT}",
    ),
    "safetensors": (lambda f: save_file(WEIGHTS, f), "a .safetensors file, which holds tensors alone; give a run"),
    "TorchScript": (lambda f: torch.jit.script(torch.nn.Linear(2, 2)).save(f), "a TorchScript program; give a run"),
    "a zip": (zipped, "a .zip, but not of torch; give a run"),
    "a list": (lambda f: torch.save([1], f), "not a headrace checkpoint but a list; give a run"),
    "a tensor": (lambda f: torch.save(torch.ones(2), f), "not a headrace checkpoint but a Tensor"),
    "a batch": (lambda f: torch.save({"step": 1, "ids": torch.ones(1), "views": {}}, f), "a batch that was left"),
    "empty": (lambda f: f.touch(), "an empty file; give a run"),
    "text": (lambda f: f.write_text("weights"), "no file of torch; give a run"),
    "cut short": (cut, "cut short"),
    "other weights": (
        lambda f: torch.save({"model": WEIGHTS, "config": {"algorithm": tiny()}}, f),
        "its tensors are not those of the algorithm it names .Missing key",
    ),
}


def tiny():
    return config.plain(MAE.Config("mae").smoke())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_it_says_what_it_is_and_what_to_do(kind, tmp_path):
    write, said = KINDS[kind]
    file = tmp_path / "file.pt"
    write(file)
    with pytest.raises(UserError, match=said) as caught:
        checkpoint.load_algorithm(file)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["model alone", "model and config", "safetensors", "other weights"])
@pytest.mark.parametrize("place", ["train.resume", "a run directory"])
def test_in_a_run(kind, place, tmp_path):
    write, _ = KINDS[kind]
    file = tmp_path / "run" / "step-00000007.pt" if place == "a run directory" else tmp_path / "file.pt"
    file.parent.mkdir(exist_ok=True)
    write(file)
    arguments = ["mae_vit-tiny", "--smoke", f"train.out={tmp_path / 'run'}", "train.max_steps=1"]
    if place == "train.resume":
        arguments.append(f"train.resume={file}")
    if place == "a run directory" and kind == "safetensors":  # as any checkpoint that cannot be read
        with pytest.warns(UserWarning, match="trying the one before"):
            assert pretrain.main(arguments) == 0
        return
    with pytest.raises(UserError, match=f"{file.name}: (not a|holds weights alone)"):
        pretrain.main(arguments)


def test_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(UserError, match="a folder; give a run directory or a step"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, 3, {"model": {}}, keep=1)
    with pytest.raises(UserError, match="a folder; give a checkpoint in it, such as .*step-00000003.pt"):
        checkpoint.load(tmp_path)


COMMAND_LINES = {
    "embed": ["{file}", "{data}"],
    "knn": ["{file}", "--train", "{data}", "--val", "{data}"],
    "linear": ["{file}", "--train", "{data}", "--val", "{data}"],
    "linear, as published": ["{file}", "--train", "{data}", "--val", "{data}", "--protocol", "auto", "--out", "{out}"],
    "finetune": [
        "finetune/vit-tiny_cifar10",
        "{file}",
        "data.train={data}",
        "data.val={data}",
        "train.out={out}",
        "train.batch_size=8",
    ],
    "tsne": ["{file}", "{data}"],
    "shape-bias": ["{file}", "{data}"],
    "reconstruct": ["{file}", "{data}"],
    "attention": ["{file}", "{data}"],
    "pca": ["{file}", "{data}"],
    "export": ["{file}", "--to", "timm", "--out", "{out}"],
}


@pytest.mark.parametrize("command", COMMAND_LINES)
def test_every_command_that_takes_a_checkpoint(command, photo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": WEIGHTS}, tmp_path / "file.pt")
    save_file(WEIGHTS, tmp_path / "file.safetensors")
    main = importlib.import_module(f"headrace.{COMMANDS[command.split(',')[0]][0]}").main
    for name, said in (
        ("file.pt", "another library, with model in it"),
        ("file.safetensors", "safetensors|tensors of"),
    ):
        if command == "finetune" and name.endswith("safetensors"):  # which takes any whose tensors fit
            said = "headrace import"
        places = {"file": tmp_path / name, "data": photo_folder, "out": tmp_path / "out"}
        with pytest.raises(UserError, match=said):
            main([text.format(**places) for text in COMMAND_LINES[command]])
