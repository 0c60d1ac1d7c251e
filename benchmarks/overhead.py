"""What the loop costs beside the model: ``python -m headrace.benchmarks.overhead [--steps 20]``.

The loop runs as it does in training, over images in memory. Forward, backward and optimizer are timed where they are
called, and waiting for data is known; what is left of a step is the loop's own: schedules, guard, norm of the gradient,
metrics, collapse meter, stop requests. Appends a line to ``benchmarks/results/overhead.jsonl``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from headrace.errors import run_command
from headrace.models.algorithms import find_algorithm
from headrace.pipelines.loaders.memory import MemoryLoader
from headrace.pipelines.order import Order
from headrace.pipelines.sources.arrays import ArraySource
from headrace.train.engine.distributed import Launch, pick_device
from headrace.train.engine.loop import train
from headrace.train.engine.metrics import MetricsLog
from headrace.train.engine.optim import Schedules, build_optimizer
from headrace.train.engine.step import Stepper
from headrace.train.precision import resolved
from headrace.train.recipe.recipe import load_recipe

from .record import add_out, append

_ROUNDS = 5


def measure(recipe_name: str, overrides: list[str], steps: int) -> dict:
    """Seconds a step of the model, and the loop's own time as a share of that: medians of rounds of `steps` steps."""
    recipe = load_recipe(recipe_name, ["train.max_steps=1", *overrides])
    device = pick_device(recipe.train.device)
    process = Launch(0, 1, 0, 1, device)
    size, batch_size = 224, recipe.train.batch_size
    images = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)
    algorithm = find_algorithm(recipe.algorithm.name)(recipe.algorithm).to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(algorithm, recipe.optim)
    loader = MemoryLoader(ArraySource(images), algorithm.inputs(), Order(batch_size, batch_size), device=device)
    schedules = Schedules(recipe.optim, batch_size, 100 * steps, 1000)
    options = {"precision": resolved(recipe.train.precision, process), "clip_grad": recipe.optim.clip_grad}
    stepper = Stepper(algorithm, algorithm, optimizer, schedules, **options)
    model = _Timed(device)
    algorithm.forward = model(algorithm.forward)
    optimizer.step = model(optimizer.step)
    shares, model_seconds = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(torch.Tensor, "backward", model(torch.Tensor.backward)),
    ):
        for _ in range(1 + _ROUNDS):
            settings = replace(recipe.train, max_steps=steps, save_every=10 * steps)
            log = MetricsLog(Path(folder), 0, steps, True)
            model.seconds, waited, began = 0.0, loader.stats().wait_seconds, time.perf_counter()
            train(
                stepper,
                loader,
                settings,
                process,
                log,
                out=Path(folder),
                first_step=0,
                total_steps=steps,
                embed=None,
                save=lambda step: None,
            )
            _wait(device)
            seconds = time.perf_counter() - began - (loader.stats().wait_seconds - waited)
            log.close()
            shares.append(seconds / model.seconds - 1)
            model_seconds.append(model.seconds / steps)
    return {
        "recipe": recipe_name,
        "overrides": overrides,
        "steps": steps,
        "model_s": statistics.median(model_seconds[1:]),
        "share": statistics.median(shares[1:]),
        "shares": [round(share, 5) for share in shares[1:]],  # the first round warms up
    }


class _Timed:
    """Wraps functions and adds up the seconds they take, the device's included."""

    def __init__(self, device: torch.device) -> None:
        self.seconds, self._device = 0.0, device

    def __call__(self, function: Callable) -> Callable:
        def timed(*arguments, **options):
            _wait(self._device)
            began = time.perf_counter()
            result = function(*arguments, **options)
            _wait(self._device)
            self.seconds += time.perf_counter() - began
            return result

        return timed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What the loop costs beside the model.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--recipe", default="mae_vit-tiny")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    add_out(parser)
    arguments = parser.parse_intermixed_args(argv)
    row = measure(arguments.recipe, arguments.overrides, arguments.steps)
    append("overhead", row, folder=arguments.out)
    print(f"model {row['model_s'] * 1e3:.1f} ms a step; the loop adds {row['share']:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
