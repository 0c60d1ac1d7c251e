"""Windows of large TIFFs against slices of the arrays that were written."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image
from readers import equal, reader, taken

from headrace.pipelines.check import check
from headrace.pipelines.images.decode import decode
from headrace.pipelines.sources import open_source

tifffile = pytest.importorskip("tifffile", reason="needs the extra [rasters]")


def scene(height, width, seed=0, channels=3):
    """Smooth, different everywhere."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))[..., :channels].squeeze()


LAYOUTS = {  # how it is stored
    "tiles": {"tile": (32, 48)},
    "strips": {"rowsperstrip": 20},
    "one strip": {},
    "planes in tiles": {"tile": (32, 32), "planarconfig": "separate"},
    "deflate": {"tile": (64, 64), "compression": "zlib", "predictor": True},
    "lzw in strips": {"rowsperstrip": 16, "compression": "lzw"},
    "jpeg": {"tile": (64, 64), "compression": "jpeg", "compressionargs": {"level": 95}},  # luma and chroma, halved
    "big, other endian": {"tile": (32, 32), "bigtiff": True, "byteorder": ">"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_are_slices(layout, tmp_path):
    options = LAYOUTS[layout]
    if "compression" in options:
        pytest.importorskip("imagecodecs", reason="needs the extra [rasters]")
    pixels = scene(150, 210)
    data = np.moveaxis(pixels, 2, 0) if "planarconfig" in options else pixels
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="rgb", **options)
    if layout == "jpeg":
        assert abs(np.asarray(Image.open(tmp_path / "a.tif")).astype(int) - pixels).mean() < 2
        pixels = np.asarray(Image.open(tmp_path / "a.tif"))  # by another decoder
    source = open_source(f"raster:{tmp_path}?size=50&step=40")
    places = [(y, x) for y in range(0, 101, 40) for x in range(0, 161, 40)]
    assert [source.key(i) for i in range(len(source))] == [f"a.tif/0/{y}/{x}" for y, x in places]
    for i, (y, x) in enumerate(places):
        assert (decode(source.read(i)) == pixels[y : y + 50, x : x + 50]).all() and source.size(i) == (50, 50)


def test_gray_alpha_and_white_is_zero(tmp_path):
    pixels = scene(64, 64)
    tifffile.imwrite(tmp_path / "a.tif", pixels[..., 0], tile=(32, 32))
    tifffile.imwrite(tmp_path / "b.tif", 255 - pixels[..., 0], photometric="miniswhite")
    tifffile.imwrite(tmp_path / "c.tif", np.dstack([pixels, pixels[..., :1]]), photometric="rgb", extrasamples=[1])
    source = open_source(f"raster:{tmp_path}?size=32")
    assert len(source) == 12 and source.neighbours(5) == (4, 8) and source.place(5) == ("b.tif", 1)
    for i, wanted in ((3, pixels[32:, 32:, :1]), (7, pixels[32:, 32:, :1]), (11, pixels[32:, 32:])):
        assert (decode(source.read(i)) == wanted).all()


def pyramid(file, pixels):
    with tifffile.TiffWriter(file) as writer:
        writer.write(pixels, subifds=2, tile=(32, 32), photometric="rgb")
        for factor in (2, 4):
            writer.write(pixels[::factor, ::factor], subfiletype=1, tile=(32, 32), photometric="rgb")


def test_levels_and_what_is_valid(tmp_path, capsys):
    pixels = scene(256, 320).copy()
    pixels[:, 200:] = 255  # no tissue
    pyramid(tmp_path / "slide.tif", pixels)
    coarse = open_source(f"raster:{tmp_path}?size=64&level=1")
    assert [coarse.key(i) for i in (0, 3)] == ["slide.tif/1/0/0", "slide.tif/1/64/64"] and len(coarse) == 4
    assert (decode(coarse.read(3)) == pixels[::2, ::2][64:, 64:128]).all()

    def kept(options):
        source = open_source(f"raster:{tmp_path}?size=64&{options}")
        return [tuple(row) for row in source.index[["y", "x"]].tolist()]

    def wanted(share):
        part = lambda y, x: (pixels[y : y + 64, x : x + 64] != 255).any(2).mean()
        return [(y, x) for y in range(0, 193, 64) for x in range(0, 257, 64) if part(y, x) >= share]

    for share in ("0.1", "0.5"):
        assert kept(f"nodata=255&valid={share}") == wanted(float(share))
    assert len(wanted(0.1)) == 16 > len(wanted(0.5)) == 12
    assert "passed over: 8 windows of which less than 0.5 is valid" in capsys.readouterr().err
    mask = np.zeros((32, 40), np.uint8)  # an eighth of the resolution
    mask[8:20, 0:16] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "slide.png")
    assert kept(f"mask={tmp_path}/masks&valid=0.5") == [(64, 0), (64, 64), (128, 0), (128, 64)]
    assert kept(f"mask={tmp_path}/masks&valid=1") == [(64, 0), (64, 64)]


def test_order_resume_and_pickles(tmp_path):
    for number in range(3):
        tifffile.imwrite(tmp_path / f"{number}.tif", scene(80, 160, number), tile=(32, 32), photometric="rgb")
    name = f"raster:{tmp_path}?size=40"
    (tmp_path / "cut").mkdir()
    source = open_source(name)
    for i in range(len(source)):
        Image.open(io.BytesIO(source.read(i))).save(tmp_path / "cut" / f"{i:02d}.png")
    expected = taken(reader(open_source(f"folder:{tmp_path}/cut"), blocks=8), 12)
    assert equal(expected, taken(reader(name), 12))
    assert equal(expected, taken(reader(pickle.loads(pickle.dumps(source))), 12))
    half = taken(reader(name, 1, 2), 7, 5)
    assert [one[0] for one in half] == [one[0][2:] for one in expected[5:]]
    assert check(name, decode=True, workers=1).sound


def test_a_damaged_tile_is_set_aside(tmp_path):
    pytest.importorskip("imagecodecs", reason="needs the extra [rasters]")
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, scene(64, 256), tile=(32, 32), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(file) as opened:
        offset = opened.pages[0].dataoffsets[5]
    data = bytearray(file.read_bytes())
    data[offset : offset + 8] = b"\xff" * 8
    file.write_bytes(data)
    loader = reader(f"raster:{tmp_path}?size=32")
    for _ in range(8):
        assert 5 not in next(loader).ids.tolist()
    assert len(loader.stats().replaced) == 1 and "a.tif/0/0/160" in loader.stats().replaced[0]
    loader.close()


def test_what_is_no_raster_is_one_line(tmp_path, refused, monkeypatch):
    refused(f"raster:{tmp_path}", "no raster in it", ".tif")
    tifffile.imwrite(tmp_path / "a.tif", scene(64, 64), photometric="rgb")
    refused(f"raster:{tmp_path}", "all are smaller than 512 px")
    refused(f"raster:{tmp_path}?size=0", "size=0: a whole number from 1 on")
    refused(f"raster:{tmp_path}?size=8&valid=2", "valid=2: a share")
    refused(f"raster:{tmp_path}?size=8&level=1", "a.tif", "it has 1 levels, no level 1")
    refused(f"raster:{tmp_path}?size=8&mask={tmp_path}", "a.png: no mask for a.tif")
    (tmp_path / "b.tif").write_bytes(b"II*\0nothing")
    refused(f"raster:{tmp_path}?size=8", "b.tif: cannot be read as a raster")
    tifffile.imwrite(tmp_path / "b.tif", scene(64, 64).astype(np.uint16), photometric="rgb")
    refused(f"raster:{tmp_path}?size=8", "b.tif", "3 channels of uint16")
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    refused(f"raster:{tmp_path}", "needs the extra [rasters]")
