"""CLIP's vision tower (Radford et al., arXiv 2103.00020): features that MILAN, EVA and VQ-KD learn to predict."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ...schema.bounds import Count
from ..backbones.transformer import Block
from ..backbones.vit import ViT
from .frozen import Frozen, Weights

# the tower's names in OpenAI's files, and in the ViT
STEM = {
    "conv1": "patch_embed",
    "class_embedding": "cls_token",
    "positional_embedding": "positions",
    "ln_pre": "pre_norm",
    "ln_post": "norm",
}
BLOCK = {
    "ln_1": "norm1",
    "attn.in_proj_weight": "qkv.weight",
    "attn.in_proj_bias": "qkv.bias",
    "attn.out_proj": "proj",
    "ln_2": "norm2",
    "mlp.c_fc": "fc1",
    "mlp.c_proj": "fc2",
}


@dataclass(frozen=True)
class CLIPShape:
    """ViT-B/16 as published."""

    size: int = 224
    patch_size: int = 16
    width: Count = 768
    depth: Count = 12
    heads: Count = 12
    features: Count = 512

    @property
    def vit(self) -> ViT.Config:
        shape = dict(patch_size=self.patch_size, width=self.width, depth=self.depth, heads=self.heads)
        return ViT.Config(**shape, pool="cls", positions="learned", pre_norm=True, mlp="quick_gelu", norm_eps=1e-5)


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
        self.vit = ViT(shape.vit, shape.size)
        self.proj = nn.Parameter(torch.randn(shape.width, shape.features) * shape.width**-0.5)
        self.load(weights, _names)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        last = len(self.vit.blocks) - 1
        early, final = self.vit.outputs(images, (last - 1, last))
        return self.vit.norm(final).float() @ self.proj.float(), class_attention(self.vit.blocks[last], early)


def class_attention(block: Block, x: torch.Tensor) -> torch.Tensor:
    """(B, N, width), class token first -> (B, N - 1) float32: how much it looks at the others, averaged over heads."""
    q, k, _ = block.projected(block.norm1(x)).float().unbind(2)
    logits = torch.einsum("bhd,bnhd->bhn", q[:, 0], k) * q.shape[-1] ** -0.5
    return logits.softmax(-1).mean(1)[:, 1:]


def _names(state: dict) -> dict:
    """OpenAI's names of the tower; the text tower and the rest of the file are left out."""
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith("visual."):
            continue
        name = name.removeprefix("visual.")
        for theirs, ours in {"transformer.resblocks": "blocks", **STEM, **BLOCK}.items():
            name = name.replace(theirs, ours)
        renamed[name if name == "proj" else f"vit.{name}"] = tensor.float()
    if (
        "vit.positions" in renamed and "vit.cls_token" in renamed
    ):  # ours have no row for the class token: it is part of the class token
        row, table = renamed["vit.positions"][:1], renamed["vit.positions"][1:]
        renamed |= {"vit.cls_token": (renamed["vit.cls_token"] + row)[None], "vit.positions": table[None]}
    return renamed
