"""What sizes itself by cores asks for those that this process may use."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

import headrace
from headrace.cores import core_ids, cores, quota, shared_cores

ROOT = Path(headrace.__file__).parent
_SIX = {"quota": "600000", "period": "100000"}


def groups(tmp_path, line, files):
    """(process file, mount point) as the kernel would show them."""
    (tmp_path / "cgroup").write_text(f"12:memory:/elsewhere\n{line}\n")
    for name, text in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return tmp_path / "cgroup", tmp_path / "mount"


@pytest.mark.parametrize(
    "line, files, expected",
    [
        ("0::/user/job", {"user/job/cpu.max": "250000 100000"}, 2.5),
        ("0::/user/job", {"user/job/cpu.max": "max 100000", "user/cpu.max": "100000 50000"}, 2.0),  # of the one around
        ("0::/", {"cpu.max": "400000 100000"}, 4.0),
        ("0::/seen/from/the/host", {"cpu.max": "300000 100000"}, 3.0),  # a container's own group is the root
        ("0::/user/job", {"user/job/cpu.max": "max 100000"}, math.inf),
        ("0::/user/job", {"unified/user/job/cpu.max": "150000 100000"}, 1.5),
        ("4:cpu,cpuacct:/job", {f"cpu,cpuacct/job/cpu.cfs_{k}_us": v for k, v in _SIX.items()}, 6.0),
        ("4:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, math.inf),
        ("4:cpuset:/job", {"cpuset/job/cpu.max": "100000 100000"}, math.inf),
        ("0::/job", {}, math.inf),
    ],
)  # fmt: skip
def test_the_quota_of_control_groups(tmp_path, line, files, expected):
    assert quota(*groups(tmp_path, line, files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert quota(tmp_path / "none", tmp_path) == math.inf


@pytest.mark.parametrize("seconds, expected", [(0.3, 1), (1.5, 2), (2.0, 2), (math.inf, 6)])
def test_a_quota_bounds_the_cores(monkeypatch, seconds, expected):
    monkeypatch.setattr("headrace.cores.quota", lambda: seconds)
    monkeypatch.setattr("headrace.cores.core_ids", lambda: set(range(6)))
    assert cores() == expected


def test_cores_are_shared_whoever_divided_them(monkeypatch):
    monkeypatch.setattr("headrace.cores.quota", lambda: math.inf)
    node = set(range(16))
    assert shared_cores(node, [node] * 4) == 4  # torchrun: all may use all
    bound = [set(range(4 * n, 4 * n + 4)) for n in range(4)]
    assert [shared_cores(mine, bound) for mine in bound] == [4] * 4  # srun --cpus-per-task: divided already
    assert shared_cores({0}, [{0}] * 3) == 1
    assert shared_cores({0, 1, 2}, [{0, 1, 2}] * 3) == 1  # three thirds are one
    monkeypatch.setattr("headrace.cores.quota", lambda: 8.0)
    assert shared_cores(node, [node] * 4) == 2


def test_a_process_that_is_held_to_one_core_counts_one():
    code = (
        f"import os; os.sched_setaffinity(0, {{{min(core_ids())}}})\n"
        "from headrace.cores import cores\n"
        "from headrace.train.engine.distributed import launch\n"
        "import torch\n"
        "with launch(torch.device('cpu')) as process: print(cores(), process.cores, torch.get_num_threads())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.split() == ["1", "1", "1"], ran.stderr


def test_nobody_else_counts_cores():
    counts = re.compile(r"cpu_count|sched_getaffinity|multiprocessing\.pool|PoolExecutor\(\s*\)")
    folders = [ROOT / name for name in ("schema", "pipelines", "kernels", "models", "train", "tools", "benchmarks")]
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    assert [str(path) for path in files if path.name != "cores.py" and counts.search(path.read_text("utf-8"))] == []


def test_a_process_takes_some_of_its_cores():
    """In a process of its own: of the cores that it may use the first, and its children with it; never more."""
    code = (
        "import os, subprocess, sys; from headrace.cores import cores, take_cores\n"
        "try: take_cores(cores() + 1)\nexcept ValueError as fault: print(fault)\n"
        "first = min(os.sched_getaffinity(0)); take_cores(1)\n"
        "child = 'import os; print(sorted(os.sched_getaffinity(0)))'\n"
        "print([first] == eval(subprocess.check_output([sys.executable, '-c', child])), cores())"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert said == [f"takes {cores() + 1} cores, and this process may use {cores()}", "True 1"]
