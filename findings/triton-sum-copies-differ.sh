#!/usr/bin/env bash
# Triton: after tl.sum(x * y) threads of one warp hold different sums, which differ in the last bit.
#
# Expected: tl.sum gives one number. Each thread ends with a copy of it, and since a + b is b + a, the exchange of halves
#   by which threads add up (a butterfly of shuffles) gives all of them the same bits.
# Happens: by default a product that goes into the sum is fused with its first addition. Each thread rounds what it sends
#   and not what it keeps: one has fma(x0, y0, round(x1 y1)), its partner fma(x1, y1, round(x0 y0)). So one number has two
#   values in a warp, and where copies are written to one place of shared memory or of the output, whichever comes last
#   counts. The instructions are of a kernel compiled for a GPU that need not be there; what they compute is worked out
#   below, exactly. With enable_fp_fusion=False at the launch, or x * y + 0.0, all threads have the same.
# Versions: those printed, compiled for sm_90 without a GPU, Python 3.11. Seen on 2026-12-01.
# Source: https://triton-lang.org/main/python-api/generated/triton.language.sum.html,
#   https://docs.nvidia.com/cuda/parallel-thread-execution/#floating-point-instructions-mul (contraction of mul and add)
#
# Printed, and compared with at the end:
#> triton 3.8.0
#> default: mul.f32, shfl 16, fma.rn.f32, shfl 8, add.f32, shfl 4, add.f32, shfl 2, add.f32, shfl 1, add.f32
#> default: 2 different sums in a warp of 32
#> enable_fp_fusion=False: mul.rn.f32, shfl 16, add.rn.f32, shfl 8, add.rn.f32, shfl 4, add.rn.f32, shfl 2, add.rn.f32, shfl 1, add.rn.f32
#> enable_fp_fusion=False: 1 different sums in a warp of 32
#> x * y + 0.0: fma.rn.f32, shfl 16, add.f32, shfl 8, add.f32, shfl 4, add.f32, shfl 2, add.f32, shfl 1, add.f32
#> x * y + 0.0: 1 different sums in a warp of 32
set -euo pipefail
script=$(realpath "$0") room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cd "$room"
python3 -m venv venv
venv/bin/pip install -q triton==3.8.0 numpy==2.4.6
cat >look.py <<'PY'
import re

import numpy as np
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget


@triton.jit
def centred(x, y, out, plus: tl.constexpr, size: tl.constexpr):
    place = tl.arange(0, size)
    product = tl.load(x + place) * tl.load(y + place)
    if plus:
        product += 0.0
    tl.store(out + place, tl.load(y + place) - tl.sum(product, 0))


def instructions(plus, fused):
    types = {"x": "*fp32", "y": "*fp32", "out": "*fp32", "plus": "constexpr", "size": "constexpr"}
    source = triton.compiler.ASTSource(centred, types, {"plus": plus, "size": 32})
    options = {"num_warps": 1, "enable_fp_fusion": fused}
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    found = re.findall(r"(mul\.(?:rn\.)?f32|fma\.rn\.f32|add\.(?:rn\.)?f32|shfl\.sync\.bfly\.b32.*?, (\d+), 31)", text)
    return [f"shfl {lane}" if lane else name for name, lane in found]


def sums(steps):
    """What each thread has in the end. Values have 17 bits, so that float64 holds products and their sums exactly and
    only float32 rounds."""
    random = np.random.default_rng(0)
    x, y = (random.integers(-(1 << 16), 1 << 16, 32) / 2.0**15 for _ in range(2))
    value = other = np.zeros(32)
    for step in steps:
        if step.startswith("mul"):
            value = (x * y).astype(np.float32).astype(np.float64)
        elif step.startswith("shfl"):
            other = value[np.arange(32) ^ int(step.split()[1])]
        elif step.startswith("fma"):  # the own product, not rounded, plus what the partner has sent
            value = (x * y + other).astype(np.float32).astype(np.float64)
        else:
            value = (value + other).astype(np.float32).astype(np.float64)
    return value


print("triton", triton.__version__)
for name, plus, fused in (("default", 0, True), ("enable_fp_fusion=False", 0, False), ("x * y + 0.0", 1, True)):
    steps = instructions(plus, fused)
    print(f"{name}: {', '.join(steps)}")
    print(f"{name}: {len(set(sums(steps)))} different sums in a warp of 32")
PY
venv/bin/python look.py | tee seen
diff seen <(sed -n 's/^#> //p' "$script") && echo "as on 2026-12-01"
