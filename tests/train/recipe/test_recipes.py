"""Every recipe can be built, and every algorithm that has one trains, resumes exactly and waits for no device."""

import math
import os
import signal
from contextlib import nullcontext

import pytest
import torch

from headrace.kernels.segment_attention import reference as segment_attention
from headrace.models.algorithm import Progress
from headrace.models.algorithms import find_algorithm
from headrace.pipelines.loaders.memory import MemoryLoader
from headrace.pipelines.order import Order
from headrace.train import pretrain
from headrace.train.engine import checkpoint
from headrace.train.engine.distributed import ALONE
from headrace.train.engine.metrics import read_metrics
from headrace.train.engine.optim import Schedules, build_optimizer
from headrace.train.engine.step import Stepper
from headrace.train.ledger import Ledger, read_ledger
from headrace.train.recipe import config
from headrace.train.recipe.recipe import load_recipe, smoke, smoke_images

NAMES = sorted(path.stem for path in config.RECIPES.glob("*.yaml"))
FIRST = {}  # algorithm -> its first recipe
for name in NAMES:
    FIRST.setdefault(config.load(name).get("algorithm.name").value, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_describes_itself_and_its_rules_match_something(name, tmp_path):
    """The tiny copy has the parts of the whole: a rule for parameters that are not there would be an error."""
    recipe = load_recipe(name, [f"train.out={tmp_path}"])
    assert config.load(name).get("description").value
    tiny = smoke(recipe)
    algorithm = find_algorithm(tiny.algorithm.name)(tiny.algorithm)
    groups = build_optimizer(algorithm, tiny.optim).param_groups
    trained = [p for p in algorithm.parameters() if p.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(trained)
    Schedules(recipe.optim, recipe.train.batch_size, 100, 10)


@pytest.mark.parametrize("algorithm", FIRST)
def test_an_algorithm_resumes_exactly(algorithm, tmp_path, monkeypatch):
    """Eleven steps, cut in the second epoch after step 9: queues, banks, teachers and centres included."""

    def run(out):
        arguments = [FIRST[algorithm], "--smoke", f"train.out={tmp_path / out}", "train.max_steps=11"]
        assert pretrain.main(arguments) == 0
        return checkpoint.newest(tmp_path / out)[1]

    def step(self, batch, progress):
        if progress.step == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return true_step(self, batch, progress)

    true_step, whole = Stepper.__call__, run("whole")["model"]
    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "__call__", step)
        assert run("parts")["step"] == 9
    parts = run("parts")["model"]
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
    assert all(math.isfinite(row["loss"]) for row in read_metrics(tmp_path / "whole"))


@pytest.mark.parametrize("algorithm", FIRST)
def test_an_algorithm_does_not_wait_for_the_device(algorithm, tmp_path, waiting_fails, monkeypatch):
    # on CPUs, and there alone, the operator looks at the values it is given
    monkeypatch.setattr("headrace.models.backbones.windows.segments_of", segment_attention.segments_of)
    recipe = smoke(load_recipe(FIRST[algorithm], [f"train.out={tmp_path}"]))
    torch.manual_seed(0)
    module, source = find_algorithm(recipe.algorithm.name)(recipe.algorithm), smoke_images()
    module.prepare(len(source))
    ledger = None if module.sample_loss is None else Ledger(tmp_path / "ledger", len(source), ALONE)
    optimizer, schedules = build_optimizer(module, recipe.optim), Schedules(recipe.optim, 8, 100, 8)
    steps = Stepper(module, module, optimizer, schedules, notes=[] if ledger is None else [ledger.add])
    loader = MemoryLoader(source, module.inputs(), Order(len(source), 8))
    for step in (0, 1):
        batch = next(loader)
        with waiting_fails() if step == 1 else nullcontext():
            steps(batch, Progress(step, 100, 8))
    if ledger is not None:
        ledger.flush()
        assert read_ledger(tmp_path)["visits"].sum() == 16
