"""The table of suffixes against Pillow itself: what it decodes is read, everything else is counted and named."""

import importlib
import io
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.errors import UserError
from headrace.pipelines.images.decode import _formats, decode, image_size
from headrace.pipelines.images.formats import FORMATS, IMAGE_SUFFIXES, passed_over
from headrace.pipelines.sharding.writer import member_name
from headrace.pipelines.sources.folder import FolderSource

# what Pillow registers beside the table: no pixels of its own (stubs, printing), drawings, layers, films, measurements,
# and what games and desktops keep brushes, cursors and textures in
LEFT_OUT = (
    ".bufr .psd .grib .h5 .hdf .mpg .mpeg .palm .pdf .eps .ps .emf .wmf .fli .flc .fit .fits .iim .im .msp .pxr .pcd "
    ".blp .ftc .ftu .gbr .dcx .cur .icns .xbm .xpm"
)
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def encoded(suffix):
    """An image of `PIXELS` in the format of a suffix."""
    height, width, _ = PIXELS.shape
    if suffix == ".ras":
        head = struct.pack(">8I", 0x59A66A95, width, height, 24, PIXELS.nbytes, 1, 0, 0)
        return head + PIXELS[..., ::-1].tobytes()
    if suffix == ".jxl":
        return importlib.import_module("imagecodecs").jpegxl_encode(PIXELS, lossless=True)
    _formats()  # registers the plug-in for HEIF where it is installed
    kind = Image.registered_extensions().get(suffix, "JPEG")
    options = {"ICO": {"sizes": [(width, height)]}, "WEBP": {"lossless": True}}.get(kind, {})
    Image.fromarray(PIXELS).save(buffer := io.BytesIO(), "JPEG" if kind == "MPO" else kind, **options)
    return buffer.getvalue()


def test_the_table_is_what_pillow_decodes():
    registered = {suffix for suffix, kind in Image.registered_extensions().items()}
    assert registered - set(FORMATS) <= set(LEFT_OUT.split()), "a new format of Pillow: read it, or say why not"
    others = {suffix for suffix, kind in FORMATS.items() if kind in ("HEIF", "JPEG XL")}  # of plug-ins
    assert set(FORMATS) - registered <= {".jif"} | others and not set(FORMATS) & set(LEFT_OUT.split())
    assert set(FORMATS.values()) >= {"JPEG", "PNG", "WebP", "AVIF", "GIF", "BMP", "TIFF", "JPEG 2000", "PNM"}


def test_the_page_has_the_same_table():
    page = (Path(__file__).parents[3] / "docs/data-sources.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| `(\.[^`]+)`", page, re.MULTILINE)
    assert {suffix: kind for kind, suffixes in rows for suffix in suffixes.split()} == FORMATS


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_is_read(suffix, tmp_path):
    data = encoded(suffix)
    for name in (f"a{suffix}", f"B{suffix.upper()}"):
        (tmp_path / name).write_bytes(data)
    source = FolderSource(tmp_path)
    assert [source.key(index) for index in range(len(source))] == [f"B{suffix.upper()}", f"a{suffix}"]
    pixels = decode(source.read(0)).astype(int)
    assert pixels.shape == PIXELS.shape and image_size(source.read(0)) == PIXELS.shape[:2]
    if FORMATS[suffix] not in ("JPEG", "AVIF", "GIF", "HEIF"):
        assert (pixels == PIXELS).all()
    # shards keep a suffix that their readers know, whatever the source called the image
    for name in (f"a{suffix}", f"a{suffix.upper()}", "without"):
        assert f".{member_name(0, name, np.frombuffer(data, np.uint8))[1]}" in IMAGE_SUFFIXES


def test_what_is_passed_over_is_counted_and_named(tmp_path):
    for name in ("a.dng", "b.DNG", "c.txt", "d.txt", "e.txt", "README", "x.psd"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        FolderSource(tmp_path)
    for part in ("7 other files", "2 .dng (camera raw: convert", "1 .psd (layers", "3 .txt", "1 without a suffix"):
        assert part in str(caught.value)
    assert passed_over({".txt": 1}) == "1 other file: 1 .txt"
    many = {f".{letter}": number for number, letter in enumerate("abcdefg", 2)} | {".dng": 1}
    raw = "1 .dng (camera raw: convert to JPEG or PNG)"
    assert passed_over(many, most=2) == f"36 other files: {raw}, 8 .g, and 6 more kinds"


def test_pillow_without_avif_says_what_to_do():
    """In a process of its own: what Pillow was built with is looked at once."""
    code = (
        "from PIL import features; real = features.check; features.check = lambda name: name != 'avif' and real(name)\n"
        "from headrace.pipelines.images.formats import *\n"
        "assert '.avif' not in IMAGE_SUFFIXES and '.webp' in IMAGE_SUFFIXES\n"
        "print(passed_over({'.avif': 12, '.txt': 100}))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    remedy = "AVIF: Pillow reads it from 11.3 on: pip install --upgrade pillow"
    assert said == f"112 other files: 12 .avif ({remedy}), 100 .txt"


@pytest.mark.parametrize("module, suffix, kind", [("pillow_heif", ".heic", "HEIF"), ("imagecodecs", ".jxl", "JPEG XL")])
def test_without_the_extra_one_line_says_what_to_install(module, suffix, kind):
    code = (
        "import importlib.util as util; real = util.find_spec\n"
        f"util.find_spec = lambda name, *more: None if name == {module!r} else real(name, *more)\n"
        "from headrace.pipelines.images.formats import *\n"
        f"assert {suffix!r} not in IMAGE_SUFFIXES and '.avif' in IMAGE_SUFFIXES\n"
        f"print(passed_over({{{suffix!r}: 12}}))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    remedy = f"{kind}: pip install 'headrace[formats]', or convert to JPEG or PNG"
    assert said == f"12 other files: 12 {suffix} ({remedy})"
