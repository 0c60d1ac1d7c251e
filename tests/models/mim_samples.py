"""Algorithms in small, and batches of noise for them."""

import torch

from headrace.models.algorithm import Progress
from headrace.models.algorithms import find_algorithm
from headrace.models.targets.frozen import Weights
from headrace.pipelines.spec import Batch
from headrace.pipelines.views.masks import draw_mask

START = Progress(0, 10, 10)
RANDOM = Weights("random")


def build(name):
    kind = find_algorithm(name)
    torch.manual_seed(0)
    return kind(kind.Config().smoke())


def batch_of(algorithm, n=4, seed=0):
    inputs, generator = algorithm.inputs(), torch.Generator().manual_seed(seed)
    views = {v.name: torch.randn(v.copies, n, 3, v.size, v.size, generator=generator) for v in inputs.views}
    mask = None if inputs.mask is None else draw_mask(inputs.mask, seed, 0, torch.arange(n))
    return Batch(views=views, ids=torch.arange(n), labels=None, mask=mask, step=0, epoch=0)
