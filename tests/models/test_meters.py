"""Meters without labels against their definitions, written out with the matrices that the meters avoid."""

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from headrace.models.algorithm import StepOutput
from headrace.models.meters import lidar, meters, of_features, patch_spread


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_spread_and_rank():
    noise = normal(256, 64)
    assert of_features(noise)["spread"] == pytest.approx(1, abs=0.02) and of_features(noise)["rank"] > 55
    same = of_features(torch.ones(16, 8) + 1e-7 * noise[:16, :8])
    assert same["spread"] < 1e-5
    # 4 directions, used equally: the centred singular values are equal and one falls to the centring
    assert of_features(torch.eye(4, 32).repeat(8, 1))["rank"] == pytest.approx(3, abs=1e-4)
    assert of_features(3 * noise) == pytest.approx(of_features(noise))
    rows = noise / noise.norm(dim=1, keepdim=True)
    singular = linalg.svdvals((rows - rows.mean(0)).numpy())
    assert of_features(noise)["rank"] == pytest.approx(np.exp(stats.entropy(singular)), rel=1e-9)
    assert of_features(torch.full((3, 4), float("nan"))) == {}


@pytest.mark.parametrize("shape", [(200, 40), (60, 300)])
def test_alpha_is_the_slope_of_the_covariances_eigenvalues(shape):
    x = normal(*shape) * torch.arange(1, shape[1] + 1) ** -0.8
    rows = x / x.norm(dim=1, keepdim=True)
    values = np.sort(np.linalg.eigvalsh(np.cov(rows.numpy().T, bias=True)))[::-1]
    number = np.arange(3, min(100, sum(values > 1e-10 * values[0])) + 1)
    line = stats.linregress(np.log(number), np.log(values[number - 1]))
    assert of_features(x)["alpha"] == pytest.approx(-line.slope, rel=1e-6)


def test_alpha_of_a_power_law_is_its_power():
    basis = torch.linalg.qr(normal(120, 120))[0]
    basis = torch.linalg.qr(torch.cat([torch.ones(120, 1), basis[:, :80]], 1).double())[0][:, 1:]  # centred columns
    scale = torch.arange(1, 81).double() ** -0.75
    rows = torch.cat([basis * scale, (10 - (basis * scale).square().sum(1, keepdim=True)).sqrt()], 1)  # of one length
    centred = rows[:, :80] - rows[:, :80].mean(0)
    assert torch.linalg.svdvals(centred) == pytest.approx(scale.numpy(), abs=1e-9)
    assert of_features(rows)["alpha"] == pytest.approx(1.5, abs=0.05)


def by_matrices(views, delta):
    """Sb, Sw and the inverse root, of D x D."""
    views = views.numpy()
    means = views.mean(0)
    within = (views - means).reshape(-1, views.shape[2])
    sw = within.T @ within / len(within) + delta * np.eye(views.shape[2])
    root = linalg.fractional_matrix_power(sw, -0.5)
    return np.exp(stats.entropy(np.clip(linalg.eigvalsh(root @ np.cov(means.T, bias=True) @ root), 0, None)))


@pytest.mark.parametrize("shape", [(2, 30, 8), (4, 10, 60), (3, 5, 20)])
def test_lidar_is_the_entropy_of_fishers_eigenvalues(shape):
    views = normal(1, *shape[1:]) + 0.3 * normal(*shape, seed=1) * torch.linspace(0.1, 2, shape[2])
    total = views.var(1, correction=0).mean(0).mean().item()
    centred = views - views.mean(0)
    means = views.mean(0)
    total = (centred.square().mean((0, 1)).sum() + (means - means.mean(0)).square().mean(0).sum()) / shape[2]
    assert lidar(views) == pytest.approx(by_matrices(views, 1e-4 * total.item()), rel=1e-6)
    assert lidar(5 * views) == pytest.approx(lidar(views), rel=1e-9)


def test_lidar_counts_the_directions_that_survive_augmentation():
    """Images differ along 3 axes; along the other 20, which rank cannot tell from them, only views do."""
    views = 0.02 * normal(2, 64, 23, seed=1)
    views[:, :, :3] += normal(64, 3)
    views[:, :, 3:] += normal(2, 64, 20, seed=2)
    assert 2 < lidar(views) < 6 and of_features(views[0])["rank"] > 15
    assert lidar(torch.zeros(2, 8, 4)) != lidar(torch.zeros(2, 8, 4))  # nothing varies


def test_patches_are_compared_within_their_image():
    assert patch_spread(normal(16, 200, 64)) == pytest.approx(1, abs=0.02)
    assert patch_spread(normal(16, 1, 64).expand(-1, 9, -1)) == pytest.approx(0, abs=1e-9)


def test_what_a_step_has_is_measured():
    x = normal(8, 6).float()
    assert set(meters(StepOutput(x.sum(), embedding=x))) == {"spread", "rank", "alpha"}
    found = meters(StepOutput(x.sum(), embedding=x, views=torch.stack([x, x + 1]), patches=x[None].expand(4, -1, -1)))
    assert set(found) == {"spread", "rank", "alpha", "lidar", "patch_spread"}
    assert meters(StepOutput(x.sum())) == {} == meters(StepOutput(x.sum(), embedding=x[:1]))
