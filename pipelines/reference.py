"""The oracle: one sample at a time with Pillow and torchvision, slow and obvious. It defines what a view is."""

from __future__ import annotations

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from ..kernels.augment import blur_taps
from .decode import decode
from .draw import draw_views
from .spec import ByteSource, InputSpec, ViewParams, ViewSpec

_JITTER = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
_FILTER = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def apply_view(image: Image.Image, view: ViewSpec, params: ViewParams, copy: int, sample: int) -> torch.Tensor:
    """(3, size, size) float32: one view of one upright RGB image."""
    left, top, width, height = params.crop[copy, sample].tolist()
    image = image.crop((left, top, left + width, top + height)).resize(
        (view.size, view.size), _FILTER[view.interpolation]
    )
    x = tv.to_dtype(tv.pil_to_tensor(image), torch.float32, scale=True)
    if params.flip[copy, sample]:
        x = tv.horizontal_flip(x)
    for operation in params.order[copy, sample].tolist():
        if operation >= 0:
            x = _JITTER[operation](x, params.jitter[copy, sample, operation].item())
    if params.gray[copy, sample]:
        x = tv.rgb_to_grayscale(x, num_output_channels=3)
    if params.sigma[copy, sample] > 0:
        x = tv.gaussian_blur(x, blur_taps(view.blur_sigma[1]), params.sigma[copy, sample].item())
    if params.solarize[copy, sample]:
        x = tv.solarize(x, 128 / 255)
    return tv.normalize(x, view.mean, view.std)


def reference_views(
    source: ByteSource, inputs: InputSpec, seed: int, epoch: int, ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Every view of the samples `ids` (B,): name -> (count, B, 3, size, size)."""
    images = [Image.fromarray(decode(source.read(i))) for i in ids.tolist()]
    sizes = torch.tensor([(image.height, image.width) for image in images])
    params = draw_views(inputs, seed, epoch, ids, sizes)
    return {
        view.name: torch.stack(
            [
                torch.stack([apply_view(image, view, params[view.name], copy, b) for b, image in enumerate(images)])
                for copy in range(view.count)
            ]
        )
        for view in inputs.views
    }
