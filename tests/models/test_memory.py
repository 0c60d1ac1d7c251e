"""Queues, teachers, banks, centres and schedules, step by step against closed forms."""

import math
from collections import deque
from dataclasses import replace

import pytest
import torch
from tiny_algorithms import BACKBONE, SAMPLES, STEPS_PER_EPOCH, build, embed, make_batch, make_optimizer, run

from headrace.errors import UserError
from headrace.models.algorithm import Progress
from headrace.models.algorithms import find_algorithm
from headrace.models.memory import Queue
from headrace.models.teacher import Teacher, cosine_momentum
from headrace.train.engine.optim import parameter_groups
from headrace.train.recipe.recipe import load_recipe


def test_queue_is_first_in_first_out():
    """Against a deque, with a length that the batches do not divide."""
    queue = Queue(7, 2)
    assert torch.allclose(queue.rows.norm(dim=1), torch.ones(7))
    expected = deque(queue.rows.tolist(), maxlen=7)
    for step in range(8):
        keys = torch.full((3, 2), float(step)) + torch.arange(3)[:, None] / 10
        queue.enqueue(keys)
        expected.extend(keys.tolist())
        start = int(queue.next)
        assert start == 3 * (step + 1) % 7
        assert torch.cat([queue.rows[start:], queue.rows[:start]]).tolist() == list(expected)


def test_queue_refuses_more_than_it_holds():
    with pytest.raises(UserError, match="a queue of 4 cannot take 5 keys"):
        Queue(4, 2).enqueue(torch.zeros(5, 2))


def test_teacher_is_the_closed_form_of_the_average():
    student = torch.nn.ModuleDict({"layer": torch.nn.Linear(3, 2)}).double()
    student.layer = student["layer"]
    teacher, m = Teacher(layer=student.layer), 0.8
    weights = [student.layer.weight.detach().clone()]
    for _ in range(6):
        with torch.no_grad():
            student.layer.weight.normal_()
        weights.append(student.layer.weight.detach().clone())
        teacher.update(student, m)
    expected = m**6 * weights[0] + (1 - m) * sum(m ** (6 - k) * weights[k] for k in range(1, 7))
    assert torch.allclose(teacher.layer.weight, expected, atol=1e-14)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_teacher_keeps_its_own_running_statistics():
    """They come from its own batches; an update moves parameters alone."""
    student = torch.nn.Module()
    student.norm = torch.nn.BatchNorm1d(2)
    teacher = Teacher(norm=student.norm)
    student.norm(torch.randn(8, 2) + 5)
    x = torch.randn(8, 2) - 3
    teacher.norm(x)
    teacher.update(student, 0.5)
    assert torch.allclose(teacher.norm.running_mean, 0.1 * x.mean(0))


def test_momentum_ends_at_exactly_one():
    values = [cosine_momentum(0.99, Progress(step, 50, 10)) for step in range(51)]
    assert values[0] == 0.99 and values[-1] == 1.0 and values == sorted(values)
    assert values[25] == pytest.approx(1 - 0.01 / 2)
    assert values[10] == pytest.approx(1 - 0.01 * (math.cos(math.pi * 10 / 50) + 1) / 2)


@pytest.mark.parametrize("name, constant", [("moco", 0.9), ("densecl", 0.999), ("byol", None), ("mocov3", None)])
def test_teachers_move_once_a_step_after_it(name, constant):
    algorithm = build(name, momentum=constant or 0.9)
    optimizer = make_optimizer(algorithm)
    shadow = {key: p.clone() for key, p in algorithm.teacher.named_parameters()}
    for step in range(3):
        m = constant or 1 - 0.1 * (math.cos(math.pi * step / 10) + 1) / 2
        run(algorithm, optimizer, range(step, step + 1))
        for key, p in algorithm.teacher.named_parameters():
            shadow[key] = m * shadow[key] + (1 - m) * algorithm.get_parameter(key).detach()
            assert torch.allclose(p, shadow[key], atol=1e-6), key


@pytest.mark.parametrize("name", ["moco", "npid", "swav", "odc", "dino", "densecl"])
def test_accumulated_micro_batches_are_remembered_together(name):
    """Two halves before one step leave the memory that the whole batch would: nothing moves between them."""
    states = []
    for halves in (1, 2):
        algorithm = build(name)
        for module in algorithm.modules():  # statistics of halves are another matter
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
        algorithm.start_epoch(Progress(0, 10, STEPS_PER_EPOCH), embed)
        for half in range(halves):
            algorithm(make_batch(algorithm, 0, half, halves), Progress(0, 10, STEPS_PER_EPOCH))
        algorithm.after_step(Progress(0, 10, STEPS_PER_EPOCH))
        states.append(algorithm.state_dict())
    for key, value in states[0].items():
        assert torch.allclose(value.double(), states[1][key].double(), atol=1e-5), key


def test_queue_holds_the_keys_of_the_last_steps():
    algorithm = build("moco", queue=16)
    optimizer = make_optimizer(algorithm)
    keys = []
    for step in range(5):
        run(algorithm, optimizer, range(step, step + 1), after_forward=lambda *_: keys.append(algorithm._keys[-1]))
    rows = torch.cat([algorithm.queue.rows[8:], algorithm.queue.rows[:8]])  # 40 keys: the next one goes to row 8
    assert torch.equal(rows, torch.cat(keys[-2:]))


def test_bank_of_instances():
    algorithm = build("npid")
    before = algorithm.bank.rows.clone()
    assert before.shape == (SAMPLES, 8) and torch.allclose(before.norm(dim=1), torch.ones(SAMPLES))
    seen = []
    run(algorithm, make_optimizer(algorithm), range(1), after_forward=lambda *_: seen.extend(algorithm._seen))
    ((ids, z),) = seen
    for i in range(SAMPLES):
        if i in ids.tolist():
            mixed = 0.5 * before[i] + 0.5 * z[ids.tolist().index(i)]
            assert torch.allclose(algorithm.bank.rows[i], mixed / mixed.norm(), atol=1e-6)
        else:
            assert torch.equal(algorithm.bank.rows[i], before[i])


def test_negatives_are_uniform_and_spare_the_sample_itself():
    algorithm = build("npid", negatives=20_000, exclude_self=True)
    ids = torch.tensor([0, 11, SAMPLES - 1])
    drawn = algorithm.draw_negatives(ids)
    for row, i in zip(drawn, ids):
        counts = torch.bincount(row, minlength=SAMPLES)
        assert counts[i] == 0 and len(counts) == SAMPLES
        assert (counts[counts > 0] - 20_000 / (SAMPLES - 1)).abs().max() < 6 * math.sqrt(20_000 / SAMPLES)


def test_prototypes_stay_while_they_are_frozen():
    algorithm = build("swav", freeze_prototypes=2)
    optimizer = make_optimizer(algorithm)
    start = torch.nn.functional.normalize(algorithm.prototypes.weight.detach(), dim=1)
    run(algorithm, optimizer, range(2))
    assert torch.allclose(algorithm.prototypes.weight, start, atol=1e-6)
    assert algorithm.prototypes.weight not in optimizer.state
    run(algorithm, optimizer, range(2, 3))
    assert (algorithm.prototypes.weight - start).abs().max() > 1e-4


def test_swav_uses_its_queue_from_the_given_epoch_on():
    """The queue takes part when it is full and its epoch has come; only then do its rows change assignments."""
    algorithm = build("swav", queue_from=1, queue=16)
    z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
    scores = algorithm.prototypes(z).detach()
    plain = algorithm.codes(0, z, scores, Progress(2, 10, STEPS_PER_EPOCH))
    late = algorithm.codes(0, z, scores, Progress(3, 10, STEPS_PER_EPOCH))
    assert torch.equal(plain, algorithm.codes(0, z, scores, Progress(0, 10, STEPS_PER_EPOCH)))
    assert (late - plain).abs().max() > 1e-4 and torch.allclose(late.sum(1), torch.ones(8), atol=1e-5)
    usage, greedy = plain.sum(0), scores.div(0.05).softmax(1).sum(0)  # how often each prototype is used
    assert usage.max() / usage.min() < greedy.max() / greedy.min()


def test_a_queue_that_is_not_full_is_not_used():
    algorithm = build("swav", queue_from=0, queue=16)
    z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
    scores = algorithm.prototypes(z).detach()
    codes = [algorithm.codes(0, z, scores, Progress(step, 10, STEPS_PER_EPOCH)) for step in range(3)]
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[1], codes[2])


def test_center_is_the_average_of_the_teacher():
    algorithm = build("dino")
    assert not algorithm.center.any()
    means = []
    run(
        algorithm,
        make_optimizer(algorithm),
        range(3),
        after_forward=lambda *_: means.append(algorithm._teacher_means[0]),
    )
    expected = 0.1 * (0.9**2 * means[0] + 0.9 * means[1] + means[2])
    assert torch.allclose(algorithm.center, expected, atol=1e-6)


def test_dino_keeps_its_prototypes_for_an_epoch():
    algorithm = build("dino")
    optimizer = make_optimizer(algorithm)
    start = algorithm.head[1].weight.detach().clone()
    run(algorithm, optimizer, range(STEPS_PER_EPOCH))
    assert torch.equal(algorithm.head[1].weight, start)
    run(algorithm, optimizer, range(STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1))
    assert not torch.equal(algorithm.head[1].weight, start)


def test_teacher_temperature_rises_as_linspace():
    algorithm = build("dino", teacher_warmup=4, teacher_temperature_from=0.02, teacher_temperature=0.08)
    values = [algorithm.teacher_temperature(epoch) for epoch in range(6)]
    assert values == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.08, 0.08])


def test_the_teacher_drops_no_path():
    algorithm = build("dino", backbone=replace(BACKBONE, drop_path=0.5))
    assert [b.drop_path for b in algorithm.backbone.blocks] == [0.0, 0.5]
    assert [b.drop_path for b in algorithm.teacher.backbone.blocks] == [0.0, 0.0]


def test_dense_loss_waits_for_its_turn():
    algorithm = build("densecl", dense_from=3)
    for step, weight in ((2, 0.0), (3, 0.5)):
        output = algorithm(make_batch(algorithm, 0), Progress(step, 10, STEPS_PER_EPOCH))
        expected = (1 - weight) * output.metrics["global"] + weight * output.metrics["dense"]
        assert output.loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    "recipe, key, value, members",
    [
        ("simsiam_resnet50_8xb32-coslr-100e_in1k", "fixed_lr", True, "predictor"),
        ("deepcluster_resnet50_8xb64-steplr-200e_in1k", "momentum", 0.0, "classifier"),
        ("relative-loc_resnet50_8xb64-steplr-70e_in1k", "weight_decay", 5e-4, "head"),
    ],
)
def test_groups_of_recipes(recipe, key, value, members):
    """What a recipe treats apart is that module, the whole of it, and nothing else."""
    loaded = load_recipe(recipe, [])
    with torch.device("meta"):
        algorithm = find_algorithm(loaded.algorithm.name)(loaded.algorithm)
    groups = parameter_groups(algorithm, loaded.optim)
    apart = [p for group in groups if group.get(key) == value for p in group["params"]]
    assert {id(p) for p in apart} == {id(p) for p in getattr(algorithm, members).parameters()}


def test_barlow_recipe_slows_exactly_biases_and_norms():
    loaded = load_recipe("barlowtwins_resnet50_8xb256-coslr-300e_in1k", [])
    with torch.device("meta"):
        algorithm = find_algorithm(loaded.algorithm.name)(loaded.algorithm)
    groups = parameter_groups(algorithm, loaded.optim)
    slow = [p for group in groups if group["lr_scale"] == 0.024 for p in group["params"]]
    assert {id(p) for p in slow} == {id(p) for p in algorithm.parameters() if p.dim() == 1}
