#!/usr/bin/env bash
# DALI and OpenCV ignore the largest value that a PGM or PPM declares.
#
# Expected: a sample means sample / maxval. In a file of maxval 100 the sample 100 is white and 50 half of it; so the
#   specifications of the formats (Netpbm's pgm(5) and ppm(5): samples lie between 0, black, and Maxval, white). DALI
#   lists PGM and PPM among the formats of fn.decoders.image.
# Happens: samples of one byte come out as they are, so white is 100 of 255; of samples of two bytes the upper one is
#   taken, so white is 15 in a file of 12 bits and 3 in one of 1,000 levels. Nothing is raised. Pillow scales.
# Versions: those printed, on CPU (DALI with device_id=None), Python 3.11. Seen on 2026-11-30.
# Source: https://netpbm.sourceforge.net/doc/pgm.html, https://netpbm.sourceforge.net/doc/ppm.html,
#   https://docs.nvidia.com/deeplearning/dali/user-guide/docs/operations/nvidia.dali.fn.decoders.image.html
#
# Printed, and compared with at the end:
#> nvidia-dali-cuda130 2.4.0, opencv-python-headless 5.0.0.93, pillow 13.0.0
#> P5, maxval 100, samples [0, 25, 50, 100]
#>   sample / maxval * 255: [0, 64, 128, 255]
#>   Pillow: [0, 64, 128, 255]
#>   DALI:   [0, 25, 50, 100]
#>   OpenCV: [0, 25, 50, 100]
#> P6, maxval 100, samples [0, 25, 50, 100, 75, 10]
#>   sample / maxval * 255: [0, 64, 128, 255, 191, 26]
#>   Pillow: [0, 64, 128, 255, 191, 26]
#>   DALI:   [0, 25, 50, 100, 75, 10]
#>   OpenCV: [0, 25, 50, 100, 75, 10]
#> P5, maxval 1000, samples [0, 250, 500, 1000]
#>   sample / maxval * 255: [0, 64, 128, 255]
#>   Pillow: [0, 64, 128, 255]
#>   DALI:   [0, 0, 1, 3]
#>   OpenCV: [0, 0, 1, 3]
#> P5, maxval 4095, samples [0, 1024, 2048, 4095]
#>   sample / maxval * 255: [0, 64, 128, 255]
#>   Pillow: [0, 64, 128, 255]
#>   DALI:   [0, 4, 8, 15]
#>   OpenCV: [0, 4, 8, 15]
#> P5, maxval 65535, samples [0, 16384, 32768, 65535]
#>   sample / maxval * 255: [0, 64, 128, 255]
#>   Pillow: [0, 64, 128, 255]
#>   DALI:   [0, 64, 128, 255]
#>   OpenCV: [0, 64, 128, 255]
set -euo pipefail
script=$(realpath "$0") room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cd "$room"
python3 -m venv venv
venv/bin/pip install -q nvidia-dali-cuda130==2.4.0 opencv-python-headless==5.0.0.93 pillow==13.0.0
cat >look.py <<'PY'
import io
import struct
from importlib.metadata import version

import cv2
import numpy as np
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

print(", ".join(f"{name} {version(name)}" for name in ("nvidia-dali-cuda130", "opencv-python-headless", "pillow")))


def by_dali(data, kind):
    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        return fn.decoders.image(fn.external_source(source=lambda: [np.frombuffer(data, np.uint8)]), output_type=kind)

    built = pipeline()
    built.build()
    return np.asarray(built.run()[0].at(0))


for magic, largest, samples in (
    ("P5", 100, (0, 25, 50, 100)),
    ("P6", 100, (0, 25, 50, 100, 75, 10)),
    ("P5", 1000, (0, 250, 500, 1000)),
    ("P5", 4095, (0, 1024, 2048, 4095)),
    ("P5", 65535, (0, 16384, 32768, 65535)),
):
    gray = magic == "P5"
    pixels = struct.pack(f">{len(samples)}{'B' if largest < 256 else 'H'}", *samples)
    data = f"{magic}\n{len(samples) // (1 if gray else 3)} 1\n{largest}\n".encode() + pixels
    opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR_RGB)
    pillow = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    print(f"{magic}, maxval {largest}, samples {list(samples)}")
    print(f"  sample / maxval * 255: {[round(sample / largest * 255) for sample in samples]}")
    print(f"  Pillow: {(pillow >> (8 if largest > 255 else 0)).ravel().tolist()}")
    print(f"  DALI:   {by_dali(data, types.GRAY if gray else types.RGB).ravel().tolist()}")
    print(f"  OpenCV: {opencv.ravel().tolist()}")
PY
venv/bin/python look.py | tee seen
diff seen <(sed -n 's/^#> //p' "$script") && echo "as on 2026-11-30"
