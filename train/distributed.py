"""The process group, from torchrun's environment; a single process needs none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ..errors import UserError


@dataclass(frozen=True)
class Launch:
    """Who this process is."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def pick_device(choice: str) -> torch.device:
    """cuda or cpu for auto | cpu | cuda; on a node with several processes, this one's GPU."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("train.device: cuda was asked for but torch sees no GPU; use train.device=cpu or auto")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"train.device: process {local_rank} has no GPU of its own, there are {torch.cuda.device_count()}"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def launch(device: torch.device, timeout: timedelta = timedelta(minutes=10)) -> Iterator[Launch]:
    """Joins the process group (nccl on GPUs, gloo on CPUs) for as long as the context lasts."""
    environment = {
        key: int(os.environ.get(key, default))
        for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    }
    rank, world, local_rank, local_world = environment.values()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif local_world > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world))
    if world > 1:
        on_gpu = device.type == "cuda"
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout, device_id=device if on_gpu else None)
    try:
        yield Launch(rank, world, local_rank, local_world, device)
    finally:
        if world > 1:
            dist.destroy_process_group()
