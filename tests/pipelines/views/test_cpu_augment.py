"""The compiled loops against Pillow (crops), and against the float64 reference of `augment` (colours)."""

import itertools
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from headrace.kernels.augment import parameter_table, reference
from headrace.kernels.augment.cases import draw
from headrace.pipelines.spec import ViewSpec
from headrace.pipelines.views.cpu_augment import ViewMaker, resize

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
RNG = np.random.default_rng


def image(height, width, seed=0):
    """Hard edges and noise: what rounds differently in another order shows."""
    rng = RNG(seed)
    coarse = rng.choice([0, 255, 128], (height // 6 + 1, width // 6 + 1, 3)).repeat(6, 0).repeat(6, 1)[:height, :width]
    return np.where(rng.random((height, width, 1)) < 0.3, rng.integers(0, 256, (height, width, 3)), coarse).astype(
        np.uint8
    )


def pillow(pixels, box, size, kind):
    left, top, width, height = box
    crop = Image.fromarray(np.array(pixels)).crop((left, top, left + width, top + height))
    return np.asarray(crop.resize((size, size), FILTERS[kind]))


@pytest.mark.parametrize("kind", FILTERS)
def test_crops_are_those_of_pillow_bit_for_bit(kind):
    pixels, rng = image(161, 211), RNG(1)
    boxes = [(0, 0, 211, 161), (0, 0, 1, 1), (210, 160, 1, 1), (3, 5, 48, 48), (0, 160, 211, 1), (210, 0, 1, 161)]
    for _ in range(40):
        left, top = int(rng.integers(0, 200)), int(rng.integers(0, 150))
        boxes.append((left, top, int(rng.integers(1, 212 - left)), int(rng.integers(1, 162 - top))))
    for box, size in itertools.product(boxes, (1, 32, 47)):
        out = np.full((size, size, 3), 77, np.uint8)
        resize(pixels, box, kind, out)
        assert np.array_equal(out, pillow(pixels, box, size, kind)), (box, size)


def test_images_that_are_parts_of_others_or_only_for_reading():
    whole = image(90, 120)
    whole.flags.writeable = False
    for pixels in (whole, whole[10:70, 20:100], whole[::-1, ::2]):
        out = np.empty((24, 24, 3), np.uint8)
        resize(pixels, (5, 7, 40, 50), "bilinear", out)
        assert np.array_equal(out, pillow(pixels, (5, 7, 40, 50), 24, "bilinear"))


def grey_levels(found, expected, view):
    return (found.double() - expected).abs() * torch.tensor(view.std).view(3, 1, 1) * 255


@pytest.mark.parametrize(
    "size, options",
    [
        (24, {}),
        (33, {"blur_sigma": (0.1, 3.1)}),
        (40, {"gray_first": True, "gray_weights": "mean"}),
        (9, {"gray_weights": "mean"}),
        (7, {}),
        (5, {"blur_sigma": (0.1, 0.9)}),
        (1, {"blur": 0.0}),
    ],
    ids=str,
)
def test_colours_are_the_references_within_a_twentieth_of_a_grey_level(size, options):
    """Every order of the jitter, every sigma, everything together."""
    view = ViewSpec(size=size, **{"blur": 0.7, **options})
    torch.manual_seed(size)
    pixels, table = draw(48, size, blur=view.blur, sigma=view.blur_sigma)
    table[:, 10] = 0
    expected = reference.augment(
        pixels,
        table.double(),
        mean=view.mean,
        std=view.std,
        sigma_max=view.blur_sigma[1] if view.blur else 0.0,
        gray_weights=view.gray_weights,
        gray_first=view.gray_first,
    )
    found = ViewMaker(view).finish_batch(pixels, table)
    assert found.is_contiguous(memory_format=torch.channels_last)
    # where the brightest two channels are equal, hue's rounding is divided by little: below a hundredth all the same
    assert grey_levels(found, expected, view).max() < 0.05 and grey_levels(found, expected, view).mean() < 0.01


def test_solarising_is_off_by_a_grey_level_at_most():
    view = ViewSpec(size=64, blur=0.5, solarize=1.0)
    torch.manual_seed(0)
    pixels, table = draw(24, 64)
    table[:, 10] = 1
    expected = reference.augment(pixels, table.double(), mean=view.mean, std=view.std, sigma_max=2.0)
    error = grey_levels(ViewMaker(view).finish_batch(pixels, table), expected, view)
    assert error.max() < 1.1 and error.mean() < 0.02


def test_factors_that_change_nothing_leave_every_bit():
    view = ViewSpec(size=32, jitter=1.0, brightness=0.5)
    pixels = torch.from_numpy(image(32, 32))[None].repeat(2, 1, 1, 1)
    off = dict(gray=torch.zeros(2), sigma=torch.zeros(2), solarize=torch.zeros(2), flip=torch.tensor([0, 1]))
    order = torch.tensor([[3, 1, 0, 2], [-1, -1, -1, -1]])
    neutral = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(2, 1)
    plain, flipped = ViewMaker(view).finish_batch(pixels, parameter_table(jitter=neutral, order=order, **off))
    assert torch.equal(plain, flipped.flip(-1))
    levels = plain * torch.tensor(view.std).view(3, 1, 1) + torch.tensor(view.mean).view(3, 1, 1)
    assert torch.allclose(levels * 255, pixels[0].permute(2, 0, 1).float(), atol=1e-3)


def test_whole_views_are_crops_flipped_and_finished_and_nothing_else_is_written():
    view, size, samples = ViewSpec(count=3, size=20, blur=0.5), 20, 4
    torch.manual_seed(5)
    _, table = draw(3 * samples, size)
    boxes = np.array([[[4 * c + b, 3 * b, 40 + 9 * c, 30 + 7 * b] for b in range(samples)] for c in range(3)], np.int32)
    pixels, maker = image(60, 77), ViewMaker(view)
    out = np.full((3 * samples, size, size, 3), 5e8, np.float32)
    for b in (0, 3):
        maker.views(pixels, boxes, table.numpy(), b, out)
    for copy, b in itertools.product(range(3), range(samples)):
        row = copy * samples + b
        if b in (1, 2):
            assert (out[row] == 5e8).all()
            continue
        crop = torch.from_numpy(pillow(pixels, boxes[copy, b].tolist(), size, "bilinear").copy())[None]
        assert np.array_equal(out[row], maker.finish_batch(crop, table[row : row + 1])[0].permute(1, 2, 0).numpy())


def test_threads_do_not_disturb_each_other():
    """Each has its own working memory; with one for all, almost every result would differ."""
    view = ViewSpec(size=48, blur=0.5)
    torch.manual_seed(6)
    pixels, table = draw(16, 48)
    maker, out = ViewMaker(view), np.zeros((16, 48, 48, 3), np.float32)
    expected = maker.finish_batch(pixels, table).permute(0, 2, 3, 1).numpy()

    def work(start):
        for _ in range(20):
            for n in range(start, 16, 4):
                maker.finish(pixels.numpy(), table.numpy(), n, n + 1, out)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(out, expected)
