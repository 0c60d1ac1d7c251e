"""cross_correlation: both forms against numpy's correlations, each other, and two ranks against one."""

import numpy as np
import pytest
import torch
from two_ranks import global_batch, results

from headrace.errors import UserError
from headrace.kernels import operator
from headrace.kernels.check import check
from headrace.kernels.cross_correlation import cross_correlation

CASES = {case.id: case for case in operator("cross_correlation").cases}
FEW = [name for name in CASES if name not in ("many-samples", "square")]


def by_numpy(a, b, weight):
    """Columns are standardised, so that the correlation coefficients are what is asked for."""
    width = a.shape[1]
    c = np.corrcoef(a.double().numpy(), b.double().numpy(), rowvar=False)[:width, width:]
    diagonal = np.diag(c)
    return ((diagonal - 1) ** 2).sum() + weight * ((c**2).sum() - (diagonal**2).sum())


@pytest.mark.parametrize(
    ("name", "impl"),
    [(name, "reference") for name in CASES if "16" not in name] + [(name, "gram") for name in FEW if "16" not in name],
)
def test_both_forms_are_the_formula(name, impl):
    (a, b), options = CASES[name].arguments()
    loss = cross_correlation(a.double(), b.double(), impl=impl, **options)
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(by_numpy(a, b, **options), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("impl", ["reference", "gram"])
def test_gradients_by_finite_differences(impl):
    (a, b), options = CASES["heavy-weight"].arguments()
    loss = lambda a, b: cross_correlation(a, b, impl=impl, **options)  # noqa: E731
    assert torch.autograd.gradcheck(loss, [x.double().requires_grad_() for x in (a, b)], fast_mode=True)


def test_gram_passes_the_checker_on_every_case():
    found = check("cross_correlation", "gram")
    assert [result for result in found if result.passed is False] == []
    assert {result.case for result in found if result.passed is None} == set(CASES) - set(FEW)


def test_gram_is_for_few_samples():
    with pytest.raises(UserError, match="it is for batches of fewer than 8 samples"):
        cross_correlation(torch.randn(8, 8), torch.randn(8, 8), impl="gram")


@pytest.mark.parametrize("impl", ["reference", "gram"])
def test_identical_decorrelated_views_cost_nothing(impl):
    """Rows of a Hadamard matrix, but its constant column: correlations are the identity."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    hadamard = torch.kron(torch.kron(two, two), two)[:, 1:].double()
    padded = torch.cat([hadamard, hadamard], 1) if impl == "gram" else hadamard
    # With every dimension twice, each of 14 has one other that equals it.
    assert cross_correlation(padded, padded, weight=0.5, impl=impl).item() == pytest.approx(7.0 * (impl == "gram"))


def test_one_batch_on_two_ranks_has_the_loss_and_gradient_of_one():
    """An all-reduce that autograd does not see gives half of it."""
    _, a, b, _ = global_batch()
    leaves = a.requires_grad_(), b.requires_grad_()
    c = leaves[0].T @ leaves[1] / len(a)
    off = ~torch.eye(20, dtype=torch.bool)
    loss = (c.diagonal() - 1).square().sum() + 0.3 * c[off].square().sum()
    gradients = torch.autograd.grad(loss, leaves)
    for impl in ("reference", "gram"):
        losses, *parts = zip(*(found[f"cross_correlation {impl}"] for found in results()), strict=True)
        assert all(torch.allclose(each, loss) for each in losses)
        for part, gradient in zip(parts, gradients, strict=True):
            assert torch.allclose(torch.cat(part) / 2, gradient)  # each rank's counts half in the average


def test_arguments_that_do_not_fit_are_refused():
    z = torch.zeros(3, 8)
    with pytest.raises(UserError, match=r"torch.float32 \(3, 8\) and torch.float64 \(3, 8\)"):
        cross_correlation(z, z.double())
    with pytest.raises(UserError, match=r"\(2, 8\) must both be \(N, D\)"):
        cross_correlation(z, z[:2])
    with pytest.raises(UserError, match="a batch of none has no correlation"):
        cross_correlation(z[:0], z[:0])
