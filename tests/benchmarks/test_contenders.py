"""Correlations of meters with accuracy, against scipy's."""

import math

import pytest
from scipy import stats

from headrace.benchmarks.contenders import METHODS, QUALITIES, correlations, spearman
from headrace.train.recipe.recipe import load_recipe

ROWS = [
    {"of": of, "linear": linear, "spread": spread, "rank": rank}
    for of, linear, spread, rank in (
        ("a", 30.0, 0.5, 7.0),
        ("a", 35.0, 0.7, 5.0),
        ("a", 33.0, 0.7, 9.0),
        ("b", 50.0, 0.2, 1.0),
        ("b", 50.0, 0.3, 2.0),
        ("b", 61.0, 0.4, 3.0),
    )
]


def scipys(rows, meter):
    return stats.spearmanr([row[meter] for row in rows], [row["linear"] for row in rows]).statistic


def test_ranks_that_are_shared_are_shared():
    for meter in ("spread", "rank"):
        assert spearman(ROWS, meter) == pytest.approx(scipys(ROWS, meter))
    assert math.isnan(spearman([row | {"rank": 1.0} for row in ROWS], "rank")) and math.isnan(
        spearman(ROWS[:2], "rank")
    )


def test_a_meter_may_rise_within_methods_and_fall_between_them():
    found = correlations(ROWS)
    within = [scipys(ROWS[:3], "rank"), scipys(ROWS[3:], "rank")]
    assert found["rank"] == {"runs": 6, "all": spearman(ROWS, "rank"), "within": pytest.approx(sum(within) / 2)}
    assert found["rank"]["all"] < 0 < found["rank"]["within"] and found["lidar"]["runs"] == 0


def test_there_are_runs_enough_and_their_recipes_exist():
    assert len(METHODS) * len(QUALITIES) >= 20
    for recipe, overrides, rate in METHODS.values():
        assert load_recipe(recipe, [*overrides, f"optim.lr={rate}"]).optim.lr == rate
