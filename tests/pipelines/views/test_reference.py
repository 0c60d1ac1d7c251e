"""The oracle's own operations and the batched ones on the device, against formulas, NumPy, Pillow and OpenCV."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from headrace.pipelines.spec import InputSpec, RandAugment, RandomErasing, ViewSpec
from headrace.pipelines.views import randaugment
from headrace.pipelines.views.draw import draw_views
from headrace.pipelines.views.finish import after_colour, before_colour, cut_view, erasing_noise, places
from headrace.pipelines.views.reference import apply_view, augment, cut, resize_by_taps

try:
    import cv2
except ImportError:
    cv2 = None

PLAIN = {"flip": 0.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def photo(height, width, seed=0):
    """A smooth picture with noise on it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8))


def params_of(view, image, ids=(0,)):
    sizes = torch.tensor([(image.height, image.width)] * len(ids))
    return draw_views(InputSpec((view,)), 0, 0, torch.tensor(ids), sizes)[view.name]


def pixels_of(x):
    return (x * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


# ---- crops


@pytest.mark.parametrize("size", [(20, 31), (90, 7), (64, 50)])
@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_resizing_by_taps(kind, size):
    """Rows, then columns, of weights written down one by one; OpenCV itself within its own rounding."""
    image = photo(50, 64)
    x = np.asarray(image).astype(float)
    ours = np.asarray(resize_by_taps(image, size, ViewSpec(interpolation=kind, antialias=False)))

    def keys(t):
        t = abs(t)
        if kind == "bilinear":
            return max(0.0, 1 - t)
        return 1.25 * t**3 - 2.25 * t**2 + 1 if t <= 1 else -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    def matrix(source, target):
        m = np.zeros((target, source))
        for o in range(target):
            centre = (o + 0.5) * source / target - 0.5
            for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
                m[o, min(max(tap, 0), source - 1)] += keys(centre - tap)
        return m

    expected = np.einsum("ij,jkc,lk->ilc", matrix(50, size[1]), x, matrix(64, size[0]))
    assert np.abs(ours - expected.clip(0, 255)).max() <= 0.5 + 1e-9
    if cv2 is not None:
        flag = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[kind]
        assert np.abs(cv2.resize(x.astype(np.uint8), size, interpolation=flag).astype(int) - ours).max() <= 1


@pytest.mark.parametrize("mode", ["reflect", "edge", "symmetric", "constant"])
@pytest.mark.parametrize("padding", [0, 5, 30])
def test_windows_are_pieces_of_numpys_padding(mode, padding):
    view = ViewSpec(crop="window", size=24, padding=padding, padding_mode=mode, **PLAIN)
    image = photo(25, 40)
    padded = np.pad(np.asarray(image), ((padding,) * 2, (padding,) * 2, (0, 0)), mode)
    params = params_of(view, image, range(30))
    for b, place in enumerate(places(params)[0]):
        left, top = place[6] + padding, place[7] + padding
        expected = padded[top : top + 24, left : left + 24]
        assert np.array_equal(np.asarray(cut(image, view, params, 0, b)), expected)
        out = np.empty((24, 24, 3), np.uint8)
        cut_view(np.asarray(image), view, place, out)
        assert np.array_equal(out, expected)


RARE = {
    "window": ViewSpec(crop="window", size=32, resize=36),
    "squash": ViewSpec(crop="window", size=32, resize=40, squash=True, antialias=False),
    "enlarged": ViewSpec(crop="window", size=90, padding=3, interpolation="bicubic"),
    "linear": ViewSpec(size=32, antialias=False),
    "cubic": ViewSpec(size=100, antialias=False, interpolation="bicubic"),
    "lanczos": ViewSpec(size=32, interpolation="lanczos"),
    "ordinary": ViewSpec(size=32),
}


@pytest.mark.parametrize("name", RARE)
def test_the_loaders_crops_are_the_oracles(name):
    view, image = RARE[name], photo(50, 64)
    params = params_of(view, image, range(12))
    out = np.empty((view.size, view.size, 3), np.uint8)
    for b, place in enumerate(places(params)[0]):
        cut_view(np.asarray(image), view, place, out)
        assert np.abs(out.astype(int) - np.asarray(cut(image, view, params, 0, b))).max() <= 1


# ---- RandAugment


def applied(name, magnitude, image, fill=(10, 200, 90)):
    policy = torch.tensor([[[float(randaugment.NAMES.index(name)), magnitude]]])
    pixels = torch.from_numpy(np.asarray(image).copy())[None]
    ours = randaugment.rand_augment(pixels, policy, fill)[0].numpy().astype(int)
    return ours, np.asarray(augment(image, name, magnitude, fill)).astype(int)


MAGNITUDES = {
    "rotate": (-30.0, -7.3, 27.0),
    "posterize": (0.0, 1.0, 4.0),
    "solarize": (0.0, 25.6, 256.0),
    "solarize_add": (0.0, 99.0),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), (-0.9, -0.31, 0.0, 0.81)),
    **dict.fromkeys(("shear_x", "shear_y"), (-0.3, 0.27)),
    **dict.fromkeys(("translate_x", "translate_y"), (-0.45, 0.4, 0.123)),
}


@pytest.mark.parametrize("name", randaugment.NAMES)
def test_each_operation_is_pillows(name):
    for seed in range(3):
        for magnitude in MAGNITUDES.get(name, (0.0,)):
            ours, theirs = applied(name, magnitude, photo(48, 48, seed))
            assert np.abs(ours - theirs).max() <= 1, magnitude
            assert np.abs(ours - theirs).mean() < 0.1


def test_flat_and_two_level_images():
    for levels in ([7], [7, 9], [0, 255]):
        image = Image.fromarray(np.random.default_rng(0).choice(levels, (16, 16, 3)).astype(np.uint8))
        for name in ("autocontrast", "equalize", "contrast"):
            ours, theirs = applied(name, 0.5, image)
            assert np.abs(ours - theirs).max() <= 1


def test_policies_are_drawn_as_stated():
    spec = RandAugment(operations=2, level=9, spread=0.5, chance=0.5)
    n = 15000
    view = ViewSpec(randaugment=spec)
    sizes = torch.tensor([(50, 60)]).expand(n, 2)
    policy = draw_views(InputSpec((view,)), 0, 0, torch.arange(n), sizes)["image"].policy[0]
    operation, magnitude = policy.unbind(-1)
    done = operation >= 0
    assert abs(done.double().mean() - 0.5) < 4 * 0.5 / math.sqrt(2 * n)
    assert abs((done[:, 0] & done[:, 1]).double().mean() - 0.25) < 4 * 0.43 / math.sqrt(n)
    assert stats.chisquare(np.bincount(operation[done].int(), minlength=15)).pvalue > 1e-3

    def of(name):
        return magnitude[operation == randaugment.NAMES.index(name)].double().numpy()

    levels = np.random.default_rng(0).normal(9, 0.5, 200000).clip(0, 10)
    for name, most in (("rotate", 30), ("shear_x", 0.3), ("translate_y", 0.45), ("color", 0.9), ("sharpness", 0.9)):
        values = of(name)
        assert abs((values < 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(len(values))
        inner = np.abs(values) < most * (1 - 1e-6)  # beyond lie the 2.3 % that are cut
        assert stats.ks_2samp(np.abs(values[inner]), most * levels[levels < 10] / 10).pvalue > 1e-3
        assert abs(inner.mean() - (levels < 10).mean()) < 4 * 0.15 / math.sqrt(len(values))
    bits, added, thresholds = of("posterize"), of("solarize_add"), of("solarize")
    assert set(bits) <= {0, 1, 2} and abs((bits == 0).mean() - 0.0228) < 0.02
    assert set(added) <= set(range(60, 111)) and abs(added.mean() - 98.5) < 1.5
    assert (thresholds < 80).all() and (thresholds >= 0).all()


# ---- rotation, erasing, parts


def test_rotation_turns_clockwise_about_the_middle():
    x = np.zeros((1, 31, 31, 3), np.uint8)
    x[0, 3, 15] = 255  # above the middle
    turned = randaugment.rotate(torch.from_numpy(x), torch.tensor([90.0]))[0]
    assert turned[:, :, 0].nonzero().tolist() == [[15, 27]]  # right of it
    image = photo(64, 64)
    pixels = torch.from_numpy(np.asarray(image).copy())[None]
    for degrees in (-2.0, 0.7, 1.9, 33.0):
        ours = randaugment.rotate(pixels, torch.tensor([degrees]))[0].numpy()
        theirs = np.asarray(image.rotate(-degrees, Image.Resampling.NEAREST))
        assert (ours != theirs).any(-1).mean() < 2e-3  # ties between two neighbours


def test_angles_are_uniform():
    view = ViewSpec(rotate=2.0)
    sizes = torch.tensor([(50, 60)]).expand(5000, 2)
    angle = draw_views(InputSpec((view,)), 0, 0, torch.arange(5000), sizes)["image"].angle
    assert stats.kstest(angle.flatten().double().numpy(), "uniform", args=(-2, 4)).pvalue > 1e-3


def test_flip_comes_before_rotation_and_randaugment():
    view = ViewSpec(size=40, rotate=20.0, randaugment=RandAugment(chance=1.0), crop="center", center_fraction=1.0)
    view = replace(view, flip=0.5, mean=(0.0,) * 3, std=(1.0,) * 3)
    image = photo(40, 40)
    params = params_of(view, image, range(16))
    pixels = torch.from_numpy(np.asarray(image).copy()).expand(16, -1, -1, -1)
    ours = before_colour(pixels, view, params)
    assert params.flip.any() and not params.flip.all()
    for b in range(16):
        theirs = pixels_of(apply_view(image, view, params, 0, b, None)[0])
        assert (np.abs(ours[b].numpy().astype(int) - theirs).max(-1) > 2).mean() < 0.01  # rotation's ties


ERASE = ViewSpec(size=64, erasing=RandomErasing(chance=0.25))


def test_erased_rectangles_are_drawn_as_stated():
    n = 8000
    sizes = torch.tensor([(80, 90)]).expand(n, 2)
    box = draw_views(InputSpec((replace(ERASE, size=224),)), 0, 0, torch.arange(n), sizes)["image"].erased[0]
    left, top, width, height = box[box[:, 2] > 0].double().T
    assert abs(len(left) - n / 4) < 4 * math.sqrt(n * 3 / 16) and (box[box[:, 2] == 0] == 0).all()
    assert (left >= 0).all() and (left + width <= 224).all() and (top >= 0).all() and (top + height <= 224).all()
    rng = np.random.default_rng(0)
    area, shape = rng.uniform(0.02, 1 / 3, 20000) * 224**2, np.exp(rng.uniform(np.log(0.3), np.log(10 / 3), 20000))
    for ours, theirs in ((height, np.sqrt(area * shape)), (width, np.sqrt(area / shape))):
        assert stats.ks_2samp(ours, theirs.round().clip(1, 224)).pvalue > 1e-3
    share = (left + torch.rand(len(left))) / (225 - width)
    assert stats.kstest(share, "uniform").pvalue > 1e-3


def test_erased_pixels_are_normal_noise_of_their_own_sample():
    n = 40
    view = replace(ERASE, erasing=RandomErasing(chance=0.5))
    sizes = torch.tensor([(80, 90)]).expand(n, 2)
    ids = torch.arange(n)
    params = draw_views(InputSpec((view,)), 7, 2, ids, sizes)["image"]
    x = torch.full((1, n, 3, 64, 64), 9.0)
    out = after_colour(x.clone(), view, params, 7, 2, ids)
    changed = out != x
    noise = erasing_noise(view, 7, 2, ids, 0)
    for b, (left, top, width, height) in enumerate(params.erased[0].tolist()):
        inside = torch.zeros(64, 64, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        assert torch.equal(changed[0, b], inside.expand(3, -1, -1))
        assert torch.equal(out[0, b][:, inside], noise[b][:, inside])
    assert stats.kstest(noise.flatten()[::7].double().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(erasing_noise(view, 7, 2, ids[5:6], 0)[0], noise[5])
    pairs = np.corrcoef(noise[:20].flatten(1).numpy())
    assert np.abs(pairs - np.eye(20)).max() < 5 / math.sqrt(3 * 64**2)


def test_rotations_are_quarter_turns_clockwise():
    view = ViewSpec(size=16, count=2, parts="rotations")
    x = torch.rand(2, 3, 3, 16, 16)
    params = params_of(view, photo(20, 20), range(3))
    out = after_colour(x.contiguous(), view, params, 0, 0, torch.arange(3))
    assert out.shape == (8, 3, 3, 16, 16)
    for copy in range(2):
        for turns in range(4):
            theirs = np.rot90(x[copy].numpy(), -turns, (2, 3))
            assert np.array_equal(out[4 * copy + turns], theirs)
    assert out[1, 0, 0, 0, -1] == x[0, 0, 0, 0, 0]  # top left goes to top right


# Of a view of 255 px: column by column, cells of 86, 86, 85 px; squares of 64.
PLACES = [
    "centre",
    "top left",
    "middle left",
    "bottom left",
    "top",
    "bottom",
    "top right",
    "middle right",
    "bottom right",
]


@pytest.mark.parametrize(
    "size, side, widths", [(255, 64, (86, 86, 85)), (224, 53, (75, 75, 75)), (66, 1, (23, 23, 22))]
)
def test_patches_lie_anywhere_in_their_cells(size, side, widths):
    view = ViewSpec(size=size, parts="patches")
    assert view.side == side and view.copies == 9
    n = 4000
    sizes = torch.tensor([(80, 90)]).expand(n, 2)
    corners = draw_views(InputSpec((view,)), 0, 0, torch.arange(n), sizes)["image"].patches[0].numpy()
    for name, corner in zip(PLACES, corners.transpose(1, 2, 0)):
        column = 0 if "left" in name else 2 if "right" in name else 1
        row = 0 if "top" in name else 2 if "bottom" in name else 1
        for axis, cell in ((0, column), (1, row)):
            offsets = corner[axis] - cell * (size // 3)
            counts = np.bincount(offsets, minlength=widths[cell] - side + 1)
            assert len(counts) == widths[cell] - side + 1 and stats.chisquare(counts).pvalue > 1e-4, name


def test_patches_are_cut_where_they_were_drawn():
    view = ViewSpec(size=96, count=2, parts="patches")
    params = params_of(view, photo(20, 20), range(3))
    x = torch.rand(2, 3, 3, 96, 96).to(memory_format=torch.contiguous_format)
    out = after_colour(x, view, params, 0, 0, torch.arange(3))
    assert out.shape == (18, 3, 3, 11, 11)
    for copy in range(2):
        for b in range(3):
            for k, (left, top) in enumerate(params.patches[copy, b].tolist()):
                assert torch.equal(out[9 * copy + k, b], x[copy, b, :, top : top + 11, left : left + 11])


def test_gray_by_thirds_and_before_the_jitter():
    image = photo(32, 32)
    view = ViewSpec(size=32, crop="center", center_fraction=1.0, gray=1.0, gray_weights="mean", **PLAIN)
    x = apply_view(image, view, params_of(view, image), 0, 0, None)[0].numpy()
    mean = np.asarray(image).astype(float).mean(2) / 255
    assert np.abs(x - mean).max() < 1e-6
    jitter = dict(jitter=1.0, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.3)
    first = replace(view, gray_first=True, **jitter)
    params = params_of(first, image)
    x = apply_view(image, first, params, 0, 0, None)[0]
    factors = params.jitter[0, 0].tolist()
    expected = mean  # of a grey image neither saturation nor hue changes anything
    for operation in params.order[0, 0].tolist():
        if operation == 0:
            expected = (expected * factors[0]).clip(0, 1)
        elif operation == 1:
            expected = (expected * factors[1] + (1 - factors[1]) * expected.mean()).clip(0, 1)
    assert np.abs(x.numpy() - expected).max() < 1e-3
