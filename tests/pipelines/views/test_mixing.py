"""Mixup and CutMix against their formulas, and their draws against the distributions they state."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from headrace.pipelines.views.mixing import Mixing, MixParams, draw_mix, mix

IMAGES = torch.arange(4 * 3 * 8 * 8, dtype=torch.float32).view(4, 3, 8, 8)
LABELS = torch.tensor([0, 2, 1, 2])
PARTNER = torch.tensor([2, 3, 0, 1])


def soft(label, classes=3, smoothing=0.1):
    return [(1 - smoothing) * (k == label) + smoothing / classes for k in range(classes)]


def test_mixup_is_a_weighted_mean():
    images, labels = mix(IMAGES, LABELS, 3, Mixing(), MixParams(PARTNER, 0.3, None))
    for b, partner in enumerate(PARTNER.tolist()):
        assert torch.allclose(images[b], 0.3 * IMAGES[b] + 0.7 * IMAGES[partner])
        pairs = zip(soft(int(LABELS[b])), soft(int(LABELS[partner])))
        assert labels[b].tolist() == pytest.approx([0.3 * own + 0.7 * other for own, other in pairs])


def test_cutmix_pastes_a_box():
    images, labels = mix(IMAGES, LABELS, 3, Mixing(), MixParams(PARTNER, 0.625, (2, 4, 6, 4)))
    for b, partner in enumerate(PARTNER.tolist()):
        for y in range(8):
            for x in range(8):
                source = partner if 2 <= x < 8 and 4 <= y < 8 else b
                assert torch.equal(images[b, :, y, x], IMAGES[source, :, y, x])
    assert labels.sum(1).tolist() == pytest.approx([1.0] * 4)
    assert labels[1].tolist() == pytest.approx(soft(2))  # both of class 2


def test_without_mixing_labels_are_smoothed_alone():
    off = Mixing(mixup=0.0, cutmix=0.0)
    assert draw_mix(off, 0, 0, 0, 4, 8) is None
    images, labels = mix(IMAGES, LABELS, 3, off, None)
    assert images is IMAGES and labels[0].tolist() == pytest.approx([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3])
    assert mix(IMAGES, LABELS, 3, Mixing(0, 0, 0), None)[1].tolist() == torch.eye(3)[LABELS].tolist()


def test_draws_follow_their_distributions():
    drawn = [draw_mix(Mixing(), 0, step, 0, 16, 224) for step in range(4000)]
    blends = [d.share for d in drawn if d.box is None]
    boxes = [d for d in drawn if d.box is not None]
    assert abs(len(blends) - 2000) < 4 * math.sqrt(1000)
    assert stats.kstest(blends, "beta", args=(0.8, 0.8)).pvalue > 1e-3
    for d in boxes:
        left, top, width, height = d.box
        assert 0 <= left and left + width <= 224 and 0 <= top and top + height <= 224
        assert d.share == pytest.approx(1 - width * height / 224**2)
    # a square of 1 - share of the area about a uniform centre, cut at the edges
    rng = np.random.default_rng(0)
    half = 224 * np.sqrt(1 - rng.beta(1, 1, 40000)) / 2
    centres = rng.uniform(0, 224, (2, 40000))
    sides = np.minimum(224, centres + half) - np.maximum(0, centres - half)
    areas = sides[0] * sides[1] / 224**2
    assert stats.ks_2samp([1 - d.share for d in boxes], areas).pvalue > 1e-3
    assert all(sorted(d.partner.tolist()) == list(range(16)) for d in drawn[:50])


def test_draws_are_a_function_of_seed_step_and_rank():
    def key(*where):
        d = draw_mix(Mixing(), *where, 32, 64)
        return d.share, d.box, d.partner.tolist()

    assert key(1, 5, 0) == key(1, 5, 0)
    assert len({str(key(*where)) for where in ((1, 5, 0), (2, 5, 0), (1, 6, 0), (1, 5, 1))}) == 4


def test_impossible_strengths_are_refused():
    for wrong in (dict(mixup=-1.0), dict(smoothing=1.0)):
        with pytest.raises(ValueError, match="strengths are not negative"):
            Mixing(**wrong)
