#!/usr/bin/env bash
# Pillow opens a TIFF of unsigned 32-bit samples as signed: the brighter half of the range becomes negative.
#
# Expected: SampleFormat 1 says unsigned, so 2**32 - 1 is the brightest sample. Mode "I" is documented as 32-bit signed
#   and cannot hold it; a format that no mode can hold is refused elsewhere (a TIFF of 64-bit integers, for one).
# Happens: the file opens as mode "I", the bits are taken as signed, and the brightest sample is -1, darker than black.
#   Nothing is raised or warned of. np.asarray(image).view(np.uint32) gives the samples back.
# Versions: those printed, Python 3.11. Seen on 2026-11-30.
# Source: TIFF 6.0, section 19 (SampleFormat); https://pillow.readthedocs.io/en/stable/handbook/concepts.html#modes;
#   spoken of in https://github.com/python-pillow/Pillow/issues/5850
#
# Printed, and compared with at the end:
#> pillow 13.0.0
#> stored: [0, 2147483647, 2147483648, 4294967295]
#> opened: mode I, [0, 2147483647, -2147483648, -1], extrema (-2147483648, 2147483647)
#> viewed as unsigned: [0, 2147483647, 2147483648, 4294967295]
#> 64 bits: UnidentifiedImageError
set -euo pipefail
script=$(realpath "$0") room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cd "$room"
python3 -m venv venv
venv/bin/pip install -q numpy==2.4.6 pillow==13.0.0
cat >look.py <<'PY'
import io
import struct

import numpy as np
import PIL
from PIL import Image

print("pillow", PIL.__version__)


def tiff(samples):
    """One uncompressed strip of one row of unsigned integers."""
    tags = {256: samples.size, 257: 1, 258: 8 * samples.itemsize, 259: 1, 262: 1, 273: 0, 277: 1, 278: 1}
    tags |= {279: samples.nbytes, 339: 1}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = (struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + samples.tobytes()


samples = np.array([0, 2**31 - 1, 2**31, 2**32 - 1], "<u4")
image = Image.open(io.BytesIO(tiff(samples)))
print("stored:", samples.tolist())
print(f"opened: mode {image.mode}, {np.asarray(image).ravel().tolist()}, extrema {image.getextrema()}")
print("viewed as unsigned:", np.asarray(image).view(np.uint32).ravel().tolist())
try:
    print("64 bits:", Image.open(io.BytesIO(tiff(samples.astype("<u8")))).mode)
except Image.UnidentifiedImageError as error:
    print("64 bits:", type(error).__name__)
PY
venv/bin/python look.py | tee seen
diff seen <(sed -n 's/^#> //p' "$script") && echo "as on 2026-11-30"
