"""Parameter groups and optimizers."""

from __future__ import annotations

import torch
from torch import nn

from .settings import AdamWSettings, OptimSettings


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices and kernels with decay; biases, norms, and tokens (leading 1s) without."""
    decayed, exempt = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            plain = parameter.squeeze().dim() <= 1
            (exempt if plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """The optimizer of a recipe's `optim` section; its rate is set by the schedule before every step."""
    groups = parameter_groups(model, settings.weight_decay)
    on_gpu = next(model.parameters()).is_cuda
    if isinstance(settings, AdamWSettings):
        return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=on_gpu)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=on_gpu)


def peak_lr(settings: OptimSettings, batch_size: int) -> float:
    """The linear scaling rule (arXiv 1706.02677): lr x batch / lr_batch."""
    return settings.lr * (batch_size / settings.lr_batch if settings.lr_batch else 1.0)
