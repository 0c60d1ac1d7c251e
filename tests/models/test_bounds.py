"""Numbers with which a method could only learn nothing are refused by a recipe, in one line with the key."""

import copy

import pytest

from headrace.errors import UserError
from headrace.models.algorithms import algorithm_names, find_algorithm
from headrace.train.recipe import config
from headrace.train.recipe.recipe import load_recipe

NAMES = [name for name in algorithm_names() if name != "multihead"]  # whose values are required: see its own tests
# whole numbers that may be 0: what none of is a method of its own, or what is not counted
NONE_OF = {
    "convs", "queue", "queue_from", "dense_from", "freeze_prototypes", "teacher_warmup", "registers", "repairs",
    "neck_depth", "early_block", "padding", "solarize", "fill",
}  # fmt: skip
NEVER_NOTHING = {"temperature", "epsilon", "norm_eps", "radius", "mask_ratio", "std", "teacher_temperature", "scale"}


def numbers(value, at=()):
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, list):
        value = enumerate(value)
    else:
        yield at, value
        return
    for name, item in value:
        yield from numbers(item, (*at, name))


def problem(kind, plain, at, value):
    changed = node = copy.deepcopy(plain)
    for name in at[:-1]:
        node = node[name]
    node[at[-1]] = value
    try:
        config.build(config.from_plain({"algorithm": changed}, "here"), {"algorithm": kind.Config})
    except UserError as fault:
        assert "\n" not in str(fault) and str(fault).startswith("here: algorithm")
        return str(fault)
    return None


@pytest.mark.parametrize("name", NAMES)
def test_none_of_what_a_method_learns_with_is_refused(name):
    """Every whole number at 0 and at -1, and every number that a division or a share has no 0 for."""
    kind = find_algorithm(name)
    plain = config.plain(kind.Config())
    tried = 0
    for at, value in numbers(plain):
        word = next(part for part in reversed(at) if isinstance(part, str))
        counted = type(value) is int or value is None and word in ("depth", "width", "heads", "depths", "hidden")
        if counted and word != "depths" and (word != "hidden" or name != "moco" or "backbone" in at):
            assert problem(kind, plain, at, -1), at
            assert word in NONE_OF or problem(kind, plain, at, 0), at
            tried += 1
        elif type(value) is float and word in NEVER_NOTHING:
            assert problem(kind, plain, at, 0), at
            tried += 1
        if word in ("momentum", "center_momentum", "dropout", "drop_path", "mask_ratio") and value is not None:
            assert problem(kind, plain, at, 1) and problem(kind, plain, at, -0.1), at
    assert tried


@pytest.mark.parametrize(
    "recipe, override, reason",
    [
        ("mae_vit-tiny", "algorithm.backbone.depth=0", "algorithm.backbone.depth: needs an integer from 1 on, got 0"),
        ("mae_vit-tiny", "algorithm.mask_ratio=0", "algorithm.mask_ratio: needs a number between 0 and 1"),
        ("mae_vit-tiny", "algorithm.decoder.depth=0", "algorithm.decoder.depth: needs an integer from 1 on"),
        ("simmim_swin-base-w6_16xb128-amp-coslr-100e_in1k-192px", "algorithm.mask_ratio=0.999", "leaves none visible"),
        ("mixmim_mixmim-base_16xb128-coslr-300e_in1k", "algorithm.mask_spread=0.5", "the hidden share lies in [0, 1)"),
        ("mixmim_mixmim-base_16xb128-coslr-300e_in1k", "algorithm.mask_ratio=0.01", "of 49 patches hides none"),
        ("byol_resnet18_cifar10", "algorithm.momentum=1", "algorithm.momentum: needs a number from 0 on and below 1"),
        ("byol_resnet18_cifar10", "optim.momentum=-1", "optim.momentum: needs a number from 0 on and below 1"),
        ("finetune/vit-tiny_cifar10", "algorithm.backbone.width=0", "algorithm.backbone.width: needs an integer from"),
    ],
)
def test_where_and_why(recipe, override, reason):
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, [override])
    assert reason in str(caught.value) and str(caught.value).startswith("command line: ")
