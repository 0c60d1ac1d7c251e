"""``train.lora``: given weights of an encoder stay, and a product of two thin matrices is learned beside each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import UserError
from ..models.algorithm import Algorithm
from ..models.backbones.low_rank import LowRank
from .engine.transforms import blocks_of
from .recipe.settings import Lora


def add_lora(algorithm: Algorithm, places: Sequence[str], settings: Lora) -> str:
    """Gives every linear layer of the blocks of the encoder and its copies, the modules `places`, matrices that learn
    in its place; the rest of the encoder stands still. Returns a report in one line.

    Momentum teachers average the matrices, as they do everything that learns. Raises `UserError` for an encoder without
    such blocks.
    """
    layers = 0
    for place in places:
        encoder = algorithm.get_submodule(place)
        learns = any(parameter.requires_grad for parameter in encoder.parameters())
        found = [part for block in blocks_of(encoder) for part in block.modules() if isinstance(part, nn.Linear)]
        if not found:
            raise UserError("train.lora: goes with the blocks of transformers, and this encoder has none")
        encoder.requires_grad_(False)
        for layer in found:
            own = LowRank(layer.weight, settings.rank, settings.alpha).requires_grad_(learns)
            parametrize.register_parametrization(layer, "weight", own)
        layers = len(found)
    for other in places[1:]:  # copies start as the first
        algorithm.get_submodule(other).load_state_dict(_adapters(algorithm.get_submodule(places[0])), strict=False)
    learning = sum(p.numel() for p in algorithm.get_submodule(places[0]).parameters() if p.requires_grad)
    return f"train.lora: rank {settings.rank} beside {layers} layers of {', '.join(places)}; {learning:,} numbers learn"


def _adapters(encoder: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in encoder.state_dict().items() if name.endswith((".0.up", ".0.down"))}
