"""The library torchvision."""

from __future__ import annotations

from ....models.backbones import ResNet, ViT
from ....models.backbones.swin import Swin
from ....train.foreign import resnet, swin, vit
from .exported import Exported, beyond_plain, model, one_window, refuse, standard_resnet


def _headless(lines: str, head: str, classes: int | None) -> str:
    return lines + f"\nmodel.{head} = torch.nn.Identity()" if classes is None else lines


def _resnet(encoder: ResNet, config: ResNet.Config, size: int, classes: int | None) -> Exported:
    standard_resnet(config, "torchvision")
    lines = model(f"torchvision.models.{config.name}", **({} if classes is None else {"num_classes": classes}))
    return Exported(resnet.TORCHVISION, _headless(lines, "fc", classes), "model(images)")


def _vit(encoder: ViT, config: ViT.Config, size: int, classes: int | None) -> Exported:
    if config.pool != "cls" or config.mlp != "gelu":
        raise refuse("torchvision", "its ViT has a class token for its output, and GELU")
    if beyond := beyond_plain(config):
        raise refuse("torchvision", f"its ViT has none of: {', '.join(beyond)}")
    width, depth, heads = config.shape
    options = dict(image_size=size, patch_size=config.patch_size, num_layers=depth, num_heads=heads, hidden_dim=width)
    options |= dict(mlp_dim=config.hidden_width, num_classes=classes or 1000)
    lines = model("torchvision.models.VisionTransformer", **options)
    return Exported(vit.TORCHVISION, _headless(lines, "heads", classes), "model(images)")


def _swin(encoder: Swin, config: Swin.Config, size: int, classes: int | None) -> Exported:
    width, depths, heads = config.shape
    window = one_window(encoder, size, "torchvision", shrink=False)
    options = dict(patch_size=[4, 4], embed_dim=width, depths=list(depths), num_heads=list(heads))
    options |= dict(window_size=[window, window], num_classes=classes or 1000)
    lines = model("torchvision.models.SwinTransformer", **options)
    return Exported(swin.TORCHVISION, _headless(lines, "head", classes), "model(images)")


KINDS = {ResNet: _resnet, ViT: _vit, Swin: _swin}
