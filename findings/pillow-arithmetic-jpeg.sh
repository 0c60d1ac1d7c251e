#!/usr/bin/env bash
# Pillow opens an arithmetic-coded JPEG of more than 64 KiB and then fails to decode it; smaller ones it decodes.
#
# Expected: the size of a sound file does not decide whether it can be decoded. Arithmetic coding is part of the JPEG
#   standard, and the libjpeg-turbo within Pillow's wheels has a decoder for it.
# Happens: "broken data stream when reading image file" from load(), on a file that libjpeg-turbo's own djpeg and OpenCV
#   decode. Pillow feeds the decoder 64 KiB at a time; libjpeg's arithmetic decoder cannot be suspended in the middle of
#   a scan. With image.decodermaxblock = len(data) the same Pillow decodes the same file to djpeg's pixels.
# Versions: those printed; the JPEG is made by Debian 12's libjpeg-turbo, hence needs apt-get and dpkg there. Python
#   3.11. Seen on 2026-11-30.
# Source: ITU-T T.81, annex D; https://pillow.readthedocs.io/en/stable/handbook/image-file-formats.html#jpeg names no
#   such limit; reported for an earlier version in https://github.com/python-pillow/Pillow/issues/9162
#
# Printed, and compared with at the end:
#> pillow 13.0.0, opencv 5.0.0, cjpeg and djpeg of libjpeg-turbo 2.1.5
#> 128 x 128 pixels, less than 64 KiB
#>   OpenCV gives djpeg's pixels: True
#>   Pillow gives djpeg's pixels: True
#>   Pillow, decodermaxblock = len(data) gives djpeg's pixels: True
#> 384 x 384 pixels, more than 64 KiB
#>   OpenCV gives djpeg's pixels: True
#>   Pillow gives djpeg's pixels: OSError: broken data stream when reading image file
#>   Pillow, decodermaxblock = len(data) gives djpeg's pixels: True
set -euo pipefail
script=$(realpath "$0") room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cd "$room"
python3 -m venv venv
venv/bin/pip install -q numpy==2.4.6 opencv-python-headless==5.0.0.93 pillow==13.0.0
apt-get download -qq libjpeg-turbo-progs=1:2.1.5-2 libjpeg62-turbo=1:2.1.5-2 libturbojpeg0=1:2.1.5-2
for package in *.deb; do dpkg -x "$package" debian; done
LD_LIBRARY_PATH=$(dirname "$(find "$room/debian" -name 'libjpeg.so.62')")
export LD_LIBRARY_PATH
cat >look.py <<'PY'
import io
import subprocess

import cv2
import numpy as np
import PIL
from PIL import Image

print(f"pillow {PIL.__version__}, opencv {cv2.__version__}, cjpeg and djpeg of libjpeg-turbo 2.1.5")


def run(tool, data, *options):
    return subprocess.run([f"debian/usr/bin/{tool}", *options], input=data, capture_output=True, check=True).stdout


for side in (128, 384):
    noise = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    pgm = b"P5\n%d %d\n255\n" % (side, side) + noise.tobytes()
    data = run("cjpeg", pgm, "-arithmetic", "-quality", "95")
    pixels = np.frombuffer(run("djpeg", data, "-pnm"), np.uint8)[-noise.size :].reshape(noise.shape)
    print(f"{side} x {side} pixels, {'more' if len(data) > 2**16 else 'less'} than 64 KiB")
    print("  OpenCV gives djpeg's pixels:", bool((cv2.imdecode(np.frombuffer(data, np.uint8), 0) == pixels).all()))
    for block in (None, len(data)):
        image = Image.open(io.BytesIO(data))
        if block:
            image.decodermaxblock = block
        try:
            seen = bool((np.asarray(image) == pixels).all())
        except OSError as error:
            seen = f"OSError: {error}"
        print(f"  Pillow{', decodermaxblock = len(data)' if block else ''} gives djpeg's pixels: {seen}")
PY
venv/bin/python look.py | tee seen
diff seen <(sed -n 's/^#> //p' "$script") && echo "as on 2026-11-30"
