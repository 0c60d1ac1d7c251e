#!/usr/bin/env bash
# Triton's interpreter truncates float32 to bfloat16, also when it is told to round to nearest.
#
# Expected: x.to(tl.bfloat16) rounds to nearest, ties to even, as the compiler's default and fp_downcast_rounding="rtne"
#   say, so that a kernel under TRITON_INTERPRET=1 stores what tensor.bfloat16() gives. "rtz" is the other mode.
# Happens: the lower 16 bits are cut off in all three cases: 1.99 becomes 1.984375, not 1.9921875; errors are up to
#   twice as large and all towards zero. To float16 the interpreter rounds to nearest. The documented limit of the
#   interpreter is about operations on bfloat16, and names casts as the way round it.
# Versions: those printed, on CPU, Python 3.11. Seen on 2026-11-30.
# Source: https://triton-lang.org/main/python-api/generated/triton.language.cast.html,
#   https://triton-lang.org/main/programming-guide/chapter-3/debugging.html
#
# Printed, and compared with at the end:
#> torch 2.14.1, triton 3.8.0, TRITON_INTERPRET=1
#> torch's bfloat16: [1.9921875, -1.9921875, 0.333984375, 3.0]
#> interpreter, default: [1.984375, -1.984375, 0.33203125, 2.984375]
#> interpreter, rtne: [1.984375, -1.984375, 0.33203125, 2.984375]
#> interpreter, rtz: [1.984375, -1.984375, 0.33203125, 2.984375]
#> float16 as torch's: True
set -euo pipefail
script=$(realpath "$0") room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cd "$room"
python3 -m venv venv
venv/bin/pip install -q torch==2.14.1 triton==3.8.0 numpy==2.4.6
cat >look.py <<'PY'
import os

os.environ["TRITON_INTERPRET"] = "1"
import torch
import triton
import triton.language as tl


@triton.jit
def to_bfloat16(source, default, nearest, truncated, size: tl.constexpr):
    place = tl.arange(0, size)
    x = tl.load(source + place)
    tl.store(default + place, x.to(tl.bfloat16))
    tl.store(nearest + place, x.to(tl.bfloat16, fp_downcast_rounding="rtne"))
    tl.store(truncated + place, x.to(tl.bfloat16, fp_downcast_rounding="rtz"))


@triton.jit
def to_float16(source, half, size: tl.constexpr):
    place = tl.arange(0, size)
    tl.store(half + place, tl.load(source + place).to(tl.float16))


print(f"torch {torch.__version__.split('+')[0]}, triton {triton.__version__}, TRITON_INTERPRET=1")
x = torch.tensor([1.99, -1.99, 1 / 3, 2.999])
out = torch.empty(3, 4, dtype=torch.bfloat16)
to_bfloat16[(1,)](x, *out, 4)
print("torch's bfloat16:", x.bfloat16().tolist())
for name, row in zip(("default", "rtne", "rtz"), out):
    print(f"interpreter, {name}: {row.tolist()}")
half = torch.empty(4, dtype=torch.float16)
to_float16[(1,)](x, half, 4)
print("float16 as torch's:", torch.equal(half, x.half()))
PY
venv/bin/python look.py | tee seen
diff seen <(sed -n 's/^#> //p' "$script") && echo "as on 2026-11-30"
