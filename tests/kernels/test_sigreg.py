"""sigreg: the reference against the integral and published values, Triton against it, two ranks against one."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from two_ranks import global_batch, results

from headrace.errors import UserError
from headrace.kernels import operator, use
from headrace.kernels.check import check
from headrace.kernels.sigreg import sigreg

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = {case.id: case for case in operator("sigreg").cases}


def wave(*shape):
    k = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return (0.7 * k + 0.01 * k**2).sin().view(shape)


def of_columns(samples):
    """The statistic of each column of (N, S)."""
    return [sigreg(samples[None, :, s : s + 1]).item() for s in range(samples.shape[1])]


def by_sums(y, points, t_max):
    """One slice, with the term at 0, by numpy and its trapezoidal rule."""
    t = np.linspace(0, t_max, points)
    phi = np.exp(-(t**2) / 2)
    far = np.abs(np.exp(1j * t * np.asarray(y)[:, None]).mean(0) - phi) ** 2
    return len(y) * 2 * np.trapezoid(far * phi, t)


def test_the_authors_values():
    """Computed once with the released code: 17 nodes to 3."""
    assert of_columns(wave(7, 3)) == pytest.approx([0.65997, 0.12681, 0.27145], abs=6e-6)
    quantiles = torch.tensor(norm.ppf((np.arange(4096) + 0.5) / 4096))[:, None]
    assert of_columns(quantiles)[0] == pytest.approx(7.5e-6, abs=1e-7)
    assert of_columns(torch.zeros(4096, 1).double())[0] == pytest.approx(1646.787, abs=1e-3)


@pytest.mark.parametrize("name", [name for name in CASES if "16" not in name])
def test_reference_is_the_trapezoidal_rule(name):
    (y,), options = CASES[name].arguments()
    slices = [by_sums(y[v, :, s].double(), **options) for v in range(len(y)) for s in range(y.shape[2])]
    assert sigreg(y.double(), impl="reference", **options).item() == pytest.approx(np.mean(slices), rel=1e-10)


def test_many_points_are_epps_and_pulleys_integral():
    y = wave(9, 1)
    phi = lambda t: np.exp(-(t**2) / 2)  # noqa: E731
    far = lambda t: abs(np.exp(1j * t * y.numpy()).mean() - phi(t)) ** 2 * phi(t)  # noqa: E731
    assert of_columns(y)[0] == pytest.approx(9 * quad(far, -3, 3)[0], rel=0.02)
    assert sigreg(y[None], points=4000).item() == pytest.approx(9 * quad(far, -3, 3)[0], rel=1e-5)


def test_normal_samples_cost_a_constant_and_others_as_many_as_there_are():
    t = np.linspace(0, 3, 17)[1:]
    weight = 2 * 3 / 16 * np.exp(-(t**2) / 2) * np.where(t == 3, 0.5, 1)
    expected = (weight * (1 - np.exp(-(t**2)))).sum()
    generator = torch.Generator().manual_seed(1)
    for samples in (50, 400):
        y = torch.randn(1, samples, 3000, generator=generator)
        assert sigreg(y).item() == pytest.approx(expected, rel=0.03)
        assert sigreg(2 * y).item() > 0.05 * samples


def test_triton_passes_the_checker_on_every_case():
    pytest.importorskip("triton")
    assert [result for result in check("sigreg", "triton", DEVICE) if result.passed is not True] == []


def test_gradients_by_finite_differences():
    y = wave(2, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: sigreg(y, impl="reference"), y)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_one_batch_on_two_ranks_has_the_loss_and_gradient_of_one(impl):
    """A mean of the ranks' own statistics is something else; an all-reduce that autograd does not see gives half."""
    pytest.importorskip("triton")
    _, a, b, _ = global_batch()
    y = torch.stack([a, b]).requires_grad_()
    loss = sigreg(y, impl="reference")
    (gradient,) = torch.autograd.grad(loss, y)
    losses, parts = zip(*(found[f"sigreg {impl}"] for found in results()), strict=True)
    assert [each.item() for each in losses] == pytest.approx([loss.item()] * 2, rel=1e-5)
    assert torch.allclose(torch.cat(parts, 1).double() / 2, gradient, atol=1e-6)
    apart = sum(sigreg(half, impl="reference") for half in y.chunk(2, dim=1)) / 2
    assert abs(apart - loss) > 0.05 * loss


def test_compiles_to_one_graph_with_the_same_result():
    pytest.importorskip("triton")
    y = wave(2, 6, 20).float().to(DEVICE)
    with use("sigreg", "triton"):
        assert torch.equal(torch.compile(sigreg, backend="aot_eager", fullgraph=True)(y), sigreg(y))


def test_arguments_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match=r"projections are torch.float32 \(2, 0, 3\)"):
        sigreg(torch.zeros(2, 0, 3))
    with pytest.raises(UserError, match=r"projections are torch.int64 \(1, 2, 3\)"):
        sigreg(torch.zeros(1, 2, 3, dtype=torch.int64))
    for options in ({"points": 1}, {"t_max": 0.0}):
        with pytest.raises(UserError, match="points must be at least 2 and t_max positive"):
            sigreg(torch.zeros(1, 2, 3), **options)
