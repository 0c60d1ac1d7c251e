"""Groups, rates and schedules against closed forms."""

import math

import pytest
import torch

from headrace.models.algorithms.mae import MAE
from headrace.train.optim import build_optimizer, parameter_groups, peak_lr
from headrace.train.schedules import warmup_cosine
from headrace.train.settings import AdamWSettings, OptimSettings, SGDSettings


def test_schedule_by_hand():
    lrs = warmup_cosine(0.8, 100, 10, final=0.1)
    assert lrs[0] == pytest.approx(0.08) and lrs[9] == pytest.approx(0.8) and lrs[10] == pytest.approx(0.8)
    assert lrs[55] == pytest.approx(0.1 + 0.7 * 0.5)  # half-way down the cosine
    assert lrs[99] == pytest.approx(0.1 + 0.7 * 0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert len(warmup_cosine(1.0, 5, 0)) == 5 and warmup_cosine(1.0, 5, 0)[0] == 1.0


def test_biases_norms_and_tokens_are_exempt_from_decay():
    model = MAE()
    decayed, exempt = parameter_groups(model, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    kinds = {names[id(p)].split(".")[-1] for p in exempt["params"]}
    assert decayed["weight_decay"] == 0.05 and exempt["weight_decay"] == 0
    assert all(names[id(p)].endswith("weight") for p in decayed["params"])
    assert {"bias", "cls_token", "mask_token"} <= kinds
    assert any("norm1.weight" in names[id(p)] for p in exempt["params"])
    assert len(decayed["params"]) + len(exempt["params"]) == len(names)


@pytest.mark.parametrize("settings", [AdamWSettings(weight_decay=0.1), SGDSettings(weight_decay=0.1, momentum=0.5)])
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


def test_the_rate_scales_with_the_batch():
    assert peak_lr(OptimSettings(lr=1e-3, lr_batch=256), 1024) == pytest.approx(4e-3)
    assert peak_lr(OptimSettings(lr=1e-3, lr_batch=None), 1024) == 1e-3
