"""VQ-KD: the tokenizer of BEiT v2, trained to say in 8,192 codes what CLIP sees (Peng et al., arXiv 2208.06366)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...pipelines.spec import Batch, ViewSpec
from ...schema.bounds import Count, NotNegative
from ..algorithm import Algorithm, Progress, StepOutput
from ..backbones.transformer import Block, init_trunc_normal
from ..smoke import PATCH, SIZE, tiny_backbone, tiny_view
from ..targets.clip import CLIPShape, CLIPVision
from ..targets.frozen import RANDOM, Weights
from ..targets.vqkd import CODES, ENCODER, Codebook, ViT, VQKDEncoder

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class VQKD(Algorithm):
    """An encoder names each patch by the nearest code; a shallow decoder predicts CLIP's features from the names.

    Loss: 1 - cos(prediction, feature) + commitment x squared distance of the encoder's unit vectors to their codes,
    averaged over patches. The codes are running means (`Codebook`); gradients pass straight through the look-up.
    """

    no_pictures = "predicts features of CLIP, no pictures"
    sample_loss = "1 - cos(prediction, feature) + commitment x squared distance, the mean over its patches"

    @dataclass(frozen=True)
    class Config(Algorithm.Config):
        name: Literal["vqkd"] = "vqkd"
        fixed_size: ClassVar[str] = "CLIP's tower sees one size"
        rgb_only: ClassVar[str] = "has a target of RGB images, CLIP's"
        view: ViewSpec = ViewSpec(scale=(0.08, 1.0), interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        backbone: ViT.Config = ENCODER
        decoder_depth: Count = 1
        codes: Count = CODES
        commitment: NotNegative = 1.0
        clip: CLIPShape = CLIPShape()
        weights: Weights = Weights()  # of CLIP's vision tower

        def __post_init__(self) -> None:
            own = self.view.size / self.backbone.patch_size
            if self.view.count != 1 or own != self.clip.size / self.clip.patch_size or self.clip.size != self.view.size:
                raise ValueError("view: needs one view, as large and in as many patches as CLIP's tower sees")

        def smoke(self) -> VQKD.Config:
            view, backbone = tiny_view(self.view), tiny_backbone(self.backbone)
            clip = CLIPShape(SIZE, PATCH, width=32, depth=2, heads=2, features=24)
            return replace(self, view=view, backbone=backbone, codes=16, clip=clip, weights=Weights(RANDOM))

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = VQKDEncoder(config.backbone, config.view.size)
        self.codebook = Codebook(config.codes)
        width, _, heads = config.backbone.shape
        self.decoder_embed = nn.Linear(self.codebook.vectors.shape[1], width)
        self.decoder = nn.ModuleList(Block(width, heads, qkv_bias="qv") for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.clip.features))
        init_trunc_normal(self)
        self.clip = CLIPVision(config.weights, config.clip)
        self._pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def encoder(self) -> ViT:
        return self.tokenizer.vit

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images = batch.views[self.config.view.name][0]
        z = self.tokenizer(images)  # (B, L, 32) unit vectors
        if progress.step == 0 and not self._pending:
            self.codebook.initialise(z.detach().flatten(0, 1))
        codes = self.codebook(z)
        named = self.codebook.lookup(codes)
        x = self.decoder_embed(z + (named - z).detach()) + self.encoder.positions
        for block in self.decoder:
            x = block(x)
        prediction = self.head(self.decoder_norm(x)).float()
        features, _ = self.clip(self._for_clip(images))
        cosines = F.cosine_similarity(prediction, features[:, 1:], dim=-1, eps=1e-12)
        distance = 1 - cosines.mean()
        commitment, weight = F.mse_loss(z, named), self.config.commitment
        self._pending.append((z.detach().flatten(0, 1), codes.flatten()))
        used = torch.zeros(self.config.codes, device=z.device).index_fill_(0, codes.flatten(), 1.0).mean()
        return StepOutput(
            loss=distance + weight * commitment,
            metrics={"cosine_distance": distance.detach(), "codes_used": used},
            embedding=z.mean(1).detach(),
            patches=z.detach(),
            per_sample=lambda: (1 - cosines.mean(1) + weight * (z - named).float().square().mean((1, 2))).detach(),
        )

    def after_step(self, progress: Progress) -> None:
        self.codebook.update(*(torch.cat(part) for part in zip(*self._pending)))
        self._pending.clear()

    def _for_clip(self, images: torch.Tensor) -> torch.Tensor:
        own, clip = self.config.view, (_CLIP_MEAN, _CLIP_STD)
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (own.mean, own.std))
        clip_mean, clip_std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in clip)
        return (images * std + mean - clip_mean) / clip_std
