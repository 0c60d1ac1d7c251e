#!/usr/bin/env bash
# A gray TIFF in which 0 is white comes out inverted from Pillow, DALI and OpenCV if it has 16 bits, not if it has 8.
#
# Expected: PhotometricInterpretation 0 (WhiteIsZero) means that 0 is white and 2**BitsPerSample - 1 black, for gray
#   images of any depth. A decoder whose gray is 0 for black turns the samples round; all three do for 8 bits.
# Happens: with 16 bits Pillow opens mode "I;16" with the samples as stored, DALI gives white as 0, OpenCV too wherever
#   it keeps 16 bits (IMREAD_UNCHANGED), while its IMREAD_GRAYSCALE of the same file is right. Nothing is raised.
# Versions: those printed, on CPU (DALI with device_id=None), Python 3.11. Seen on 2026-11-30.
# Source: TIFF 6.0, section 8, tag 262, https://www.awaresystems.be/imaging/tiff/tifftags/photometricinterpretation.html
#
# Printed, and compared with at the end:
#> nvidia-dali-cuda130 2.4.0, opencv-python-headless 5.0.0.93, pillow 13.0.0
#> 8 bits, WhiteIsZero, samples [255, 191, 127, 0]; black is 0: [0, 64, 128, 255]
#>   Pillow:                   [0, 64, 128, 255]
#>   DALI:                     [0, 64, 128, 255]
#>   OpenCV, IMREAD_UNCHANGED: [0, 64, 128, 255]
#>   OpenCV, IMREAD_GRAYSCALE: [0, 64, 128, 255]
#> 16 bits, WhiteIsZero, samples [65535, 49087, 32639, 0]; black is 0: [0, 64, 128, 255]
#>   Pillow:                   [255, 191, 127, 0]
#>   DALI:                     [255, 191, 127, 0]
#>   OpenCV, IMREAD_UNCHANGED: [255, 191, 127, 0]
#>   OpenCV, IMREAD_GRAYSCALE: [0, 64, 128, 255]
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


def tiff(samples, photometric):
    """One uncompressed strip of one row."""
    tags = {256: samples.size, 257: 1, 258: 8 * samples.itemsize, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1}
    tags[279] = samples.nbytes
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = (struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + samples.tobytes()


def by_dali(data):
    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():
        source = fn.external_source(source=lambda: [np.frombuffer(data, np.uint8)])
        return fn.decoders.image(source, output_type=types.GRAY)

    built = pipeline()
    built.build()
    return np.asarray(built.run()[0].at(0))


for dtype, shift in (("<u1", 0), ("<u2", 8)):
    gray = np.array([0, 64, 128, 255])
    stored = (255 - gray) * (257 if shift else 1)
    data = tiff(stored.astype(dtype), 0)
    encoded = np.frombuffer(data, np.uint8)
    print(f"{8 << bool(shift)} bits, WhiteIsZero, samples {stored.tolist()}; black is 0: {gray.tolist()}")
    pillow = np.asarray(Image.open(io.BytesIO(data))).astype(int) >> shift
    unchanged = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED).astype(int) >> shift
    print(f"  Pillow:                   {pillow.ravel().tolist()}")
    print(f"  DALI:                     {by_dali(data).ravel().tolist()}")
    print(f"  OpenCV, IMREAD_UNCHANGED: {unchanged.ravel().tolist()}")
    print(f"  OpenCV, IMREAD_GRAYSCALE: {cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE).ravel().tolist()}")
PY
venv/bin/python look.py | tee seen
diff seen <(sed -n 's/^#> //p' "$script") && echo "as on 2026-11-30"
