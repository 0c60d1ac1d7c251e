"""hog: the reference against scipy pixel by pixel, Triton against the reference."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from headrace.errors import UserError
from headrace.kernels import operator, use
from headrace.kernels.check import check
from headrace.kernels.hog import hog

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = {case.id: case for case in operator("hog").cases}


def pixel_by_pixel(images):
    """(B, patches, C * 36) float64, every pixel put into its bin by Python."""
    batch, channels, height, width = images.shape
    rows, columns = height // 16, width // 16
    bell = np.exp(-((np.arange(16) - 7.5) ** 2) / (2 * 8.0**2))
    bell = np.outer(bell, bell) / bell.sum() ** 2
    found = np.zeros((batch, rows * columns, channels, 9, 2, 2))
    for b, c in np.ndindex(batch, channels):
        image = images[b, c].double().numpy()
        # scipy's "mirror" repeats no border pixel, as torch's "reflect"; sobel is right minus left, so minus it here.
        gx, gy = -ndimage.sobel(image, axis=1, mode="mirror"), -ndimage.sobel(image, axis=0, mode="mirror")
        for y, x in np.ndindex(height, width):
            k = math.floor(9 * math.atan2(gx[y, x], gy[y, x]) / math.pi) % 9
            patch = y // 16 * columns + x // 16
            found[b, patch, c, k, y % 16 // 8, x % 16 // 8] += math.hypot(gx[y, x], gy[y, x]) * bell[y % 16, x % 16]
    found /= np.maximum(np.sqrt((found**2).sum(3, keepdims=True)), 1e-12)
    return torch.from_numpy(found.reshape(batch, rows * columns, channels * 36))


@pytest.mark.parametrize("name", ["two-by-two", "contiguous", "one-channel", "flat-with-edges"])
def test_reference_is_the_definition(name):
    (images,), _ = CASES[name].arguments()
    assert torch.allclose(hog(images.double(), impl="reference"), pixel_by_pixel(images), atol=1e-9)


def test_triton_passes_the_checker_on_every_case():
    pytest.importorskip("triton")
    assert [result for result in check("hog", "triton", DEVICE) if result.passed is not True] == []


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("degrees", range(5, 360, 10))
def test_a_ramp_has_one_bin(impl, degrees):
    """Brightness that rises along one direction: gx = -8 cos, gy = -8 sin of it; with gx first, bins turn with it."""
    angle = math.radians(degrees)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    ramp = (x * math.cos(angle) + y * math.sin(angle))[None, None].to(DEVICE)
    middle = hog(ramp, impl=impl)[0, 4].view(9, 4).cpu()  # its neighbourhood lies inside the image
    expected = torch.zeros(9, 4)
    expected[(90 - degrees) % 180 // 20] = 1
    assert torch.allclose(middle, expected, atol=1e-6)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_edges_along_the_axes(impl):
    """Where gx is 0 the angle is 0 or pi, and both are bin 0: also for gy < 0, where 9 bins of 20 degrees end."""
    for sign in (1.0, -1.0):
        image = torch.zeros(1, 1, 16, 16, device=DEVICE)
        image[..., 4:, :] = sign
        assert hog(image, impl=impl)[0, 0].view(9, 2, 2)[0, 0].tolist() == [1.0, 1.0]
        assert hog(image.mT, impl=impl)[0, 0].view(9, 2, 2)[4, :, 0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_brightness_and_contrast_do_not_count(impl):
    """Whole numbers, so that the gradients are exact."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (1, 2, 16, 32), generator=generator).float().to(DEVICE)
    assert torch.allclose(hog(images, impl=impl), hog(images * 4 + 64, impl=impl), atol=1e-6)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_flat_image_is_all_zero(impl):
    """0.7 is no binary fraction: sums of weighted pixels would leave rounding errors, of norm one in the end."""
    assert torch.equal(hog(torch.full((1, 3, 16, 16), 0.7, device=DEVICE), impl=impl).cpu(), torch.zeros(1, 1, 108))


def test_compiles_to_one_graph_with_the_same_result():
    pytest.importorskip("triton")
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    with use("hog", "triton"):
        assert torch.equal(torch.compile(hog, backend="aot_eager", fullgraph=True)(images), hog(images))


def test_images_of_another_kind_are_refused():
    for images in (torch.zeros(1, 3, 24, 16), torch.zeros(3, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)):
        with pytest.raises(UserError, match=r"they must be floating \(B, C, H, W\) with H and W multiples of 16"):
            hog(images)
