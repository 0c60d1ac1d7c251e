"""crop_resize: the reference against Pillow and PyTorch's own resize, Triton against the reference."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from headrace.errors import UserError
from headrace.kernels import operator
from headrace.kernels.check import check
from headrace.kernels.crop_resize import crop_resize, reference
from headrace.kernels.crop_resize.cases import CASES, MARGIN, draw, draw_planes
from headrace.pipelines.images.planes import Planes, planes_size
from headrace.pipelines.views.yuv import to_rgb

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter


def drawn(count, sides, seed=6):
    torch.manual_seed(seed)
    return tuple(tensor.to(DEVICE) for tensor in draw(count, sides))


def crops_of(images, offsets, widths, boxes):
    """Each box as a (h, w, 3) uint8 array, cut by numpy."""
    for offset, width, (left, top, w, h) in zip(offsets.tolist(), widths.tolist(), boxes.tolist()):
        start = offset + top * width * 3
        rows = images.cpu().numpy()[start : start + h * width * 3].reshape(h, width, 3)
        yield rows[:, left : left + w]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_reference_is_pillow(interpolation):
    """Of noise, the hardest image; sides from 1 to 90 pixels, shrunk and enlarged. What lies half-way between two bytes
    goes either way in Pillow, whose weights have 22 bits. Two calls, since Pillow's newer versions choose the order of
    the passes by their cost, and bytes in between make 20 levels of difference for bicubic noise."""
    arguments = drawn(60, (1, 90))
    found = crop_resize(*arguments, size=24, interpolation=interpolation, impl="reference").cpu().numpy()
    resampling, unequal = Image.Resampling[interpolation.upper()], []
    for ours, crop in zip(found, crops_of(*arguments), strict=True):
        rows = Image.fromarray(crop).resize((24, len(crop)), resampling)
        difference = np.abs(ours.astype(int) - np.asarray(rows.resize((24, 24), resampling)))
        assert difference.max() <= 1
        unequal.append((difference > 0).mean())
    assert np.mean(unequal) < 0.02


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_reference_without_antialiasing_is_interpolate(interpolation):
    """Which has OpenCV's taps, border and a = -3/4."""
    arguments = drawn(60, (1, 90))
    found = crop_resize(*arguments, size=24, interpolation=interpolation, antialias=False, impl="reference").cpu()
    for ours, crop in zip(found, crops_of(*arguments), strict=True):
        planes = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].double()
        expected = F.interpolate(planes, (24, 24), mode=interpolation, align_corners=False)[0].permute(1, 2, 0)
        assert (ours - expected.clamp(0, 255)).abs().max() < 0.501


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_of_planes_are_those_of_the_images_as_rgb(impl, interpolation):
    """Made RGB by other code and resized by Pillow: three roundings instead of one, of sums below 0 and above 255 too,
    which those of planes keep until the end. Smooth colours, where that is all there is."""
    torch.manual_seed(4)
    images, offsets, widths, boxes, heights = draw_planes(24 if impl == "reference" else 5, (1, 60))
    there, taken = images.clone(), []
    for n, (height, width) in enumerate(zip(heights.tolist(), widths.tolist())):
        start, size = int(offsets[n, 0]), planes_size(height, width)
        y, x = np.mgrid[:height, :width] / 40
        luma = 128 + 60 * np.sin(x + n) * np.cos(y)
        y, x = np.mgrid[: (height + 1) // 2, : (width + 1) // 2] / 20
        chroma = [128 + 50 * np.sin(x + turn) * np.cos(y + n) for turn in (0, 2)]
        flat = np.concatenate([plane.round().astype(np.uint8).ravel() for plane in (luma, *chroma)])
        there[start : start + size] = torch.from_numpy(flat)
        taken.append(to_rgb(Planes(flat, height, width)))
    arguments = [tensor.to(DEVICE) for tensor in (there, offsets, widths, boxes, heights)]
    found = crop_resize(*arguments, size=16, interpolation=interpolation, impl=impl).cpu().numpy()
    differences = []
    for ours, pixels, (left, top, w, h) in zip(found, taken, boxes.tolist(), strict=True):
        crop = Image.fromarray(pixels[top : top + h, left : left + w])
        expected = np.asarray(crop.resize((16, 16), Image.Resampling[interpolation.upper()]))
        differences.append(np.abs(ours.astype(int) - expected))
    assert np.max(differences) <= 2 and np.mean(differences) < 0.25


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_rows_that_no_crop_reads_may_be_missing(impl):
    """Of planes those of the box, and of chroma one more on either side; offsets are then below 0."""
    torch.manual_seed(2)
    images, offsets, widths, boxes, heights = draw_planes(4, (12, 40), 3)
    expected = crop_resize(*(tensor.to(DEVICE) for tensor in (images, offsets, widths, boxes, heights)), size=8)
    parts, moved, end = [], offsets.clone(), 0
    for n, (width, height, (_, top, _, rows)) in enumerate(zip(widths.tolist(), heights.tolist(), boxes.tolist())):
        for plane in range(3):
            pitch = (width + 1) // 2 if plane else width
            first, last = (top, top + rows) if not plane else (max(top - 1, 0) // 2, (top + rows) // 2 + 1)
            last = min(last, (height + 1) // 2 if plane else height)
            start = int(offsets[n, plane])
            parts.append(images[start + first * pitch : start + last * pitch])
            moved[n, plane] = end - first * pitch
            end += len(parts[-1])
    assert int(moved.min()) < 0 and end < 0.9 * len(images)
    less = torch.cat([*parts, torch.zeros(-end % 4, dtype=torch.uint8)])[:end]
    found = crop_resize(*(t.to(DEVICE) for t in (less, moved, widths, boxes, heights)), size=8, impl=impl)
    assert (found.int() - expected.int()).abs().max() <= 1 and (found != expected).float().mean() < 2e-3


def test_no_case_hangs_on_a_rounding(monkeypatch):
    """What a case's values are rounded from keeps its distance from the next byte, see cases.py."""
    distances = []
    to_byte = reference._to_byte

    def spy(values):
        moved = values + reference.ROUND
        distances.append((moved - moved.round())[(moved > 0.5) & (moved < 255.5)].abs().min().item())
        return to_byte(values)

    monkeypatch.setattr(reference, "_to_byte", spy)
    for case in CASES:
        args, options = case.arguments()
        reference.crop_resize(*args, **options)
    assert len(distances) > 2 * len(CASES) and min(distances) > MARGIN


def test_triton_passes_the_checker_on_every_case():
    pytest.importorskip("triton")
    results = check("crop_resize", "triton", DEVICE)
    assert [result for result in results if result.passed is False] == []
    assert {result.case for result in results if result.passed is None} == {"s6-lanczos"}


@pytest.mark.parametrize("antialias", [True, False])
def test_triton_on_sides_from_one_pixel_up(antialias):
    """Values that lie within float32's rounding of the next byte may become it: a few in ten thousand."""
    arguments = drawn(6, (1, 40), seed=7)
    options = {"size": 11, "interpolation": "bicubic", "antialias": antialias}
    ours, expected = (crop_resize(*arguments, impl=impl, **options).int() for impl in ("triton", "reference"))
    assert (ours - expected).abs().max() <= 1 and (ours != expected).float().mean() < 2e-3


def test_triton_on_several_tiles():
    """Of 8 x 64 pixels; a side of 80 is written 16 bytes at a time, and half of the second tile is beyond it."""
    arguments = drawn(1, (90, 110), seed=4)
    options = {"size": 80, "interpolation": "bicubic"}
    ours, expected = (crop_resize(*arguments, impl=impl, **options).int() for impl in ("triton", "reference"))
    assert (ours - expected).abs().max() <= 1 and (ours != expected).float().mean() < 2e-3


def test_a_buffer_whose_last_word_is_not_all_its_own():
    """Words are read; where memory ends before the last one does, it is another's."""
    images, *rest = drawn(3, (5, 9), seed=3)
    assert images.numel() % 4
    options = {"size": 8, "interpolation": "bilinear", "impl": "triton"}
    assert torch.equal(crop_resize(images.clone(), *rest, **options), crop_resize(images, *rest, **options))


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_one_tensor_of_images_and_boxes_as_large_as_the_crop(impl):
    torch.manual_seed(9)
    images = torch.randint(0, 256, (3, 10, 14, 3), dtype=torch.uint8, device=DEVICE)
    index = torch.tensor([2, 0, 2], device=DEVICE)
    boxes = torch.tensor([[0, 0, 8, 8], [6, 2, 8, 8], [3, 1, 8, 8]], dtype=torch.int32, device=DEVICE)
    widths = torch.full((3,), 14, dtype=torch.int32, device=DEVICE)
    crops = crop_resize(images, index * (10 * 14 * 3), widths, boxes, size=8, interpolation="bicubic", impl=impl)
    for crop, n, (left, top, w, h) in zip(crops, index.tolist(), boxes.tolist()):
        assert torch.equal(crop, images[n, top : top + h, left : left + w])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.zeros(48)}, "this is torch.float32"),
        ({"boxes": torch.zeros(2, 4, dtype=torch.int32)}, "these are (1,), (1,), (2, 4)"),
        ({"interpolation": "nearest"}, "not 'nearest'"),
        ({"interpolation": "lanczos", "antialias": False}, "with antialias=False"),
        ({"heights": torch.full((1,), 4)}, "(N, 3), (N,), (N, 4), (N,) of planes, these are (1,), (1,), (1, 4), (1,)"),
        ({"offsets": torch.zeros(1, 3), "heights": torch.full((1,), 4), "antialias": False}, "make RGB of them first"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    arguments = {
        "images": torch.zeros(48, dtype=torch.uint8),
        "offsets": torch.zeros(1, dtype=torch.int64),
        "widths": torch.full((1,), 4),
        "boxes": torch.tensor([[0, 0, 4, 4]]),
        "size": 2,
    }
    with pytest.raises(UserError) as error:
        crop_resize(**{**arguments, **change})
    assert words in str(error.value)


def test_lanczos_is_refused_by_triton_with_a_reason():
    args, options = CASES[-1].arguments()
    with pytest.raises(UserError, match="no Lanczos filter"):
        crop_resize(*args, **options, impl="triton")


def test_cost_counts_each_byte_once():
    args, options = CASES[0].arguments()
    area = sum(w * h for _, _, w, h in args[3].tolist())
    assert operator("crop_resize").cost(*args, **options).bytes == 3 * area + 3 * 2 * 16 * 16
