"""The ahead-of-time gate: every kernel compiles for every target and uses no more than is on record."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from headrace.kernels.aot import GATE, TARGETS, Figures, faults  # noqa: E402


def gate(*arguments, **environment):
    environment = {**{key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}, **environment}
    command = [sys.executable, "-m", "headrace.kernels.aot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_every_build_compiles_within_its_figures():
    done = gate()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for target in GATE:
        assert sum(f"  {target} " in line and line.endswith("ok") for line in lines) == (len(lines) - 2) / len(GATE)


def test_one_operator_can_be_asked_for():
    done = gate("patch_loss", "--target", "sm_90")
    names = {line.split()[0] for line in done.stdout.splitlines()[1:-1]}
    assert done.returncode == 0 and names == {"patch_loss"}, done.stdout + done.stderr


def test_a_build_without_figures_fails():
    assert faults(Figures(1, 0, 0), None, TARGETS["sm_90"]) == "no figures on record"


def test_the_interpreter_is_refused():
    done = gate(TRITON_INTERPRET="1")
    assert done.returncode == 2 and "unset it" in done.stderr


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (Figures(40, 0, 0), ""),
        (Figures(50, 0, 0), ""),
        (Figures(51, 0, 0), "51 registers, 40 on record"),
        (Figures(40, 16, 0), "16 bytes of stack, 0 on record"),
        (Figures(40, 0, 200 * 1024), "204800 bytes of shared memory"),
    ],
)
def test_what_is_a_fault(figures, words):
    fault = faults(figures, (40, 0), TARGETS["sm_80"])
    assert words in fault and bool(words) == bool(fault)
