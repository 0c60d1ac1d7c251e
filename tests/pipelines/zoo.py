"""Odd images of every format, and the pixels that they mean.

`arithmetic.jpg` was written by libjpeg-turbo, which few builds let one ask for. The pixels are not what a decoder says:
they are those that were encoded; what is lossy may differ from them by `LOSSY` grey levels on average.
"""

import importlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, features

from headrace.pipelines.images.decode import _formats

SIDE = 32
LOSSY = 3.0
RGB = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
)
GRAY = RGB[..., 1].copy()
DEEP = GRAY.astype(np.uint16) * 256 + np.arange(SIDE, dtype=np.uint16)[None] * 7  # the upper bytes are GRAY
WIDE = RGB.astype(np.uint16) * 256 + 77


def three(gray):
    return np.dstack([gray] * 3)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x112] = orientation
    return tags


def png(width, height, depth, colour, rows):
    """By hand: Pillow writes no colour of sixteen bits."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b"")


def tiff(samples, *, order="<", photometric=1, kind=1, extra=()):
    """Uncompressed and by hand: samples (H, W) or (H, W, C) of any type."""
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    height, width = samples.shape[:2]
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    bits, H, I = 8 * samples.dtype.itemsize, "H", "I"
    entries = [(256, I, [width]), (257, I, [height]), (258, H, [bits] * channels), (259, H, [1])]
    entries += [(262, H, [photometric]), (273, I, [8]), (277, H, [channels]), (278, I, [height])]
    entries += [(279, I, [len(data)]), (339, H, [kind] * channels), *extra]
    start = 8 + len(data) + len(data) % 2
    table, beyond = b"", b""
    for tag, code, values in sorted(entries):
        packed = struct.pack(order + code * len(values), *values)
        if len(packed) > 4:
            where = start + 2 + 12 * len(entries) + 4 + len(beyond)
            beyond, packed = beyond + packed, struct.pack(order + "I", where)
        table += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[code], len(values)) + packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = mark + struct.pack(order + "I", start) + data + b"\0" * (len(data) % 2)
    return body + struct.pack(order + "H", len(entries)) + table + b"\0" * 4 + beyond


def pnm(kind, samples, largest):
    head = b"%s\n# odd\n%d %d\n%d\n" % (kind, samples.shape[1], samples.shape[0], largest)
    return head + samples.astype(">u2" if largest > 255 else "u1").tobytes()


def without_adobe(jpeg):
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


def jpegs():
    plain = {"quality": 95, "subsampling": 0}
    for name, subsampling in (("4:4:4", "4:4:4"), ("4:2:2", "4:2:2"), ("4:2:0", "4:2:0")):
        yield f"JPEG {name}", saved(RGB, "JPEG", quality=95, subsampling=subsampling), RGB
    gentle = np.dstack([GRAY // 2 + 90, GRAY // 2 + 40, GRAY // 2])  # of one chroma, which may then be averaged
    for name in ("411", "440"):  # which Pillow does not write
        yield f"JPEG {name}", simplejpeg.encode_jpeg(gentle, quality=95, colorsubsampling=name), gentle
    yield "JPEG progressive", saved(RGB, "JPEG", **plain, progressive=True), RGB
    yield "JPEG gray", saved(GRAY, "JPEG", quality=95), three(GRAY)
    yield "JPEG restart markers", saved(RGB, "JPEG", **plain, restart_marker_blocks=1), RGB
    # stored as RGB: Adobe's marker says so, or the names of the components
    stored = saved(RGB, "JPEG", **plain, keep_rgb=True)
    yield "JPEG stored as RGB", stored, RGB
    turns = {2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 6: RGB[::-1].transpose(1, 0, 2), 8: RGB[:, ::-1].transpose(1, 0, 2)}
    for orientation, upright in turns.items():
        yield f"JPEG turned {orientation}", saved(RGB, "JPEG", **plain, exif=exif(orientation)), upright
    inks = np.dstack([255 - RGB, RGB[..., 0] // 3])
    mixed = ((255.0 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).round().astype(np.uint8)
    cmyk = saved(Image.fromarray(inks, "CMYK"), "JPEG", **plain)  # with the marker, and inverted, as Adobe does
    yield "JPEG CMYK with Adobe's marker", cmyk, mixed
    yield "JPEG CMYK without Adobe's marker", without_adobe(cmyk), mixed  # is taken to do as Adobe does
    luma = np.asarray(Image.fromarray(inks[..., :3]).convert("YCbCr"))
    ycck = bytearray(saved(Image.fromarray(np.dstack([255 - luma, inks[..., 3]]), "CMYK"), "JPEG", **plain))
    ycck[ycck.index(b"Adobe") + 11] = 2
    yield "JPEG YCCK", bytes(ycck), mixed
    yield "JPEG 1 px", saved(RGB[:1, :1], "JPEG", **plain), RGB[:1, :1]
    yield "JPEG trailing bytes", saved(RGB, "JPEG", **plain) + b"\0\0junk", RGB
    noise = np.random.default_rng(7).integers(0, 256, (264, 248), dtype=np.uint8)
    yield "JPEG arithmetic", Path(__file__).with_name("arithmetic.jpg").read_bytes(), three(noise)


def lossless():
    yield "PNG", saved(RGB, "PNG"), RGB
    yield "PNG gray", saved(GRAY, "PNG"), three(GRAY)
    yield "PNG 1 bit", saved(Image.fromarray(GRAY > 99), "PNG"), three(np.where(GRAY > 99, 255, 0).astype(np.uint8))
    few = Image.fromarray(RGB).quantize(13)
    looked_up = np.asarray(few.convert("RGB"))
    yield "PNG palette", saved(few, "PNG"), looked_up
    yield "PNG palette, transparent", saved(few, "PNG", transparency=bytes(range(0, 130, 10))), looked_up
    yield "PNG gray, one transparent", saved(GRAY, "PNG", transparency=int(GRAY[3, 3])), three(GRAY)
    yield "PNG RGBA, invisible", saved(np.dstack([RGB, 0 * GRAY]), "PNG"), RGB
    yield "PNG LA", saved(np.dstack([GRAY, GRAY.T]), "PNG"), three(GRAY)
    yield "PNG turned 6", saved(RGB, "PNG", exif=exif(6)), RGB[::-1].transpose(1, 0, 2)
    yield "PNG with a profile of 3 MB", saved(RGB, "PNG", icc_profile=bytes(3_000_000)), RGB
    yield "PNG 16 bits gray", saved(DEEP, "PNG"), three(GRAY)
    yield "PNG 16 bits colour", png(SIDE, SIDE, 16, 2, [row.tobytes() for row in WIDE.astype(">u2")]), RGB
    alpha = np.dstack([DEEP, DEEP.T]).astype(">u2")
    yield "PNG 16 bits gray and alpha", png(SIDE, SIDE, 16, 4, [row.tobytes() for row in alpha]), three(GRAY)
    nibbles = (GRAY >> 4)[:, ::2] << 4 | (GRAY >> 4)[:, 1::2]
    yield "PNG 4 bits gray", png(SIDE, SIDE, 4, 0, [row.tobytes() for row in nibbles]), three((GRAY >> 4) * 17)
    yield "PNG animated", saved(RGB, "PNG", save_all=True, append_images=[Image.fromarray(255 - RGB)]), RGB
    frames = [Image.fromarray(p).quantize(16) for p in (RGB, 255 - RGB)]
    yield "GIF", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), np.asarray(frames[0].convert("RGB"))
    yield "WebP lossless", saved(RGB, "WEBP", lossless=True), RGB
    yield "WebP, invisible", saved(np.dstack([RGB, 0 * GRAY]), "WEBP", lossless=True, exact=True), RGB
    yield "BMP", saved(RGB, "BMP"), RGB
    yield "BMP gray", saved(GRAY, "BMP"), three(GRAY)
    yield "BMP palette", saved(few, "BMP"), looked_up
    yield "PPM", pnm(b"P6", RGB, 255), RGB
    yield "PPM of 100 levels", pnm(b"P6", RGB // 3, 100), (RGB // 3 * 2.55 + 0.5).astype(np.uint8)
    yield "PPM 16 bits", pnm(b"P6", WIDE, 65535), RGB
    yield "PGM", pnm(b"P5", GRAY, 255), three(GRAY)
    yield "PGM 16 bits", pnm(b"P5", DEEP, 65535), three(GRAY)
    yield "PGM 12 bits", pnm(b"P5", DEEP >> 4, 4095), three(GRAY)
    yield "PGM of 1,000 levels", pnm(b"P5", DEEP // 66, 1000), three((DEEP // 66 * 0.255 + 0.5).astype(np.uint8))
    plain = b"P2 %d %d 65535\n" % (SIDE, SIDE) + b" ".join(b"%d" % value for value in DEEP.ravel())
    yield "PGM 16 bits in text", plain, three(GRAY)
    floats = b"Pf\n%d %d\n-1.0\n" % (SIDE, SIDE) + (GRAY[::-1] / np.float32(255)).astype("<f4").tobytes()
    yield "PFM", floats, three(GRAY)
    for order, name in (("<", "little"), (">", "big")):
        yield f"TIFF 16 bits, {name} endian", tiff(DEEP, order=order), three(GRAY)
        signed = (DEEP.astype(np.int64) - 32768).astype(np.int16)
        yield f"TIFF 16 bits signed, {name} endian", tiff(signed, order=order, kind=2), three(GRAY)
        yield f"TIFF float, {name} endian", tiff((GRAY / 255).astype(np.float32), order=order, kind=3), three(GRAY)
        yield (
            f"TIFF 16 bits colour, {name} endian",
            tiff(RGB.astype(np.uint16) * 256 + 9, order=order, photometric=2),
            RGB,
        )
    yield "TIFF 16 bits, 0 is white", tiff(65535 - DEEP, photometric=0), three(GRAY)
    yield "TIFF float, 0 is white", tiff((1 - GRAY / 255).astype(np.float32), photometric=0, kind=3), three(GRAY)
    yield "TIFF 8 bits, 0 is white", tiff(255 - GRAY, photometric=0), three(GRAY)
    yield "TIFF 32 bits", tiff(DEEP.astype(np.uint32) << 16 | 77), three(GRAY)
    yield "TIFF 32 bits signed", tiff(((DEEP.astype(np.int64) << 16) - (1 << 31)).astype(np.int32), kind=2), three(GRAY)
    yield (
        "TIFF gray, alpha multiplied in",
        tiff(np.dstack([GRAY, 0 * GRAY + 255]), extra=[(338, "H", [1])]),
        three(GRAY),
    )
    yield "TIFF compressed 16 bits", saved(DEEP, "TIFF", compression="tiff_lzw"), three(GRAY)
    yield "TIFF turned 6", tiff(RGB, photometric=2, extra=[(274, "H", [6])]), RGB[::-1].transpose(1, 0, 2)
    yield "TIFF 16 bits turned 6", tiff(DEEP, extra=[(274, "H", [6])]), three(GRAY)[::-1].transpose(1, 0, 2)
    inks = np.dstack([255 - RGB, GRAY // 3])
    mixed = ((255.0 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).round().astype(np.uint8)
    yield "TIFF CMYK", saved(Image.fromarray(inks, "CMYK"), "TIFF"), mixed
    long = np.tile(RGB[:8], (1, 94, 1))[:, :3000]
    yield "PNG 8x3000", saved(long, "PNG"), long
    yield "PNG 1 px", saved(RGB[:1, :1], "PNG"), RGB[:1, :1]
    yield "TGA", saved(np.dstack([RGB, GRAY]), "TGA"), RGB


def zoo():
    """name -> (bytes, pixels, whether they may differ by `LOSSY` levels on average)."""
    animals = {name: (data, pixels, True) for name, data, pixels in jpegs()}
    animals["WebP"] = (saved(RGB, "WEBP", quality=95), RGB, True)
    if features.check("avif"):
        animals["AVIF"] = (saved(RGB, "AVIF", quality=95), RGB, True)
        turned = saved(RGB, "AVIF", quality=95, exif=exif(6))
        assert b"irot" in turned
        animals["AVIF turned 6"] = (turned, RGB[::-1].transpose(1, 0, 2), True)
    if "HEIF" in _formats():  # the plug-in, which also writes
        plain = {"quality": 95, "chroma": 444}
        turned = saved(RGB, "HEIF", **plain, exif=exif(6).tobytes())  # by a property of its own, as phones do
        assert b"irot" in turned
        animals["HEIC"] = (saved(RGB, "HEIF", **plain), RGB, True)
        animals["HEIC turned 6"] = (turned, RGB[::-1].transpose(1, 0, 2), True)
        animals["HEIC, EXIF says 6"] = (
            saved(RGB, "HEIF", **plain, exif=exif(6)),
            RGB,
            True,
        )  # which counts for nothing
    if "JXL" in _formats():
        jxl = importlib.import_module("imagecodecs")
        animals["JPEG XL"] = (jxl.jpegxl_encode(RGB, lossless=True), RGB, False)
        animals["JPEG XL, lossy"] = (jxl.jpegxl_encode(RGB, distance=0.5), RGB, True)
        animals["JPEG XL of gray"] = (jxl.jpegxl_encode(GRAY, lossless=True), three(GRAY), False)
        animals["JPEG XL of 16 bits"] = (jxl.jpegxl_encode(DEEP, lossless=True), three(GRAY), False)
        animals["JPEG XL of 16 bits, colour"] = (jxl.jpegxl_encode(WIDE, lossless=True), RGB, False)
        invisible = np.dstack([RGB, 0 * GRAY])
        animals["JPEG XL, invisible"] = (jxl.jpegxl_encode(invisible, lossless=True), RGB, False)
        turned = saved(RGB, "JPEG", quality=95, subsampling=0, exif=exif(6))  # kept in a box, beside its EXIF
        animals["JPEG XL of a JPEG turned 6"] = (jxl.jpegxl_encode_jpeg(turned), RGB[::-1].transpose(1, 0, 2), True)
    if features.check("jpg_2000"):
        animals["JPEG 2000"] = (saved(RGB, "JPEG2000"), RGB, False)
        animals["JPEG 2000 of 16 bits"] = (saved(DEEP, "JPEG2000"), three(GRAY), False)
    for name, data, pixels in lossless():
        animals[name] = (data, pixels, name == "TIFF CMYK")
    return animals
