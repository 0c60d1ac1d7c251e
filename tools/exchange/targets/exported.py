"""An encoder as another library takes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ....errors import UserError
from ....models.backbones import ResNet, ViT
from ....train.foreign.names import Layout


@dataclass(frozen=True)
class Exported:
    """The layout of the tensors, and the code that loads them there."""

    layout: Layout
    build: str  # lines of Python that make `model`
    features: str  # an expression of `model` and `images`: what our encoder gives
    prefix: str = ""  # of the names in the file


class Code(str):
    """An argument that is written as it stands."""

    __repr__ = str.__str__


def call(name: str, *arguments: object, **options: object) -> str:
    given = [repr(a) for a in arguments] + [f"{key}={value!r}" for key, value in options.items()]
    return f"{name}({', '.join(given)})"


def model(name: str, *arguments: object, **options: object) -> str:
    return f"model = {call(name, *arguments, **options)}"


def layer_norm(eps: float) -> Code:
    return Code(f"functools.partial(torch.nn.LayerNorm, eps={eps!r})")


def refuse(library: str, reason: str, instead: str = "timm") -> UserError:
    return UserError(f"--to {library}: {reason}; use --to {instead}")


def standard_resnet(config: ResNet.Config, library: str, v1d: bool = False) -> None:
    if config.width != 64 or config.small_image_stem or config.sobel or (config.v1d and not v1d):
        raise refuse(library, "its ResNets have other stems and widths than this one", "safetensors")


def one_window(encoder: nn.Module, size: int, library: str, *, shrink: bool) -> int:
    """The one window of all stages of a Swin; with `shrink`, up to the size of a stage's map."""
    own = [stage[0].window for stage in encoder.body.stages]
    limits = [size // stride for stride in (4, 8, 16, 32)]
    if own != [min(own[0], limit) if shrink else own[0] for limit in limits]:
        raise refuse(library, f"has one window for all stages, not {own}", "safetensors")
    return own[0]


def beyond_plain(config: ViT.Config) -> list[str]:
    """What a ViT has that the first one (arXiv 2010.11929) had not, in words."""
    found = {
        "relative biases": config.relative_bias is not None,
        "keys without biases": config.qkv_bias != "all",
        "registers": config.registers > 0,
        "rotary positions": config.positions == "rotary",
        "patches without positions": config.positions == "none",
        "a norm before the blocks": config.pre_norm,
        "a gated MLP": config.mlp == "swiglu",
        "layer scale": config.layer_scale is not None,
        "a norm after pooling": config.norm == "pooled",
    }
    return [what for what, there in found.items() if there]
