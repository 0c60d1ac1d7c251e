#!/usr/bin/env bash
# webdataset's own writer takes keys with dots; its own reader then merges the samples into one.
#
# Expected: samples written by TarWriter (or ShardWriter) under different keys are read back by WebDataset as that many
#   samples under those keys, or the writer refuses the key.
# Happens: the writer makes the member's name from key + "." + field, the reader takes for the key what lies before the
#   first dot of the name. Scans "scan.1", "scan.2" and "scan.3" come back as one sample "scan" with fields "1.jpg",
#   "2.jpg" and so on; "jpg" is no field of it. Neither side warns.
# Versions: those printed, Python 3.11. Seen on 2026-11-30.
# Source: the docstring of webdataset.TarWriter and its example (https://webdataset.github.io/webdataset/), which place
#   no condition on "__key__" but that it is there; that the reader splits at the first dot is documented.
#
# Printed, and compared with at the end:
#> webdataset 1.0.2
#> written: scan_1, scan_2, scan_3
#>   members: scan_1.cls, scan_1.jpg, scan_2.cls, scan_2.jpg, scan_3.cls, scan_3.jpg
#>   samples read: 3
#>     scan_1: cls, jpg
#>     scan_2: cls, jpg
#>     scan_3: cls, jpg
#> written: scan.1, scan.2, scan.3
#>   members: scan.1.cls, scan.1.jpg, scan.2.cls, scan.2.jpg, scan.3.cls, scan.3.jpg
#>   samples read: 1
#>     scan: 1.cls, 1.jpg, 2.cls, 2.jpg, 3.cls, 3.jpg
set -euo pipefail
script=$(realpath "$0") room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
cd "$room"
python3 -m venv venv
venv/bin/pip install -q webdataset==1.0.2
cat >look.py <<'PY'
import tarfile

import webdataset

print("webdataset", webdataset.__version__)
for keys in (("scan_1", "scan_2", "scan_3"), ("scan.1", "scan.2", "scan.3")):
    with webdataset.TarWriter("scans.tar") as tar:
        for key in keys:
            tar.write({"__key__": key, "jpg": b"...", "cls": b"0"})
    samples = list(webdataset.WebDataset("scans.tar", shardshuffle=False))
    print("written:", ", ".join(keys))
    print("  members:", ", ".join(sorted(tarfile.open("scans.tar").getnames())))
    print("  samples read:", len(samples))
    for sample in samples:
        print(f"    {sample['__key__']}: {', '.join(sorted(name for name in sample if not name.startswith('__')))}")
PY
venv/bin/python look.py | tee seen
diff seen <(sed -n 's/^#> //p' "$script") && echo "as on 2026-11-30"
