"""One optimizer step: accumulation, precision, steps that are left out, and no waiting for the device."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from headrace.models.algorithm import Algorithm, Progress, StepOutput
from headrace.models.algorithms import find_algorithm
from headrace.models.algorithms.mae import MAE
from headrace.models.algorithms.simclr import SimCLR
from headrace.pipelines.loaders.memory import MemoryLoader
from headrace.pipelines.order import Order
from headrace.pipelines.spec import Batch
from headrace.train.engine.optim import Schedules, build_optimizer
from headrace.train.engine.step import Stepper, micro_batches
from headrace.train.engine.transforms import blocks_of, checkpoint_blocks, compiled_graphs
from headrace.train.recipe.recipe import smoke_images
from headrace.train.recipe.settings import AdamWSettings, LAMBSettings, LARSSettings, SGDSettings

OPTIMIZERS = [AdamWSettings(lr=0.01), SGDSettings(lr=0.01), LARSSettings(lr=0.1), LAMBSettings(lr=0.01)]
CONFIGS = {MAE: MAE.Config().smoke(), SimCLR: SimCLR.Config().smoke()}


class Toy(Algorithm):
    """Mean squared activations behind a batch normalisation, a row of memory written by every step."""

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: str = "toy"

    def __init__(self, factors=()):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.register_buffer("memory", torch.zeros(3))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self.factors = dict(factors)  # step -> what its loss is multiplied with

    def forward(self, batch, progress):
        x = self.norm(self.layer(batch.views["image"][0].flatten(1))).float()
        self.mean = x.detach().mean(0)
        factor = self.factors.get(progress.step, 1.0)
        return StepOutput(loss=(x * factor).sub(1).square().mean(), metrics={"norm": x.detach().norm()})

    def after_step(self, progress):
        self.memory.copy_(self.mean * self.factors.get(progress.step, 1.0))
        self.written += 1


def toy_batch(step, size=8):
    images = torch.randn(1, size, 4, 1, 1, generator=torch.Generator().manual_seed(step))
    return Batch(views={"image": images}, ids=torch.arange(size), labels=None, mask=None, step=step, epoch=0)


def stepper(algorithm, settings, **options):
    schedules = Schedules(settings, settings.lr_batch or 1, 100, 10)
    return Stepper(algorithm, algorithm, build_optimizer(algorithm, settings), schedules, **options)


def everything(steps):
    """All that a checkpoint would hold, as a flat list."""
    state = steps.optimizer.state_dict()["state"]
    return [*steps.algorithm.state_dict().values(), *(v for entry in state.values() for v in entry.values())]


@pytest.mark.parametrize("settings", OPTIMIZERS)
@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e30])
def test_a_step_that_is_not_finite_leaves_no_trace(settings, factor):
    """NaN and infinite losses, and a finite one whose gradient overflows. Steps 0 and 2 are left out."""
    torch.manual_seed(0)
    disturbed = stepper(Toy({0: factor, 2: factor}), settings)
    torch.manual_seed(0)
    undisturbed = stepper(Toy(), settings)
    flags = []
    for step in range(4):
        output = disturbed(toy_batch(step), Progress(step, 100, 10))
        flags.append((output.metrics["skipped"].item(), disturbed.skipped_in_row.item()))
        if step in (1, 3):
            undisturbed(toy_batch(step), Progress(step, 100, 10))
        if step == 0:
            continue  # the undisturbed has no state yet
        left, right = everything(disturbed), everything(undisturbed)
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True)), step
    assert flags == [(1, 1), (0, 0), (1, 1), (0, 0)]


def test_fp16_halves_its_scale_where_a_gradient_overflows():
    torch.manual_seed(0)
    steps = stepper(Toy({0: 1e4}), AdamWSettings(lr=0.01), precision="fp16")
    before = [value.clone() for value in steps.algorithm.state_dict().values()]
    assert steps.scaler.get_scale() == 2.0**16
    assert steps(toy_batch(0), Progress(0, 100, 10)).metrics["skipped"] == 1
    assert steps.scaler.get_scale() == 2.0**15
    assert all(torch.equal(a, b) for a, b in zip(before, steps.algorithm.state_dict().values()))
    output = steps(toy_batch(1), Progress(1, 100, 10))
    assert output.metrics["skipped"] == 0 and not torch.equal(before[0], steps.algorithm.layer.weight)


def test_fp16_and_bf16_follow_fp32():
    weights = {}
    for precision in ("fp32", "fp16", "bf16"):
        torch.manual_seed(0)
        small = dict.fromkeys(range(5), 0.01)  # gradients that the first scale, 2^16, does not push over the top
        steps = stepper(Toy(small), SGDSettings(lr=5.0), precision=precision)
        for step in range(5):
            assert steps(toy_batch(step), Progress(step, 100, 10)).metrics["skipped"] == 0
        weights[precision] = steps.algorithm.layer.weight.detach()
        assert weights[precision].dtype == torch.float32
    for precision, tolerance in (("fp16", 2e-3), ("bf16", 2e-2)):
        difference = (weights[precision] - weights["fp32"]).abs().max()
        assert 0 < difference < tolerance


def batches(algorithm, size=8):
    source = smoke_images()
    return MemoryLoader(source, algorithm.inputs(), Order(len(source), size, seed=3), seed=3)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_make_the_step_of_the_whole(parts):
    """MAE, whose loss is a mean over samples: the same weights to rounding, loss and gradient norm as well."""
    results = []
    for accumulate in (1, parts):
        torch.manual_seed(0)
        algorithm = MAE(CONFIGS[MAE])
        steps, loader = (
            stepper(algorithm, SGDSettings(lr=0.1), accumulate=accumulate, clip_grad=0.1),
            batches(algorithm),
        )
        outputs = [steps(next(loader), Progress(step, 100, 8)) for step in range(3)]
        figures = [o.loss.item() for o in outputs] + [o.metrics["grad_norm"].item() for o in outputs]
        results.append((torch.cat([p.detach().flatten() for p in algorithm.parameters()]), figures))
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-4)
    assert (results[0][0] - results[1][0]).abs().max() < 1e-6


def test_accumulation_calls_after_step_once():
    steps = stepper(Toy(), SGDSettings(lr=0.1), accumulate=4)
    for step in range(3):
        steps(toy_batch(step), Progress(step, 100, 10))
    assert steps.algorithm.written == 3


def test_parts_are_consecutive_samples_with_their_masks():
    algorithm = MAE(CONFIGS[MAE])
    batch = next(batches(algorithm))
    parts = [part for part, _ in micro_batches(batch, 4)]
    assert torch.equal(torch.cat([p.ids for p in parts]), batch.ids)
    for get in (lambda b: b.views["image"][0], lambda b: b.mask.keep, lambda b: b.mask.hidden, lambda b: b.labels):
        assert torch.equal(torch.cat([get(p) for p in parts]), get(batch))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("settings", OPTIMIZERS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_step_does_not_wait_for_the_device(kind, settings, precision, waiting_fails):
    algorithm = kind(CONFIGS[kind])
    steps, loader = stepper(algorithm, settings, precision=precision, accumulate=2, clip_grad=1.0), batches(algorithm)
    steps(next(loader), Progress(0, 100, 8))  # state is made in the first step
    batch = next(loader)

    with waiting_fails():
        steps(batch, Progress(1, 100, 8))


def test_what_waits_is_noticed(waiting_fails):
    values = torch.ones(3)
    for wait in (
        lambda: values[values > 2],
        lambda: float(values[0]),
        lambda: values.nonzero(),
        lambda: values.tolist(),
    ):
        with pytest.raises(AssertionError, match="waits for the device"), waiting_fails():
            wait()


@pytest.mark.parametrize(("name", "blocks"), [("mae", 3), ("simmim", 8), ("mixmim", 9), ("mae_hivit", 7)])
def test_recomputed_activations_give_the_same_gradients(name, blocks):
    """Encoder's and decoder's blocks, and mergings: each runs once more, in the backward pass."""
    kind = find_algorithm(name)
    grads, runs = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        algorithm = kind(kind.Config().smoke())
        names, count = list(algorithm.state_dict()), []
        for block in blocks_of(algorithm):
            norm = next(m for m in block.modules() if isinstance(m, nn.LayerNorm))
            norm.register_forward_hook(lambda *_, count=count: count.append(1))
        if recompute:
            assert checkpoint_blocks(algorithm) == blocks and list(algorithm.state_dict()) == names
        batch = next(batches(algorithm))
        torch.manual_seed(1)  # of drop path
        algorithm(batch, Progress(0, 1, 1)).loss.backward()
        grads.append([p.grad for p in algorithm.parameters() if p.requires_grad])
        runs.append(len(count))
    assert all(torch.equal(a, b) for a, b in zip(*grads)) and runs == [blocks, 2 * blocks]


def test_compiled_once_however_many_steps(monkeypatch):
    """The number of the step is no constant of the graph."""
    torch._dynamo.reset()
    algorithm = MAE(CONFIGS[MAE])
    algorithm.compile(backend="eager")
    steps, loader = stepper(algorithm, SGDSettings(lr=0.1)), batches(algorithm)
    counts = []
    for step in range(4):
        steps(next(loader), Progress(step, 100, 8))
        counts.append(compiled_graphs())
    assert counts[0] > 0 and counts[1:] == [counts[1]] * 3
