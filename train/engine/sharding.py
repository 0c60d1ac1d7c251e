"""Weights, gradients and optimizer state shared out over the processes: FSDP2 (`train.shard`).

Checkpoints hold whole tensors, so that a run may go on with or without, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ...errors import UserError
from ..recipe.settings import AdamWSettings, SGDSettings
from .distributed import Launch
from .transforms import blocks_of


def check_shardable(settings, optim) -> None:
    """Raises `UserError` for what does not go with sharded weights."""
    if not isinstance(optim, AdamWSettings | SGDSettings):
        reason = "others may need the norms of whole tensors, as lars and lamb do"
        raise UserError(f"train.shard: goes with optim.name adamw and sgd, not {optim.name}: {reason}")
    if settings.precision == "fp16" or settings.knn_every:
        raise UserError("train.shard: goes with precision fp32 and bf16, and without knn_every")


def shard(algorithm: nn.Module, launch: Launch) -> None:
    """Shares out the parameters, in place: each block of a transformer is gathered when it computes, the rest at once.

    To be called before the optimizer is built. In a single process nothing happens.
    """
    if launch.world > 1:
        from torch.distributed.device_mesh import init_device_mesh  # these take a second to import
        from torch.distributed.fsdp import fully_shard

        for parameter in algorithm.parameters():  # FSDP shares out rows, which channels-last kernels do not have
            parameter.data = parameter.data.contiguous()
        mesh = init_device_mesh(launch.device.type, (launch.world,))
        for block in blocks_of(algorithm):
            fully_shard(block, mesh=mesh)
        fully_shard(algorithm, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    return any(_is_share(parameter) for parameter in model.parameters())


def _is_share(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "placements")  # a DTensor, asked without the import


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of which this is a share, or itself. A collective."""
    return tensor.full_tensor() if _is_share(tensor) else tensor


def gathered(value):
    """A nest of dicts and lists with whole tensors in the place of shares. A collective: every process calls it."""
    if torch.is_tensor(value):
        return whole(value)
    if isinstance(value, dict):
        return {key: gathered(item) for key, item in value.items()}
    return [gathered(item) for item in value] if isinstance(value, list) else value


def share_like(full: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """This process's share of `full`, laid out as `own` is; `full` itself where nothing is shared out."""
    if not _is_share(own) or full.shape != own.shape:
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(own.device), own.device_mesh, own.placements)


def shared_model(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's state of whole tensors as `model` takes it."""
    own = model.state_dict()
    return {key: share_like(value, own[key]) if key in own else value for key, value in state.items()}


def shared_optimizer(state: dict, parameters: Iterable[torch.Tensor]) -> dict:
    """An optimizer's state of whole tensors as one over `parameters` takes it."""
    shared = {
        index: {
            key: share_like(item, own) if torch.is_tensor(item) else item for key, item in state["state"][index].items()
        }
        for index, own in enumerate(parameters)
        if index in state["state"]
    }
    return {**state, "state": shared}
