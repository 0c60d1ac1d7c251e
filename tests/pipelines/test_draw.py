"""Drawn parameters against torchvision's own samplers, formulas, and counts."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from headrace.pipelines.draw import draw_views, random_resized_crop
from headrace.pipelines.masks import draw_mask
from headrace.pipelines.spec import InputSpec, RandomMask, ViewSpec

SIMCLR = ViewSpec(
    count=2,
    jitter=0.8,
    brightness=0.8,
    contrast=0.4,
    saturation=0.6,
    hue=0.2,
    gray=0.2,
    blur=0.5,
    solarize=0.1,
    scale=(0.08, 1.0),
)


def draw(view, n=20000, size=(300, 400), seed=0, epoch=0):
    return draw_views(InputSpec((view,)), seed, epoch, torch.arange(n), torch.tensor([size]).expand(n, 2))[view.name]


@pytest.mark.parametrize("size", [(300, 400), (100, 37), (20, 400)])
def test_crops_are_distributed_as_torchvisions(size):
    view = ViewSpec(scale=(0.08, 1.0))
    left, top, width, height = draw(view, n=6000, size=size).crop[0].double().numpy().T
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    sampler = v2.RandomResizedCrop(224, scale=view.scale, ratio=view.ratio)
    theirs = np.array(
        [[p["left"], p["top"], p["width"], p["height"]] for p in (sampler.make_params([image]) for _ in range(6000))],
        dtype=float,
    )
    for ours, other in zip((left, top, width, height, width * height), (*theirs.T, theirs[:, 2] * theirs[:, 3])):
        if other.std() == 0:  # the fallback: one box for all
            assert (ours == other[0]).all()
        else:
            assert stats.ks_2samp(ours, other).pvalue > 1e-3


def test_crops_stay_inside_tiny_images():
    for size in [(1, 1), (1, 50), (3, 2)]:
        left, top, width, height = draw(ViewSpec(), n=500, size=size).crop[0].T
        assert (width >= 1).all() and (height >= 1).all() and (left >= 0).all() and (top >= 0).all()
        assert (left + width <= size[1]).all() and (top + height <= size[0]).all()


def test_crop_formula_on_given_numbers():
    """u = 0.5 everywhere: area 0.6 of 100 x 200, square; offset the middle of what is left."""
    u = torch.full((1, 22), 0.5, dtype=torch.float64)
    box = random_resized_crop(u, torch.tensor([100.0]), torch.tensor([200.0]), (0.2, 0.5), (0.5, 2.0))
    side = round(math.sqrt(0.35 * 100 * 200))
    assert box.tolist() == [[(200 - side + 1) // 2, (100 - side + 1) // 2, side, side]]


def test_center_crop():
    view = ViewSpec(crop="center", center_fraction=0.5)
    assert draw(view, n=1, size=(100, 300)).crop[0, 0].tolist() == [125, 25, 50, 50]


def test_probabilities_and_ranges():
    p = draw(SIMCLR)
    n = p.flip.numel()

    def near(rate, expected):
        assert abs(rate - expected) < 4 * math.sqrt(expected * (1 - expected) / n)

    jittered = p.order[..., 0] >= 0
    near(p.flip.double().mean(), 0.5)
    near(jittered.double().mean(), 0.8)
    near(p.gray.double().mean(), 0.2)
    near((p.sigma > 0).double().mean(), 0.5)
    near(p.solarize.double().mean(), 0.1)
    for column, (low, high) in enumerate([(0.2, 1.8), (0.6, 1.4), (0.4, 1.6), (-0.2, 0.2)]):
        values = p.jitter[..., column].double().flatten().numpy()
        assert stats.kstest(values, "uniform", args=(low, high - low)).pvalue > 1e-3
    sigmas = p.sigma[p.sigma > 0].double().numpy()
    assert stats.kstest(sigmas, "uniform", args=(0.1, 1.9)).pvalue > 1e-3
    codes = (p.order[jittered].long() * torch.tensor([64, 16, 4, 1])).sum(-1)
    values, counts = codes.unique(return_counts=True)
    assert len(values) == 24 and stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_copies_views_epochs_and_seeds_draw_independently():
    p = draw(SIMCLR, n=2000)
    first, second = p.crop[0, :, 0].double(), p.crop[1, :, 0].double()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.08
    for other in (draw(SIMCLR, n=2000, epoch=1), draw(SIMCLR, n=2000, seed=1)):
        assert (other.crop == p.crop).all(-1).double().mean() < 0.05


def test_a_sample_draws_the_same_alone_and_in_a_batch():
    ids = torch.arange(100, 110)
    sizes = torch.randint(50, 500, (10, 2), generator=torch.Generator().manual_seed(0))
    whole = draw_views(InputSpec((SIMCLR,)), 0, 3, ids, sizes)["image"]
    alone = draw_views(InputSpec((SIMCLR,)), 0, 3, ids[[7]], sizes[[7]])["image"]
    for name, value in vars(whole.select([7])).items():
        assert value is getattr(alone, name) is None or torch.equal(value, getattr(alone, name)), name


def test_impossible_views_are_refused():
    for wrong in (dict(flip=1.5), dict(scale=(0.5, 0.2)), dict(hue=0.6), dict(size=0), dict(std=(1, 0, 1))):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ViewSpec(**wrong)


def test_random_masks_have_exact_counts_and_no_favourite_place():
    spec = RandomMask(grid=(14, 14), ratio=0.75)
    mask = draw_mask(spec, 0, 0, torch.arange(6000))
    assert (mask.hidden.sum(1) == 147).all() and mask.keep.shape == (6000, 49)
    coverage = mask.hidden.double().mean(0)
    # 196 binomial rates with standard deviation 0.0056: none further than 4.5 of them from 0.75
    assert (coverage - 0.75).abs().max() < 4.5 * math.sqrt(0.75 * 0.25 / 6000)


def test_mask_members_agree():
    mask = draw_mask(RandomMask(grid=(6, 6), ratio=0.5), 1, 2, torch.arange(20))
    for b in range(20):
        visible = (~mask.hidden[b]).nonzero()[:, 0]
        assert torch.equal(mask.keep[b].sort().values, visible)
        order = torch.cat([mask.keep[b], mask.hidden[b].nonzero()[:, 0]])
        assert torch.equal(order[mask.restore[b]], torch.arange(36))
