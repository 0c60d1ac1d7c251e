"""The loss of masked patches in tiles: value and gradients of the whole, and nothing as large as the whole."""

import pytest
import torch
import torch.nn.functional as F

from headrace.kernels.sinkhorn import sinkhorn
from headrace.models.heads import DINOHead
from headrace.models.self_distillation import patch_loss as module
from headrace.models.self_distillation.patch_loss import PatchTargets, patch_loss, patch_row_losses

M, K, D = 23, 40, 6


def whole(vectors, prototypes, told, weights):
    """The definition: all logits, all softmaxes, autograd's gradients."""
    log_p = (F.linear(vectors, prototypes).to(told.dtype) / 0.1).log_softmax(1)
    return -(told * log_p).sum(1) @ weights


def made(dtype, assigned=False):
    """-> student's vectors, teacher's, and so prototypes, each a leaf; the targets and the same as distributions."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    vectors, known = F.normalize(draw(M, D), dim=1), F.normalize(draw(M, D), dim=1)
    prototypes, taught, center = draw(K, D), draw(K, D), 0.1 * draw(K)
    weights = draw(M).abs().to(dtype)
    vectors, known, prototypes, taught, center = (x.to(dtype) for x in (vectors, known, prototypes, taught, center))
    if assigned:
        told = sinkhorn(F.linear(known, taught), epsilon=0.05)
        targets = PatchTargets(told, None, {"student_temperature": 0.1})
    else:
        told = ((F.linear(known, taught) - center) / 0.04).softmax(1)
        options = {"student_temperature": 0.1, "center": center, "teacher_temperature": 0.04}
        targets = PatchTargets(known, taught, options)
    return vectors.requires_grad_(), prototypes.requires_grad_(), targets, told, weights


@pytest.mark.parametrize("assigned", [False, True])
@pytest.mark.parametrize("rows", [1, 5, M, 100])
def test_tiles_are_the_whole(assigned, rows, monkeypatch):
    monkeypatch.setattr(module, "_ELEMENTS", rows * K)
    vectors, prototypes, targets, told, weights = made(torch.float64, assigned)
    expected = whole(vectors, prototypes, told, weights)
    wanted = torch.autograd.grad(3.7 * expected, (vectors, prototypes))
    loss = patch_loss(vectors, prototypes, targets, weights)
    found = torch.autograd.grad(3.7 * loss, (vectors, prototypes))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    one_by_one = -(told * (F.linear(vectors, prototypes) / 0.1).log_softmax(1)).sum(1)
    torch.testing.assert_close(patch_row_losses(vectors, prototypes, targets).double(), one_by_one, rtol=1e-5, atol=0)


def test_a_head_learns_as_by_its_logits():
    """Through gain, length and MLP; the same matrix may serve the class token beside."""
    head = DINOHead(9, 12, D, K, "gain").double()
    x, tokens = torch.randn(M, 9, dtype=torch.float64), torch.randn(4, 9, dtype=torch.float64)
    _, _, targets, told, weights = made(torch.float64)
    (whole(head.project(x), head[1].rows(), told, weights) + head(tokens).square().sum()).backward()
    wanted = [parameter.grad.clone() for parameter in head.parameters()]
    head.zero_grad()
    (patch_loss(head.project(x), head[1].rows(), targets, weights) + head(tokens).square().sum()).backward()
    for parameter, gradient in zip(head.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_small_weights(dtype, monkeypatch):
    """As far from float64 as the whole is in this precision. In float16 a gradient of such weights would vanish."""
    monkeypatch.setattr(module, "_ELEMENTS", 7 * K)
    vectors, prototypes, targets, told, weights = made(torch.float32)
    weights = 1e-6 * weights
    exact = [x.detach().double().requires_grad_() for x in (vectors, prototypes)]
    wanted = torch.autograd.grad(whole(*exact, told.double(), weights.double()), exact)
    with torch.autocast("cpu", dtype):
        loss = patch_loss(vectors, prototypes, targets, weights)
    found = torch.autograd.grad(loss, (vectors, prototypes))
    assert loss.dtype == torch.float32 and [x.dtype for x in found] == [torch.float32] * 2
    for a, b in zip(found, wanted):
        assert (a - b).norm() < (0.1 if dtype == torch.bfloat16 else 0.02) * b.norm()


def test_no_rows_cost_nothing():
    vectors, prototypes, targets, _, weights = made(torch.float64)
    none = PatchTargets(targets.rows[:0], targets.prototypes, targets.options)
    loss = patch_loss(vectors[:0], prototypes, none, weights[:0])
    loss.backward()
    assert loss.item() == 0 and prototypes.grad.abs().max() == 0
    assert len(patch_row_losses(vectors[:0], prototypes, none)) == 0


def test_no_gradient_is_made_where_none_is_wanted():
    vectors, prototypes, targets, told, weights = made(torch.float64)
    with torch.no_grad():
        loss = patch_loss(vectors, prototypes, targets, weights)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(whole(vectors, prototypes, told, weights).item(), rel=1e-12)
    patch_loss(vectors, prototypes.detach(), targets, torch.zeros_like(weights)).backward()
    assert vectors.grad.abs().max() == 0  # of weights of none


def test_nothing_is_as_large_as_all_logits(monkeypatch, Largest):
    monkeypatch.setattr(module, "_ELEMENTS", 4 * K)
    vectors, prototypes, targets, told, weights = made(torch.float64)
    with Largest() as eager:
        whole(vectors, prototypes, told, weights).backward()
    with Largest() as tiled:
        patch_loss(vectors, prototypes, targets, weights).backward()
    assert eager.elements == M * K and tiled.elements == K * D
