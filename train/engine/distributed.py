"""The process group, from torchrun's environment, and its first-minute test; a single process needs none."""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ...cores import core_ids, cores, shared_cores
from ...errors import ProcessError, UserError

_LAST_WORDS = 3.0  # seconds that a process has to say that it is still there, once another is missed


@dataclass(frozen=True)
class Launch:
    """Who this process is; by default alone, on the CPU."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device: torch.device = torch.device("cpu")
    control: dist.ProcessGroup | None = None  # for what processes agree on, on CPUs; None in a single process
    cores: int = field(default_factory=cores)  # of the node, the part for this process

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier(self.control)

    def gather(self, value: object) -> list:
        """What each process gave, by rank, on all of them; tensors (N, ...) of one shape come without a detour."""
        if self.world == 1:
            return [value]
        if isinstance(value, torch.Tensor):
            parts = [torch.empty_like(value) for _ in range(self.world)]
            dist.all_gather(parts, value.contiguous(), group=self.control)
        else:
            parts = [None] * self.world
            dist.all_gather_object(parts, value, group=self.control)
        return parts

    def from_main(self, value: object) -> object:
        """What the first process gave, on all of them."""
        if self.world == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=0, group=self.control)
        return told[0]

    def require_equal(self, facts: dict[str, object]) -> None:
        """Raises `UserError` on every process if one of `facts` differs among them, naming it and who differs."""
        if self.world == 1:
            return
        all_facts, problems = self.gather(facts), []
        for key in facts:
            values = [str(others.get(key)) for others in all_facts]
            if other := [rank for rank in range(self.world) if values[rank] != values[0]]:
                problems.append(f"{key}: {values[0]} on process 0, but {values[other[0]]} on {_list(other)}")
        if problems:
            raise UserError("\n".join(f"the processes do not agree on {problem}" for problem in problems))


ALONE = Launch()


def pick_device(choice: str) -> torch.device:
    """cuda or cpu for auto | cpu | cuda; on a node with several processes, this one's GPU.

    Raises `UserError` for cuda where there is none, or none for this process.
    """
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
def launch(device: torch.device, timeout: float = 600.0) -> Iterator[Launch]:
    """Joins the process group (nccl on GPUs, gloo on CPUs) for as long as the context lasts.

    Raises `ProcessError` that names the processes that are missing when one ends, or does not answer for `timeout`
    seconds, be it at the start or later.
    """
    environment = {
        key: int(os.environ.get(key, default))
        for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    }
    rank, world, local_rank, local_world = environment.values()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        _bound_threads(cores())
        yield Launch(rank, world, local_rank, local_world, device)
        return
    patience = timedelta(seconds=timeout)
    try:
        on_gpu = device.type == "cuda"
        store = _joined(rank, world, timeout)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=patience,
            device_id=device if on_gpu else None,
        )
        control = dist.new_group(backend="gloo", timeout=patience)
        _self_test(device, rank, world)
        process = Launch(rank, world, local_rank, local_world, device, control)
        everyone = process.gather((rank - local_rank, core_ids()))  # the first rank of a node stands for the node
        part = shared_cores(core_ids(), [ids for node, ids in everyone if node == rank - local_rank])
        _bound_threads(part)
        yield replace(process, cores=part)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as fault:
        if not dist.is_initialized():
            reason = str(fault).splitlines()[0]
            raise ProcessError(f"process {rank} of {world}: the others did not come ({reason}); start all of them")
        raise _explained(fault, rank, world) from fault
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
            _left.set()


_left = threading.Event()  # set once this process has been in a group, and left it


def _joined(rank: int, world: int, timeout: float) -> dist.Store:
    """The store of these very processes.

    A process that has left a group before the first rank has may find that one's store, which is about to be closed;
    then it asks again.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            return _meet(next(rendezvous("env://", timeout=timedelta(seconds=timeout)))[0], rank, world, timeout)
        except dist.DistNetworkError:
            if not _left.is_set() or time.monotonic() > deadline:
                raise


def _bound_threads(most: int) -> None:
    """PyTorch's own threads: no more than cores, which it counts without an eye for quotas and neighbours."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), most))


def _meet(store: dist.Store, rank: int, world: int, timeout: float) -> dist.Store:
    """A part of `store` for these very processes. Raises `ProcessError` that names who did not come.

    After a restart torchrun may give the store of the attempt before, with addresses of processes that are gone. So
    each process shows a fresh token, and the first answers it with a name for the meeting that has never been used.
    """
    token, meeting, deadline = secrets.token_hex(8), secrets.token_hex(8), time.monotonic() + timeout
    missing = set(range(1, world)) if rank == 0 else {0}
    if rank > 0:
        store.set(f"headrace/token/{rank}", token)
    while missing:
        if time.monotonic() > deadline:
            raise ProcessError(f"process {rank} of {world}: {_list(sorted(missing))} did not come within {timeout:g} s")
        if rank > 0:
            answer = _peek(store, f"headrace/answer/{rank}").partition("/")
            if answer[0] == token:
                meeting, missing = answer[2], set()
                store.set(f"headrace/{meeting}/{rank}", "here")
        for other in missing if rank == 0 else ():
            if shown := _peek(store, f"headrace/token/{other}"):
                store.set(f"headrace/answer/{other}", f"{shown}/{meeting}")
        if rank == 0:
            missing = {other for other in missing if not store.check([f"headrace/{meeting}/{other}"])}
        time.sleep(0.01)
    return dist.PrefixStore(f"headrace/{meeting}", store)


def _peek(store: dist.Store, key: str) -> str:
    """What is stored under the key by now, or nothing."""
    return store.get(key).decode() if store.check([key]) else ""


def _self_test(device: torch.device, rank: int, world: int) -> None:
    """A collective with a known result, on the device and through the network that training will use."""
    ranks = torch.full((1 << 16,), float(rank), device=device)
    dist.all_reduce(ranks)
    if not bool((ranks == world * (world - 1) / 2).all()):
        raise ProcessError(f"process {rank}: a sum over all processes is wrong; look at this node's GPU and network")


def _explained(fault: Exception, rank: int, world: int) -> Exception:
    """`fault`, or a `ProcessError` that names who is missing, if it comes from a collective.

    Whoever is still there says so to the store (which torchrun's agent keeps, or the process of rank 0).
    """
    reason = (str(fault).splitlines() or [type(fault).__name__])[0]
    if not isinstance(fault, dist.DistError) and "gloo" not in reason:
        return fault
    reason = re.sub(r"^\[\S+\] ", "", reason).split(". ")[0]  # without the place in gloo's sources
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"headrace/alive/{rank}", "yes")
        missing, deadline = list(range(world)), time.monotonic() + _LAST_WORDS
        while missing and time.monotonic() < deadline:
            missing = [other for other in missing if not store.check([f"headrace/alive/{other}"])]
            time.sleep(0.05)
    except (RuntimeError, ValueError):  # the store itself is gone, and with it its process or node
        missing = [0]
    if not missing:
        return fault
    return ProcessError(
        f"process {rank} of {world}: {_list(missing)} no longer answers, so this one ends ({reason[:160]}); "
        "the same command continues from the last checkpoint"
    )


def _list(ranks: list[int]) -> str:
    return ("process " if len(ranks) == 1 else "processes ") + ", ".join(map(str, ranks))
