"""prototype_ce: the reference against torch's cross-entropy pair by pair, Triton against the reference."""

import math

import pytest
import torch
import torch.nn.functional as F

from headrace.errors import UserError
from headrace.kernels import operator, use
from headrace.kernels.check import check
from headrace.kernels.prototype_ce import prototype_ce

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = {case.id: case for case in operator("prototype_ce").cases}


def pair_by_pair(student, teacher, center, weights, student_temperature, teacher_temperature, pairs="crossed"):
    """torch's cross-entropy with probabilities, in float64."""
    student, teacher = student.double(), teacher.double()
    if teacher_temperature is not None:
        shifted = (teacher - (0 if center is None else center.double())) / teacher_temperature
        teacher = shifted.exp() / shifted.exp().sum(-1, keepdim=True)
    taken = {"crossed": lambda t, v: t != v, "same": lambda t, v: t == v, "all": lambda t, v: True}[pairs]
    losses = [
        F.cross_entropy(student[v] / student_temperature, teacher[t], reduction="none")
        for t in range(len(teacher))
        for v in range(len(student))
        if taken(t, v)
    ]
    mean = sum(losses) / len(losses)
    return mean.mean() if weights is None else (mean * weights).sum()


@pytest.mark.parametrize("case", [case for name, case in CASES.items() if name != "large-logits"], ids=lambda c: c.id)
def test_reference_is_the_formula(case):
    (student, teacher, center, weights), options = case.arguments()
    leaf = student.double().requires_grad_()
    loss = prototype_ce(leaf, teacher.double(), center, weights, impl="reference", **options)
    expected = pair_by_pair(leaf, teacher, center, weights, **options)
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(expected.item(), rel=1e-10)
    gradients = [torch.autograd.grad(x, leaf)[0] for x in (loss, expected)]
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-13)


def test_number_of_pairs_of_dino():
    """Ten crops, two of them seen by the teacher: 18 pairs. Students that know nothing cost log K each."""
    student, teacher = torch.zeros(10, 3, 64), torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    loss = prototype_ce(student, teacher, student_temperature=0.1, teacher_temperature=0.04)
    assert loss.item() == pytest.approx(math.log(64), rel=1e-6)


def test_reference_gradient_by_finite_differences():
    (student, teacher, center, _), options = CASES["one-teacher"].arguments()
    loss = lambda s: prototype_ce(s, teacher, center, impl="reference", **options)  # noqa: E731
    assert torch.autograd.gradcheck(loss, student.double().requires_grad_(), fast_mode=True)


def test_triton_passes_the_checker_on_every_case():
    pytest.importorskip("triton")
    found = check("prototype_ce", "triton", DEVICE)
    assert [result for result in found if result.passed is False] == []
    left_out = {result.case for result in found if result.passed is None}
    assert left_out == ({name for name in CASES if "bf16" in name} if DEVICE == "cpu" else set())


def test_tiled_passes_the_checker_on_every_case(monkeypatch):
    monkeypatch.setattr("headrace.kernels.prototype_ce.tiled._ELEMENTS", 200)  # several tiles, the last one smaller
    found = check("prototype_ce", "tiled")
    assert [result for result in found if not result.passed] == []


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_only_other_views_count(impl):
    """With two crops and two teacher views, student 0 meets teacher 1 alone."""
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 2, 3, 20, generator=generator).to(DEVICE)
    options = {"student_temperature": 0.3, "teacher_temperature": 0.2, "impl": impl}
    gradients = []
    for same_view in (teacher[0], teacher[0].flip(-1)):
        leaf = student.clone().requires_grad_()
        prototype_ce(leaf, torch.stack([same_view, teacher[1]]), **options).backward()
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0][0], gradients[1][0]) and not torch.allclose(gradients[0][1], gradients[1][1])


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_constants_change_nothing(impl):
    """Logits of a thousand and more, where exponentials are infinite; softmax only sees differences."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 3, 2, 20, generator=generator).mul(64).round().div(64).to(DEVICE)
    options = {"student_temperature": 0.5, "teacher_temperature": 0.25, "impl": impl}
    loss = prototype_ce(student, teacher[:2], **options)
    moved = prototype_ce(student + 1024, teacher[:2] - 2048, **options)
    assert moved.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_batch_of_none_costs_nothing(impl):
    student, teacher = torch.zeros(3, 0, 9, device=DEVICE, requires_grad=True), torch.zeros(2, 0, 9, device=DEVICE)
    loss = prototype_ce(student, teacher, student_temperature=0.1, teacher_temperature=0.1, impl=impl)
    loss.backward()
    assert loss.item() == 0 and student.grad.shape == (3, 0, 9)


def test_gradients_survive_float16():
    """1 / (B pairs) alone is below float16's smallest number for large batches; a loss scale must still reach it."""
    pytest.importorskip("triton")
    student = torch.zeros(2, 1, 4, dtype=torch.float16, device=DEVICE, requires_grad=True)
    teacher = torch.tensor([[[0.0, 0, 0, 1]]], device=DEVICE)
    loss = prototype_ce(student, teacher, student_temperature=1.0, impl="triton")
    (gradient,) = torch.autograd.grad(loss, student, torch.tensor(2.0**-26 * 2**20, device=DEVICE))
    assert gradient[1, 0].tolist() == [2.0**-8, 2.0**-8, 2.0**-8, -3 * 2.0**-8]


def test_compiles_to_one_graph_with_the_same_result():
    pytest.importorskip("triton")
    (student, teacher, center, _), options = CASES["dino-no-center"].arguments()
    compiled = torch.compile(prototype_ce, backend="aot_eager", fullgraph=True)
    results = []
    for function in (prototype_ce, compiled):
        leaf = student.to(DEVICE).requires_grad_()
        with use("prototype_ce", "triton"):
            loss = function(leaf, teacher.to(DEVICE), center, **options)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_opcheck():
    pytest.importorskip("triton")
    from headrace.kernels.prototype_ce import triton_impl

    for name in ("dino-no-center", "swav", "patches-assigned"):
        (student, teacher, center, weights), options = CASES[name].arguments()
        leaf = student.to(DEVICE).requires_grad_()
        weights = None if weights is None else weights.to(DEVICE)
        torch.library.opcheck(triton_impl._forward.op, (leaf, teacher.to(DEVICE), center, weights, *options.values()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": torch.zeros(2, 3, 8)}, "teacher (2, 3, 8) must be (views, B, K)"),
        ({"teacher": torch.zeros(5, 3, 9)}, "5 teacher views and 4 crops make no pairs"),
        ({"center": torch.zeros(1, 9)}, "center (1, 9) needs the shape (9,)"),
        ({"center": torch.zeros(9), "teacher_temperature": None}, "a distribution has no center"),
        ({"student_temperature": 0.0}, "temperatures must be positive"),
        ({"pairs": "same"}, "same pairs need as many crops as teachers, not 4, 2"),
        ({"pairs": "some"}, "pairs are crossed, same or all, not 'some'"),
        ({"weights": torch.zeros(4)}, "weights (4,) need the shape (3,)"),
        ({"teacher": torch.zeros(2, 3, 9, requires_grad=True)}, "detach it"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    arguments = {
        "student": torch.zeros(4, 3, 9),
        "teacher": torch.zeros(2, 3, 9),
        "student_temperature": 0.1,
        "teacher_temperature": 0.04,
    }
    with pytest.raises(UserError) as error:
        prototype_ce(**{**arguments, **change})
    assert words in str(error.value)
