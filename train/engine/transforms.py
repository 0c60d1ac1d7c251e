"""What changes how a model is computed, not what: recomputed activations, compilation."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ...errors import UserError


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The modules with parts of every outermost `nn.ModuleList`, or of the lists in it: the blocks of transformers."""
    blocks: list[nn.Module] = []
    for module in model.modules():
        inside = any(module is part for block in blocks for part in block.modules())
        if isinstance(module, nn.ModuleList) and not inside:
            blocks += [b for b in module if not isinstance(b, nn.ModuleList) and any(True for _ in b.children())]
    return blocks


def checkpoint_blocks(model: nn.Module) -> int:
    """Makes every block of every `nn.ModuleList` keep its input alone and recompute the rest in the backward pass.

    Returns how many blocks there are. Names in the state dict do not change. Raises `UserError` for blocks with batch
    normalisation, whose running statistics would count every batch twice, and where there are no blocks.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise UserError("train.checkpointing: this model has no list of blocks whose activations could be recomputed")
    for block in blocks:
        if any(isinstance(part, _BatchNorm) for part in block.modules()):
            raise UserError("train.checkpointing: these blocks have batch normalisation, which must see a batch once")
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return len(blocks)


def compiled_graphs() -> int:
    """How many graphs torch.compile has made in this process; a number that keeps rising means recompilation."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
