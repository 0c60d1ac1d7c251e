"""SimCLR against equation 1 of the paper, written out pair by pair."""

import math

import pytest
import torch

from headrace.kernels.info_nce import info_nce
from headrace.models.algorithm import Progress
from headrace.models.algorithms.simclr import SimCLR, candidates
from headrace.models.backbones.resnet import ResNet
from headrace.pipelines.spec import Batch, ViewSpec


def by_the_paper(z, temperature):
    n = len(z) // 2
    losses = []
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        denominator = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * n) if k != i)
        losses.append(-math.log(math.exp(float(z[i] @ z[j]) / temperature) / denominator))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("n, dimension, temperature", [(2, 3, 0.5), (5, 16, 0.1), (7, 8, 1.0)])
def test_loss_and_gradient(n, dimension, temperature):
    z = torch.randn(2 * n, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    z = torch.nn.functional.normalize(z, dim=1).requires_grad_()
    loss = info_nce(*candidates(z), temperature=temperature)
    assert abs(loss.item() - by_the_paper(z.detach(), temperature)) < 1e-10
    (gradient,) = torch.autograd.grad(loss, z)
    step = torch.randn_like(z) * 1e-6
    difference = by_the_paper((z + step).detach(), temperature) - by_the_paper((z - step).detach(), temperature)
    assert abs(difference - 2 * (gradient * step).sum().item()) < 1e-11


def test_indistinguishable_views_cost_the_log_of_the_negatives():
    z = torch.nn.functional.normalize(torch.ones(2 * 8, 4), dim=1)
    assert abs(info_nce(*candidates(z), temperature=0.1).item() - math.log(15)) < 1e-5


def test_published_parameter_count():
    """27,968,832: ResNet-50 without classifier and the head 2048-2048-128 (the fact sheets' figure)."""
    assert sum(p.numel() for p in SimCLR().parameters()) == 27_968_832


def test_small_image_stem_keeps_the_resolution():
    body = ResNet(ResNet.Config(small_image_stem=True)).body
    x = torch.randn(1, 3, 32, 32)
    assert body.maxpool(body.conv1(x)).shape == (1, 64, 32, 32)


def test_both_views_share_one_batch_normalisation():
    """Swapping the views of every image must not change the loss."""
    torch.manual_seed(0)
    config = SimCLR.Config(
        view=ViewSpec(count=2, size=32), backbone=ResNet.Config(small_image_stem=True), hidden=16, projection=8
    )
    model = SimCLR(config)
    views = torch.randn(2, 4, 3, 32, 32)

    def loss(v):
        batch = Batch(views={"image": v}, ids=torch.arange(4), labels=None, mask=None, step=0, epoch=0)
        return model(batch, Progress(0, 1, 1)).loss.item()

    assert abs(loss(views) - loss(views.flip(0))) < 1e-5


def test_one_view_is_refused():
    with pytest.raises(ValueError, match="view: SimCLR compares two views"):
        SimCLR.Config(view=ViewSpec(count=1))
