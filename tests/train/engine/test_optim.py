"""Groups, rates, schedules and layer-wise optimizers against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from headrace.errors import UserError
from headrace.lengths import length_in_steps
from headrace.models.algorithms.mae import MAE
from headrace.train.engine.lars import LAMB, LARS
from headrace.train.engine.optim import Schedules, build_optimizer, eager, parameter_groups, peak_lr
from headrace.train.recipe.schedules import half_cosine, learning_rates
from headrace.train.recipe.settings import (
    AdamWSettings,
    GroupRule,
    LAMBSettings,
    LARSSettings,
    OptimSettings,
    SGDSettings,
)

EVERY = [
    AdamWSettings(weight_decay=0.1),
    SGDSettings(weight_decay=0.1, momentum=0.5),
    SGDSettings(weight_decay=0.1, momentum=0.0),
    LARSSettings(weight_decay=0.1),
    LARSSettings(weight_decay=0.1, form="update"),
    LAMBSettings(weight_decay=0.1),
]


def test_cosine_by_hand():
    lrs = learning_rates(0.8, 100, 10, warmup=10, final=0.125)
    assert lrs[0] == pytest.approx(0.08) and lrs[9] == pytest.approx(0.8) and lrs[10] == pytest.approx(0.8)
    assert lrs[55] == pytest.approx(0.1 + 0.7 * 0.5)  # half-way down the cosine
    assert lrs[99] == pytest.approx(0.1 + 0.7 * 0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert learning_rates(1.0, 5, 1)[0] == 1.0
    assert learning_rates(2.0, 10, 1, warmup=5, warmup_from=0.1)[:5] == pytest.approx([0.2, 0.65, 1.1, 1.55, 2.0])


def test_cosine_per_epoch_equals_the_scheduler_of_torch():
    """A warm-up of 2 epochs, then torch's CosineAnnealingLR stepped once per epoch."""
    per_epoch, epochs = 4, 7
    lrs = learning_rates(0.5, per_epoch * epochs, per_epoch, warmup=2 * per_epoch, per_epoch=True, final=0.02)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs - 2, eta_min=0.01)
    for epoch in range(2, epochs):
        assert lrs[epoch * per_epoch : (epoch + 1) * per_epoch] == pytest.approx([scheduler.get_last_lr()[0]] * 4)
        optimizer.step()
        scheduler.step()


def test_multistep_and_constant():
    lrs = learning_rates(1.0, 12, 2, schedule="multistep", milestones=(2, 4.5), gamma=0.1)
    assert lrs == pytest.approx([1] * 4 + [0.1] * 5 + [0.01] * 3)
    assert (learning_rates(3.0, 5, 2, schedule="constant", warmup=2, warmup_from=0.0) == [0, 3, 3, 3, 3]).all()


def test_milestones_in_steps():
    lrs = learning_rates(1.0, 6, 100, schedule="multistep", milestones=("2 steps", "5 steps"), gamma=0.1)
    assert lrs == pytest.approx([1] * 2 + [0.1] * 3 + [0.01])
    with pytest.raises(ValueError, match="milestones: needs"):
        AdamWSettings(schedule="multistep", milestones=("2",))
    with pytest.raises(ValueError, match="milestones: must rise"):
        AdamWSettings(schedule="multistep", milestones=("5 steps", "2 steps"))


def test_poly_is_that_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=10, power=0.9)
    for lr in learning_rates(0.5, 13, 4, schedule="poly", warmup=3)[3:]:
        assert lr == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert learning_rates(0.01, 10, 4, schedule="poly", final=0.01)[-1] == pytest.approx(1e-4 + 9.9e-3 * 0.1**0.9)


def test_lengths():
    assert length_in_steps("10 epochs", 999, 7) == 70 and length_in_steps("1.5 epochs", 999, 10) == 15
    assert length_in_steps("500 steps", 999, 7) == 500 and length_in_steps(0.1, 50, 7) == 5
    for wrong in ("10", "ten epochs", "-3 steps", 10.0, -0.1):
        with pytest.raises(ValueError, match="epochs"):
            length_in_steps(wrong, 10, 1)


def test_weight_decay_follows_half_a_cosine_where_it_applies():
    settings = AdamWSettings(
        weight_decay=0.04, weight_decay_end=0.4, lr_batch=None, lr=1.0, groups=(GroupRule("2", weight_decay=0.3),)
    )
    optimizer = build_optimizer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)), settings)
    schedules = Schedules(settings, batch_size=1, total_steps=10, steps_per_epoch=5)
    schedules.apply(optimizer, 5)
    assert sorted(g["weight_decay"] for g in optimizer.param_groups) == pytest.approx([0, 0.22, 0.3])
    assert half_cosine(0.04, 0.4, 10)[0] == pytest.approx(0.04)
    assert half_cosine(0.04, 0.4, 10)[9] == pytest.approx(0.4 - 0.18 * (1 + math.cos(math.pi * 0.9)))


def test_biases_norms_and_tokens_are_exempt_from_decay():
    model = MAE()
    groups = {group["weight_decay"]: group["params"] for group in parameter_groups(model, AdamWSettings())}
    names = {id(p): name for name, p in model.named_parameters()}
    kinds = {names[id(p)].split(".")[-1] for p in groups[0.0]}
    assert set(groups) == {0.0, 0.05}
    assert all(names[id(p)].endswith("weight") for p in groups[0.05])
    assert {"bias", "cls_token", "mask_token"} <= kinds
    assert any("norm1.weight" in names[id(p)] for p in groups[0.0])
    assert len(groups[0.0]) + len(groups[0.05]) == len(names)


def named_groups(model, settings):
    """parameter name -> its group without the parameters"""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, settings)
    return {names[id(p)]: {k: v for k, v in g.items() if k != "params"} for g in groups for p in g["params"]}


def test_rules_by_name():
    model = nn.ModuleDict({name: nn.Linear(3, 3) for name in ("body", "predictor", "classifier")})
    rules = (GroupRule("predictor", fixed_lr=True), GroupRule(r"classifier|body\.bias", lr=5.0, momentum=0.0))
    groups = named_groups(model, LARSSettings(weight_decay=1e-6, exempt=("body",), groups=rules))
    assert groups["body.weight"] | {} == {
        "lr_scale": 1.0,
        "fixed_lr": False,
        "weight_decay": 0.0,
        "scheduled_decay": False,
        "adapt": False,
    }
    assert groups["predictor.bias"]["fixed_lr"] and groups["predictor.bias"]["adapt"]
    assert groups["predictor.bias"]["weight_decay"] == 1e-6
    assert groups["classifier.weight"]["lr_scale"] == 5.0 and groups["classifier.weight"]["momentum"] == 0.0
    assert groups["body.bias"]["lr_scale"] == 5.0 and groups["body.bias"]["weight_decay"] == 0.0
    with pytest.raises(UserError, match="(?s)groups.0..match: 'predicter' matches no parameter.*exempt: 'x'"):
        parameter_groups(model, SGDSettings(groups=(GroupRule("predicter"),), exempt=("x",)))
    assert len(parameter_groups(model, SGDSettings(exempt="none"))) == 1


def test_fixed_rates_and_scales_at_a_step():
    settings = SGDSettings(lr=0.1, groups=(GroupRule("0", fixed_lr=True, lr=2.0), GroupRule("1", lr=3.0)))
    optimizer = build_optimizer(nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3))), settings)
    Schedules(settings, batch_size=512, total_steps=4, steps_per_epoch=2).apply(optimizer, 2)  # half-way: 0.2 -> 0.1
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 0.3, 0.1])


class Layered(nn.Module):
    """Three blocks, five layers with the embedding and the norm."""

    num_layers = 5

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, 2)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.norm = nn.LayerNorm(2)

    def layer_of(self, name):
        part, _, rest = name.partition(".")
        return {"embed": 0, "norm": 4}[part] if part != "blocks" else 1 + int(rest.split(".")[0])


def test_layer_decay():
    """Rate 0.65^(N + 1) for the embedding and 0.65^(N - i) for block i of N, 1 for the last norm and the head."""
    model = nn.ModuleDict({"backbone": Layered(), "head": nn.Linear(2, 2)})
    groups = named_groups(model, AdamWSettings(layer_decay=0.65, groups=(GroupRule("head", lr=10.0),)))
    assert groups["backbone.embed.weight"]["lr_scale"] == pytest.approx(0.65**4)
    for block in range(3):
        assert groups[f"backbone.blocks.{block}.bias"]["lr_scale"] == pytest.approx(0.65 ** (3 - block))
    assert groups["backbone.norm.weight"]["lr_scale"] == 1 and groups["head.weight"]["lr_scale"] == 10
    with pytest.raises(UserError, match="layer_decay"):
        parameter_groups(nn.Linear(2, 2), AdamWSettings(layer_decay=0.5))


class Merging(Layered):
    """The second block is a merging: layer 1, or with `merge_layer` after 2."""

    def layer_of(self, name):
        return 1 if self.merges(name) else super().layer_of(name)

    def merges(self, name):
        return name.startswith("blocks.1.")


def test_a_merging_of_tokens_goes_with_the_block_before_or_after():
    for merge_layer, exponent in (("before", 3), ("after", 2)):
        groups = named_groups(Merging(), AdamWSettings(layer_decay=0.5, merge_layer=merge_layer))
        assert groups["blocks.1.weight"]["lr_scale"] == 0.5**exponent
        assert groups["blocks.2.weight"]["lr_scale"] == 0.5 and groups["blocks.0.weight"]["lr_scale"] == 0.125
    with pytest.raises(UserError, match="merge_layer: this encoder merges no tokens"):
        parameter_groups(Layered(), AdamWSettings(layer_decay=0.5, merge_layer="after"))
    with pytest.raises(ValueError, match="merge_layer: has an effect with layer_decay only"):
        AdamWSettings(merge_layer="after")


@pytest.mark.parametrize("settings", EVERY[:3])
def test_an_exempt_parameter_does_not_shrink(settings):
    model = torch.nn.Linear(3, 2)
    torch.nn.init.ones_(model.bias)
    torch.nn.init.ones_(model.weight)
    optimizer = build_optimizer(model, settings)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (model.bias == 1).all() and model.weight.detach().flatten() == pytest.approx(1 - 0.01 * 0.1)


def trajectory(settings, rates, seed=0):
    """Weights (2, 3), bias (2,) and the gradients given at each of the rates, as float64 arrays."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, settings)
    seen = [[p.detach().double().numpy().copy() for p in model.parameters()]]
    gradients = []
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        gradients.append([torch.randn(p.shape, generator=generator) for p in model.parameters()])
        for p, g in zip(model.parameters(), gradients[-1]):
            p.grad = g.clone()
        optimizer.step()
        seen.append([p.detach().double().numpy().copy() for p in model.parameters()])
    return seen, [[g.double().numpy() for g in step] for step in gradients]


@pytest.mark.parametrize("form", ["paper", "update"])
def test_lars_by_its_formula(form):
    """The two published forms part as soon as the rate changes; the bias is exempt: momentum SGD."""
    rates, decay, trust, momentum = [0.5, 0.2, 0.9], 0.1, 0.02, 0.9
    settings = LARSSettings(form=form, weight_decay=decay, trust=trust, eps=0.0, momentum=momentum)
    seen, gradients = trajectory(settings, rates)
    norm = np.linalg.norm
    for index, adapted in ((0, True), (1, False)):
        w, v = seen[0][index], 0.0
        for step, rate in enumerate(rates):
            g = gradients[step][index]
            u = g + decay * w if adapted else g
            below = norm(u) if form == "update" else norm(g) + decay * norm(w)
            ratio = trust * norm(w) / below if adapted else 1.0
            v = momentum * v + (rate if form == "paper" else 1.0) * ratio * u
            w = w - (1.0 if form == "paper" else rate) * v
            assert seen[step + 1][index] == pytest.approx(w, abs=1e-6)


def test_lamb_by_its_formula():
    rates, decay, (b1, b2), eps = [0.05, 0.02, 0.09], 0.1, (0.9, 0.99), 1e-6
    seen, gradients = trajectory(LAMBSettings(weight_decay=decay, betas=(b1, b2), eps=eps), rates)
    for index, adapted in ((0, True), (1, False)):
        w, m, s = seen[0][index], 0.0, 0.0
        for step, rate in enumerate(rates):
            g = gradients[step][index]
            m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g * g
            u = m / (1 - b1 ** (step + 1)) / (np.sqrt(s / (1 - b2 ** (step + 1))) + eps) + (decay * w if adapted else 0)
            w = w - rate * (np.linalg.norm(w) / np.linalg.norm(u) if adapted else 1.0) * u
            assert seen[step + 1][index] == pytest.approx(w, abs=1e-6)


def test_lars_leaves_zero_weights_to_plain_momentum():
    model = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(model.weight)
    model.weight.grad = torch.ones_like(model.weight)
    build_optimizer(model, LARSSettings(lr=0.5)).step()
    assert model.weight.detach().flatten() == pytest.approx(-0.5)


@pytest.mark.parametrize("settings", EVERY)
def test_a_skipped_step_changes_no_bit(settings):
    """First step skipped, one taken, one skipped: as if only the one in the middle had been there."""

    def run(steps):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = build_optimizer(model, settings)
        for bad in steps:
            for p in model.parameters():
                p.grad = torch.full_like(p, float("nan")) if bad else p.detach().cos()
            optimizer.found_inf = torch.tensor(float(bad))
            optimizer.step()
        state = optimizer.state_dict()["state"]
        return [*model.parameters(), *(v for entry in state.values() for v in entry.values() if torch.is_tensor(v))]

    skipped, plain = run([True, False, True, False]), run([False, False])
    assert len(skipped) == len(plain) and all(torch.equal(a, b) for a, b in zip(skipped, plain))


def test_the_rate_scales_with_the_batch():
    assert peak_lr(OptimSettings(lr=1e-3, lr_batch=256), 1024) == pytest.approx(4e-3)
    assert peak_lr(OptimSettings(lr=1e-3, lr_batch=None), 1024) == 1e-3


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"warmup": "10"}, "warmup"),
        ({"schedule": "multistep"}, "milestones"),
        ({"schedule": "constant", "final_lr": 0.1}, "final_lr"),
        ({"schedule": "poly", "per_epoch": True}, "per_epoch"),
        ({"groups": (GroupRule("x", adapt=False),)}, "takes no adapt"),
        ({"layer_decay": 1.5}, "layer_decay"),
    ],
)
def test_settings_without_effect_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        AdamWSettings(**wrong)
    with pytest.raises(ValueError, match="regular expression"):
        GroupRule("(")


EAGER = [
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "fused": True}),
    (LARS, {}),
    (LAMB, {}),
]


@pytest.mark.parametrize("kind, options", EAGER, ids=lambda value: getattr(value, "__name__", ""))
def test_an_eager_optimizer_takes_the_steps_of_its_kind(kind, options):
    """Bit for bit, through a state that is saved and loaded."""

    def trained(kind):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3))
        groups = [{"params": [*model[0].parameters()]}, {"params": [*model[1].parameters()], "weight_decay": 0.1}]
        optimizer = kind(groups, lr=1e-3, **options)
        for step in range(6):
            optimizer.zero_grad()
            model(torch.randn(9, 7)).square().mean().backward()
            optimizer.step()
            if step == 2:
                state = optimizer.state_dict()
                optimizer = kind([{"params": group["params"]} for group in groups], lr=0.3, **options)
                optimizer.load_state_dict(state)
        return [*model.parameters()], optimizer

    (ours, optimizer), (theirs, _) = trained(eager(kind)), trained(kind)
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(ours, theirs))
    assert isinstance(optimizer, kind) and type(optimizer).__name__ == kind.__name__
