"""What is made in Python is held to the bounds that a recipe is held to."""

import dataclasses
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
import torch

from headrace.errors import UserError
from headrace.models.algorithms import algorithm_names, find_algorithm
from headrace.models.backbones import build_backbone
from headrace.models.backbones.vit import ViT
from headrace.schema.bounds import Count, Part, Positive, require
from headrace.train.engine.optim import build_optimizer
from headrace.train.recipe.settings import Optim


def bounded(kind):
    """Its fields with bounds, also where they may be None."""
    hints = get_type_hints(kind, include_extras=True)
    names = [each.name for each in dataclasses.fields(kind) if each.init and get_origin(hints[each.name]) is not tuple]
    parts = {name: (hints[name], *get_args(hints[name])) for name in names}
    return [name for name in names if any(get_origin(part) is Annotated for part in parts[name])]


def broken(config, name):
    """`config` with -1 in a field, past what its `__post_init__` may say."""
    copy = object.__new__(type(config))
    for each in dataclasses.fields(config):
        object.__setattr__(copy, each.name, getattr(config, each.name))
    object.__setattr__(copy, name, -1)
    return copy


@pytest.mark.parametrize("name", algorithm_names())
def test_no_method_takes_a_number_that_a_recipe_could_not_hold(name):
    kind = find_algorithm(name)
    for field in bounded(kind.Config):
        with pytest.raises(UserError) as error:
            kind(broken(kind.Config(), field))
        assert str(error.value).startswith(f"{kind.Config.__qualname__}: {field}: needs ")
        assert str(error.value).endswith(", got -1")


def test_what_lies_deeper_is_named_by_its_path():
    mae = find_algorithm("mae")
    config = dataclasses.replace(mae.Config(), backbone=broken(broken(ViT.Config(), "patch_size"), "depth"))
    with pytest.raises(UserError) as error:
        mae(config)
    whole = "needs an integer from 1 on, got -1"
    assert str(error.value).splitlines() == [
        f"{mae.Config.__qualname__}: backbone.patch_size: {whole}",
        f"{mae.Config.__qualname__}: backbone.depth: {whole}",
    ]
    with pytest.raises(UserError, match="heads: needs an integer from 1 on, got -1"):
        build_backbone(broken(ViT.Config("vit_tiny"), "heads"), 32)


def test_optimizers():
    for kind in get_args(Optim)[:-1]:  # the last is for those of one's own
        for field in bounded(kind):
            with pytest.raises(UserError, match=f"{field}: needs .*, got -1"):
                build_optimizer(torch.nn.Linear(2, 2), broken(kind(), field))


def test_lists_what_may_be_none_and_other_types():
    @dataclasses.dataclass
    class Sizes:
        sides: tuple[Count, ...] = (1, 2)
        pair: tuple[Positive, Part] | None = None
        share: Part | None = None

    globals()["Sizes"] = Sizes
    for sound in (Sizes(), Sizes(pair=(2.0, 0.5), share=0.5)):
        require(sound)
    for wrong, key in (
        (Sizes(sides=(3, 0)), "sides[1]: needs an integer from 1 on, got 0"),
        (Sizes(pair=(1.0, 1.0)), "pair[1]: needs a number between 0 and 1, neither of them, got 1.0"),
        (Sizes(share=2), "share: needs a number between 0 and 1, neither of them, got 2"),
        (Sizes(sides=("a",)), "sides[0]: needs an integer from 1 on, got 'a'"),
    ):
        with pytest.raises(UserError) as error:
            require(wrong)
        assert str(error.value).endswith(f"Sizes: {key}")
