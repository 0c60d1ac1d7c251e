"""VQ-KD, the tokenizer of BEiT v2 (Peng et al., arXiv 2208.06366): codes of what CLIP or another teacher sees."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels.ranks import all_reduce_sum
from ..backbones.vit import ViT
from ..distributed import gather_with_gradient
from .frozen import Frozen, Weights

CODES, CODE_WIDTH = 8192, 32
ENCODER = ViT.Config("vit_base", positions="learned", qkv_bias="qv", pool="mean")


class VQKDEncoder(nn.Module):
    """images (B, 3, S, S) -> unit vectors (B, L, 32), one for each patch, to be looked up in the codebook."""

    def __init__(self, config: ViT.Config = ENCODER, image_size: int = 224, code_width: int = CODE_WIDTH) -> None:
        super().__init__()
        self.vit = ViT(config, image_size)
        width = self.vit.features
        self.project = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, code_width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.vit.tokens(images)[:, 1:]
        with torch.autocast(images.device.type, enabled=False):
            return F.normalize(self.project(tokens.float()), dim=-1)


class Codebook(nn.Module):
    """Unit vectors, each the running mean of the directions that are nearest to it.

    `forward`: (..., W) unit vectors -> their codes (...) int64. `update` moves the codes (decay 0.99, re-normalised,
    summed over ranks); codes without a vector stay as they are.
    """

    def __init__(self, codes: int = CODES, width: int = CODE_WIDTH, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("vectors", F.normalize(torch.randn(codes, width), dim=-1))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return (z.flatten(0, -2) @ self.vectors.T).argmax(1).view(z.shape[:-1])

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        return self.vectors[codes]

    @torch.no_grad()
    def initialise(self, z: torch.Tensor, iterations: int = 10) -> None:
        """Cosine k-means over the vectors (N, W) of each rank, from evenly spaced ones; once."""
        everything = gather_with_gradient(z).flatten(0, 1)
        self.vectors.copy_(everything[torch.linspace(0, len(everything) - 1, len(self.vectors)).long()])
        for _ in range(iterations):
            self._move(z, self(z), decay=0.0)
        self.ready.fill_(True)

    @torch.no_grad()
    def update(self, z: torch.Tensor, codes: torch.Tensor) -> None:
        """z (N, W), codes (N,)"""
        self._move(z, codes, self.decay)

    def _move(self, z: torch.Tensor, codes: torch.Tensor, decay: float) -> None:
        sums = torch.zeros_like(self.vectors).index_add_(0, codes, z)
        counts = torch.zeros(len(self.vectors), 1, device=z.device).index_add_(0, codes, torch.ones_like(z[:, :1]))
        sums, counts = all_reduce_sum(sums), all_reduce_sum(counts)
        means = F.normalize(sums, dim=-1)
        moved = F.normalize(decay * self.vectors + (1 - decay) * means, dim=-1)
        self.vectors.copy_(torch.where(counts > 0, moved, self.vectors))


class VQKDTokenizer(Frozen):
    """`words`: images (B, 3, S, S) with mean and deviation 0.5 -> (B, L) int64 in 0..8191, row by row."""

    source = (
        "train one (algorithm vqkd), or take the authors' (github.com/microsoft/unilm) or OpenMMLab's vqkd_encoder.pth"
    )

    def __init__(
        self, weights: Weights, config: ViT.Config = ENCODER, image_size: int = 224, codes: int = CODES
    ) -> None:
        super().__init__()
        self.encoder = VQKDEncoder(config, image_size)
        self.codebook = Codebook(codes)
        self.load(weights, _names)

    @torch.no_grad()
    def words(self, images: torch.Tensor) -> torch.Tensor:
        return self.codebook(self.encoder(images))


def _names(state: dict) -> dict:
    """Our own names, or the authors' (encoder.blocks.0.attn.qkv.weight, ...) or OpenMMLab's of the same network."""
    if "codebook.vectors" in state:
        return {name: state[name] for name in state if name.startswith(("encoder.", "codebook."))}
    parts = {
        "patch_embed.proj.": "patch_embed.",
        "patch_embed.projection.": "patch_embed.",
        "layers.": "blocks.",
        "ffn.blocks.0.0.": "fc1.",
        "ffn.blocks.1.": "fc2.",
        "mlp.": "",
        "attn.": "",
        "ln1.": "norm1.",
        "ln2.": "norm2.",
    }
    renamed = {"codebook.ready": torch.tensor(True)}
    for name, tensor in state.items():
        if name == "quantize.embedding.weight":
            renamed["codebook.vectors"] = F.normalize(tensor.float(), dim=-1)
        elif name.startswith("encode_task_layer."):
            renamed[name.replace("encode_task_layer.", "encoder.project.")] = tensor
        elif name.startswith("encoder.") and "relative_position" not in name:
            inner = name.removeprefix("encoder.")
            for theirs, ours in parts.items():
                inner = inner.replace(theirs, ours)
            inner = {"norm1.weight": "norm.weight", "norm1.bias": "norm.bias"}.get(inner, inner)
            renamed[f"encoder.vit.{inner}"] = tensor
    positions = renamed.pop("encoder.vit.pos_embed", None)
    if positions is not None:  # ours have no row for the class token: it is part of the class token
        renamed["encoder.vit.positions"] = positions[:, 1:]
        renamed["encoder.vit.cls_token"] = renamed["encoder.vit.cls_token"] + positions[:, :1]
    return renamed
