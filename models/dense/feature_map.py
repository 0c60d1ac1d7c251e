"""One map of an encoder's features, whoever made the encoder."""

from __future__ import annotations

import math

import torch
from torch import nn

from ...errors import UserError
from ..backbones import ResNet, ViT
from ..backbones.external import Timm
from ..backbones.windows import WindowEncoder


@torch.inference_mode()
def feature_map(encoder: nn.Module, images: torch.Tensor, layer: int = -1) -> torch.Tensor:
    """(B, C, rows, columns) of images (B, 3, H, W): of a ViT after block `layer` (the last one's are normalised), of
    others after a stage. timm's and torchvision's encoders give their last one, what they pool; images are square then.

    Raises `UserError` for an encoder without maps, and for a layer that it does not have.
    """
    if isinstance(encoder, ViT):
        number = _within(layer, len(encoder.blocks))
        return encoder.feature_maps(images, None if number == len(encoder.blocks) - 1 else (number,))[0]
    if isinstance(encoder, ResNet):
        maps = encoder.stages(images)
    elif hasattr(encoder, "feature_maps"):
        maps = encoder.feature_maps(images)
    else:
        maps = [_last_of_others(encoder.body if isinstance(encoder, Timm) else encoder, images)]
    return maps[_within(layer, len(maps))]


def multiple_of(encoder: nn.Module) -> int:
    """Pixels that the side of an image must be a multiple of."""
    return 32 if isinstance(encoder, WindowEncoder) else getattr(encoder, "patch_size", 1)


def _within(layer: int, count: int) -> int:
    if not -count <= layer < count:
        raise UserError(f"--layer: from 0 to {count - 1}, or from -1 for the last, not {layer}")
    return layer % count


def _last_of_others(encoder: nn.Module, images: torch.Tensor) -> torch.Tensor:
    if hasattr(encoder, "forward_features"):  # timm
        found = encoder.forward_features(images)
        if found.dim() == 4 and str(getattr(encoder, "output_fmt", "NCHW")).endswith("NHWC"):
            found = found.permute(0, 3, 1, 2)
        leading = getattr(encoder, "num_prefix_tokens", 0)
    else:  # torchvision: what the pooling gets, or tokens of which the first one stands for the class
        found, leading = _seen_inside(encoder, images), 1
    if found is not None and found.dim() == 3:
        patches = found[:, leading:].transpose(1, 2)
        side = math.isqrt(patches.shape[2])
        found = patches.unflatten(2, (side, side)) if side**2 == patches.shape[2] else None
    if found is None or found.dim() != 4:
        raise UserError(
            f"{type(encoder).__name__} gives no map of features; take an encoder of headrace's own, or one of timm's"
        )
    return found


def _seen_inside(encoder: nn.Module, images: torch.Tensor) -> torch.Tensor | None:
    pooling, tokens = getattr(encoder, "avgpool", None), getattr(encoder, "encoder", None)
    seen: list[torch.Tensor] = []
    if isinstance(pooling, nn.Module):
        hook = pooling.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    elif isinstance(tokens, nn.Module):
        hook = tokens.register_forward_hook(lambda _module, _given, made: seen.append(made))
    else:
        return None
    try:
        encoder(images)
    finally:
        hook.remove()
    return seen[-1]
