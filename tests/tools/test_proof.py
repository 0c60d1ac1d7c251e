"""Whole models on our kernels without a GPU: what `headrace.tools.proof` finds, and that it finds what is wrong."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

WITHOUT = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "HEADRACE_KERNELS")}
RECORDED = ("mixmim_mixmim-base_16xb128-amp-coslr-600e_in1k", "dinov2_vit-base-p16_8xb128-amp-coslr-125k",
            "simclr_resnet18_cifar10", "mae_vit-tiny_cifar10")  # fmt: skip
# Factors that autocast has not made alike, a slice that begins at an odd place, too many blocks.
PLANTED = """
import torch
from headrace.kernels.info_nce import info_nce
from headrace.kernels.prototype_ce import prototype_ce
from headrace.tools.fake_cuda import AXES, fake_cuda, faults

with fake_cuda(torch.bfloat16) as seen:
    linear = torch.nn.Linear(8, 8, device="cuda")
    product = linear(torch.empty(4, 8, device="cuda"))
    print(product.dtype, torch.nn.functional.layer_norm(product, (8,)).dtype, product.device)
    try:
        with torch.autocast("cuda", enabled=False):
            linear(product)
    except RuntimeError as error:
        print("refused:", error)
    rows = torch.empty(8, 64, device="cuda")
    info_nce(rows, rows, torch.arange(8, device="cuda"), temperature=0.1)
    odd = torch.empty(513, device="cuda")[1:].view(2, 1, 256)
    prototype_ce(odd, rows.view(2, 1, 256), student_temperature=0.1)
print(sorted(seen.dtypes))
print([faults(launch) for launch in seen.launches])
print(faults(seen.launches[0]._replace(grid=(1, AXES[1] + 1))))
"""


def output(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=WITHOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_steps_under_cudas_autocast():
    lines = output("-m", "headrace.tools.proof", "record", *RECORDED).splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [[name, p] for name in RECORDED for p in ("bf16", "fp16")]
    assert all(line.endswith("launches  ok") and " 0 launches" not in line for line in lines[:-1]), lines


def test_gradients_of_executed_kernels_are_the_references():
    (line, last) = output("-m", "headrace.tools.proof", "execute", "dino_vit-tiny_cifar10").splitlines()
    assert line.endswith("3 launches  ok") and last.startswith("0 failed")


def test_what_is_planted_is_found():
    types, refused, found, misplaced, grid = output("-c", PLANTED).splitlines()
    assert types == "torch.bfloat16 torch.float32 cuda:0"  # of products and of norms
    assert refused == "refused: aten.addmm.default: bfloat16 and float32 where one dtype is asked for"
    assert found == "[('info_nce', 'bfloat16'), ('prototype_ce', 'float32')]"
    assert misplaced == "[[], [], ['_student_kernel: student is not at a multiple of 16 bytes']]"
    assert grid == "['_pass_kernel: 65536 blocks along axis 1, at most 65535']"
