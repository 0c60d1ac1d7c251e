"""Freed memory of runs on CPUs is kept: counted by the kernel's page faults, in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from headrace.train import heap, pretrain
from headrace.train.recipe.recipe import load_recipe

def step():  # 48 MB
    first = torch.empty(1 << 22).fill_(1)
    return first, torch.empty(1 << 23).fill_(2)

said = heap.keep_freed() if sys.argv[1] == "keep" else None
if sys.argv[1] == "run":
    pretrain.pretrain = lambda *_: None
    pretrain.run(load_recipe("mae_vit-tiny_demo", ["train.device=cpu"]))
for _ in range(30):  # blocks are aligned: for some steps none of those freed may be wide enough
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(said, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what, **environment):
    """What `keep_freed` said, and the page faults of five steps that write 240 MB."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | environment
    command = [sys.executable, "-c", CODE, what]
    said, count = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
    return said, int(count)


@pytest.mark.parametrize("what", ["keep", "run"])
def test_what_a_step_freed_is_there_for_the_next(what):
    """Without: a fault for each 4 KB of the tensor of 32 MB at least, 41,000."""
    if platform.libc_ver()[0] != "glibc":
        assert faults("keep")[0] == "False"
        return
    _, usual = faults("")
    said, kept = faults(what)
    assert said == ("True" if what == "keep" else "None") and kept < 200 < 20_000 < usual


@pytest.mark.parametrize("set_", [{"MALLOC_TRIM_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=9"}])
def test_who_has_chosen_how_to_allocate_is_left_alone(set_):
    assert faults("keep", **set_)[0] == "False"
