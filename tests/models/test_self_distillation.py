"""iBOT, DINOv2 and DINOv3: values of the authors' own code, schedules, masks on any number of ranks, frozen layers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_algorithms import BATCH, STEPS_PER_EPOCH, build, make_batch, make_optimizer, run

from headrace.errors import UserError
from headrace.kernels.prototype_ce import prototype_ce
from headrace.kernels.sinkhorn import sinkhorn
from headrace.models import DINOHead
from headrace.models.algorithm import Progress
from headrace.models.algorithms.dinov3 import DINOv3
from headrace.models.backbones.transformer import Block, rotary_table
from headrace.models.self_distillation.center import Center, spread
from headrace.models.self_distillation.schedules import cosine_schedule, line, ramp
from headrace.train.engine.transforms import checkpoint_blocks, compiled_graphs
from headrace.train.recipe.recipe import load_recipe

METHODS = ("ibot", "dinov2", "dinov3")


def wave(*shape, a=0.0, s=1.0):
    """The tensors for which the authors' modules were run: s sin(a + 0.7 k + 0.01 k^2)."""
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (s * torch.sin(a + 0.7 * k + 0.01 * k * k)).view(shape)


def test_sinkhorn_is_the_authors():
    q = sinkhorn(wave(4, 5, a=0.3, s=0.2), epsilon=0.07)
    assert q[0].tolist() == pytest.approx([0.02607948, 0.14253388, 0.41589871, 0.39603263, 0.01945521], abs=1e-6)
    assert q[3].tolist() == pytest.approx([0.10217433, 0.52848631, 0.31443554, 0.05109787, 0.00380592], abs=1e-6)
    assert q.sum(0).tolist() == pytest.approx([0.92569, 0.79809, 0.76077, 0.75191, 0.76355], abs=1e-5)


def test_cross_entropy_of_crops_is_the_authors():
    """Two views of two images; the teacher's distributions are Sinkhorn's of the test above."""
    student = wave(2, 2, 5, a=1.1, s=0.5)
    teacher = sinkhorn(wave(4, 5, a=0.3, s=0.2), epsilon=0.07).view(2, 2, 5)
    for pairs, value in (("all", 4.0230436), ("crossed", 5.7597704)):
        loss = prototype_ce(student, teacher, student_temperature=0.1, pairs=pairs)
        assert loss.item() == pytest.approx(value, abs=1e-6)


def test_rotary_tables_are_the_authors():
    cosines, sines = rotary_table(64, 2, 3, dtype=torch.float64)
    assert sines[0, 1:3].tolist() == pytest.approx([-0.70734173, -0.98088241], abs=1e-6)
    assert sines[0, 16:19].tolist() == pytest.approx([0.86602521, -0.00044361, -0.70757681], abs=1e-4)
    assert cosines[5, :3].tolist() == pytest.approx([-1, -0.70687175, -0.19460146], abs=1e-6)
    as_run = rotary_table(64, 14, 14, dtype=torch.bfloat16)
    assert (as_run - rotary_table(64, 14, 14))[1].abs().max().item() == pytest.approx(0.0195, abs=5e-5)
    halved = rotary_table(64, 1, 1, scale=2.0) - rotary_table(64, 1, 1)
    assert halved.abs().max() == 0  # the centre stays where it is


def test_schedules_are_the_authors():
    expected = [0, 0.33333, 0.66667, 1, 0.93971, 0.775, 0.55, 0.325, 0.16029, 0.1]
    assert ramp(0, 1, 0.1, 10, warmup=3) == pytest.approx(np.array(expected), abs=6e-6)
    assert ramp(0, 0, 1, 8, cosine=4) == pytest.approx(np.array([0, 0.25, 0.75, 1, 1, 1, 1, 1]))
    expected = [0, 0.5, 1, 1, 0.95544, 0.83057, 0.65013, 0.44987, 0.26943, 0.14456]
    assert cosine_schedule(1, 0.1, 10, warmup=3) == pytest.approx(np.array(expected), abs=6e-6)
    expected = [0, 0.5, 1, 1, 0.95311, 0.82174, 0.63191, 0.42121, 0.23137, 0.1]
    assert cosine_schedule(1, 0.1, 10, warmup=3, extra=0.25) == pytest.approx(np.array(expected), abs=6e-6)
    assert list(cosine_schedule(1, 0, 6, freeze=2)[:3]) == [0, 0, 1]


def test_teacher_temperatures():
    """DINOv2's rises by step, iBOT's by epoch; both reach the end."""
    progress = [Progress(step, 100, 10) for step in range(60)]
    by_step = [build("dinov2", teacher_warmup="30 steps").teacher_temperature(p) for p in progress]
    assert by_step[:30] == pytest.approx(list(np.linspace(0.04, 0.07, 30))) and set(by_step[30:]) == {0.07}
    by_epoch = [build("ibot", teacher_warmup="4 epochs").teacher_temperature(p) for p in progress]
    assert by_epoch[::10] == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07]) and len(set(by_epoch)) == 4
    assert line(1.0, 2.0, 0, 0) == 2.0


@pytest.mark.parametrize("name", METHODS)
def test_momentum_goes_from_start_to_end(name):
    algorithm = build(name, momentum=0.9, momentum_end=0.95)
    with torch.no_grad():
        before = algorithm.teacher.head[0][0].weight.clone()
        algorithm.head[0][0].weight.add_(1.0)
    for step, momentum in ((0, 0.9), (5, 0.925), (10, 0.95)):
        algorithm.teacher.head[0][0].weight.copy_(before)
        algorithm.after_step(Progress(step, 10, 5))
        moved = (algorithm.teacher.head[0][0].weight - before).mean().item()
        assert moved == pytest.approx(1 - momentum, rel=1e-4)


def test_masked_patches_are_the_same_on_any_number_of_ranks():
    """Places, as (sample, crop, patch), and weights; all that DINOv3 hides in a step is constant."""
    algorithm, totals = build("dinov3"), set()
    for step in range(6):
        found = []
        for world in (1, 2, 4):
            rows = []
            for rank in range(world):
                mask = make_batch(algorithm, step, rank, world).mask
                hidden, places, weights = algorithm.masked(mask)
                share, patches = BATCH // world, hidden.shape[1]
                crop, sample = places // patches // share, places // patches % share + rank * share
                found_here = torch.stack([crop, sample, places % patches], 1).tolist()
                rows += [(*place, weight) for place, weight in zip(found_here, (weights / world).tolist())]
                assert len(places) == hidden.sum() and weights.sum().item() == pytest.approx(
                    (hidden.any(1).sum() / len(hidden)).item()
                )
            found.append(sorted(rows))
        assert all(
            [row[:3] for row in other] == [row[:3] for row in found[0]]
            and [row[3] for row in other] == pytest.approx([row[3] for row in found[0]])
            for other in found[1:]
        )
        totals.add(len(found[0]))
    assert len(totals) == 1


def test_a_center_is_the_mean_over_all_rows_that_were_seen():
    center, generator = Center(4, 0.9), torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    center.see(a.mean(0), 3)
    center.see(b.mean(0), 5)
    center.see(torch.full((4,), math.nan), 0)  # the mean of none
    assert center.mean.abs().max() == 0
    center.update()
    assert torch.allclose(center.mean, 0.1 * torch.cat([a, b]).mean(0))
    before = center.mean.clone()
    center.see(torch.full((4,), math.nan), 0)
    center.update()
    assert torch.equal(center.mean, before)


def test_ibots_center_of_patches_is_that_of_all():
    algorithm = build("ibot")
    batch = make_batch(algorithm, 0)
    algorithm(batch, Progress(0, 10, STEPS_PER_EPOCH))
    with torch.no_grad():
        images = torch.cat([batch.views["first"], batch.views["second"]]).flatten(0, 1)
        patches = algorithm.teacher.backbone.tokens(images)[:, 1:].flatten(0, 1)
        expected = 0.1 * algorithm.teacher.head(patches).mean(0)
    algorithm.after_step(Progress(0, 10, STEPS_PER_EPOCH))
    assert torch.allclose(algorithm.patch_center.mean, expected, atol=1e-6)


def test_prototypes_with_and_without_a_gain():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    heads = {last: DINOHead(8, 16, 6, 10, last) for last in ("unit", "gain", "plain")}
    for last, head in heads.items():
        weight = head[1].weight
        assert head(x).abs().max() <= 1 + 1e-6 and (last == "plain") == (weight.std() < 0.03)
        with torch.no_grad():
            before = head(x)
            weight.mul_(3.0)
            assert torch.allclose(head(x), before * (3.0 if last == "plain" else 1.0), atol=1e-6)
    with torch.no_grad():
        before = heads["gain"](x)
        heads["gain"][1].gain.mul_(2.0)
        assert torch.allclose(heads["gain"](x), 2 * before)
    parametrized = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 10, bias=False))
    with torch.no_grad():
        parametrized.parametrizations.weight.original0.copy_(heads["gain"][1].gain)
        parametrized.parametrizations.weight.original1.copy_(heads["gain"][1].weight)
    z = torch.randn(4, 6)
    assert torch.allclose(parametrized(z), heads["gain"][1](z), atol=1e-6)


def test_ibot_holds_prototypes_for_an_epoch():
    algorithm = build("ibot", freeze_prototypes=1)
    optimizer = torch.optim.AdamW([p for p in algorithm.parameters() if p.requires_grad], lr=1e-3)
    before = algorithm.head[1].weight.clone()
    run(algorithm, optimizer, range(STEPS_PER_EPOCH))
    assert torch.equal(algorithm.head[1].weight, before)
    run(algorithm, optimizer, range(STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1))
    assert not torch.equal(algorithm.head[1].weight, before)


def test_a_subset_of_branches_is_the_whole_branch_on_average():
    """b / keep of the branch for keep of b rows; others pass unchanged."""
    block = Block(16, 2, drop_path=0.5, drop_subsets=True).double()
    x = torch.randn(8, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    branch = block.attention(block.norm1(x))
    block.mlp = lambda rows: torch.zeros_like(rows)
    torch.manual_seed(0)
    total = torch.zeros_like(x)
    for _ in range(400):
        added = block(x) - x
        kept = added.flatten(1).abs().amax(1) > 0
        assert kept.sum() == 4 and torch.allclose(added[kept], 2 * branch[kept])
        total += added.detach()
    ratio = (total / 400 / branch).mean((1, 2))
    assert ratio.mean().item() == pytest.approx(1, abs=1e-9) and (ratio - 1).abs().max() < 4 / math.sqrt(400)
    assert torch.equal(block.eval()(x), x + branch)


def test_rescaled_positions_differ_by_block_group_and_step_alone():
    algorithm = build("dinov3")
    scale = lambda step, group: algorithm.rotary_scales(Progress(step, 10, 5, seed=3), group, torch.device("cpu"))  # noqa: E731
    drawn = torch.stack([scale(step, group) for step in range(500) for group in ("large", "small")])
    assert drawn.min() >= 0.5 and drawn.max() <= 2 and len(drawn.unique()) == drawn.numel()
    assert drawn.log2().mean().abs() < 4 * 2 / math.sqrt(12 * drawn.numel())
    assert torch.equal(scale(7, "large"), scale(7, "large"))


def test_groups_of_koleo_must_divide_a_batch():
    with pytest.raises(UserError, match="algorithm.koleo_group: 5 does not divide the 8 images"):
        spread(torch.randn(2, 8, 4), 5)


@pytest.mark.parametrize("name", METHODS)
def test_sizes_that_are_no_whole_patches_are_refused(name):
    config = build(name).config
    with pytest.raises(ValueError, match="small: 20 px are not whole patches of 8"):
        replace(config, small=replace(config.small, size=20))


def test_the_7b_has_its_published_size():
    """Read and counted, never made: 6,716 M parameters with the mask token."""
    config = load_recipe("dinov3_vit-7b-p16_256xb16-amp-1000k", []).algorithm
    with torch.device("meta"):
        algorithm = DINOv3(config)
    assert sum(p.numel() for p in algorithm.backbone.parameters()) + algorithm.mask_token.numel() == 6_716_035_072


@pytest.mark.parametrize("name", METHODS)
def test_a_step_without_masks_is_a_step(name):
    """The loss of patches is 0, and every parameter has a gradient, as several processes need it."""
    algorithm = build(name, mask_chance=0.0)
    optimizer = make_optimizer(algorithm)
    output = algorithm(make_batch(algorithm, 0), Progress(0, 10, STEPS_PER_EPOCH))
    output.loss.backward()
    assert output.metrics["loss_patch"] == 0
    assert all(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def computed(name, change, **options):
    """Losses and gradients of a step in which Gram counts, too, computed as `change(algorithm)` has it."""
    algorithm = build(name, **options)
    change(algorithm)
    torch.manual_seed(3)
    output = algorithm(make_batch(algorithm, 3), Progress(3, 10, STEPS_PER_EPOCH))
    output.loss.backward()
    gradients = {key: p.grad for key, p in algorithm.named_parameters() if p.requires_grad}
    return {**output.metrics, "loss": output.loss.detach()}, gradients


@pytest.mark.parametrize("name", [*METHODS, "dinov2 with subsets", "dinov3 with gram"])
def test_recomputed_activations_change_nothing(name):
    """The student's blocks run once more for each size of crops, the teachers' do not: they have no backward."""
    counts = []

    def counted(algorithm, recompute):
        count = dict.fromkeys(("backbone", "teacher.backbone"), 0)
        counts.append(count)
        for part in count:
            for block in algorithm.get_submodule(part).blocks:
                block.norm1.register_forward_hook(lambda *_, part=part: count.update({part: count[part] + 1}))
        if recompute:
            checkpoint_blocks(algorithm)

    (plain, wanted), (losses, found) = (computed(name, lambda a, r=r: counted(a, r)) for r in (False, True))
    depth = len(build(name).backbone.blocks)
    assert counts == [
        {"backbone": 2 * depth, "teacher.backbone": depth},
        {"backbone": 4 * depth, "teacher.backbone": depth},
    ]
    assert losses == plain and wanted.keys() == found.keys()
    assert all(torch.equal(found[key], gradient) for key, gradient in wanted.items())


@pytest.mark.parametrize("name", ["ibot", "dinov2 with subsets", "dinov3 with gram"])
def test_compiled_it_is_the_same_step(name):
    """As traced, without generated code. What is drawn on the host and the loss of patches stay outside of graphs."""
    torch._dynamo.reset()
    before, shallow = compiled_graphs(), {"backbone": replace(build(name).config.backbone, depth=1)}
    plain, wanted = computed(name, lambda algorithm: None, **shallow)
    losses, found = computed(name, lambda algorithm: algorithm.compile(backend="eager"), **shallow)
    assert compiled_graphs() > before and losses.keys() == plain.keys()
    for key, value in plain.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-5, atol=1e-6)
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6, msg=key)
