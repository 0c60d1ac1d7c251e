"""Recipes that nobody meant: whatever stands in them, the answer is an error in words, never a traceback."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import UserError
from headrace.models.algorithms import make_algorithm
from headrace.train.engine.optim import build_optimizer
from headrace.train.recipe.recipe import load_recipe, replaced, smoke, without_effect

RECIPES = ("mae_vit-tiny_demo", "simclr_resnet18_cifar10", "dino_vit-tiny_cifar10", "swav_resnet18_cifar10")
ODD = (
    "0", "-1", "1", "3", "1e30", "9" * 5000, "-0.0", "1e308", ".nan", ".inf", "true", "null", "''", "x", "[]", "{}",
    "[[]]", "[-1]", "[1, 1]", "[0.9, 1.0]", "{name: x}", "../..", "a.b", "os.path", "..", ":", "1:2:3", "\x00", "é",
)  # fmt: skip


def leaves(value, key=""):
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f"{key}.{name}" if key else name)
    else:
        yield key


KEYS = {name: tuple(leaves(load_recipe(name, []).plain())) for name in RECIPES}
ORDINARY = [(name, key) for name, keys in KEYS.items() for key in keys]


def attempt(name, *overrides):
    """Everything up to the first batch, without memory for weights."""
    try:
        recipe = load_recipe(name, list(overrides))
        with torch.device("meta"):
            build_optimizer(make_algorithm(recipe.algorithm), recipe.optim)
    except UserError as fault:
        assert str(fault).strip() and "Traceback" not in str(fault)
        return str(fault)
    return None


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(ORDINARY), st.sampled_from(ODD), st.sampled_from(ODD))
def test_any_value_anywhere(place, first, second):
    name, key = place
    other = KEYS[name][len(first + second) % len(KEYS[name])]
    attempt(name, f"{key}={first}")
    attempt(name, f"{key}={first}", f"{other}={second}")


@pytest.mark.parametrize(
    "name, override, reason",
    [
        (
            "mae_vit-tiny",
            "algorithm.backbone.patch_size=0",
            "algorithm.backbone.patch_size: needs an integer from 1 on, got 0",
        ),
        ("mae_vit-tiny", "algorithm.decoder.width=-12", "algorithm.decoder.width: needs an integer from 1 on, got -12"),
        ("mae_vit-tiny", "optim.betas=[1, 1]", "optim: Invalid beta parameter"),
        ("mae_vit-tiny", "algorithm.name=../..", "algorithm.name: '../..' is no dotted name"),
        ("mae_vit-tiny", "train.max_steps=1e30", "train.max_steps: needs an integer"),
        ("mae_vit-tiny", f"train.seed={'9' * 5000}", "train.seed: needs an integer"),
        ("mae_vit-tiny", f"optim.lr={'[' * 3000}{']' * 3000}", "nested too deeply"),
        ("mae_vit-tiny", "train.profile=5:2", "train.profile: 5:2 ends before it begins"),
        ("mae_vit-tiny", "train.profile=0:0", "train.profile: steps count from 1, not 0:0"),
        ("mae_vit-tiny", "optim.lr=.nan", "optim.lr: needs a finite number"),
    ],
)
def test_said_in_words(name, override, reason):
    assert reason in attempt(name, override)


@pytest.mark.parametrize(
    "override, note",
    [
        ("optim.warmup=3 epochs", "optim.warmup: 30 steps, the run has 20"),
        ("optim.warmup=19 steps", None),
        ("train.knn_every=3", "train.knn_every: 3 epochs are longer than the run"),
        ("train.knn_every=2", None),
        ("train.profile=21:30", "train.profile: 21:30 lies behind"),
        ("train.profile=20:30", None),
        ("train.profile=3:6", "train.profile: 3:6 lies before step 6, where the run goes on"),
        ("train.profile=3:7", None),
    ],
)
def test_settings_that_a_run_never_comes_to_are_named(override, note):
    notes = without_effect(load_recipe("mae_vit-tiny", ["optim.warmup=0", override]), 20, 10, begin=6)
    assert [one.startswith(note) for one in notes] == ([True] if note else [])


def test_what_smoke_replaces_is_named():
    typed = ["train.batch_size=512", "train.max_steps=5", "algorithm.backbone.depth=5", "optim.lr=1e-3"]
    asked = load_recipe("mae_vit-tiny", typed)
    tiny = smoke(asked)
    assert replaced(typed, asked, tiny)[0] == "--smoke: train.batch_size is 8, not 512"
    assert replaced(typed[1:], asked, tiny) == [
        f"--smoke: algorithm.backbone.depth is {tiny.algorithm.backbone.depth}, not 5"
    ]


@pytest.mark.parametrize("key", ["data.threads", "data.block"])
def test_no_threads_and_no_blocks_are_refused(key):
    assert f"{key}: must be at least 1, not 0" in attempt("mae_vit-tiny_demo", f"{key}=0")
