"""CLIP's vision tower (Radford et al., arXiv 2103.00020): features that MILAN, EVA and VQ-KD learn to predict."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..backbones.transformer import Block
from .frozen import Frozen, Weights


@dataclass(frozen=True)
class CLIPShape:
    """ViT-B/16 as published."""

    size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    features: int = 512


class CLIPVision(Frozen):
    """`forward`: images (B, 3, S, S) -> features (B, 1 + L, 512), class token first, and attention (B, L).

    The attention is that of the class token over the patches in the last block, averaged over heads; with the class
    token's attention to itself it sums to 1. MILAN and EVA give the tower images normalised as for their own encoder.
    """

    source = (
        "take OpenAI's ViT-B-16 from github.com/openai/CLIP (as a state_dict), or OpenMMLab's clip_vit_base_16.pth.tar"
    )

    def __init__(self, weights: Weights, shape: CLIPShape = CLIPShape()) -> None:
        super().__init__()
        width, patches = shape.width, (shape.size // shape.patch_size) ** 2
        self.patch_embed = nn.Conv2d(3, width, shape.patch_size, shape.patch_size, bias=False)
        self.cls_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(1 + patches, width) * width**-0.5)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_CLIPBlock(width, shape.heads, eps=1e-5) for _ in range(shape.depth))
        self.norm_out = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, shape.features) * width**-0.5)
        self.load(weights, _names)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), 1, -1), x], dim=1) + self.positions
        x = self.norm_in(x)
        for block in self.blocks[:-1]:
            x = block(x)
        attention = self.blocks[-1].class_attention(x)
        x = self.blocks[-1](x)
        return self.norm_out(x).float() @ self.proj.float(), attention


class _CLIPBlock(Block):
    """A block with the sigmoid approximation of GELU."""

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))

    def class_attention(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L) float32: how much the class token looks at each patch, averaged over heads."""
        B, N, D = x.shape
        q, k, _ = self.qkv(self.norm1(x)).view(B, N, 3, self.heads, D // self.heads).float().unbind(2)
        logits = torch.einsum("bhd,bnhd->bhn", q[:, 0], k) * (D // self.heads) ** -0.5
        return logits.softmax(-1).mean(1)[:, 1:]


def _names(state: dict) -> dict:
    """OpenAI's names of the tower; the text tower and the rest of the file are left out."""
    whole = {
        "conv1.weight": "patch_embed.weight",
        "class_embedding": "cls_token",
        "positional_embedding": "positions",
        "proj": "proj",
    }
    parts = {
        "ln_pre": "norm_in",
        "ln_post": "norm_out",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.in_proj_": "qkv.",
        "attn.out_proj": "proj",
        "mlp.c_fc": "fc1",
        "mlp.c_proj": "fc2",
        "transformer.resblocks": "blocks",
    }
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith("visual."):
            continue
        name = name.removeprefix("visual.")
        if name in whole:
            name = whole[name]
        else:
            for theirs, ours in parts.items():
                name = name.replace(theirs, ours)
        renamed[name] = tensor.float()
    return renamed
