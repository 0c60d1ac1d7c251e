"""2,000 mutated JPEGs: no crash, no hang, bounded memory, each decoded or accounted for."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.pipelines.images.decode import DecodeError, decode, image_size

COUNT = 2000


@pytest.fixture(scope="module")
def fuzzed(photo_folder):
    """What became of the images, in a process of its own: a crash or a hang is a failure, not the end of the tests."""
    command = [sys.executable, Path(__file__).with_name("fuzz_worker.py"), photo_folder, str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    reports = {report["loader"]: report for report in map(json.loads, done.stdout.splitlines())}
    return reports, done.returncode, done.stderr[-2000:]


@pytest.mark.parametrize("loader", ["memory", "cpu", "dali"])
def test_mutated_images(loader, fuzzed):
    """Every loader refuses what `image_size` and `decode` refuse, and nothing else."""
    reports, status, said = fuzzed
    assert loader in reports and (loader != "dali" or status == 0), (status, said)
    report = reports[loader]
    verdicts, bad = report["verdicts"], set(report["bad"])
    assert min(verdicts.count(verdict) for verdict in ("good", "header", "pixels")) > COUNT // 20
    refused = {n for n, verdict in enumerate(verdicts) if verdict != "good"}
    assert bad == refused
    ids = [index for batch in report["ids"] for index in batch]
    assert len(ids) == COUNT and not bad & set(ids)
    assert all(index == wanted for wanted, index in enumerate(ids) if wanted not in bad)
    assert report["peak_mb"] < 1500  # 900 measured, most of it the libraries


def with_size(data, width, height):
    frame = next(at for at in range(len(data)) if data[at : at + 2] == b"\xff\xc0")
    return data[: frame + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[frame + 9 :]


@pytest.mark.parametrize("function", [image_size, decode])
@pytest.mark.parametrize(
    "size, reason",
    [
        ((65500, 65500), "65500x65500 pixels, more than the 89,478,485 that data.max_pixels, or --max-pixels, allows"),
        ((10000, 9000), "10000x9000 pixels, more than the 89,478,485 that data.max_pixels, or --max-pixels, allows"),
        ((8000, 8000), "too few bytes for a JPEG of 8000x8000 pixels"),
    ],
)
def test_headers_that_ask_for_too_much_memory(function, size, reason, photo_folder):
    data = (photo_folder / "class_0" / "photo_00.jpg").read_bytes()
    with pytest.raises(DecodeError, match=reason):
        function(np.frombuffer(with_size(data, *size), np.uint8))


def test_the_flattest_jpeg_is_no_bomb(tmp_path):
    """Few bytes for many pixels can be honest: one colour, progressive, the best of Huffman tables."""
    Image.new("RGB", (4000, 4000), (90, 120, 200)).save(tmp_path / "x.jpg", quality=1, progressive=True, optimize=True)
    data = np.fromfile(tmp_path / "x.jpg", np.uint8)
    assert image_size(data) == (4000, 4000) and decode(data).shape == (4000, 4000, 3)
