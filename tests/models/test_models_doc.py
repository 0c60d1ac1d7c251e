"""docs/models.md: its example runs, and its table names the recipes that exist."""

import re

from headrace.train.config import RECIPES

TEXT = (RECIPES.parent / "docs" / "models.md").read_text()


def test_example_runs():
    scope = {}
    exec(re.search(r"```python\n(.*?)```", TEXT, re.S)[1], scope)
    assert scope["features"].shape == (8, 512)
    assert int(scope["moco"].queue.next) == 8


def test_recipes_of_the_table():
    named = set()
    for word in re.findall(r"`([\w.{},-]+)`", TEXT):
        brace = re.search(r"\{([\d,]+)\}", word)
        named |= {word.replace(brace[0], number) for number in brace[1].split(",")} if brace else {word}
    kinds = ("relative-loc", "rotation-pred", "deepcluster", "npid", "odc", "moco", "simclr", "byol", "swav", "densecl")
    ours = {
        path.stem
        for path in RECIPES.glob("*_in1k*.yaml")
        if path.stem.startswith((*kinds, "simsiam", "barlow", "dino"))
    }
    assert ours == {
        word for word in named if "_in1k" in word and word.startswith((*kinds, "simsiam", "barlow", "dino"))
    }
