"""Whole encoders with the reference operators and with the Triton ones: the same outputs and gradients."""

from dataclasses import replace

import pytest
import torch

from headrace.kernels import registry, use
from headrace.models.algorithm import Progress
from headrace.models.algorithms.mixmim import MixMIM
from headrace.models.backbones.mixmim import MixMIMTransformer
from headrace.models.backbones.swin import Swin
from headrace.models.backbones.vit import ViT
from headrace.models.decoders import MAEDecoder
from headrace.pipelines.spec import Batch
from headrace.pipelines.views.masks import draw_mask
from headrace.pipelines.views.recipes import view

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
NARROW = dict(width=32, depths=(1, 2, 1, 1), heads=(1, 2, 4, 8))  # heads of 32, which the kernels are made for


def swin(window):
    return Swin(Swin.Config(window=window, drop_path=0.0, **NARROW), 64)


def mixmim(windows):
    config = MixMIM.Config(
        view=replace(view("mixmim"), size=96),
        backbone=MixMIMTransformer.Config(windows=windows, **NARROW),
        decoder=MAEDecoder.Config(width=32, depth=1, heads=1),
    )
    return MixMIM(config)


def vit():
    return ViT(ViT.Config(width=64, depth=2, heads=2, patch_size=8, positions="none", relative_bias="shared"), 64)


def loss_of_encoder(model):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    weights = torch.rand(model.features, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    return (model(images) * weights).sum()


def loss_of_mixmim(model):
    images = torch.randn(1, 2, 3, 96, 96, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    mask = draw_mask(model.config.mask, 0, 0, torch.arange(2, device=DEVICE))
    return model(Batch({"image": images}, torch.arange(2), None, mask, 0, 0), Progress(0, 1, 1)).loss


CASES = {  # the operators that must have run, the model, its loss
    "swin with small windows": ({"window_attention"}, lambda: swin(4), loss_of_encoder),
    "swin with large windows": ({"window_attention", "segment_attention"}, lambda: swin(10), loss_of_encoder),
    "beit": ({"biased_attention"}, vit, loss_of_encoder),
    "mixmim": (
        {"window_attention", "segment_attention", "token_mix", "patch_loss"},
        lambda: mixmim((12, 12, 6, 3)),
        loss_of_mixmim,
    ),
}


def run(name, implementation, operators):
    torch.manual_seed(0)
    model = CASES[name][1]().to(DEVICE).train()
    with use("all", "reference"):
        for operator in operators:
            use(operator, implementation)
        loss = CASES[name][2](model)
        loss.backward()
        used = {op for op, *_ in registry._decisions}
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, used


@pytest.mark.parametrize("name", CASES)
def test_kernels_change_nothing(name):
    operators = CASES[name][0]
    expected, gradients, used = run(name, "reference", operators)
    assert operators <= used
    loss, ours, _ = run(name, "triton", operators)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert ours.keys() == gradients.keys()
    scale = max(g.norm() for g in gradients.values())
    for parameter, gradient in gradients.items():
        assert (ours[parameter] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * scale, parameter
