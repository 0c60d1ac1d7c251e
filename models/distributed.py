"""Collectives beside those of `kernels.ranks`, so that W processes compute the gradient of one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ..kernels.ranks import all_reduce_sum, world_size


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.contiguous()  # images may be channels-last, which collectives do not take
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.stack(parts)

    @staticmethod
    @once_differentiable
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


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def shared_count(count: torch.Tensor) -> torch.Tensor:
    """The mean of a process's count over all of them, of which there is at least one in all: what the sum over the rows
    of a process is divided by, so that processes with unequal numbers of rows average to the mean over all rows."""
    return all_reduce_sum(count.detach().float()).clamp(min=1) / world_size()


@torch.no_grad()
def shuffle_across_ranks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A random redistribution of the global batch, and what `unshuffle_across_ranks` needs to undo it.

    x (B, ...) of each rank -> (B, ...), so that what a batch normalisation sees together changes (MoCo, arXiv
    1911.05722, section 3.3). One rank keeps its batch, since a permutation changes no statistics.
    """
    everything = gather_with_gradient(x).flatten(0, 1)
    order = torch.randperm(len(everything), device=x.device)
    if world_size() > 1:
        dist.broadcast(order, src=0)
    mine = everything[order.view(world_size(), -1)[rank()]]
    return torch.empty_like(x).copy_(mine), order.argsort()  # in the memory format of x


@torch.no_grad()
def unshuffle_across_ranks(x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """(B, ...) of each rank, computed from a shuffled batch -> those of its own samples."""
    return gather_with_gradient(x).flatten(0, 1)[inverse.view(world_size(), -1)[rank()]]


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Makes floating-point buffers (running statistics) the mean over ranks, where batch normalisation is per rank."""
    if world_size() > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= world_size()


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
        totals = all_reduce_sum(torch.cat([x.sum(dims), count]))
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = x - mean.view(shape)
        variance = all_reduce_sum(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * count / (count - 1), self.momentum)
        x = centred * torch.rsqrt(variance + self.eps).view(shape)
        return x * self.weight.view(shape) + self.bias.view(shape) if self.affine else x


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with every batch normalisation taking its statistics over all ranks.

    Unchanged in a single process, and where an `Algorithm` wants `local_batch_norm`.
    """
    if world_size() == 1 or getattr(module, "local_batch_norm", False):
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.__class__ = _CpuSyncBatchNorm  # same parameters and buffers, another forward
    return module
