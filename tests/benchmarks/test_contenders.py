"""Correlations of meters with accuracy, against scipy's; tables of rows whose figures are known."""

import math
import time
from types import SimpleNamespace

import pytest
from scipy import stats

from headrace.benchmarks.contender_tables import METERS, QUALITIES, correlations, spearman
from headrace.benchmarks.contenders import METHODS, progressive, reached, step_ends, student, taught
from headrace.benchmarks.ledger import NOT_YET, TABLES
from headrace.benchmarks.record import append, read
from headrace.train.engine.step import Stepper
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


def test_methods_are_ranked_by_means_of_seeds(tmp_path):
    """Neither rows of other kinds nor those of an earlier run take part."""
    rows = [("old", 0, 99.0), ("simclr", 0, 40.0), ("mae", 0, 30.0), ("simclr", 1, 42.0), ("simclr", 2, 44.0)]
    for name, seed, knn in rows:
        row = {"job": "2 CPU minutes", "contender": name, "seed": seed, "steps": 100, "knn": knn, "linear": knn + 5}
        append("contenders", row | ({"run": "before"} if name == "old" else {}), folder=tmp_path)
    append("contenders", {"job": "1 CPU minutes", "contender": "mae-good", "seed": 0, "knn": 90.0}, folder=tmp_path)
    append("contenders", {"job": "cost of meters", "share": 0.1}, folder=tmp_path)
    (tmp_path / "contenders.jsonl").write_text(_older(tmp_path / "contenders.jsonl"))
    text = TABLES["contenders"](tmp_path)
    assert text[0].endswith("2 CPU minutes each.")
    assert text[4:] == [
        "| simclr | 42.0 (40.0-44.0) | 47.0 (45.0-49.0) | 3 | 100 |",
        "| mae | 30.0 | 35.0 | 1 | 100 |",
    ]


def _older(path):
    first, *rest = path.read_text().splitlines(keepends=True)
    return "".join([first.replace(read(path.stem, path.parent)[1]["run"], "0" * 8), *rest])


def test_meters_are_judged_by_how_they_should_go(tmp_path):
    """Over all runs `rank` rises with accuracy and `spread` falls; `alpha` is the better the lower it is."""
    assert TABLES["meters"](tmp_path) == [NOT_YET]
    for number in range(len(METHODS) * len(QUALITIES)):
        method, quality = list(METHODS)[number // 4], list(QUALITIES)[number % 4]
        row = {"job": "1 CPU minutes", "contender": f"{method}-{quality}", "seed": 0, "knn": 1.0, "linear": number}
        row |= {"rank": number, "spread": -number, "alpha": -number, "lidar": 3.0}
        append("contenders", row, folder=tmp_path)
        if number == 18:
            assert TABLES["meters"](tmp_path) == [NOT_YET]
    text = TABLES["meters"](tmp_path)
    assert text[4:9] == [
        "| `spread` | up | 28 | -1.00 | -1.00 | **misleads** | **misleads** |",
        "| `rank` | up | 28 | +1.00 | +1.00 | much | much |",
        "| `alpha` | down | 28 | -1.00 | -1.00 | much | much |",
        "| `lidar` | up | 28 |  |  |  |  |",
        "| `patch_spread` | up | 0 |  |  |  |  |",
    ]
    assert len(text) == 10 + 2 + 28 and list(METERS) == [line.split("`")[1] for line in text[4:9]]


def test_seconds_to_the_same_accuracy(tmp_path):
    """Of the run without growing views its own first moment at its last accuracy, which it may have had before."""
    curves = {"simclr": [(10, 20.0), (20, 31.0), (30, 30.0)], "simclr-grow": [(4, 22.0), (9, 30.0), (12, 33.0)]}

    def climb(name, recipe, overrides, rate):
        assert any("view.size" in given for given in overrides) == (name == "simclr-grow")
        return [{"step": at, "cpu_seconds": float(at), "knn": knn} for at, knn in curves[name]]

    rows = progressive(SimpleNamespace(climb=climb, minutes=2.0, folder=tmp_path, batch=8), "simclr")
    assert [(row["wanted_knn"], row["cpu_seconds_to_it"]) for row in rows] == [(30.0, 20.0), (30.0, 9.0)]
    assert reached([{"cpu_seconds": 1.0, "knn": 3.0}], 4.0) is None
    text = TABLES["progressive"](tmp_path)
    assert "cpu seconds to it" in text[2] and "| 30 | 9 | 33 | 12 | 12 |" in text[5]


def test_a_student_beside_the_same_encoder_from_scratch(tmp_path):
    """Its head is as wide as the teacher's features; rows are of a job of their own, not of methods at equal time."""
    teacher = "random:mae_vit-tiny_cifar10"
    recipe, overrides, rate = student(teacher)
    algorithm = load_recipe(recipe, [*overrides, f"optim.lr={rate}"]).algorithm
    assert (algorithm.features, algorithm.backbone.width, algorithm.teacher) == (192, 16, teacher)

    def run(name, recipe, overrides, rate, seed, of):
        append("contenders", {"job": f"2 CPU minutes{of}", "contender": name, "seed": 0, "knn": 30.0}, folder=tmp_path)
        return {"contender": name}

    bench = SimpleNamespace(
        scores=SimpleNamespace(frozen=lambda name: {"knn": 50.0}), minutes=2.0, folder=tmp_path, run=run
    )
    rows = taught(bench, "simclr", teacher)
    assert [row["contender"] for row in rows] == ["the teacher", "distill", "simclr, from scratch"]
    assert len([line for line in TABLES["taught"](tmp_path) if "with a teacher" in line]) == 3
    assert TABLES["contenders"](tmp_path) == [NOT_YET]


def test_ends_of_steps_are_in_cpu_time(monkeypatch):
    def work(self, batch, progress):
        began = time.process_time()
        while time.process_time() - began < 0.05:
            pass
        time.sleep(0.1)
        return batch

    monkeypatch.setattr(Stepper, "__call__", work)
    with step_ends() as ends:
        assert [Stepper.__call__(None, number, None) for number in range(3)] == [0, 1, 2]
    assert len(ends) == 3 and all(0.05 <= b - a < 0.1 for a, b in zip([0.0, *ends], ends))
    assert Stepper.__call__ is work
