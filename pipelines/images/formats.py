"""Which files are images, by their suffix: one table for folders, lists, tars, shards and every command.

Bytes decide what an image *is*: `decode.py` asks Pillow, which looks at them. The suffix decides whether anybody looks;
what is passed over for its suffix is counted and named, so that no image is missing without a word.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from PIL import features

from .rules import rules

# suffix -> what it is, for every kind of picture that Pillow decodes, with plug-ins for HEIF and JPEG XL
FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    ".webp": "WebP",
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys((".heic", ".heif", ".hif", ".heics", ".heifs"), "HEIF"),
    ".gif": "GIF",
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".jxl": "JPEG XL",
    **dict.fromkeys((".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "JPEG 2000"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), "PNM"),
    **dict.fromkeys((".tga", ".icb", ".vda", ".vst"), "TGA"),
    **dict.fromkeys((".sgi", ".rgb", ".rgba", ".bw"), "SGI"),
    ".pcx": "PCX",
    ".qoi": "QOI",
    ".ras": "Sun raster",
    ".dds": "DirectDraw",
    ".ico": "icon",
}
HEIF, JPEG_XL = "pillow_heif", "imagecodecs"  # libheif's plug-in for Pillow, and what jpegxl.py needs: an extra
_EXTRA = "pip install 'headrace[formats]', or convert to JPEG or PNG"
# what may be lacking: a feature of Pillow's builds or one of these modules, and the remedy
_OPTIONAL = {
    "WebP": ("webp", "this Pillow was built without it: pip install --upgrade pillow"),
    "AVIF": ("avif", "Pillow reads it from 11.3 on: pip install --upgrade pillow"),
    "HEIF": (HEIF, _EXTRA),
    "JPEG XL": (JPEG_XL, _EXTRA),
    "JPEG 2000": ("jpg_2000", "this Pillow was built without it: pip install --upgrade pillow"),
}
# what is read where a process has a number of channels, besides
_DEEP = {".npy": "array", **dict.fromkeys((".dcm", ".dicom"), "DICOM")}
_HOW_MANY = "say how many channels with data.channels, or --channels"
# pictures that Pillow does not decode, and files that hold others
_CONVERT, _UNPACK = "convert to JPEG or PNG", "unpack"
_FOREIGN = {
    **dict.fromkeys((".psd", ".xcf"), f"layers: {_CONVERT}"),
    **dict.fromkeys((".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2"), f"camera raw: {_CONVERT}"),
    **dict.fromkeys((".svg", ".eps", ".pdf", ".ai", ".wmf", ".emf"), f"drawing: {_CONVERT}"),
    **{suffix: f"{kind}: {_HOW_MANY}" for suffix, kind in _DEEP.items()},
    **dict.fromkeys((".exr", ".hdr", ".fits", ".fit"), f"measured values: {_CONVERT}, or NumPy's .npy"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"), "film: save its frames as JPEG or PNG"),
    **dict.fromkeys((".zip", ".rar", ".7z", ".gz", ".tgz", ".bz2", ".xz", ".zst"), f"archive: {_UNPACK}"),
}


def _missing(kind: str) -> str | None:
    """The remedy, where this installation does not read a kind of picture of `FORMATS`."""
    feature, remedy = _OPTIONAL.get(kind, (None, ""))
    if feature is None:
        return None
    module = feature in (HEIF, JPEG_XL)
    there = importlib.util.find_spec(feature) is not None if module else features.check(feature)
    return None if there else f"{kind}: {remedy}"


_UNREAD = {kind: remedy for kind in _OPTIONAL if (remedy := _missing(kind))}
IMAGE_SUFFIXES = tuple(suffix for suffix, kind in FORMATS.items() if kind not in _UNREAD)  # lower case, with the dot
_ALL = (*IMAGE_SUFFIXES, *_DEEP)


def image_suffixes() -> tuple[str, ...]:
    """The suffixes of what this process takes for images, lower case, with the dot."""
    return IMAGE_SUFFIXES if rules().channels is None else _ALL


def why_not(suffix: str) -> str | None:
    """What a suffix such as ``.heic`` stands for and what to do, where it is a picture that is not read; else None."""
    return _UNREAD.get(FORMATS.get(suffix, "")) or _FOREIGN.get(suffix)


def passed_over(counts: Mapping[str, int], most: int = 5) -> str:
    """``48 other files: 40 .heic (HEIF: convert to JPEG or PNG), 8 .txt`` of numbers of files by suffix.

    The `most` frequent suffixes are named, pictures first, whatever their number.
    """
    ranked = sorted(counts.items(), key=lambda item: (why_not(item[0]) is None, -item[1], item[0]))
    named = [f"{count:,} {suffix}" + (f" ({why})" if (why := why_not(suffix)) else "") for suffix, count in ranked]
    shown = ", ".join(named[:most]) + (f", and {len(named) - most} more kinds" if len(named) > most else "")
    total = sum(counts.values())
    return f"{total:,} other file{'s' * (total != 1)}: {shown}"
