"""The ahead-of-time gate: every kernel compiles for every target and uses no more than is on record."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from headrace.kernels.aot import GATE, TARGETS, Figures, faults, worse  # noqa: E402
from headrace.kernels.proof.sass import Summary  # noqa: E402

# The gate on a record that says better than the kernel is, and where nothing can be disassembled.
PLANTED = """
from headrace.errors import UserError
from headrace.kernels import aot

before, tool = aot.on_record, aot.tool

def planted(path):
    recorded = before(path)
    _, _, products, width, loop = recorded["neighbours"]["sm_90"]
    assert not products and width and loop
    recorded["neighbours"]["sm_90"][2:] = 24, 2 * width, loop // 2
    return recorded

aot.on_record = planted
assert aot.main(["koleo", "--target", "sm_90"]) == 1

def missing(name):
    if name == "nvdisasm":
        raise UserError("kernels: nvdisasm is not here")
    return tool(name)

aot.tool = missing
assert aot.main(["koleo", "--target", "sm_90"]) == 0
"""


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


def test_a_planted_regression_is_refused_and_a_missing_disassembler_is_said():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PLANTED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (refused, passed) = (line for line in done.stdout.splitlines() if line.startswith("koleo "))
    for words in ("neighbours", "no tensor-core instructions, 24 on record", "bits on average", "in an inner loop"):
        assert words in refused
    assert passed.endswith("ok")
    assert "tensor cores, loads and loops were not compared: kernels: nvdisasm is not here" in done.stdout


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


@pytest.mark.parametrize(
    ("code", "same", "words"),
    [
        (Summary(8, 116, 110), True, ""),
        (Summary(1, 128, 50), True, ""),
        (Summary(0, 128, 100), True, "no tensor-core instructions, 16 on record"),
        (Summary(16, 115, 100), True, "loads of 115 bits on average, 128 on record"),
        (Summary(16, 115, 100), False, ""),  # another Triton
        (
            Summary(0, 63, 100),
            False,
            "no tensor-core instructions, 16 on record; loads of 63 bits on average, 128 on record",
        ),
        (Summary(16, 128, 111), True, "111 instructions in an inner loop, 100 on record"),
        (Summary(16, 128, 111), False, ""),
    ],
)
def test_what_is_a_fault_of_machine_code(code, same, words):
    fault = faults(Figures(40, 0, 0, code), (40, 0, 16, 128, 100), TARGETS["sm_90"], same)
    assert fault == words
    assert faults(Figures(40, 0, 0), (40, 0, 16, 128, 100), TARGETS["sm_90"], same) == ""
    assert faults(Figures(40, 0, 0, code), (40, 0), TARGETS["sm_90"], same) == "no machine code on record"


def test_two_versions_of_triton_stay_within_the_worse_figures():
    assert worse([40, 0, 16, 128, 90], [50, 8, 8, 100, 100], True) == [50, 8, 8, 100, 100]
    assert worse([60, 0, 16, 128, 120], [50, 8, 8, 100, 100], False) == [60, 8, 8, 100, 100]
    assert worse([60, 0], [50, 8], False) == [60, 8]
