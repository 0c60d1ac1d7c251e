"""headrace: the loop's own step on the loader that it would choose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import torch

from headrace import kernels
from headrace.models.algorithm import Progress
from headrace.models.algorithms import find_algorithm
from headrace.pipelines.loaders.choose import choose_loader, make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import Batch
from headrace.train.engine.optim import Schedules, build_optimizer
from headrace.train.engine.step import Stepper
from headrace.train.heap import keep_freed

from .heat import Heat, Racer


def train(heat: Heat) -> Racer:
    recipe, source = heat.recipe, open_source(heat.data)
    torch.set_num_threads(heat.workers)
    keep_freed()
    kernels.configure(recipe.kernels)
    algorithm = find_algorithm(recipe.algorithm.name)(recipe.algorithm)
    algorithm = algorithm.to(memory_format=torch.channels_last).train()
    algorithm.prepare(len(source))
    schedules = Schedules(replace(recipe.optim, lr=1e-30), heat.job.batch, 1000, 1000)
    options = {"precision": recipe.train.precision, "clip_grad": recipe.optim.clip_grad}
    stepper = Stepper(algorithm, algorithm, build_optimizer(algorithm, recipe.optim), schedules, **options)
    progress = Progress(100, 1000, 100)

    def batches() -> Iterator[Batch]:
        kind, _ = choose_loader(source, recipe.data.loader, "cpu", algorithm.inputs())
        order = Order(len(source), heat.job.batch)
        with closing(make_loader(source, algorithm.inputs(), order, kind=kind, threads=heat.workers)) as loader:
            yield from loader

    views = lambda batch: [copy for view in batch.views.values() for copy in view]  # noqa: E731
    return Racer(batches(), lambda batch: stepper(batch, progress).loss.detach(), views, algorithm)


simclr = mae = dino = mixmim = train
