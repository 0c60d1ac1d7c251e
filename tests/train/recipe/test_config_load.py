"""From files and the command line to one tree: finding, bases, merging, overrides, origins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from sections import ResNetConfig, VitConfig, build, problems

from headrace.train.recipe import config


@dataclass(frozen=True)
class SimclrConfig:
    backbone: VitConfig | ResNetConfig = ResNetConfig()
    temperature: float = 0.1


@dataclass(frozen=True)
class TrainConfig:
    batch_size: int
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    milestones: tuple[int, ...] = ()


TYPES = {"description": str | None, "algorithm": SimclrConfig, "train": TrainConfig, "kernels": dict[str, str]}


def test_file_that_is_not_text(write):
    Path("x.yaml").write_bytes(b"a: \xff\n")
    (message,) = problems(config.load, "x.yaml")
    assert message.startswith("x.yaml: cannot be read: 'utf-8' codec can't decode")


def test_a_recipe_is_a_mapping(write):
    write(list="- a\n", word="\nsimclr\n", empty="# nothing\n")
    assert problems(config.load, "list.yaml") == ["list.yaml:1: a recipe is a mapping of sections, not a list"]
    assert problems(config.load, "word.yaml") == ["word.yaml:2: a recipe is a mapping of sections, not 'simclr'"]
    assert config.load("empty.yaml").root == config.Node({}, "empty.yaml")


def test_find_recipe(write, monkeypatch):
    for folder in ("_base", "finetune"):
        (Path("configs") / folder).mkdir(parents=True)
    for name in ("simclr_cifar10", "mae_vit_base", "_base/mae_vit_basic", "finetune/vit_cifar10"):
        Path(f"configs/{name}.yaml").touch()
    monkeypatch.setattr(config, "RECIPES", Path("configs"))
    write(mae_vit_base="")
    assert config.find_recipe("mae_vit_base.yaml") == Path("mae_vit_base.yaml")
    assert config.find_recipe("simclr_cifar10.yaml") == config.find_recipe("simclr_cifar10")
    assert config.find_recipe("simclr_cifar10") == Path("configs/simclr_cifar10.yaml")
    assert problems(config.find_recipe, "old/mae_vit_basic.yaml") == [
        "old/mae_vit_basic.yaml: no such file or recipe; did you mean mae_vit_base? `headrace recipes` lists all"
    ]
    assert problems(config.load, "zzz") == ["zzz: no such file or recipe; `headrace recipes` lists all"]
    (part,) = problems(config.load, "cifar")
    assert part.startswith("cifar: no such file or recipe; did you mean simclr_cifar10 or finetune/vit_cifar10? ")
    (part,) = problems(config.load, "finetune/vit_cifr10.yaml")
    assert "did you mean finetune/vit_cifar10? " in part


def test_layers_merge_mappings_and_replace_the_rest(write):
    write(
        root="train:\n  batch_size: 8\n  betas: [0.1, 0.2]\n  lr: 1\n",
        middle="base: root.yaml\ntrain: {lr: 2, milestones: [1, 2]}\nkernels: {a: x, b: y}\n",
        x="base: middle.yaml\ntrain:\n  milestones: [3]\nkernels: {b: z}\n",
    )
    built = build(TYPES)
    assert built["train"] == TrainConfig(8, lr=2.0, betas=(0.1, 0.2), milestones=(3,))
    assert built["kernels"] == {"a": "x", "b": "z"}
    built = build(TYPES, "train.lr=3", "train.lr=4e-1", "train.betas=[0, 0.5]", "kernels={c: w}", "description=a=b")
    assert built["train"] == TrainConfig(8, lr=0.4, betas=(0.0, 0.5), milestones=(3,))
    assert built["kernels"] == {"a": "x", "b": "z", "c": "w"}
    assert built["description"] == "a=b"


def test_base_is_relative_to_its_file(write):
    Path("configs/_base").mkdir(parents=True)
    write(**{"configs/_base/a": "train: {batch_size: zero}\n", "x": "base: configs/b.yaml\n"})
    write(**{"configs/b": "base: ../configs/_base/a.yaml\n"})
    assert problems(build, TYPES) == ["configs/_base/a.yaml:1: train.batch_size: needs an integer, got 'zero'"]


def test_another_name_drops_the_options_of_the_old_one(write):
    write(
        root="algorithm:\n  temperature: 0.5\n  backbone:\n    name: resnet50\n    small_image_stem: true\n",
        x="base: root.yaml\nalgorithm:\n  backbone:\n    name: vit_small\ntrain: {batch_size: 2}\n",
    )
    assert build(TYPES)["algorithm"] == SimclrConfig(backbone=VitConfig("vit_small"), temperature=0.5)
    for overrides in (
        ["algorithm.backbone.name=resnet18", "algorithm.backbone.small_image_stem=true"],
        ["algorithm.backbone.small_image_stem=true", "algorithm.backbone.name=resnet18"],
    ):
        assert build(TYPES, *overrides)["algorithm"].backbone == ResNetConfig("resnet18", True)
    assert build(TYPES, "algorithm.backbone.patch_size=8")["algorithm"].backbone == VitConfig("vit_small", 8)
    write(x="base: root.yaml\nalgorithm: {backbone: {name: resnet50}}\ntrain: {batch_size: 2}\n")
    assert build(TYPES)["algorithm"].backbone == ResNetConfig("resnet50", True)


def test_a_section_called_name_does_not_replace_the_recipe(write):
    write(root="name: a\ntrain: {batch_size: 2}\n", x="base: root.yaml\nname: b\n")
    assert build({"name": str, "train": TrainConfig}) == {"name": "b", "train": TrainConfig(2)}


@pytest.mark.parametrize(
    "texts, message",
    [
        ({"x": "a: 1\nbase: rot.yaml\n", "root": ""}, "x.yaml:2: base: no file rot.yaml; did you mean root.yaml?"),
        ({"x": "base: [a, b]\n"}, "x.yaml:1: base: needs the path of one file, got a list"),
        ({"x": "base: x.yaml\n"}, "x.yaml:1: base: goes in a circle: x.yaml -> x.yaml"),
        (
            {"x": "base: a.yaml\n", "a": "\nbase: x.yaml\n"},
            "a.yaml:2: base: goes in a circle: x.yaml -> a.yaml -> x.yaml",
        ),
        (
            {"x": "base: a.yaml\n", "a": "base: b.yaml\n", "b": "base: c.yaml\n", "c": ""},
            "b.yaml:1: base: more than 2 bases in a row: x.yaml -> a.yaml -> b.yaml -> c.yaml",
        ),
    ],
)
def test_bad_base(write, texts, message):
    write(**texts)
    assert problems(config.load, "x.yaml") == [message]


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.lr", "command line: 'train.lr': an override reads section.key=value"),
        ("train..lr=1", "command line: 'train..lr=1': an override reads section.key=value"),
        ("kernels={a: 1, a: 2}", "command line: kernels.a: given twice, first on line 1"),
        ("train.lr=*x", "command line: train.lr: YAML error: anchors, aliases and tags have no place here"),
        ("train.lr=fast", "command line: train.lr: needs a finite number, got 'fast'"),
        ("train.lr.x=1", "command line: train.lr: needs a finite number, got a mapping"),
        ("--train.lr=1", "command line: --train: unknown key; did you mean train?"),
        ("train.batch=1", "command line: train.batch: unknown key; did you mean batch_size?"),
    ],
)
def test_bad_override(write, override, message):
    write(x="train:\n  batch_size: 2\n  lr: 1\n")
    assert problems(build, TYPES, override) == [message]


def test_get(write):
    write(x="algorithm:\n  backbone: vit\n  name: simclr\n  size: 3\n")
    tree = config.load("x.yaml")
    assert (tree.get("algorithm.name").value, tree.get("algorithm.name").origin) == ("simclr", "x.yaml:3")
    assert config.load("x.yaml", ["algorithm.name=mae"]).get("algorithm.name").origin == "command line"
    assert problems(tree.get, "algorithm.nam") == ["x.yaml:1: algorithm.nam: required, but missing"]
    assert problems(tree.get, "data.name") == ["x.yaml: data.name: required, but missing"]
    assert problems(tree.get, "algorithm.size") == ["x.yaml:4: algorithm.size: needs a string, got 3"]
    assert problems(tree.get, "algorithm.backbone.name") == ["x.yaml:2: algorithm.backbone: needs a mapping, got 'vit'"]


def test_paths_are_shown_relative_to_the_current_directory(write, tmp_path, monkeypatch):
    write(x="train: {batch_size: a}\n")
    message = ":1: train.batch_size: needs an integer, got 'a'"
    assert problems(config.build, config.load(tmp_path / "x.yaml"), TYPES) == ["x.yaml" + message]
    Path("inner").mkdir()
    monkeypatch.chdir("inner")
    assert problems(config.build, config.load("../x.yaml"), TYPES) == ["../x.yaml" + message]
    Path("y.yaml").write_text("base: ../inner/../x.yaml\n")
    assert problems(config.build, config.load("../inner/y.yaml"), TYPES) == ["../x.yaml" + message]
    assert problems(config.build, config.load(tmp_path / "x.yaml"), TYPES) == [f"{tmp_path}/x.yaml{message}"]
