"""Resume at any step on any number of ranks: the same ids, crops, labels and masks, concatenated over ranks."""

import numpy as np
import pytest
import torch

from headrace.pipelines.loaders.cpu import CpuLoader
from headrace.pipelines.loaders.dali import DaliLoader
from headrace.pipelines.loaders.memory import MemoryLoader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, RandomMask, ViewSpec

INPUTS = InputSpec(
    (ViewSpec("pair", count=2, size=24, jitter=0.8, brightness=0.4, hue=0.1, gray=0.2, blur=0.5), ViewSpec(size=16)),
    RandomMask(grid=(4, 4)),
)
LOADERS = {"dali": DaliLoader, "cpu": CpuLoader, "memory": MemoryLoader}


def same(parts, whole):
    """Checks that the batches of the ranks are the parts of a global one."""
    assert {part.step for part in parts} == {whole.step} and {part.epoch for part in parts} == {whole.epoch}
    assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    for name in ("hidden", "keep", "restore"):
        assert torch.equal(torch.cat([getattr(part.mask, name) for part in parts]), getattr(whole.mask, name))
    for name, views in whole.views.items():
        assert torch.equal(torch.cat([part.views[name] for part in parts], dim=1), views)


@pytest.mark.parametrize("loader", LOADERS)
def test_resume_with_another_world_size(loader, photo_folder):
    """A run on two ranks stops somewhere; it goes on alone, and on five."""
    source = open_source(photo_folder)
    order = Order(len(source), 10, seed=11, last="pad")

    def start(world, state):
        ranks = [LOADERS[loader](source, INPUTS, order, seed=11, rank=rank, world=world) for rank in range(world)]
        for rank in ranks:
            rank.load_state_dict(state)
        return ranks

    def close(ranks):
        for rank in ranks:
            rank.close()

    undisturbed = start(1, {"step": 0})
    whole = [next(undisturbed[0]) for _ in range(8)]
    close(undisturbed)
    stop = int(np.random.default_rng().integers(1, 6))
    first = start(2, {"step": 0})
    for step in range(stop):
        same([next(rank) for rank in first], whole[step])
    state = first[1].state_dict()
    close(first)
    for world in (1, 5):
        ranks = start(world, state)
        for step in range(stop, stop + 2):
            same([next(rank) for rank in ranks], whole[step])
        close(ranks)
