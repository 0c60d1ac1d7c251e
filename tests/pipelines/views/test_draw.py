"""Drawn parameters against torchvision's own samplers, formulas, and counts."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from headrace.pipelines.spec import InputSpec, RandAugment, RandomErasing, ViewSpec
from headrace.pipelines.views.draw import draw_views, random_resized_crop

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

GOLDEN = {  # what SIMCLR draws for sample 2 of an image of 400 x 300 in epoch 4 of seed 11
    "crop": [[[41, 4, 318, 295]], [[267, 160, 100, 129]]],
    "order": [[[3, 1, 0, 2]], [[0, 3, 1, 2]]],
    "jitter": [1.1492817, 0.6350104, 1.3088648, -0.1415606, 1.4245952, 1.1643476, 0.7687679, 0.0076318],
    "sigma": [1.9714766, 0.0],
    "switches": [[[True], [True]], [[False], [False]], [[False], [False]]],
}


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


def test_draws_stay_what_they_were():
    """Runs can be resumed after an update only if a draw of today is one of tomorrow: as first released."""
    p = draw(SIMCLR, n=3, seed=11, epoch=4).select([2])
    assert p.crop.tolist() == GOLDEN["crop"] and p.order.tolist() == GOLDEN["order"]
    assert p.jitter.flatten().tolist() == pytest.approx(GOLDEN["jitter"], abs=1e-6)
    assert p.sigma.flatten().tolist() == pytest.approx(GOLDEN["sigma"], abs=1e-6)
    assert [p.flip.tolist(), p.gray.tolist(), p.solarize.tolist()] == GOLDEN["switches"]


def test_what_is_added_leaves_the_other_draws_alone():
    rare = replace(SIMCLR, rotate=3.0, randaugment=RandAugment(), erasing=RandomErasing(), parts="patches")
    before, after = draw(SIMCLR, n=50), draw(rare, n=50)
    for name, value in vars(before).items():
        if value is not None and name != "angle":
            assert torch.equal(value, getattr(after, name)), name
    assert after.angle.abs().min() > 0 and after.policy.shape == (2, 50, 2, 2) and after.patches.shape == (2, 50, 9, 2)


@pytest.mark.parametrize("size", [(300, 400), (301, 223), (97, 500), (224, 224)])
@pytest.mark.parametrize("short", [64, 224])
def test_windows_shorter_side_as_torchvision(size, short):
    p = draw(ViewSpec(crop="window", resize=short, size=64), n=2, size=size)
    expected = v2.functional.resize(torch.empty(1, *size), [short]).shape
    assert p.resized.tolist() == [[[expected[2], expected[1]]] * 2]
    assert p.crop.tolist() == [[[0, 0, size[1], size[0]]] * 2]


@pytest.mark.parametrize(
    "view, size, resized",
    [
        (ViewSpec(crop="window", size=255, resize=292, squash=True), (300, 400), (292, 292)),
        (ViewSpec(crop="window", size=32, padding=4), (32, 32), (32, 32)),
        (ViewSpec(crop="window", size=32), (40, 60), (60, 40)),
        (ViewSpec(crop="window", size=32, padding=4), (12, 20), (40, 24)),  # enlarged until a window fits
    ],
)
def test_windows_lie_anywhere(view, size, resized):
    p = draw(view, n=4000, size=size)
    assert (p.resized == torch.tensor(resized)).all()
    for axis in (0, 1):
        places = resized[axis] + 2 * view.padding - view.size + 1
        counts = np.bincount(p.offset[0, :, axis] + view.padding, minlength=places)
        assert len(counts) == places and (places == 1 or stats.chisquare(counts).pvalue > 1e-3)
    if p.offset[0].double().std(0).min() > 0:
        assert abs(np.corrcoef(p.offset[0].T.numpy())[0, 1]) < 0.08  # the two axes have nothing to do with each other


def test_two_views_of_the_same_draws():
    """Crop, flip and colours are the same; what differs is what the specs say differently."""
    image = replace(SIMCLR, count=1)
    inputs = InputSpec((image, replace(image, name="target", draws="image", size=112), replace(image, name="other")))
    found = draw_views(inputs, 0, 0, torch.arange(20), torch.tensor([(80, 90)]).expand(20, 2))
    for name, value in vars(found["image"]).items():
        if value is not None and name != "resized":
            assert torch.equal(value, getattr(found["target"], name)), name
    assert (found["target"].resized == 112).all() and (found["other"].crop != found["image"].crop).any()


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(crop="window", resize=200, padding=4), "resize"),
        (dict(crop="window", squash=True), "squash"),
        (dict(interpolation="lanczos", antialias=False), "antialias"),
        (dict(parts="patches", size=65), "size"),
        (dict(rotate=-1.0), "rotate"),
        (dict(padding=-1), "padding"),
    ],
)
def test_contradictory_views_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        ViewSpec(**wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandAugment(level=11.0),
        lambda: RandAugment(operations=0),
        lambda: RandomErasing(area=(0.5, 0.2)),
        lambda: RandomErasing(chance=1.5),
    ],
)
def test_impossible_policies_are_refused(make):
    with pytest.raises(ValueError, match="chance|level"):
        make()
