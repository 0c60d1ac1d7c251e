"""docs/models.md: its example runs, and its tables name the recipes that exist."""

import re

from headrace.models.algorithms import algorithm_names
from headrace.train.recipe.config import RECIPES
from headrace.train.recipe.recipe import load_recipe

TEXT = (RECIPES.parent / "docs" / "models.md").read_text()


def test_example_runs():
    scope = {}
    exec(re.search(r"```python\n(.*?)```", TEXT, re.S)[1], scope)
    assert scope["features"].shape == (8, 512)
    assert int(scope["moco"].queue.next) == 8


def spelt_out(word):
    """``a-{1,2}-b`` -> a-1-b, a-2-b"""
    start, *choices = re.split(r"\{([\w,-]+)\}", word, maxsplit=1)
    if not choices:
        return [word]
    return [f"{start}{choice}{rest}" for choice in choices[0].split(",") for rest in spelt_out(choices[1])]


def test_recipes_of_the_page_are_those_that_exist():
    named = {name for word in re.findall(r"`([\w.{},-]+)`", TEXT) for name in spelt_out(word)}
    ours = {path.stem for path in RECIPES.glob("*.yaml")}
    assert ours <= named, ours - named
    assert {name for name in named if "_in1k" in name or "_cifar10" in name} <= ours


def test_a_row_has_a_figure_for_each_recipe_and_names_an_algorithm():
    rows = [line.split("|")[1:-1] for line in TEXT.splitlines() if line.startswith("|") and "_in1k" in line]
    assert len(rows) > 40
    for algorithm, _, recipe, published in rows:
        (word,) = re.findall(r"`([\w.{},-]+)`", recipe)
        figures = published.count("/") + 1
        assert figures in (1, len(spelt_out(word))), word
        for file in re.findall(r"\(`(\w+)`\)", algorithm):
            assert file in algorithm_names()
        names = {load_recipe(name, []).algorithm.name for name in spelt_out(word)}
        assert len(names) == 1
