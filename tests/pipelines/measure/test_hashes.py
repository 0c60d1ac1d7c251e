"""Perceptual hashes against the formula in float64, and against the package `imagehash` where it is installed."""

import math

import numpy as np
import pytest
from PIL import Image

from headrace.pipelines.measure.hashes import (
    ORIENTATIONS,
    WHOLE,
    block_hash,
    coefficients,
    dct_hash,
    dct_hash_of,
    oriented,
)


@pytest.fixture(scope="module")
def thumbs():
    """Smooth, as those of photos are: (40, 32, 32) uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (40, 7, 7), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC)) for one in coarse])


def textbook(thumb):
    """DCT-II of the whole thumbnail by its sum, its lowest 8 x 8, above their median; the first bit is the highest."""
    x = thumb.astype(float)
    c = [[math.cos(math.pi * k * (2 * n + 1) / 64) for n in range(32)] for k in range(8)]
    low = [sum(x[i, j] * c[u][i] * c[v][j] for i in range(32) for j in range(32)) for u in range(8) for v in range(8)]
    middle = sorted(low)[31:33]
    return int("".join(str(int(value > sum(middle) / 2)) for value in low), 2)


def test_the_dct_hash_is_its_formula(thumbs):
    assert dct_hash(thumbs[:6]).tolist() == [textbook(thumb) for thumb in thumbs[:6]]


def test_the_block_hash_is_its_formula(thumbs):
    for thumb, found in zip(thumbs[:6], block_hash(thumbs[:6]).tolist()):
        means = [thumb[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].astype(float).mean() for i in range(8) for j in range(8)]
        assert found == int("".join(str(int(mean > np.median(means))) for mean in means), 2)


def test_the_dct_hash_is_that_of_imagehash(thumbs):
    imagehash = pytest.importorskip("imagehash", reason="needs the extra [parity]")
    for thumb, found in zip(thumbs, dct_hash(thumbs).tolist()):
        assert found == int(str(imagehash.phash(Image.fromarray(thumb))), 16)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_hashes_of_turned_pictures_need_no_turned_pictures(thumbs, orientation):
    turned = np.ascontiguousarray(oriented(thumbs, orientation))
    assert (dct_hash_of(coefficients(thumbs), orientation) == dct_hash(turned)).all()


def test_eight_orientations_are_all_there_are(thumbs):
    seen = {oriented(thumbs[0], orientation).tobytes() for orientation in ORIENTATIONS}
    quarters = [np.rot90(one, k) for one in (thumbs[0], thumbs[0][:, ::-1]) for k in range(4)]
    assert seen == {np.ascontiguousarray(one).tobytes() for one in quarters}


def test_a_part_is_what_a_resized_part_gives():
    """Of pictures that are linear, linear interpolation is exact: f(x, y) at stretched and shifted places."""
    y, x = np.mgrid[:32, :32] - 15.5
    plane = lambda x, y: 128 + 3 * x - 2 * y
    part = (-0.1, 1.0, -0.2, -1.5)
    moved = plane(x * 0.9 + 1.0, y * 0.8 - 1.5)
    assert coefficients(plane(x, y)[None], part) == pytest.approx(coefficients(moved[None]), abs=2e-3)
    assert (coefficients(plane(x, y)[None], WHOLE) == coefficients(plane(x, y)[None])).all()


def test_flat_and_symmetric_pictures_hash_alike_in_every_orientation():
    flat = np.full((1, 32, 32), 90, np.uint8)
    ramp = np.minimum(np.arange(32), np.arange(32)[::-1]).astype(np.uint8)[None, None, :] * np.ones(
        (1, 32, 1), np.uint8
    )
    for thumb in (flat, ramp):
        low = coefficients(thumb)
        assert dct_hash_of(low, (0, 0, 1)) == dct_hash_of(low) == dct_hash_of(low, (0, 1, 0))
