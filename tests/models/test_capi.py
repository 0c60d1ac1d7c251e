"""CAPI against values of the released code and against its formula written out patch by patch."""

import numpy as np
import pytest
import torch
from mim_samples import batch_of, build

from headrace.models.algorithm import Progress
from headrace.models.algorithms.capi import positional_sinkhorn, truncated_cosine
from headrace.models.backbones.capi import on_the_border, rotary
from headrace.models.backbones.transformer import rotate
from headrace.pipelines.spec import InverseBlockMask
from headrace.pipelines.views.masks import draw_mask
from headrace.train.engine.optim import Schedules, build_optimizer
from headrace.train.recipe.recipe import load_recipe
from headrace.train.recipe.schedules import learning_rates

LATER = Progress(4, 10, 10, seed=3)


def wave(*shape, start=0.0, scale=1.0):
    k = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return (scale * (start + 0.7 * k + 0.01 * k**2).sin()).view(shape)


def test_assignments_of_each_place_are_the_authors():
    """Computed once with their code, places first; ours has samples first."""
    found = positional_sinkhorn(wave(2, 4, 5, start=0.3, scale=0.2).transpose(0, 1), temperature=0.06, iterations=3)
    assert found[0, 0].tolist() == pytest.approx([0.01859910, 0.12637630, 0.42759553, 0.41603196, 0.01139709], abs=1e-7)
    assert found[3, 1].tolist() == pytest.approx([0.28169709, 0.43600765, 0.12691189, 0.01597118, 0.13941212], abs=4e-7)


def test_rates_and_momenta_are_the_authors():
    rates = learning_rates(
        1e-3, 10, 1, schedule="headrace.models.algorithms.capi.truncated_cosine", warmup=2, warmup_from=0
    )
    published = [0, 0.001, 0.001, 0.00097553, 0.00090450, 0.00079389, 0.00065451, 0.0005, 0.00034549, 0.00020611]
    assert rates.tolist() == pytest.approx(published, abs=1e-8)
    assert truncated_cosine(np.array([0.0, 1.0])).tolist() == pytest.approx([1, 0.0954915])
    momentum = build("capi").momentum
    found = [momentum(Progress(step, 500_000, 1000)) for step in (0, 25_000, 50_000, 275_000, 499_999)]
    assert found == pytest.approx([1, 0.9995, 0.999, 0.9993455, 0.9999045], abs=1e-7)


def test_released_positions_and_a_true_rotation():
    """A rotation keeps lengths, and a product depends on the offset alone; what was released does neither."""
    table = rotary(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).double(), 8, "released")
    angles = torch.atan2(table[1], table[0])[0, 0]
    expected = torch.tensor([43.9823, 0.0043982, 43.9823, 0.0043982, 0, 0, 0, 0], dtype=torch.float64)
    assert torch.allclose(angles[0].sin(), expected.sin(), atol=1e-4) and torch.allclose(angles[1], angles[0].roll(4))
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).double()
    places = torch.tensor([[0.3, 0.8], [0.1, 0.2], [0.5, 0.35], [0.3, -0.25]]).double()  # two pairs, one offset apart

    def turned(x, place, form):
        return rotate(x, rotary(place[None, None], 8, form))

    for form in ("rotation", "released"):
        length = turned(q, places[0], form).norm() - q.norm()
        first, second = ((turned(q, places[a], form) * turned(k, places[b], form)).sum() for a, b in ((0, 1), (2, 3)))
        assert (length.abs() < 1e-6, (first - second).abs() < 1e-5) == ((form == "rotation",) * 2)


def test_registers_go_round_the_border():
    corners = on_the_border(16, torch.device("cpu"))[::4]
    assert corners.tolist() == [[0, 0], [0, 1], [1, 1], [1, 0]]
    inside = on_the_border(16, torch.device("cpu"))
    assert ((inside == 0) | (inside == 1)).any(1).all() and len({tuple(place.tolist()) for place in inside}) == 16


def test_what_is_visible_is_one_block_that_goes_round():
    spec = InverseBlockMask(grid=(16, 16))
    mask = draw_mask(spec, 0, 0, torch.arange(300))
    assert mask.keep.shape == (300, 90) and (mask.hidden.sum(1) == 166).all()
    shapes = []
    for hidden in mask.hidden.view(-1, 16, 16):
        visible = ~hidden
        rows, columns = visible.any(1), visible.any(0)
        for line in (rows, columns):
            assert (line != line.roll(1)).sum() in (0, 2)  # one stretch, round the edge
        high, wide = int(rows.sum()), int(columns.sum())
        assert (high - 1) * wide < 90 <= high * wide
        shapes.append(high / wide)
    assert min(shapes) < 0.6 and max(shapes) > 1.6 and abs(np.median(np.log(shapes))) < 0.15
    assert (~mask.hidden).float().mean(0).std() < 0.04  # every place alike


def patch_by_patch(m, batch):
    """Every predicted token by itself: they do not see each other."""
    images, mask, config = batch.views["image"][0], batch.mask, m.config
    features = m.teacher.backbone.tokens(images)[0][:, m.backbone.registers.shape[1] :]
    features = features / features.norm(dim=-1, keepdim=True)
    logits = features @ m.clusters.weight.T + m.clusters.bias
    targets = torch.zeros_like(logits)
    for place in range(logits.shape[1]):
        q = (logits[:, place] / config.target_temperature).exp()
        for _ in range(3):
            q = q / q.sum(0, keepdim=True)
            q = q / q.sum(1, keepdim=True)
        targets[:, place] = q
    targets = targets.detach()
    loss = -(targets * (logits / config.temperature).log_softmax(-1)).sum(-1).mean()
    asked, errors = m.asked(batch, LATER), []
    for b in range(len(images)):
        context, places = m.backbone.tokens(images[b : b + 1], mask.keep[b : b + 1])
        grid = m.backbone.places(4, 4, images.device)
        for patch in asked[b]:
            assert mask.hidden[b, patch]
            x = m.mask_token
            for block in m.predictor:
                x = block(x, m.backbone.table(grid[:, patch][:, None]), context, m.backbone.table(places))
            z = m.predictor_norm(x)[0, 0]
            prototypes = m.head.weight / m.head.weight.norm(dim=1, keepdim=True)
            log_p = (prototypes @ (z / z.norm()) / config.temperature).log_softmax(0)
            errors.append(-(targets[b, patch] * log_p).sum())
    return loss + torch.stack(errors).mean()


def test_the_loss_is_the_papers():
    algorithm = build("capi").eval()
    for parameter in algorithm.teacher.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    batch = batch_of(algorithm)
    loss, expected = algorithm(batch, LATER).loss, patch_by_patch(algorithm, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    names, parameters = zip(*((n, p) for n, p in algorithm.named_parameters() if p.requires_grad))
    for name, a, b in zip(names, torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6), name


def test_what_is_asked_is_a_function_of_seed_step_and_sample():
    algorithm = build("capi")
    batch = batch_of(algorithm, n=6)
    asked = algorithm.asked(batch, LATER)
    assert torch.equal(asked, algorithm.asked(batch, Progress(4, 99, 7, seed=3)))
    assert not torch.equal(asked, algorithm.asked(batch, Progress(5, 10, 10, seed=3)))


def test_two_optimizers_and_one_with_two_groups_take_the_same_steps():
    """The authors' code has an AdamW for the clusters; the recipe has a group."""
    recipe = load_recipe("capi_vit-large-p14_32xb512-amp-500k_in1k", [])
    ours, theirs = build("capi"), build("capi")
    optimizer, schedules = build_optimizer(ours, recipe.optim), Schedules(recipe.optim, 16384, 100, 10)
    clusters = list(theirs.clusters.parameters())
    student = {name: p for name, p in theirs.named_parameters() if p.requires_grad and not name.startswith("clusters")}
    groups = []
    for name, parameter in student.items():
        decay = 0.0 if name.endswith("bias") else 0.01 if "norm" in name else 0.1
        groups.append({"params": [parameter], "weight_decay": decay, "scale": 0.2 if "patch_embed" in name else 1.0})
    two = (
        torch.optim.AdamW(groups, betas=(0.9, 0.95)),
        torch.optim.AdamW(clusters, betas=(0.9, 0.95), weight_decay=0.01),
    )
    rates = np.concatenate([np.linspace(0, 1, 10), truncated_cosine(np.arange(90) / 90)])
    for step in range(12, 16):
        for algorithm in (ours, theirs):
            algorithm.zero_grad()
            torch.manual_seed(step)
            algorithm(batch_of(algorithm, seed=step), LATER).loss.backward()
        schedules.apply(optimizer, step)
        optimizer.step()
        for group in two[0].param_groups:
            group["lr"] = 1e-3 * rates[step] * group["scale"]
        two[1].param_groups[0]["lr"] = 5e-4 * rates[step]
        for each in two:
            each.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7), name
