"""augment: the reference against torchvision one view at a time, Triton against the reference."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from headrace.benchmarks import augment_gpu
from headrace.errors import UserError
from headrace.kernels import operator
from headrace.kernels.augment import augment, blur_taps
from headrace.kernels.augment.cases import draw
from headrace.kernels.augment.table import COLUMNS
from headrace.kernels.check import check
from headrace.kernels.patch_loss.reference import patchify

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = operator("augment").cases
NORMALIZE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def drawn(count, size, seed=5, **options):
    torch.manual_seed(seed)
    return tuple(tensor.to(DEVICE) for tensor in draw(count, size, **options))


def by_torchvision(pixels, row, *, mean, std, sigma_max, gray_weights, gray_first):
    """One view, with torchvision's functions in float64."""
    x = pixels.permute(2, 0, 1).double() / 255
    drawn = dict(zip(COLUMNS, row.tolist()))

    def gray(x):
        if not drawn["gray"]:
            return x
        return tv.rgb_to_grayscale(x, 3) if gray_weights == "luma" else x.mean(0, keepdim=True).expand(3, -1, -1)

    x = gray(x) if gray_first else x
    for position in ("first", "second", "third", "fourth"):
        operation = COLUMNS[int(drawn[position])] if drawn[position] >= 0 else None
        if operation is not None:
            x = getattr(tv, f"adjust_{operation}")(x, drawn[operation])
    x = x if gray_first else gray(x)
    if drawn["sigma"] > 0:
        x = tv.gaussian_blur(x, blur_taps(sigma_max), drawn["sigma"])
    x = tv.solarize(x, 128 / 255) if drawn["solarize"] else x
    x = tv.horizontal_flip(x) if drawn["flip"] else x
    return tv.normalize(x, mean, std)


@pytest.mark.parametrize("gray_weights, gray_first", [("luma", False), ("luma", True), ("mean", True)])
def test_reference_is_torchvision_with_each_views_own_parameters(gray_weights, gray_first):
    """All 24 orders, every operation in both states, sigmas from end to end of the range."""
    pixels, table = drawn(48, 11)
    assert all(0 < (table[:, COLUMNS.index(name)] > 0).sum() < 48 for name in ("gray", "sigma", "solarize", "flip"))
    options = {**NORMALIZE, "sigma_max": 2.0, "gray_weights": gray_weights, "gray_first": gray_first}
    views = augment(pixels, table.double(), impl="reference", **options)
    for view, crop, row in zip(views, pixels.cpu(), table.cpu(), strict=True):
        assert (view.cpu() - by_torchvision(crop, row, **options)).abs().max() < 5e-6


def test_triton_passes_the_checker_on_every_case():
    pytest.importorskip("triton")
    results = check("augment", "triton", DEVICE)
    assert [result for result in results if result.passed is False] == []
    left_out = {result.case for result in results if result.passed is None}
    assert left_out == ({case.id for case in CASES if "bf16" in case.id} if DEVICE == "cpu" else set())


@pytest.mark.parametrize("dtype, levels", [(torch.float32, 0.002), (torch.float16, 0.06), (torch.bfloat16, 1.0)])
def test_triton_is_within_a_grey_level(dtype, levels):
    """Of 255, for all 24 orders; bfloat16 itself cannot say more, and the interpreter truncates to it."""
    triton_impl = pytest.importorskip("headrace.kernels.augment.triton_impl")
    pixels, table = drawn(24, 9)
    exact = augment(pixels, table.double(), sigma_max=2.0, **NORMALIZE)
    views = triton_impl.augment(pixels, table, sigma_max=2.0, dtype=dtype, **NORMALIZE)
    assert views.dtype == dtype and views.is_contiguous(memory_format=torch.channels_last)
    error = (views.double() - exact).abs() * 255 * torch.tensor(NORMALIZE["std"], device=DEVICE).view(3, 1, 1)
    assert error.max() < levels * (2 if dtype == torch.bfloat16 and DEVICE == "cpu" else 1)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_patches_are_the_images_cut_up(impl):
    pixels, table = drawn(3, 12)
    options = {**NORMALIZE, "sigma_max": 1.0, "impl": impl}
    images, patches = (augment(pixels, table, patch_size=p, **options) for p in (0, 4))
    assert torch.equal(patches, patchify(images, 4))


def test_a_view_is_its_row_alone():
    """The same bits from a batch, from a batch of one, from another place in a batch, and on every run."""
    pixels, table = drawn(5, 24, seed=8)
    options = {**NORMALIZE, "sigma_max": 2.0, "impl": "triton"}
    views = augment(pixels, table, **options)
    assert torch.equal(augment(pixels, table, **options), views)
    backwards = torch.arange(4, -1, -1, device=DEVICE)
    assert torch.equal(augment(pixels[backwards], table[backwards], **options), views[backwards])
    for n in range(5):
        assert torch.equal(augment(pixels[n : n + 1], table[n : n + 1], **options), views[n : n + 1])


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_contrast_means_the_image_at_that_point(impl):
    """Twice as bright, then contrast 0: the mean of what was clamped; the other way round, twice the mean."""
    pixels = torch.tensor([40, 240], dtype=torch.uint8, device=DEVICE).repeat(32).view(1, 8, 8, 1).expand(2, -1, -1, 3)
    table = torch.tensor([2.0, 0, 1, 0, 0, 1, 2, 3, 0, 0, 0, 0], device=DEVICE).repeat(2, 1)
    table[1, 4:6] = torch.tensor([1, 0])
    views = augment(pixels.contiguous(), table, mean=(0, 0, 0), std=(1, 1, 1), impl=impl)
    luma = 0.2989 + 0.587 + 0.114
    for view, expected in zip(views, (luma * (80 + 255) / 2 / 255, 1.0)):
        assert (view - expected).abs().max() < 1e-6


@pytest.mark.skipif(DEVICE == "cpu", reason="synchronisation is a matter of GPUs")
def test_no_synchronisation():
    pixels, table = drawn(4, 16)
    options = {**NORMALIZE, "sigma_max": 2.0, "impl": "triton"}
    augment(pixels, table, **options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(pixels, table, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pixels": torch.zeros(2, 8, 8, 3)}, "pixels is torch.float32 (2, 8, 8, 3)"),
        ({"pixels": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "must be torch.uint8 (N, S, S, 3)"),
        ({"table": torch.zeros(3, 12)}, "2 crops need (2, 12)"),
        ({"sigma_max": 3.0}, "reaches 9 px"),
        ({"gray_weights": "green"}, "not 'green'"),
        ({"patch_size": 3}, "patch_size 3 does not divide views of 8 px"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    arguments = {"pixels": torch.zeros(2, 8, 8, 3, dtype=torch.uint8), "table": torch.zeros(2, 12), **NORMALIZE}
    with pytest.raises(UserError) as error:
        augment(**{**arguments, **change})
    assert words in str(error.value)


def test_cost_counts_each_byte_once():
    pixels, table = drawn(4, 16, blur=1.0)
    options = {**NORMALIZE, "sigma_max": 2.0, "dtype": torch.bfloat16}
    cost = operator("augment").cost(pixels, table, **options)
    assert cost.bytes == 4 * 16 * 16 * 3 * (1 + 2) + 4 * 12 * 4
    assert cost.flops == 4 * 16 * 16 * (100 + 12 * 13)


def test_the_benchmark_compares_like_with_like_and_needs_a_gpu(monkeypatch, capsys):
    pytest.importorskip("triton")
    off = augment_gpu.errors(views=4, size=12, device=DEVICE)
    assert off["headrace"] < 0.01 and off["torchvision"] < 0.01 and off["headrace, crops"] <= 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert augment_gpu.main([]) == 2
    said = capsys.readouterr().err
    assert "no GPU" in said and said.count("\n") == 1
