"""Images of 1 to 16 channels at sixteen bits: what each format's samples become, and what is no such image."""

import io

import numpy as np
import pytest
from PIL import Image
from zoo import DEEP, RGB, exif, png, saved, tiff

from headrace.errors import UserError
from headrace.pipelines.images.channels import decode_channels, levels_of
from headrace.pipelines.images.decode import DecodeError, decode, image_size
from headrace.pipelines.images.formats import image_suffixes, why_not
from headrace.pipelines.images.rules import Rules, use_rules
from headrace.pipelines.sources import open_source
from headrace.pipelines.views.cut import decode_fast

RNG = np.random.default_rng(0)
RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
BANDS = RNG.integers(0, 65536, (20, 30, 13)).astype(np.uint16)


def npy(array):
    np.save(buffer := io.BytesIO(), array)
    return buffer.getvalue()


def read(data, channels, span="full"):
    """As loaders decode it; the size by the header and the picture for people's eyes are those of the same pixels."""
    use_rules(Rules(range=span, channels=channels))
    found = decode_fast(np.frombuffer(data, np.uint8))
    assert found.dtype == np.uint16 and found.shape == (*image_size(data), channels)
    assert found.transpose(2, 0, 1).flags.c_contiguous  # what is resized plane by plane
    shown = found[..., :3] if channels > 2 else found[..., [0, 0, 0]]
    assert np.array_equal(decode(data), shown >> 8)
    return found


def scaled(values, low, high):
    """Independent: levels of numbers between two ends, in float64."""
    return np.floor(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 65535 + 0.5)


def tifffile():
    return pytest.importorskip("tifffile", reason="needs the extra [rasters]")


def wrote(*arrays, **options):
    with tifffile().TiffWriter(buffer := io.BytesIO()) as file:
        for array in arrays:
            file.write(array, contiguous=False, **{"photometric": "minisblack", **options})
    return buffer.getvalue()


def test_sixteen_bits_of_gray_stay_to_the_last():
    for data in (saved(RAMP, "PNG"), npy(RAMP), npy(RAMP.astype(">u2")), saved(RAMP, "PPM")):
        assert np.array_equal(read(data, 1)[..., 0], RAMP)
    assert np.array_equal(read(saved(DEEP, "PNG"), 1)[..., 0], DEEP)


def test_arrays_of_any_layout():
    planes = np.ascontiguousarray(BANDS.transpose(2, 0, 1))
    for array in (BANDS, planes, np.asfortranarray(BANDS), BANDS.astype(">u2"), BANDS.astype(np.uint32) << 16):
        assert np.array_equal(read(npy(array), 13), BANDS)
    assert np.array_equal(read(npy(BANDS.astype(np.int16)), 13), BANDS.astype(np.int16).astype(int) + 32768)
    assert np.array_equal(read(npy(BANDS[..., 0] > 30000), 1, (0, 1))[..., 0], (BANDS[..., 0] > 30000) * 65535)
    use_rules(Rules(channels=13))
    assert np.array_equal(levels_of(planes[:, ::-1]), BANDS[::-1])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floating_point_runs_from_0_to_1(kind):
    values = RNG.random((12, 9, 6)).astype(kind)
    assert np.array_equal(read(npy(values), 6), scaled(values, 0, 1))
    wide = (values * 300 - 50).astype(kind)  # of kelvins, say
    assert np.array_equal(read(npy(wide), 6, (-20, 200)), scaled(wide, -20, 200))
    for bad, words in ((wide, "beyond 0..1; say what they mean with data.range"), (values * kind("nan"), "not finite")):
        with pytest.raises(DecodeError, match=words):
            read(npy(bad), 6)


def test_ends_are_given_or_percentiles_of_each_channel():
    twelve = (BANDS >> 4) + np.arange(13, dtype=np.uint16) * 100
    assert np.array_equal(read(npy(twelve), 13, (0, 4095)), scaled(twelve, 0, 4095))
    found = read(npy(twelve), 13, "percentile")
    for band in range(13):
        low, high = np.percentile(twelve[..., band], (1, 99))
        assert np.array_equal(found[..., band], scaled(twelve[..., band], low, high))


def test_eight_bits_are_spread_and_alpha_is_read_where_it_is_counted():
    for data in (saved(RGB, "PNG"), saved(RGB, "BMP")):
        assert np.array_equal(read(data, 3), RGB.astype(np.uint16) * 257)
    gray, alpha = RGB[..., 0], RGB[..., 1]
    assert np.array_equal(read(saved(gray, "PNG"), 1)[..., 0], gray * np.uint16(257))
    colour = Image.fromarray(np.dstack([RGB, alpha]))
    both = Image.merge("LA", (Image.fromarray(gray), Image.fromarray(alpha)))
    for image, most in ((colour, 4), (both, 2)):
        assert np.array_equal(read(saved(image, "PNG"), most), np.atleast_3d(image).astype(np.uint16) * 257)
        assert np.array_equal(
            read(saved(image, "PNG"), most - 1), np.atleast_3d(image)[..., :-1].astype(np.uint16) * 257
        )
    turned = saved(Image.fromarray(RGB[:, :20]), "PNG", exif=exif(6))
    assert np.array_equal(read(turned, 3), np.rot90(RGB[:, :20], -1).astype(np.uint16) * 257)


def test_colour_of_sixteen_bits():
    pytest.importorskip("imagecodecs", reason="needs the extra [rasters]")
    wide = RNG.integers(0, 65536, (9, 14, 4)).astype(np.uint16)
    for colour, channels in ((2, 3), (6, 4), (4, 2)):
        rows = [row.astype(">u2").tobytes() for row in wide[..., :channels]]
        data = png(14, 9, 16, colour, rows)
        assert np.array_equal(read(data, channels), wide[..., :channels])
        if channels != 3:  # alpha that nobody counts
            assert np.array_equal(read(data, channels - 1), wide[..., : channels - 1])
    import imagecodecs

    for bits, values in ((16, wide[..., :3]), (12, wide[..., :3] >> 4)):
        data = imagecodecs.jpeg2k_encode(values, level=0, bitspersample=bits, codecformat="jp2")
        assert np.array_equal(read(data, 3), values if bits == 16 else scaled(values, 0, 4095))


@pytest.mark.parametrize("order", "<>")
def test_tiff_by_hand(order):
    tifffile()
    signed = BANDS.astype(np.int16)
    assert np.array_equal(read(tiff(BANDS, order=order), 13), BANDS)
    assert np.array_equal(read(tiff(RAMP, order=order, photometric=0), 1)[..., 0], 65535 - RAMP)
    assert np.array_equal(read(tiff(signed, order=order, kind=2), 13), signed.astype(int) + 32768)
    floats = RNG.random((7, 5, 2)).astype(np.float32)
    assert np.array_equal(read(tiff(floats, order=order, kind=3), 2), scaled(floats, 0, 1))
    turned = read(tiff(BANDS, order=order, extra=[(274, "H", [8])]), 13)
    assert np.array_equal(turned, np.rot90(BANDS, 1))


def test_tiff_in_planes_pages_and_compressions():
    planes = np.ascontiguousarray(BANDS.transpose(2, 0, 1))
    apart = {"planarconfig": "separate"}
    for data in (wrote(planes, **apart), wrote(planes, compression="zlib", predictor=True, **apart), wrote(*planes)):
        assert np.array_equal(read(data, 13), BANDS)
    assert np.array_equal(read(wrote(*planes[:2]), 2), BANDS[..., :2])
    assert np.array_equal(read(wrote(BANDS[..., :3], BANDS[..., 3:6], photometric="rgb"), 3), BANDS[..., :3])
    with_alpha = wrote(BANDS[..., :4], photometric="rgb", extrasamples=["unassalpha"])
    for count in (3, 4):
        assert np.array_equal(read(with_alpha, count), BANDS[..., :count])
    pytest.importorskip("imagecodecs", reason="needs the extra [rasters]")
    assert np.array_equal(read(wrote(BANDS, compression="lzw", tile=(16, 16), planarconfig="contig"), 13), BANDS)
    palette = saved(Image.fromarray(RGB).quantize(16), "TIFF")
    assert np.array_equal(read(palette, 3) >> 8, np.asarray(Image.open(io.BytesIO(palette)).convert("RGB")))


def test_dicom():
    pydicom = pytest.importorskip("pydicom", reason="needs the extra [dicom]")
    from pydicom.dataset import FileMetaDataset

    def written(values, kind="MONOCHROME2", **tags):
        held = pydicom.Dataset()
        held.file_meta = FileMetaDataset()
        held.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        held.file_meta.MediaStorageSOPClassUID = held.SOPClassUID = pydicom.uid.CTImageStorage
        held.file_meta.MediaStorageSOPInstanceUID = held.SOPInstanceUID = "1.2.3"
        held.Rows, held.Columns = values.shape[-2:]
        held.SamplesPerPixel, held.PhotometricInterpretation = 1, kind
        held.BitsAllocated, held.BitsStored, held.HighBit = 16, 12, 11
        held.PixelRepresentation = int(values.dtype.kind == "i")
        if values.ndim == 3:
            held.NumberOfFrames = len(values)
        for key, value in tags.items():
            setattr(held, key, value)
        held.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
        held.save_as(buffer := io.BytesIO(), enforce_file_format=True)
        return buffer.getvalue()

    twelve = RNG.integers(0, 4096, (8, 10)).astype(np.uint16)
    assert np.array_equal(read(written(twelve), 1)[..., 0], scaled(twelve, 0, 4095))
    assert np.array_equal(read(written(twelve, "MONOCHROME1"), 1)[..., 0], 65535 - scaled(twelve, 0, 4095))
    ct = written(twelve, RescaleSlope=1, RescaleIntercept=-1024)
    assert np.array_equal(read(ct, 1, (-160, 240))[..., 0], scaled(twelve.astype(float) - 1024, -160, 240))
    pet = written(twelve, RescaleSlope="0.25", RescaleIntercept=0)
    assert np.array_equal(read(pet, 1, (0, 500))[..., 0], scaled(twelve * 0.25, 0, 500))
    frames = RNG.integers(-2048, 2048, (3, 8, 10)).astype(np.int16)
    assert np.array_equal(read(written(frames), 3), scaled(frames.transpose(1, 2, 0), -2048, 2047))
    for bad in (written(twelve)[:-40], written(twelve)[:200], written(twelve, "YBR_FULL")):
        with pytest.raises(DecodeError):
            read(bad, 1)


def test_another_number_of_channels_is_no_such_image():
    tifffile()
    for data, channels, words in (
        (npy(BANDS), 12, r"an array of shape \(20, 30, 13\), neither \(H, W, 12\) nor \(12, H, W\)"),
        (saved(RGB, "PNG"), 1, "3 channels, not the 1 of data.channels"),
        (saved(RAMP, "PNG"), 3, "1 channel, not the 3 of data.channels"),
        (tiff(BANDS), 6, "13 channels, not the 6"),
    ):
        use_rules(Rules(channels=channels))
        with pytest.raises(DecodeError, match=words):
            decode_channels(data)


def test_what_is_cut_off_or_made_up_is_no_image():
    tifffile()
    header = npy(np.zeros((4, 4), np.uint16))
    liar = header.replace(b"(4, 4)", b"(4, 9)")
    objects = npy(np.array([[1, "a"]], dtype=object))
    broken = [npy(BANDS)[:-1], npy(BANDS)[:40], liar, objects, npy(np.zeros((0, 4), np.uint8)), npy(BANDS.astype("c8"))]
    broken += [
        tiff(BANDS)[:-300],
        wrote(BANDS, compression="zlib", planarconfig="contig")[:-900],
        b"II*\0\x08\0\0\0",
        b"\x93NUMPY",
        b"",
    ]
    use_rules(Rules(channels=13))
    for data in broken:
        with pytest.raises(DecodeError):
            decode_channels(data)
        if data is not broken[5]:  # whose header is sound: of complex numbers
            with pytest.raises(DecodeError):
                image_size(data)


def test_more_pixels_than_are_allowed(monkeypatch):
    use_rules(Rules(channels=13, max_pixels=599))
    with pytest.raises(DecodeError, match="30x20 pixels, more than the 599"):
        image_size(npy(BANDS))


def test_a_lacking_package_is_one_line(monkeypatch):
    from headrace.pipelines.images import instruments

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(instruments.importlib, "import_module", missing)
    use_rules(Rules(channels=13))
    with pytest.raises(UserError, match=r'tifffile, of the extra \[rasters\]: pip install "headrace\[rasters\]"'):
        image_size(tiff(BANDS))


def test_which_files_are_images_depends_on_what_is_asked_for(tmp_path):
    (tmp_path / "columns").mkdir()
    for name in ("a.npy", "b.NPY", "c.dcm", "columns/blur.npy"):
        np.save(open(tmp_path / name, "wb"), BANDS)
    with pytest.raises(UserError, match=r"2 .npy \(array: say how many channels with data.channels, or --channels\)"):
        open_source(tmp_path)
    assert why_not(".dcm").startswith("DICOM: say how many channels")
    use_rules(Rules(channels=13))
    assert len(open_source(tmp_path)) == 3 and {".npy", ".dcm", ".jpg"} <= set(image_suffixes())
