#!/usr/bin/env bash
# Half of the draws of MMPretrain's colour jitter end in an OverflowError where NumPy is 2: MMCV shifts hue by a byte.
#
# Expected: ColorJitter(hue=0.1) shifts the hue of every image by a random amount between -0.1 and 0.1, as it does with
#   NumPy 1. mmcv-lite 2.1.0, the newest that mmpretrain 1.2.0 admits, asks for numpy without an upper bound.
# Happens: mmcv.adjust_hue makes the shift a byte by np.uint8(hue_factor * 255). NumPy 2 refuses negative values there
#   (NumPy 1 wrapped them), in the cv2 and in the pillow back end alike; positive shifts work. Within a DataLoader the
#   run ends at the first negative draw, as a rule in its first batch.
# Versions: those printed, Python 3.11. Seen on 2026-11-30.
# Source: https://mmcv.readthedocs.io/en/2.x/api/generated/mmcv.image.adjust_hue.html (hue_factor within [-0.5, 0.5]);
#   https://numpy.org/doc/stable/numpy_2_0_migration_guide.html (out-of-bound Python integers raise)
#
# Printed, and compared with at the end:
#> mmcv 2.1.0, numpy 2.4.6
#> cv2, hue_factor=0.1: mean of the channels 200 20 50
#> cv2, hue_factor=-0.1: OverflowError
#> pillow, hue_factor=0.1: mean of the channels 200 20 46
#> pillow, hue_factor=-0.1: OverflowError
set -euo pipefail
script=$(realpath "$0") room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cd "$room"
python3 -m venv venv
venv/bin/pip install -q numpy==2.4.6 pillow==12.3.0 opencv-python-headless==5.0.0.93 mmengine==0.10.7
venv/bin/pip install -q --no-deps mmcv-lite==2.1.0
cat >look.py <<'PY'
import mmcv
import numpy as np

print(f"mmcv {mmcv.__version__}, numpy {np.__version__}")
image = np.full((8, 8, 3), (200, 100, 20), np.uint8)
for backend in ("cv2", "pillow"):
    for factor in (0.1, -0.1):
        try:
            found = mmcv.adjust_hue(image, factor, backend=backend).mean((0, 1))
            said = "mean of the channels " + " ".join(f"{value:.0f}" for value in found)
        except OverflowError as error:
            said = type(error).__name__
        print(f"{backend}, hue_factor={factor}: {said}")
PY
venv/bin/python look.py | tee seen
diff seen <(sed -n 's/^#> //p' "$script") && echo "as on 2026-11-30"
