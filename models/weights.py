"""Weights of one encoder in another of the same kind: for other image sizes, other windows, other tables of biases."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from .backbones.transformer import resize_positions

_SHARED, _BLOCKS = "relative_bias.table", "block_biases."


def load_weights(backbone: nn.Module, path: str, fresh: Collection[str] = ()) -> None:
    """An encoder.safetensors into `backbone`, as `adapt` makes it fit, but for the tensors that start anew: those in
    whose names one of the regular expressions `fresh` is found.

    Raises `UserError` for a file that cannot be read and for one of another encoder.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as fault:
        raise UserError(f"algorithm.weights: {path}: not a readable .safetensors file ({fault})") from None
    own = backbone.state_dict()
    anew = {name for name in own if any(re.search(pattern, name) for pattern in fresh)}
    found = {name: value for name, value in adapt(found, backbone).items() if name not in anew}
    missing, foreign = own.keys() - found.keys() - anew, found.keys() - own.keys()
    shapes = [name for name in own.keys() & found.keys() if own[name].shape != found[name].shape]
    for problem, names in (("lacks", missing), ("has besides", foreign), ("has in another shape", shapes)):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise UserError(
                f"algorithm.weights: {path} {problem} {len(names)} of the backbone's tensors, such as {some}; "
                "give algorithm.backbone as in its run's config.yaml, or name those to start anew in algorithm.fresh; "
                "of a file of another library headrace import makes one first"
            )
    backbone.load_state_dict({**own, **found})


def adapt(found: Mapping[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """`found` as the encoder takes it; what does not fit stays as it is, for the caller to judge.

    Positions (1, L, D) and relative biases (offsets, heads) of squares are resized, positions as the encoder itself
    resizes them for other images; a bias that all blocks share becomes that of every block, where each has its own
    (BEiT's fine-tuning). The first convolution is fitted to the channels of the images (`fit_channels`).
    """
    adapted, own = dict(found), encoder.state_dict()
    stem = next((name for name, value in own.items() if value.dim() == 4), "")
    if stem in adapted and adapted[stem].dim() == 4 and adapted[stem].shape[1] != own[stem].shape[1]:
        adapted[stem] = fit_channels(adapted[stem], own[stem].shape[1])
    resizing = getattr(encoder, "resizing", {})
    blocks = [name for name in own if name.startswith(_BLOCKS) and name not in adapted]
    if blocks and _SHARED in adapted and _SHARED not in own:
        shared = adapted.pop(_SHARED)
        adapted |= {name: shared for name in blocks}
    for name, value in adapted.items():
        if name in own and own[name].shape != value.shape:
            adapted[name] = _resized(name, value, own[name].shape, resizing)
    return adapted


def fit_channels(weight: Tensor, channels: int) -> Tensor:
    """The weight (D, C, p, q) of a convolution of images for images of so many channels: timm's rule.

    One channel takes the sum over all. Several take those that are there in turn, times C / `channels`, so that what
    sees the same picture in every channel sees about as much as before (as much, where `channels` is a multiple of C).
    """
    held = weight.shape[1]
    if channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    return weight.repeat(1, -(-channels // held), 1, 1)[:, :channels] * (held / channels)


def _resized(name: str, value: Tensor, shape: torch.Size, resizing: Mapping[str, float]) -> Tensor:
    if value.dim() != len(shape) or value.shape[-1:] != shape[-1:]:
        return value
    if name.endswith("positions"):
        old, new = math.isqrt(value.shape[1]), math.isqrt(shape[1])
        fits = (old**2, new**2) == (value.shape[1], shape[1])
        return resize_positions(value, (old, old), (new, new), **resizing) if fits else value
    if name.endswith("table"):
        old, new = math.isqrt(value.shape[0]), math.isqrt(shape[0])
        rest = value.shape[0] - old**2  # rows of the class token: 3, or none
        if rest != shape[0] - new**2:
            return value
        square = value[: old**2].float().T.view(1, -1, old, old)
        square = F.interpolate(square, (new, new), mode="bicubic", align_corners=False).flatten(2)[0].T
        return torch.cat([square.to(value.dtype), value[old**2 :]])
    return value
