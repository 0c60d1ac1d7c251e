"""Threads that decode share their memory: never more than the budget, whoever comes, and everybody gets a turn."""

import subprocess
import sys
import threading
import time

import pytest

from headrace.pipelines.images.budget import BYTES_PER_PIXEL, Budget, free_memory


def test_threads_never_hold_more_than_there_is_and_nobody_starves():
    budget, lock = Budget(100 * BYTES_PER_PIXEL), threading.Lock()
    held, most, served = [], [], []

    def work(pixels):
        for _ in range(20):
            with budget.reserve(pixels), budget.reserve(10**9):  # the second is part of the first
                with lock:
                    held.append(pixels)
                    most.append((sum(held), len(held)))
                time.sleep(0.0002)
                with lock:
                    held.remove(pixels)
        served.append(pixels)

    sizes = [1, 5, 30, 60, 99, 100, 700] * 3
    threads = [threading.Thread(target=work, args=(pixels,), daemon=True) for pixels in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(served) == sorted(sizes)
    assert all(total <= 100 or count == 1 for total, count in most)
    assert max(count for _, count in most) > 1


def test_a_large_image_is_not_overtaken_for_ever():
    budget, done = Budget(10 * BYTES_PER_PIXEL), []

    def take(pixels):
        with budget.reserve(pixels):
            done.append(pixels)

    with budget.reserve(6):
        threads = [threading.Thread(target=take, args=(pixels,)) for pixels in (8, 2)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        assert done == []  # there is room for the small one, but it came later
    for thread in threads:
        thread.join(5)
    assert done == [8, 2]


def test_a_fault_gives_back_what_was_reserved():
    budget = Budget(10 * BYTES_PER_PIXEL)
    for _ in range(3):
        with pytest.raises(KeyError), budget.reserve(8):
            raise KeyError
    other = threading.Thread(target=lambda: budget.reserve(10).__enter__(), daemon=True)
    other.start()
    other.join(5)
    assert not other.is_alive()


def test_control_groups_count(tmp_path):
    (tmp_path / "cgroup").write_text("0::/job/step\n")
    inside = tmp_path / "groups" / "job" / "step"
    inside.mkdir(parents=True)
    (inside / "memory.max").write_text("max\n")
    (inside / "memory.current").write_text("7\n")
    assert free_memory(tmp_path / "cgroup", tmp_path / "groups") > 1 << 20
    (inside.parent / "memory.max").write_text("5000000\n")
    (inside.parent / "memory.current").write_text("4000000\n")
    assert free_memory(tmp_path / "cgroup", tmp_path / "groups") == 1_000_000
    (tmp_path / "cgroup").write_text("3:memory:/x\n")
    (tmp_path / "groups" / "memory").mkdir()
    (tmp_path / "groups" / "memory" / "memory.limit_in_bytes").write_text("3000\n")
    (tmp_path / "groups" / "memory" / "memory.usage_in_bytes").write_text("1000\n")
    assert free_memory(tmp_path / "cgroup", tmp_path / "groups") == 2000


SCRIPT = """
import io, sys
from pathlib import Path
import numpy as np
from PIL import Image
from headrace.pipelines.images import budget
from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.spec import InputSpec, ViewSpec
from headrace.pipelines.views import cpu_augment

kind, side, threads = sys.argv[1], 2400, 8
Image.new("L", (side, side), 90).convert("RGB").save(buffer := io.BytesIO(), "PNG")

class Flat:
    name, classes = "flat", None
    __len__ = lambda self: 8
    read = lambda self, index: np.frombuffer(buffer.getvalue(), np.uint8)
    label = lambda self, index: -1
    key = lambda self, index: str(index)

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

budget.use_budget(budget.Budget(int(sys.argv[2]) << 20))
warm = make_loader(Flat(), InputSpec((ViewSpec(size=16),)), Order(8, 1), kind=kind, threads=threads)
next(warm)
warm.close()
Path("/proc/self/clear_refs").write_text("5")
before = peak()
loader = make_loader(Flat(), InputSpec((ViewSpec(size=16),)), Order(8, 8), kind=kind, threads=threads)
next(loader)
print(round(peak() - before))
loader.close()
"""


@pytest.mark.parametrize("kind", ["cpu", "dali"])
def test_tiny_files_of_many_pixels_are_not_all_decoded_at_once(kind):
    """8 PNGs of six million pixels, 17 kB each; seventy megabytes are enough for one at a time."""
    tight = int(subprocess.check_output([sys.executable, "-c", SCRIPT, kind, "70"], text=True, timeout=120))
    assert tight < 220  # 120 measured; 430 and 720 without a budget
