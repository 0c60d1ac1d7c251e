"""Every published recipe's parameters at full size, name by name: the factor on the rate and the weight decay that the
source gives them. Tables are written out from the sources; one test reads MMPretrain's own."""

from pathlib import Path

import pytest
import torch

from headrace.models.algorithms import find_algorithm
from headrace.models.targets.frozen import without_weights
from headrace.train.engine.optim import parameter_groups
from headrace.train.foreign import swin, vit
from headrace.train.recipe.recipe import load_recipe


def groups_of(recipe, algorithm=None):
    """Name of a trainable parameter -> (factor on the rate, weight decay, whether that is scheduled)."""
    if algorithm is None:
        with torch.device("meta"), without_weights():
            algorithm = find_algorithm(recipe.algorithm.name)(recipe.algorithm)
    names = {id(parameter): name for name, parameter in algorithm.named_parameters()}
    return {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"], group["scheduled_decay"])
        for group in parameter_groups(algorithm, recipe.optim)
        for parameter in group["params"]
    }


def both(name, factor, decay=0.05):
    """A layer with a bias, which is never decayed."""
    return {f"{name}.weight": (factor, decay), f"{name}.bias": (factor, 0.0)}


def block(name, factor, *, layers=("qkv", "proj", "fc1", "fc2"), norms=("norm1", "norm2"), vectors=()):
    found = {}
    for layer in layers:
        found |= both(f"{name}.{layer}", factor)
    for norm in norms:
        found |= both(f"{name}.{norm}", factor, 0.0)
    return found | {f"{name}.{vector}": (factor, 0.0) for vector in vectors}


def plain(depth, decay, *, positions):
    """MAE's authors and MMPretrain: tokens and positions without decay, ``decay ** (depth + 1)`` at the stem."""
    stem = decay ** (depth + 1)
    found = both("backbone.patch_embed", stem) | {"backbone.cls_token": (stem, 0.0)}
    if positions:
        found["backbone.positions"] = (stem, 0.0)
    for i in range(depth):
        found |= block(f"backbone.blocks.{i}", decay ** (depth - i))
    return found | both("backbone.norm", 1.0, 0.0) | both("head.1", 1.0)


def beit(depth, decay):
    """BEiT's authors: no positions; a table of each block, which is decayed; keys without bias."""
    found = plain(depth, decay, positions=False)
    for i in range(depth):
        factor = decay ** (depth - i)
        del found[f"backbone.blocks.{i}.qkv.bias"]
        vectors = ("q_bias", "v_bias", "scale1", "scale2")
        found |= {f"backbone.blocks.{i}.{vector}": (factor, 0.0) for vector in vectors}
        found[f"backbone.block_biases.{i}.table"] = (factor, 0.05)
    return found


def windowed(decay, *, merge, last, table):
    """Depths 2, 2, 18, 2. SimMIM: merging `s` as the block before it, the last norm and head 1; MixMIM: as the block
    after it, and as the last block."""
    depths, number = (2, 2, 18, 2), 0
    stem = decay**25
    found = both("backbone.patch_embed.conv", stem) | both("backbone.patch_embed.norm", stem, 0.0)
    for stage, depth in enumerate(depths):
        for i in range(depth):
            number += 1
            name = f"backbone.body.stages.{stage}.{i}"
            found |= block(name, decay ** (25 - number))
            found[f"{name}.bias_table"] = (decay ** (25 - number), table)
        if stage < 3:
            factor = decay ** (25 - number - merge)
            found[f"backbone.body.merges.{stage}.reduce.weight"] = (factor, 0.05)
            found |= both(f"backbone.body.merges.{stage}.norm", factor, 0.0)
    return found | both("backbone.norm", decay**last, 0.0) | both("head.1", decay**last)


def hivit():
    """HiViT's authors: depths 2, 2, 20, each unit of the first two stages two MLPs, 28 layers; tables and positions
    without decay; a merging as the block before it."""
    stem, factor = 0.85**29, lambda layer: 0.85 ** (29 - layer)
    found = both("backbone.patch_embed", stem) | both("backbone.patch_norm", stem, 0.0)
    found["backbone.positions"] = (stem, 0.0)
    for i in range(4):
        options = {"layers": ("fc1", "fc2"), "norms": ("norm",)}
        found |= block(f"backbone.inner_blocks.{i}", factor(i + 1), **options)
        found |= block(f"backbone.merged_blocks.{i}", factor(i + 5), **options)
    for merge, layer in (("inner_merge", 4), ("merged_merge", 8)):
        found |= both(f"backbone.{merge}.norm", factor(layer), 0.0)
        found[f"backbone.{merge}.reduce.weight"] = (factor(layer), 0.05)
    for i in range(20):
        found |= block(f"backbone.blocks.{i}", factor(i + 9))
        found[f"backbone.block_biases.{i}.table"] = (factor(i + 9), 0.0)
    return found | both("backbone.norm", 1.0, 0.0) | both("head.1", 1.0)


MAE_L, MAE_H = plain(24, 0.75, positions=True), plain(32, 0.75, positions=True)
FINE_TUNING = {
    "mae_vit-base-p16_8xb128-coslr-100e_in1k": plain(12, 0.65, positions=True),
    "mae_vit-large-p16_8xb128-coslr-50e_in1k": MAE_L,
    "mae_vit-huge-p14_8xb128-coslr-50e_in1k": MAE_H,
    "mae_vit-huge-p14_32xb8-coslr-50e_in1k-448px": MAE_H,
    "milan_vit-base-p16_8xb128-coslr-100e_in1k": plain(12, 0.65, positions=True),
    "maskfeat_vit-base-p16_8xb256-coslr-100e_in1k": plain(12, 0.65, positions=True),
    "mocov3_vit-base-p16_8xb64-coslr-150e_in1k": plain(12, 1.0, positions=True),
    "mocov3_vit-large-p16_8xb64-coslr-100e_in1k": plain(24, 1.0, positions=True),
    "beit_beit-base-p16_8xb128-coslr-100e_in1k": beit(12, 0.65),
    "beitv2_beit-base-p16_8xb128-coslr-100e_in1k": beit(12, 0.65),
    "beitv2-1600e_beit-base-p16_8xb128-coslr-100e_in1k": beit(12, 0.6),
    "cae_beit-base-p16_8xb128-coslr-100e_in1k": beit(12, 0.65),  # its positions are fixed
    "mae-hivit_hivit-base-p16_8xb128-coslr-100e_in1k": hivit(),
    "simmim_swin-base-w6_8xb256-coslr-100e_in1k-192px": windowed(0.9, merge=0, last=0, table=0.0),
    "simmim_swin-base-w7_8xb256-coslr-100e_in1k": windowed(0.9, merge=0, last=0, table=0.0),
    "simmim_swin-large-w14_8xb256-coslr-100e_in1k": windowed(0.7, merge=0, last=0, table=0.0),
    "mixmim_mixmim-base_8xb128-coslr-100e_in1k": windowed(0.7, merge=1, last=1, table=0.05),
}


@pytest.mark.parametrize("name", FINE_TUNING)
def test_fine_tuning(name):
    found, expected = groups_of(load_recipe(f"finetune/{name}", [])), FINE_TUNING[name]
    assert found.keys() == expected.keys()  # what is frozen is in neither
    for parameter, (factor, decay) in expected.items():
        assert found[parameter][:2] == (pytest.approx(factor, rel=1e-9), decay), parameter


# clip, momentum of the average, deviation of the head's start
STARTS = {
    "mae_vit-base-p16_8xb128-coslr-100e_in1k": (None, None, 2e-5),
    "mae_vit-large-p16_8xb128-coslr-50e_in1k": (None, None, 2e-5),
    "mae_vit-huge-p14_8xb128-coslr-50e_in1k": (None, None, 2e-5),
    "mae_vit-huge-p14_32xb8-coslr-50e_in1k-448px": (None, None, 2e-5),
    "mae-hivit_hivit-base-p16_8xb128-coslr-100e_in1k": (None, None, 2e-5),
    "milan_vit-base-p16_8xb128-coslr-100e_in1k": (None, None, 0.02),
    "maskfeat_vit-base-p16_8xb256-coslr-100e_in1k": (None, None, 2e-5),
    "mocov3_vit-base-p16_8xb64-coslr-150e_in1k": (5.0, 0.99996, 0.02),
    "mocov3_vit-large-p16_8xb64-coslr-100e_in1k": (5.0, 0.99996, 0.02),
    "beit_beit-base-p16_8xb128-coslr-100e_in1k": (None, None, 0.02),
    "beitv2_beit-base-p16_8xb128-coslr-100e_in1k": (None, None, 0.02),
    "beitv2-1600e_beit-base-p16_8xb128-coslr-100e_in1k": (None, None, 0.02),
    "cae_beit-base-p16_8xb128-coslr-100e_in1k": (None, None, 2e-5),
    "simmim_swin-base-w6_8xb256-coslr-100e_in1k-192px": (5.0, None, 0.02),
    "simmim_swin-base-w7_8xb256-coslr-100e_in1k": (5.0, None, 0.02),
    "simmim_swin-large-w14_8xb256-coslr-100e_in1k": (5.0, None, 0.02),
    "mixmim_mixmim-base_8xb128-coslr-100e_in1k": (None, None, 2e-5),
}


def test_clipping_averages_and_the_head():
    assert STARTS.keys() == FINE_TUNING.keys()
    for name, expected in STARTS.items():
        recipe = load_recipe(f"finetune/{name}", [])
        assert (recipe.optim.clip_grad, recipe.algorithm.ema, recipe.algorithm.head_std) == expected, name


# of pre-training: the tokens' and tables' weight decay, and whether it follows the schedule of the others'
TOKENS = {
    "beit_beit-base-p16_8xb256-amp-coslr-300e_in1k": {"mask_token": 0.05, "vit.cls_token": 0.0},
    "beitv2_beit-base-p16_8xb256-amp-coslr-300e_in1k": {"mask_token": 0.05, "vit.cls_token": 0.0},
    "beitv2_beit-base-p16_8xb256-amp-coslr-1600e_in1k": {"mask_token": 0.05, "vit.cls_token": 0.0},
    "cae_beit-base-p16_32xb64-amp-coslr-300e_in1k": {"mask_token": 0.05, "vit.cls_token": 0.05},
    "dino_vit-base-p16_8xb64-amp-coslr-100e_in1k": {
        "backbone.cls_token": "as all others'",
        "backbone.positions": "as all others'",
        "head.1.weight": "as all others'",
        "backbone.norm.weight": 0.0,
        "backbone.blocks.3.norm2.weight": 0.0,
        "backbone.blocks.3.fc1.bias": 0.0,
        "head.0.0.bias": 0.0,
    },
    "maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k": {
        "mask_token": 0.0,
        "vit.cls_token": 0.05,
        "vit.positions": 0.05,
    },
    "mixmim_mixmim-base_16xb128-coslr-300e_in1k": {
        "decoder.mask_token": 0.05,
        "backbone.body.stages.1.0.bias_table": 0.05,
    },
    "mixmim_mixmim-large_16xb128-amp-coslr-600e_in1k": {"decoder.mask_token": 0.05},
    "simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px": {
        "mask_token": 0.0,
        "backbone.body.stages.1.0.bias_table": 0.0,
    },
    "vqkd_vit-base-p16_8xb64-amp-coslr-100e_in1k": {"tokenizer.vit.positions": 0.0, "tokenizer.vit.cls_token": 0.0},
}


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_and_tables_in_pre_training(name):
    recipe = load_recipe(name, [])
    found = groups_of(recipe)
    for parameter, decay in TOKENS[name].items():
        if decay == "as all others'":
            assert found[parameter][1:] == (recipe.optim.weight_decay, True)
        else:
            assert found[parameter][1] == decay, parameter


def test_warm_ups_start_as_published():
    """The first step's share of the peak: 1e-4, and where a source has another one, that."""
    special = {  # 1e-9 in MMSelfSup's files of 800 epochs; from 0 with the authors of Barlow Twins
        "mae_vit-base-p16_8xb512-amp-coslr-800e_in1k": 1e-9,
        "mae_vit-large-p16_8xb512-amp-coslr-800e_in1k": 1e-9,
        "pixmim_vit-base-p16_8xb512-amp-coslr-800e_in1k": 1e-9,
        "barlowtwins_resnet50_8xb256-coslr-300e_in1k": 0.0,
        "barlowtwins_resnet50_8xb256-coslr-1000e_in1k": 0.0,
        "barlowtwins_resnet50_8xb32-accum8-coslr-100e_in1k": 0.0,
    }
    usual = [f"mae_vit-{size}-p16_8xb512-amp-coslr-{n}e_in1k" for size in ("base", "large") for n in (300, 400, 1600)]
    usual += [
        "pixmim_vit-base-p16_8xb512-amp-coslr-300e_in1k",
        "eva-mae-style_vit-base-p16_16xb256-amp-coslr-400e_in1k",
    ]
    for name, start in (special | dict.fromkeys(usual, 1e-4)).items():
        assert load_recipe(name, []).optim.warmup_from == start, name


THEIRS = {  # a recipe of ours -> MMPretrain's file, and how it writes the encoder down
    "mae_vit-base-p16_8xb128-coslr-100e_in1k": ("mae", vit.OPENMMLAB),
    "milan_vit-base-p16_8xb128-coslr-100e_in1k": ("milan", vit.OPENMMLAB),
    "maskfeat_vit-base-p16_8xb256-coslr-100e_in1k": ("maskfeat", vit.OPENMMLAB),
    "mocov3_vit-base-p16_8xb64-coslr-150e_in1k": ("mocov3", vit.OPENMMLAB),
    "simmim_swin-base-w7_8xb256-coslr-100e_in1k": ("simmim", swin.OPENMMLAB),
}


@pytest.mark.parametrize("name", THEIRS)
def test_mmpretrains_own_groups(name):
    """What its optimizer constructor makes of its model, under our names."""
    mmpretrain = pytest.importorskip("mmpretrain", reason="needs the extra [parity]")
    from mmengine.config import Config
    from mmpretrain.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS

    folder, layout = THEIRS[name]
    file = name.partition("_")[2]
    config = Config.fromfile(Path(mmpretrain.__file__).parent / ".mim/configs" / folder / "benchmarks" / f"{file}.py")
    model, wrapper = MODELS.build(config.model), config.optim_wrapper
    kind = wrapper.pop("constructor", "DefaultOptimWrapperConstructor")
    wrapper["type"] = "OptimWrapper"  # without a GPU
    options = wrapper.pop("paramwise_cfg")
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(dict(type=kind, optim_wrapper_cfg=wrapper, paramwise_cfg=options))
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    theirs = {}
    for group in constructor(model).param_groups:
        for parameter in group["params"]:
            key = names.get(id(parameter))
            if key is None:  # MMEngine's own, of one figure, which carries the rate to its log
                continue
            ours = layout.names.ours(key.removeprefix("backbone.")) if key.startswith("backbone.") else None
            key = f"backbone.{ours.name}" if ours else "head.1." + key.rpartition(".")[2]
            theirs[key] = (group["lr"] / wrapper.optimizer.lr, group["weight_decay"])
    found = groups_of(load_recipe(f"finetune/{name}", []))
    assert found.keys() == theirs.keys()
    for parameter, (factor, decay) in theirs.items():
        assert found[parameter][:2] == (pytest.approx(factor, rel=1e-6), decay), parameter
