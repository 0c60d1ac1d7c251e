"""Sizes of views that change during a run: how they are written, what each step has, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from headrace.errors import UserError
from headrace.models.algorithms import algorithm_names, find_algorithm
from headrace.models.algorithms.dino import DINO
from headrace.models.algorithms.mae import MAE
from headrace.models.algorithms.maskfeat import MaskFeat
from headrace.models.smoke import tiny_view
from headrace.pipelines.spec import ViewSpec
from headrace.train.recipe.recipe import load_recipe
from headrace.train.recipe.sizes import inputs_of_run

ARGUMENT = "algorithm.view.size={0: 64, 60%: [96, 128]}"


def sides(inputs, steps, name="image"):
    return [next(view.size for view in inputs.at(step).views if view.name == name) for step in range(steps)]


def test_a_mapping_is_the_sizes_of_moments_and_the_last_one_builds_the_network():
    recipe = load_recipe("mae_vit-tiny", [ARGUMENT])
    view = recipe.algorithm.view
    assert (view.size, view.sizes) == (128, {"0": (64,), "60%": (96, 128)})
    assert find_algorithm("mae")(recipe.algorithm).vit.grid == (8, 8)
    assert tiny_view(view).sizes == {"0": (16,), "60%": (24, 32)}


def test_what_is_shown_is_a_recipe_of_the_same(tmp_path):
    recipe = load_recipe("mae_vit-tiny", [ARGUMENT])
    (tmp_path / "again.yaml").write_text(recipe.resolved)
    assert load_recipe(str(tmp_path / "again.yaml")).algorithm == recipe.algorithm
    with pytest.raises(UserError, match="command line: algorithm.view.size: 96, but `sizes` ends with 128"):
        load_recipe(str(tmp_path / "again.yaml"), ["algorithm.view.size=96"])


def test_every_step_has_a_size_of_its_moment_and_a_mask_of_its_grid():
    config = load_recipe("mae_vit-tiny", [ARGUMENT]).algorithm
    inputs = inputs_of_run(config, 1000, 100, seed=3)
    found = sides(inputs, 1000)
    assert set(found[:600]) == {64} and set(found[600:]) == {96, 128} and sides(inputs, 1001)[-1] == found[-1]
    assert stats.binomtest(found[600:].count(96), 400).pvalue > 0.01
    for step in (0, 600, 999):
        side = found[step] // 16
        assert inputs.at(step).mask.grid == (side, side) and inputs.at(step).mask.ratio == config.mask_ratio
    assert sides(inputs_of_run(config, 1000, 100, seed=3), 1000) == found
    assert sides(inputs_of_run(config, 1000, 100, seed=4), 1000) != found
    assert (inputs.views[0].size, inputs.mask.grid) == (128, (8, 8))


def test_moments_are_shares_epochs_and_steps():
    for moment, begin in (("25%", 50), ("3 epochs", 60), ("7 steps", 7)):
        view = ViewSpec(size=64, sizes={"0": (32,), moment: (64,)})
        assert sides(inputs_of_run(MAE.Config(view=view), 200, 20, 0), 200) == [32] * begin + [64] * (200 - begin)


def test_lists_of_one_length_change_together():
    config = DINO.Config()
    together = {"0": (128, 160, 192)}
    config = replace(
        config,
        first=replace(config.first, size=192, sizes=together),
        second=replace(config.second, size=192, sizes=together),
        small=replace(config.small, size=96, sizes={"0": (64, 80, 96)}),
    )
    inputs = inputs_of_run(config, 300, 10, 0)
    found = list(zip(*(sides(inputs, 300, name) for name in ("first", "second", "small"))))
    assert set(found) == {(128, 128, 64), (160, 160, 80), (192, 192, 96)} and len(inputs.kinds) == 3
    assert stats.chisquare(np.unique([row[0] for row in found], return_counts=True)[1]).pvalue > 0.01


def test_numbers_of_hidden_patches_keep_their_share():
    small = MaskFeat.Config().resized(view=112)
    assert (small.mask.grid, small.mask.count, small.mask.min_block) == ((7, 7), 20, 4)  # of (14, 14), 78, 15


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{5%: 64, 60%: 128}", "algorithm.view.size: moments begin with 0 and rise, got 5%, 60%"),
        ("{0: 64, 60%: 128, 50%: 96}", "moments begin with 0 and rise, got 0, 60%, 50%"),
        ("{0: 64, later: 128}", 'a moment is 0, "60%", "30 epochs" or "5000 steps", not \'later\''),
        ("{0: 100, 60%: 128}", "there is no view of 100 px: view: needs one view whose size is a multiple"),
    ],
)
def test_what_is_no_schedule_is_refused(value, words):
    config = load_recipe("mae_vit-tiny", [f"algorithm.view.size={value}"]).algorithm
    with pytest.raises(UserError) as fault:
        inputs_of_run(config, 1000, 100, 0)
    assert words in str(fault.value) and "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{0: big}", "algorithm.view.sizes.0[0]: needs an integer, got 'big'"),
        ("{0: []}", "algorithm.view.size: needs an integer"),
        ("{}", "algorithm.view.size: needs an integer, got a mapping"),
    ],
)
def test_what_are_no_sizes_is_refused_where_it_was_written(value, words):
    with pytest.raises(UserError) as fault:
        load_recipe("mae_vit-tiny", [f"algorithm.view.size={value}"])
    assert "command line: " + words in str(fault.value)


def test_who_has_one_size_says_so():
    for name in ("eva", "milan", "vqkd"):
        config = find_algorithm(name).Config()
        config = replace(config, view=replace(config.view, sizes={"0": (112,), "50%": (224,)}))
        with pytest.raises(UserError, match=f"{name} has no view of 112 px: CLIP's tower sees one size"):
            inputs_of_run(config, 10, 5, 0)
    assert {name for name in algorithm_names() if find_algorithm(name).Config.fixed_size} == {"eva", "milan", "vqkd"}


def test_a_decoder_resizes_its_positions():
    """As torch resizes a picture of them; the rest of the network knows nothing of the size."""
    torch.manual_seed(0)
    mae = MAE(MAE.Config().smoke()).eval()
    tokens = torch.randn(2, 1 + 9, mae.vit.features)
    restore = torch.rand(2, 36).argsort(1)
    found = mae.decoder(tokens, restore)
    table = mae.decoder.positions.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(table, (6, 6), mode="bicubic", align_corners=False)
    mae.decoder.positions, mae.decoder.grid = larger.flatten(2).transpose(1, 2), (6, 6)
    assert torch.allclose(mae.decoder(tokens, restore), found, atol=1e-6)
