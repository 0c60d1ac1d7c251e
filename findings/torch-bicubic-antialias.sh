#!/usr/bin/env bash
# torch's bicubic interpolation with antialias=True is another cubic, also where there is nothing to antialias.
#
# Expected: antialiasing widens the filter when an image is made smaller; made larger, the result is that of
#   antialias=False, as it is with mode="bilinear". The documentation calls the argument a flag to apply anti-aliasing
#   and speaks of matching Pillow for downsampling.
# Happens: enlarged twofold, an impulse comes out with a peak of 0.867 instead of 0.879 and lobes of two thirds: the
#   parameter of the cubic is -0.5 with antialias=True and -0.75 without. Position embeddings of Vision Transformers
#   that two libraries enlarge, one with the flag and one without, differ.
# Versions: those printed, on CPU, Python 3.11. Seen on 2026-11-30.
# Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.interpolate.html
#
# Printed, and compared with at the end:
#> torch 2.14.1
#> bilinear, enlarged, antialias=False: [0.0, 0.0, 0.25, 0.75, 0.75, 0.25, 0.0, 0.0]
#> bilinear, enlarged, antialias=True: [0.0, 0.0, 0.25, 0.75, 0.75, 0.25, 0.0, 0.0]
#> bicubic, enlarged, antialias=False: [-0.0352, -0.1055, 0.2617, 0.8789, 0.8789, 0.2617, -0.1055, -0.0352]
#> bicubic, enlarged, antialias=True: [-0.0234, -0.0703, 0.2266, 0.8672, 0.8672, 0.2266, -0.0703, -0.0234]
#> cubic of -0.75: [-0.0352, -0.1055, 0.2617, 0.8789, 0.8789, 0.2617, -0.1055, -0.0352]
#> cubic of -0.5: [-0.0234, -0.0703, 0.2266, 0.8672, 0.8672, 0.2266, -0.0703, -0.0234]
#> 14 x 14 -> 24 x 24 of normal noise: greatest difference 0.37
set -euo pipefail
script=$(realpath "$0") room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cd "$room"
python3 -m venv venv
venv/bin/pip install -q torch==2.14.1 numpy==2.4.6
cat >look.py <<'PY'
import torch
from torch.nn.functional import interpolate


def cubic(distance, a):
    t = abs(distance)
    if t < 1:
        return ((a + 2) * t - (a + 3)) * t * t + 1
    return a * (((t - 5) * t + 8) * t - 4) if t < 2 else 0.0


print("torch", torch.__version__.split("+")[0])
impulse = torch.zeros(1, 1, 9, 9)
impulse[..., 4] = 1
for mode in ("bilinear", "bicubic"):
    for antialias in (False, True):
        row = interpolate(impulse, size=(9, 18), mode=mode, antialias=antialias)[0, 0, 4, 5:13]
        print(f"{mode}, enlarged, antialias={antialias}: {[round(value, 4) for value in row.tolist()]}")
for a in (-0.75, -0.5):
    print(f"cubic of {a}: {[round(cubic((place + 0.5) / 2 - 4.5, a), 4) for place in range(5, 13)]}")
torch.manual_seed(0)
positions = torch.randn(1, 768, 14, 14)
plain, flagged = (interpolate(positions, size=(24, 24), mode="bicubic", antialias=flag) for flag in (False, True))
print(f"14 x 14 -> 24 x 24 of normal noise: greatest difference {(plain - flagged).abs().max():.2f}")
PY
venv/bin/python look.py | tee seen
diff seen <(sed -n 's/^#> //p' "$script") && echo "as on 2026-11-30"
