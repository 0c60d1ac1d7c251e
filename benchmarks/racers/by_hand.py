"""The loop that people write themselves: torchvision's transforms and ResNet, timm's ViT, PyTorch's DataLoader."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import torchvision
from timm.models.vision_transformer import Block
from torch import nn

from ..peers.folders import Views, loader, tensors
from .heat import Heat, Racer, as_authors, optimizer, trained
from .lightly import resnet18, vit_tiny


def batches(heat: Heat) -> Iterator:
    """Views by torchvision v2 on byte tensors; the model has all threads that it would have."""
    rgb = torchvision.io.ImageReadMode.RGB
    read = lambda path: torchvision.io.decode_image(path, rgb)  # noqa: E731
    made = loader(heat.data, Views((heat.algorithm.view,), tensors), heat.workers, heat.job.batch, read)
    for views in made:
        torch.set_num_threads(heat.workers)
        yield views


def simclr(heat: Heat) -> Racer:
    own = heat.algorithm
    hidden, output = own.hidden, own.projection
    head = [nn.Linear(512, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
    head += [nn.Linear(hidden, output, bias=False), nn.BatchNorm1d(output)]
    model = nn.Sequential(resnet18(own.backbone.small_image_stem), *head)

    def loss(views: list[torch.Tensor]) -> torch.Tensor:
        z = F.normalize(model(torch.cat(views)), dim=1)
        similar = (z @ z.T / own.temperature).fill_diagonal_(float("-inf"))
        return F.cross_entropy(similar, torch.arange(len(z)).roll(len(z) // 2))

    return trained(model, batches(heat), loss, optimizer(heat, model), list)


class MAE(nn.Module):
    """Masking by sorted noise, timm's blocks for encoder and decoder."""

    def __init__(self, heat: Heat) -> None:
        super().__init__()
        own = heat.algorithm
        self.patch, self.keep = own.backbone.patch_size, 1 - own.mask_ratio
        self.vit = vit_tiny(self.patch, own.view.size)
        self.vit.pos_embed.requires_grad_(False)
        width, count = own.decoder.width, self.vit.patch_embed.num_patches
        self.embed, self.token = nn.Linear(192, width), nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, count + 1, width), requires_grad=False)
        self.blocks = nn.Sequential(*[Block(width, own.decoder.heads, qkv_bias=True) for _ in range(own.decoder.depth)])
        self.norm, self.predict = nn.LayerNorm(width), nn.Linear(width, 3 * self.patch**2)

    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        images, p = views[0], self.patch
        x = self.vit.patch_embed(images) + self.vit.pos_embed[:, 1:]
        batch, count, width = x.shape
        shuffle = torch.rand(batch, count).argsort(1)
        restore, kept = shuffle.argsort(1), int(count * self.keep)
        x = x.gather(1, shuffle[:, :kept, None].expand(-1, -1, width))
        first = (self.vit.cls_token + self.vit.pos_embed[:, :1]).expand(batch, -1, -1)
        x = self.embed(self.vit.norm(self.vit.blocks(torch.cat([first, x], 1))))
        tokens = torch.cat([x[:, 1:], self.token.expand(batch, count - kept, -1)], 1)
        tokens = tokens.gather(1, restore[:, :, None].expand(-1, -1, tokens.shape[-1]))
        x = self.blocks(torch.cat([x[:, :1], tokens], 1) + self.positions)
        predicted = self.predict(self.norm(x))[:, 1:]
        side = images.shape[-1] // p
        patches = (
            images.unflatten(2, (side, p)).unflatten(4, (side, p)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        )
        target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        hidden = restore >= kept
        return ((predicted - target) ** 2).mean(-1)[hidden].mean()


def mae(heat: Heat) -> Racer:
    model = MAE(heat)
    as_authors(model)
    return trained(model, batches(heat), model, optimizer(heat, model), list)
