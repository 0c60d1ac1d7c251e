"""How many cores a process may use. Everything that sizes itself by cores asks here."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from .control_groups import GROUPS, PROCESS, folders


def core_ids() -> set[int]:
    """The cores that the scheduler may put this process on: what taskset, Slurm and cpusets leave of the node's."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cores() -> int:
    """The cores this process may use: those it may run on, or fewer where its control group may not use their time.

    A quota of one and a half cores counts as two.
    """
    return max(1, math.ceil(min(len(core_ids()), quota())))


def take_cores(count: int) -> None:
    """From now on this process and its children run on so many of its cores, where the system has such a setting.

    Raises `ValueError` where it may use fewer.
    """
    if cores() < count:
        raise ValueError(f"takes {count} cores, and this process may use {cores()}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(core_ids())[:count])


def shared_cores(mine: Collection[int], neighbours: Sequence[Collection[int]]) -> int:
    """This process's part of `mine`, its cores, when the processes of its run on this node (itself among `neighbours`)
    have those: a core that n of them may use counts an n-th. So it does not matter who divided the cores, or nobody.
    """
    part = sum(1 / sum(core in other for other in neighbours) for core in mine)
    return max(1, math.ceil(min(int(part + 1e-9), quota() / len(neighbours))))


def quota(process: Path = PROCESS, groups: Path = GROUPS) -> float:
    """Cores' worth of time that the control groups of this process may use; infinite without a limit."""
    return min((limit for folder in folders("cpu", process, groups) for limit in _limits(folder)), default=math.inf)


def _limits(folder: Path) -> Iterator[float]:
    """What a group's files say: ``cpu.max`` of version 2 ("150000 100000", "max 100000"), or the two of version 1."""
    try:
        yield _cores(*(folder / "cpu.max").read_text(encoding="utf-8").split())
    except (OSError, ValueError, TypeError):
        pass
    try:
        parts = [(folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8").strip() for name in ("quota", "period")]
        yield _cores(*parts)
    except (OSError, ValueError):
        pass


def _cores(time: str, period: str) -> float:
    return int(time) / int(period) if time != "max" and int(time) > 0 else math.inf
