"""Collectives that autograd can see, so that W processes compute the gradient of one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def gather_with_gradient(x: torch.Tensor) -> torch.Tensor:
    """(W, *x.shape): `x` of every rank, in rank order; (1, ...) without a process group.

    The gradient of a rank's `x` is the sum over all ranks of what their losses say about it. With each rank's loss the
    mean over its own rows, averaging gradients over ranks then gives the gradient of the global mean exactly.
    """
    return x[None] if world_size() == 1 else _Gather.apply(x)


class _CpuSyncBatchNorm(_BatchNorm):
    """Batch normalisation over all ranks on the CPU, which `torch.nn.SyncBatchNorm` does not serve."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(x.shape)}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = torch.tensor([x.numel() / x.shape[1]], dtype=x.dtype)
        totals = _AllReduceSum.apply(torch.cat([x.sum(dims), count]))
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = x - mean.view(shape)
        variance = _AllReduceSum.apply(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * count / (count - 1), self.momentum)
        x = centred * torch.rsqrt(variance + self.eps).view(shape)
        return x * self.weight.view(shape) + self.bias.view(shape) if self.affine else x


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with every batch normalisation taking its statistics over all ranks; unchanged in a single process."""
    if world_size() == 1:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.__class__ = _CpuSyncBatchNorm  # same parameters and buffers, another forward
    return module
