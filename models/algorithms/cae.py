"""CAE: Context Autoencoder for Self-Supervised Representation Learning (Chen et al., arXiv 2202.03026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from ...pipelines.spec import Batch, ViewSpec
from ...pipelines.views.recipes import view as named
from ...schema.bounds import Count, NotNegative
from ..algorithm import Progress, StepOutput
from ..backbones.transformer import Block, init_transformer, positions_of
from ..backbones.vit import ViT
from ..smoke import PATCH, SIZE, tiny_view
from ..targets.dalle import STRIDE, WORDS, DalleEncoder
from ..targets.frozen import Weights
from ..teacher import Teacher
from ..words import MaskedWords, WordsConfig, hidden_places, rows, word_loss


class CAE(MaskedWords):
    """Encoding is kept apart from the pretext task: the encoder sees visible patches, a regressor guesses the rest.

    The regressor predicts what the encoder would make of the hidden patches, from their positions and the visible
    tokens; a decoder turns that into DALL-E's words. Loss: cross-entropy of the words + 2 x mean squared distance to
    the hidden tokens of the encoder of the step before, which sees the hidden patches alone.
    """

    sample_loss = "the loss of its hidden patches: cross-entropy of words + 2 x squared distance"

    @dataclass(frozen=True)
    class Config(WordsConfig):
        name: Literal["cae"] = "cae"
        view: ViewSpec = named("cae.image")
        target_view: ViewSpec = named("cae.target")
        backbone: ViT.Config = ViT.Config("vit_base", qkv_bias="qv", layer_scale=0.1)
        regressor_depth: Count = 4
        decoder_depth: Count = 4
        alignment: NotNegative = 2.0  # weight of the distance
        hidden_patches: Count = 75
        smallest_block: Count = 16  # patches
        largest_block: Count | None = None
        weights: Weights = Weights()  # of the tokenizer
        tokenizer_width: Count = 256

        def __post_init__(self) -> None:
            self.check_words(STRIDE)

        def smoke(self) -> CAE.Config:
            return self.tiny(
                target_view=tiny_view(self.target_view, STRIDE * SIZE // PATCH),
                regressor_depth=1,
                decoder_depth=1,
                largest_block=None,
                tokenizer_width=8,
            )

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        width, _, heads = config.backbone.shape
        self.vit = ViT(config.backbone, config.view.size)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.regressor = nn.ModuleList(RegressorBlock(width, heads) for _ in range(config.regressor_depth))
        self.regressor_norm = nn.LayerNorm(width, eps=1e-6)
        options = {"qkv_bias": "qv", "layer_scale": config.backbone.layer_scale}
        self.decoder = nn.ModuleList(Block(width, heads, **options) for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, WORDS)
        for module in (self.regressor, self.decoder):
            init_transformer(module)
        for parameter in (self.mask_token, self.vit.cls_token, self.head.weight):
            nn.init.trunc_normal_(parameter, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.teacher = Teacher(vit=self.vit)
        self.tokenizer = DalleEncoder(config.weights, config.tokenizer_width)

    def regress(
        self, tokens: torch.Tensor, table: torch.Tensor, keep: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """Visible tokens (B, 1 + K, D) at `keep` (B, K) -> guesses (B, H, D) of those at `places` (B, H).

        table: (B, L, D) positions of all patches.
        """
        visible, at_visible, at_hidden = tokens[:, 1:], rows(table, keep), rows(table, places)
        guess = self.mask_token.to(tokens.dtype).expand(len(tokens), places.shape[1], -1)
        for block in self.regressor:
            context = torch.cat([visible, guess], dim=1)
            guess = block(guess, context, at_hidden, torch.cat([at_visible, at_hidden], dim=1))
        return self.regressor_norm(guess)

    def forward(self, batch: Batch, progress: Progress) -> StepOutput:
        images, targets = (batch.views[spec.name][0] for spec in self.inputs().views)
        keep, places = batch.mask.keep, hidden_places(batch.mask)
        tokens = self.vit.tokens(images, keep)
        positions = positions_of(self.vit.positions, self.vit.grid, batch.mask.hidden.shape[1])
        table = positions.expand(len(tokens), -1, -1)
        guess = self.regress(tokens, table, keep, places)
        with torch.no_grad():
            latent = self.teacher.vit.tokens(images, places)[:, 1:]
        x = guess + rows(table, places)
        for block in self.decoder:
            x = block(x)
        words, own_words = word_loss(self.head, self.decoder_norm(x), self.tokenizer.words(targets).gather(1, places))
        alignment, weight = F.mse_loss(guess.float(), latent.float()), self.config.alignment
        return StepOutput(
            loss=words + weight * alignment,
            metrics={"loss_words": words.detach(), "loss_alignment": alignment.detach()},
            embedding=tokens[:, 1:].mean(1).detach(),
            patches=tokens[:, 1:].detach(),
            per_sample=lambda: own_words() + weight * (guess.detach().float() - latent.float()).square().mean((1, 2)),
        )

    def after_backward(self, progress: Progress) -> None:
        """Before the optimizer moves the encoder, so that the teacher stays a step behind."""
        self.teacher.update(self, 0.0)


class RegressorBlock(nn.Module):
    """Queries attend to the context; positions enter queries and keys only. (B, H, D) -> the same.

    The stream itself is normalised before the MLP, as in the authors' code: out = n + mlp(n), n = norm(q + attended).
    """

    def __init__(self, width: int, heads: int, layer_scale: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.scale1 = nn.Parameter(torch.full((width,), layer_scale))
        self.scale2 = nn.Parameter(torch.full((width,), layer_scale))

    def forward(
        self, queries: torch.Tensor, context: torch.Tensor, at_queries: torch.Tensor, at_context: torch.Tensor
    ) -> torch.Tensor:
        q = self.q(self.norm_q(queries + at_queries))
        k, v = self.k(self.norm_k(context + at_context)), self.v(self.norm_v(context))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm2(queries + self.scale1 * self.proj(attended))
        return x + self.scale2 * self.fc2(F.gelu(self.fc1(x)))
