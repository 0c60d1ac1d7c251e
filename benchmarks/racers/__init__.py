"""Who trains in `benchmarks/race.py`: a file for each system, in it a function for each method.

Each takes a `Heat` and gives a `Racer`. Peers are written as their own documentation has it: their modules, transforms
and losses in a plain loop over PyTorch's DataLoader (for OpenMMLab its own data pipeline and `train_step`), with the
numbers of the heat's recipe.

    heat.py        what is trained: recipe, images, batch; what a racer is
    ours.py        headrace
    lightly.py     lightly's modules and transforms
    by_hand.py     torchvision and timm, a loop as people write it
    mmpretrain.py  OpenMMLab's models and pipelines
    ceiling.py     a racer without data, and what its step consists of
    tables.py      the race's rows as tables, and the board's
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import NamedTuple


class System(NamedTuple):
    package: str  # what has to be installed
    distribution: str  # the name of its version
    module: str  # in this folder
    methods: tuple[str, ...]  # a function each
    differences: str = ""  # in what its training differs from ours
    sprints: tuple[str, ...] = ()  # methods that train a given encoder, against the clock

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.package) is None

    def load(self, method: str) -> Callable:
        return getattr(importlib.import_module(f".{self.module}", __package__), method)


MODEL_ONLY = ", model only"  # behind the name of a system that raced without data
_OF_LIGHTLY = "jitter in bytes, blur by Pillow"
SYSTEMS = {
    "headrace": System("headrace", "headrace", "ours", ("simclr", "mae", "dino", "mixmim")),
    "lightly": System("lightly", "lightly", "lightly", ("simclr", "mae", "dino"), _OF_LIGHTLY, ("simclr", "byol")),
    "by hand": System("timm", "timm", "by_hand", ("simclr", "mae"), "torchvision v2's transforms, decodes to tensors"),
    "mmpretrain": System("mmpretrain", "mmpretrain", "mmpretrain", ("simclr", "mae", "mixmim"), "OpenCV's crops"),
}
