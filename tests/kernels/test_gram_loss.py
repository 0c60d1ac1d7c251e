"""gram_loss: against a published implementation's values, sums over pairs in float64, and what is kept in memory."""

import math

import pytest
import torch

from headrace.errors import UserError
from headrace.kernels import operator
from headrace.kernels.check import check
from headrace.kernels.gram_loss import gram_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = {case.id: case for case in operator("gram_loss").cases}
IMPLEMENTATIONS = ("reference", "tiled")


def wave(*shape, a=0.0, s=1.0):
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (s * torch.sin(a + 0.7 * k + 0.01 * k * k)).view(shape)


def pair_by_pair(student, teacher, negatives):
    total, count = 0.0, 0
    for image, other in zip(student.double(), teacher.double()):
        for i in range(len(image)):
            for j in range(len(image)):
                own = torch.cosine_similarity(image[i], image[j], dim=0).item()
                theirs = torch.cosine_similarity(other[i], other[j], dim=0).item()
                if not negatives:
                    own, theirs = max(own, 0.0), max(theirs, 0.0)
                total, count = total + (own - theirs) ** 2, count + 1
    return total / count


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_values_of_the_authors_code(impl):
    student, teacher = wave(2, 4, 6, a=0.2), wave(2, 4, 6, a=1.9)
    assert gram_loss(student, teacher, impl=impl).item() == pytest.approx(0.03226085, abs=1e-7)
    whole = gram_loss(student.view(1, 8, 6), teacher.view(1, 8, 6), impl=impl)
    assert whole.item() == pytest.approx(0.02551590, abs=1e-7)
    assert gram_loss(student, teacher, negatives=False, impl=impl).item() == pytest.approx(0.01731584, abs=1e-7)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["fp32", "without-negatives", "a-wider-teacher", "two-patches"])
def test_is_the_formula(name, impl):
    (student, teacher), options = CASES[name].arguments()
    loss = gram_loss(student.double(), teacher.double(), impl=impl, **options)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(pair_by_pair(student, teacher, options["negatives"]), rel=1e-9)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("negatives", [True, False])
def test_gradients_by_finite_differences(impl, negatives, monkeypatch):
    monkeypatch.setattr("headrace.kernels.gram_loss.tiled._ELEMENTS", 20)
    student, teacher = wave(2, 7, 5, a=0.2), wave(2, 7, 5, a=1.9)
    loss = lambda x: gram_loss(x, teacher, negatives=negatives, impl=impl)  # noqa: E731
    assert torch.autograd.gradcheck(loss, student.requires_grad_())


@pytest.mark.parametrize("impl", ["tiled", "triton"])
def test_passes_the_checker_on_every_case(impl, monkeypatch):
    if impl == "triton":
        pytest.importorskip("triton")
    monkeypatch.setattr("headrace.kernels.gram_loss.tiled._ELEMENTS", 150)
    found = check("gram_loss", impl, DEVICE)
    assert [result for result in found if not result.passed] == []


def test_a_teacher_turned_as_a_whole_says_the_same():
    """Only angles between patches count: neither lengths nor a rotation of the space."""
    student, teacher = wave(2, 9, 6, a=0.2), wave(2, 9, 6, a=1.9)
    turn = torch.linalg.qr(wave(6, 6, a=0.4))[0]
    lengths = 0.1 + wave(2, 9, 1, a=3.0).square()
    assert gram_loss(student, teacher).item() == pytest.approx(gram_loss(student, lengths * teacher @ turn).item())
    assert gram_loss(student, lengths * student @ turn).item() < 1e-30


def test_tiled_keeps_no_matrix_of_all_pairs(monkeypatch, Largest):
    """Elements of the largest tensor that a forward and backward make, of one image with 1,024 patches."""
    monkeypatch.setattr("headrace.kernels.gram_loss.tiled._ELEMENTS", 1 << 14)
    sizes = {}
    for impl in IMPLEMENTATIONS:
        x = torch.randn(1, 1024, 16, requires_grad=True)
        with Largest() as largest:
            gram_loss(x, torch.randn(1, 1024, 16), impl=impl).backward()
        sizes[impl] = largest.elements
    assert sizes == {"reference": 1024 * 1024, "tiled": 1024 * 16}


def test_arguments_that_do_not_fit_are_refused():
    x = torch.zeros(2, 3, 4)
    with pytest.raises(UserError, match=r"student \(2, 3, 4\) and teacher \(2, 5, 4\)"):
        gram_loss(x, torch.zeros(2, 5, 4))
    with pytest.raises(UserError, match="patches are floating"):
        gram_loss(x, x.long())
    with pytest.raises(UserError, match="detach it"):
        gram_loss(x, x.clone().requires_grad_())
