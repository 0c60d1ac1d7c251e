"""LeJEPA's directions and VISReg; its loss and what holds for every method stand in test_losses and beside it."""

import numpy as np
import pytest
import torch
from scipy import stats

from headrace.models.algorithm import Progress
from headrace.models.algorithms.lejepa import LeJEPA, unit_directions, visreg
from headrace.pipelines.spec import ViewSpec

CPU = torch.device("cpu")


def test_directions_are_uniform_and_a_function_of_seed_and_step():
    first = unit_directions(3, 4000, Progress(5, 10, 3, seed=1), CPU)
    assert torch.equal(first, unit_directions(3, 4000, Progress(5, 99, 7, seed=1), CPU))
    for other in (Progress(6, 10, 3, seed=1), Progress(5, 10, 3, seed=2)):
        assert (first * unit_directions(3, 4000, other, CPU)).sum(0).mean().abs() < 0.05
    assert torch.allclose(first.norm(dim=0), torch.ones(4000).double())
    for coordinate in first:  # of a point on a sphere, uniform (Archimedes)
        assert stats.kstest(coordinate.numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert np.abs(np.corrcoef(first.numpy()) - np.eye(3)).max() < 0.05


def test_visreg_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 9, 4, generator=generator).double() * 1.7 + 0.3
    directions = torch.nn.functional.normalize(torch.randn(4, 6, generator=generator).double(), dim=0)
    expected = 0.0
    for x in z.numpy():
        mean, deviation = x.mean(0), x.std(0)
        y = np.sort((x - mean) / deviation @ directions.numpy(), axis=0)
        quantiles = stats.norm.ppf(np.arange(1, 10) / 10)[:, None]
        expected += ((mean**2).mean() + ((deviation - 1) ** 2).mean() + ((y - quantiles) ** 2).mean()) / 2
    assert visreg(z, directions).item() == pytest.approx(expected, rel=1e-9)


def test_visreg_turns_a_collapsed_batch_apart():
    """Where all samples are one, deviations still have a gradient that is finite."""
    z = torch.zeros(1, 8, 3, requires_grad=True)
    visreg(z, torch.eye(3)).backward()
    assert z.grad.isfinite().all()


def test_there_must_be_views_to_compare():
    with pytest.raises(ValueError, match="large, small: LeJEPA compares views"):
        LeJEPA.Config(large=ViewSpec("large"), small=None)
