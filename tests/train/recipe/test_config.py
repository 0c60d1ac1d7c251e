"""Checked recipes: what is accepted, every message word for word, defaults, and what is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

import pytest
import yaml
from sections import ResNetConfig, VitConfig, build, problems

from headrace.pipelines.spec import ViewSpec
from headrace.train.recipe import config


@dataclass(frozen=True)
class SimclrConfig:
    name: Literal["simclr"] = "simclr"
    backbone: VitConfig | ResNetConfig = ResNetConfig()
    view: ViewSpec = ViewSpec(size=224, count=2)
    temperature: float = 0.1


@dataclass(frozen=True)
class TrainConfig:
    batch_size: int
    lr: float = 0.1
    amp: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    milestones: tuple[int, ...] = ()
    tags: list[str] = field(default_factory=list)
    output: Optional[Path] = None  # noqa: UP045 (the older spelling is accepted too)

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise ValueError(f"batch_size: needs at least 2, not {self.batch_size}")
        if self.lr > 100:
            raise ValueError("this diverges")


TYPES = {"description": str | None, "algorithm": SimclrConfig, "train": TrainConfig, "kernels": dict[str, str]}


def test_defaults_and_values(write):
    write(
        x="description: small\nalgorithm:\n  temperature: 1\ntrain: {batch_size: 1e3, betas: [0, 1], output: runs/a}\n"
    )
    assert build(TYPES) == {
        "description": "small",
        "algorithm": SimclrConfig(temperature=1.0),
        "train": TrainConfig(1000, betas=(0.0, 1.0), output=Path("runs/a")),
        "kernels": {},
    }
    built = build(TYPES)["train"]
    assert type(built.batch_size) is int and type(built.betas[0]) is float and type(built.tags) is list


@dataclass(frozen=True)
class Everything:
    flag: bool = False
    whole: int = 0
    real: float = 0.0
    text: str = ""
    path: Path = Path("a")
    maybe: int | None = 3
    choice: Literal["random", "center", 3] = "random"
    pair: tuple[int, str] = (0, "")
    many: tuple[float, ...] = ()
    names: list[str] = field(default_factory=list)
    table: dict[str, int] = field(default_factory=lambda: {"a": 1})
    views: tuple[ViewSpec, ...] = ()
    either: VitConfig | ResNetConfig | None = None
    backbone: VitConfig | ResNetConfig = VitConfig()
    computed: int = field(init=False, default=0)


def everything(text: str) -> Everything:
    Path("x.yaml").write_text(f"s:\n  {text}\n")
    return build({"s": Everything})["s"]


@pytest.mark.parametrize(
    "text, value",
    [
        ("whole: 1e5", 100000),
        ("real: 3", 3.0),
        ("maybe: null", None),
        ("maybe: 4", 4),
        ("path: data/x", Path("data/x")),
        ("choice: 3", 3),
        ("pair: [1, a]", (1, "a")),
        ("many: []", ()),
        ("many: [1, .5]", (1.0, 0.5)),
        ("names: [on, 'null']", ["on", "null"]),
        ("table: {b: 2}", {"b": 2}),
        ("views: [{size: 8}, {}]", (ViewSpec(size=8), ViewSpec())),
        ("either: {name: resnet50}", ResNetConfig("resnet50")),
        ("either: null", None),
    ],
)
def test_accepted(write, text, value):
    assert getattr(everything(text), text.split(":")[0]) == value


@pytest.mark.parametrize(
    "text, message",
    [
        ("flag: 1", "flag: needs true or false, got 1"),
        ("flag: yes", "flag: needs true or false, got 'yes'"),
        ("whole: true", "whole: needs an integer, got true"),
        ("whole: 1.5", "whole: needs an integer, got 1.5"),
        ("whole: .inf", "whole: needs an integer, got .inf"),
        ("whole: '3'", "whole: needs an integer, got '3'"),
        ("whole:", "whole: needs an integer, got null"),
        ("real: true", "real: needs a finite number, got true"),
        ("real: .nan", "real: needs a finite number, got .nan"),
        ("real: 1e999", "real: needs a finite number, got .inf"),
        (f"real: 1{'0' * 400}", f"real: needs a finite number, got 1{'0' * 400}"),
        ("text: [5]", "text: needs a string, got a list"),
        ("path: [a]", "path: needs a path, got a list"),
        ("maybe: a", "maybe: needs an integer, got 'a'"),
        ("choice: centre", "choice: needs one of random, center, 3, got 'centre'; did you mean center?"),
        ("choice: 3.0", "choice: needs one of random, center, 3, got 3.0"),
        ("pair: [1]", "pair: needs a list of 2, got a list of 1"),
        ("pair: {a: 1}", "pair: needs a list, got a mapping"),
        ("pair: [1, true]", "pair[1]: needs a string, got true"),
        ("many: 3", "many: needs a list, got 3"),
        ("names: abc", "names: needs a list, got 'abc'"),
        ("table: [a]", "table: needs a mapping, got a list"),
        ("table: {a: b}", "table.a: needs an integer, got 'b'"),
        ("views: {size: 8}", "views: needs a list, got a mapping"),
        ("views: [3]", "views[0]: needs a mapping, got 3"),
        ("either: vit_tiny", "either: needs a mapping, got 'vit_tiny'"),
        ("backbone: null", "backbone: needs a mapping, got null"),
        (
            "computed: 1",
            "computed: unknown key; known here: flag, whole, real, text, path, maybe, choice, pair, many, "
            "names, table, views, either, backbone",
        ),
        ("either: {}", "either.name: required, but missing: one of vit_tiny, vit_small, resnet18, resnet50"),
        ("either: {name: [a]}", "either.name: needs one of vit_tiny, vit_small, resnet18, resnet50, got a list"),
        (
            "either: {name: vit_tiny, small_image_stem: true}",
            "either.small_image_stem: unknown key; known here: name, patch_size",
        ),
    ],
)
def test_refused(write, text, message):
    assert problems(everything, text) == [f"x.yaml:2: s.{message}"]


def test_all_problems_at_once_each_at_its_line(write):
    write(
        root="train:\n  lr: [1]\n",
        x="""\
base: root.yaml
algorithm:
  temperatur: 0.2
  backbone:
    name: resnet19
  view:
    size: 0
    jitter: 0.5
train:
  bath_size: 256
  betas:
    - 0.9
    - large
kernels:
  augment: true
trian: {}
""",
    )
    assert problems(build, TYPES, "train.amp=maybe") == [
        "x.yaml:16: trian: unknown key; did you mean train?",
        "x.yaml:3: algorithm.temperatur: unknown key; did you mean temperature?",
        "x.yaml:5: algorithm.backbone.name: needs one of vit_tiny, vit_small, resnet18, resnet50, got 'resnet19'; "
        "did you mean resnet18?",
        "x.yaml:7: algorithm.view.size, count: must be at least 1, not 0, 2",
        "x.yaml:10: train.bath_size: unknown key; did you mean batch_size?",
        "x.yaml:9: train.batch_size: required, but missing",
        "root.yaml:2: train.lr: needs a finite number, got a list",
        "command line: train.amp: needs true or false, got 'maybe'",
        "x.yaml:13: train.betas[1]: needs a finite number, got 'large'",
        "x.yaml:15: kernels.augment: needs a string, got true",
    ]


def test_missing_sections_and_keys(write):
    write(x="description: a\n")
    assert problems(build, TYPES) == ["x.yaml: train.batch_size: required, but missing"]
    assert problems(build, TYPES, "train.lr=1") == ["command line: train.batch_size: required, but missing"]
    write(x="\ntrain: {}\n")
    assert problems(build, TYPES, "train.lr=1") == ["x.yaml:2: train.batch_size: required, but missing"]
    types = {"title": str, "sizes": list[int], "data": VitConfig | ResNetConfig, "train": str}
    assert problems(build, types) == [
        "x.yaml: title: required, but missing",
        "x.yaml: sizes: required, but missing",
        "x.yaml: data.name: required, but missing: one of vit_tiny, vit_small, resnet18, resnet50",
        "x.yaml:2: train: needs a string, got a mapping",
    ]
    write(x="")
    assert build({"a": str | None, "b": VitConfig}) == {"a": None, "b": VitConfig()}


def test_value_errors_of_a_dataclass(write):
    write(x="algorithm:\n  view:\n    scale: [0.5, 0.1]\ntrain:\n  batch_size: 1\n")
    assert problems(build, TYPES) == [
        "x.yaml:3: algorithm.view.scale: needs 0 < low <= high, not 0.5, 0.1",
        "x.yaml:5: train.batch_size: needs at least 2, not 1",
    ]
    assert problems(build, TYPES, "algorithm.view.scale=[1, 1]", "train={batch_size: 2, lr: 200}") == [
        "x.yaml:4: train: this diverges"
    ]


def test_annotations_a_recipe_cannot_hold_are_bugs_of_ours(write):
    write(x="a: 1\n")
    for kind in (complex, int | complex, dict, list):
        with pytest.raises(TypeError, match="^a: "):
            build({"a": kind})


@dataclass(frozen=True)
class ByolConfig:
    view: ViewSpec = ViewSpec(size=96, count=2, blur=0.5)
    backbone: VitConfig | ResNetConfig = ResNetConfig("resnet50", small_image_stem=True)
    probe: VitConfig | None = None


def test_parts_of_a_default_instance_stay(write):
    write(x="a:\n  view: {blur: 0.1}\n  backbone: {}\n  probe: {patch_size: 8}\n")
    assert build({"a": ByolConfig})["a"] == ByolConfig(
        ViewSpec(size=96, count=2, blur=0.1), ResNetConfig("resnet50", True), VitConfig(patch_size=8)
    )
    write(x="a:\n  backbone: {name: resnet18}\n")
    assert build({"a": ByolConfig})["a"].backbone == ResNetConfig("resnet18", True)
    write(x="a:\n  backbone: {name: vit_small}\n")
    assert build({"a": ByolConfig})["a"].backbone == VitConfig("vit_small")


def test_show(write):
    write(
        root="s:\n  names: [a, 'on', '1e3']\n  whole: 3\n  table: {}\n",
        x="base: root.yaml\ns:\n  real: 1e-5\n  either:\n    name: vit_small\n  views:\n    - name: small\n",
    )
    tree = config.load("x.yaml", ["s.whole=4", "s.text=2: x"])
    lines = config.show(tree, config.build(tree, {"s": Everything})).splitlines()
    assert lines[:16] == [
        "s:",
        *[
            f"{text:<39}  # {origin}"
            for text, origin in [
                ("  flag: false", "default"),
                ("  whole: 4", "command line"),
                ("  real: 1.0e-05", "x.yaml:3"),
                ('  text: "2: x"', "command line"),
                ("  path: a", "default"),
                ("  maybe: 3", "default"),
                ("  choice: random", "default"),
                ('  pair: [0, ""]', "default"),
                ("  many: []", "default"),
                ('  names: [a, "on", "1e3"]', "root.yaml:2"),
                ("  table: {}", "root.yaml:4"),
            ]
        ],
        "  views:",
        f"{'    - name: small':<39}  # x.yaml:7",
        f"{'      count: 1':<39}  # default",
        f"{'      size: 224':<39}  # default",
    ]
    assert lines[-6:] == [
        "  either:",
        f"{'    name: vit_small':<39}  # x.yaml:5",
        f"{'    patch_size: 16':<39}  # default",
        "  backbone:",
        f"{'    name: vit_tiny':<39}  # default",
        f"{'    patch_size: 16':<39}  # default",
    ]


def test_show_keeps_its_values_when_shown_again(write):
    write(x="algorithm: {backbone: {name: vit_small}}\ntrain: {batch_size: 8, tags: [a]}\nkernels: {a.b: c}\n")
    tree = config.load("x.yaml", ["train.lr=1e-6"])
    built = config.build(tree, TYPES)
    write(x=config.show(tree, built))
    assert build(TYPES) == built
    assert yaml.safe_load(Path("x.yaml").read_text()) == config.plain(built)


def test_plain(write):
    write(x="train: {batch_size: 2, output: runs/a}\nkernels: {a: b}\n")
    made = config.plain(build(TYPES))
    assert made["train"] == {
        "batch_size": 2,
        "lr": 0.1,
        "amp": True,
        "betas": [0.9, 0.999],
        "milestones": [],
        "tags": [],
        "output": "runs/a",
    }
    assert made["algorithm"]["backbone"] == {"name": "resnet18", "small_image_stem": False}
    assert (made["kernels"], made["description"]) == ({"a": "b"}, None)
