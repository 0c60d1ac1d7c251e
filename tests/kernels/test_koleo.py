"""koleo: against a published implementation's value, a search by brute force in numpy, and properties of the loss."""

import math

import numpy as np
import pytest
import torch

from headrace.errors import UserError
from headrace.kernels import operator
from headrace.kernels.check import check
from headrace.kernels.koleo import koleo

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = {case.id: case for case in operator("koleo").cases}
IMPLEMENTATIONS = ("reference", "tiled")


def wave(*shape, a=0.0, s=1.0):
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (s * torch.sin(a + 0.7 * k + 0.01 * k * k)).view(shape)


def brute_force(x, group, nearest=1):
    x = x.double().numpy()
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)
    losses = []
    for i in range(len(x)):
        first = i // group * group
        others = [j for j in range(first, first + group) if j != i]
        for j in sorted(others, key=lambda j: -x[i] @ x[j])[:nearest]:
            losses.append(-math.log(np.linalg.norm(x[i] - x[j] + 1e-8) + 1e-8))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_value_of_the_authors_code(impl):
    assert koleo(wave(6, 8), impl=impl).item() == pytest.approx(0.2167581, abs=1e-6)
    assert koleo(wave(6, 8), nearest=2, impl=impl).item() == pytest.approx(0.0104288, abs=1e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", [case for name, case in CASES.items() if "16" not in name], ids=lambda c: c.id)
def test_is_the_formula(case, impl):
    (x,), options = case.arguments()
    loss = koleo(x.double(), impl=impl, **options)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(brute_force(x, options["group"], options["nearest"]), rel=1e-10)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gradients_by_finite_differences(impl):
    (x,), options = CASES["groups"].arguments()
    assert torch.autograd.gradcheck(lambda x: koleo(x, impl=impl, **options), x.double().requires_grad_())


@pytest.mark.parametrize("impl", ["tiled", "triton"])
def test_passes_the_checker_on_every_case(impl, monkeypatch):
    if impl == "triton":
        pytest.importorskip("triton")
    monkeypatch.setattr("headrace.kernels.koleo.tiled._ROWS", 10)
    found = check("koleo", impl, DEVICE)
    assert [result for result in found if result.passed is False] == []
    refused = {result.case for result in found if result.passed is None}
    assert refused == ({"three-neighbours"} if impl == "triton" else set())


def test_groups_are_apart():
    """A copy of a row in another group is no neighbour; in its own it would cost log(1e-8)."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).double()
    x[5] = x[1]
    assert koleo(x, group=4).item() < 2 < koleo(x).item()
    apart = (koleo(x[:4]) + koleo(x[4:])) / 2
    assert koleo(x, group=4).item() == pytest.approx(apart.item(), rel=1e-12)


def test_tiled_keeps_no_matrix_of_all_rows(Largest):
    """Elements of the largest tensor that a forward and backward make."""
    sizes = {}
    for impl in IMPLEMENTATIONS:
        x = torch.randn(2000, 16, requires_grad=True)
        with Largest() as largest:
            koleo(x, impl=impl).backward()
        sizes[impl] = largest.elements
    assert sizes["reference"] == 2000 * 2000 and sizes["tiled"] <= 2000 * 128


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"they must be floating \(N, D\)"):
        koleo(torch.zeros(3, 4, 5))
    with pytest.raises(UserError, match="groups of 4 cannot be made of 6 rows"):
        koleo(torch.zeros(6, 5), group=4)
    with pytest.raises(UserError, match="in a group of 3 a row has 1 to 2"):
        koleo(torch.zeros(6, 5), group=3, nearest=3)
    with pytest.raises(UserError, match="a row needs a neighbour"):
        koleo(torch.zeros(1, 5))
