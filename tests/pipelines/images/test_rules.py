"""Which values are black and white in images of more than eight bits, and how many pixels are too many: one rule for
training, evaluation and every command."""

import io
import json
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from zoo import pnm, tiff

from headrace.errors import UserError, run_command
from headrace.pipelines import check as checking
from headrace.pipelines import shard as sharding
from headrace.pipelines.images.decode import DecodeError, decode, image_size
from headrace.pipelines.images.encode import Encoding
from headrace.pipelines.images.rules import Rules, rules, use_rules
from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.range_use import small_range
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, ViewSpec
from headrace.train.evaluation.embed_encoder import encoder_file, inherited, load_encoder
from headrace.train.pretrain import main as pretrain
from headrace.train.recipe.recipe import load_recipe

TWELVE = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)  # measured by a 12-bit sensor
WHOLE = ViewSpec("whole", size=32, crop="center", center_fraction=1.0, flip=0.0, mean=(0, 0, 0), std=(1, 1, 1))


def saved(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


@pytest.fixture
def sensor(tmp_path):
    (tmp_path / "sensor").mkdir()
    for index in range(8):
        (tmp_path / "sensor" / f"{index}.png").write_bytes(saved(np.roll(TWELVE, index)))
    return tmp_path / "sensor"


FILES = {"PNG": saved(TWELVE), "TIFF": tiff(TWELVE), "PGM": pnm(b"P5", TWELVE, 65535)}


@pytest.mark.parametrize("name", FILES)
def test_the_two_ends_are_what_one_says(name):
    assert np.array_equal(decode(FILES[name])[..., 0], TWELVE >> 8)  # 16 levels
    use_rules(Rules((0, 4095)))
    assert np.array_equal(decode(FILES[name])[..., 0], np.floor(TWELVE / 4095 * 255 + 0.5))
    use_rules(Rules((1000, 2000)))
    expected = np.clip((TWELVE.astype(float) - 1000) / 1000, 0, 1) * 255
    assert np.abs(decode(FILES[name])[..., 1] - expected).max() <= 0.5
    use_rules(Rules("percentile"))
    low, high = np.percentile(TWELVE, (1, 99))
    expected = np.clip((TWELVE - low) / (high - low), 0, 1) * 255
    assert np.abs(decode(FILES[name])[..., 2] - expected).max() <= 0.5 + 1e-6


def test_images_of_eight_bits_stay_as_they_are():
    gray = (TWELVE >> 4).astype(np.uint8)
    for choice in ("percentile", (0.0, 4095.0)):
        use_rules(Rules(choice))
        for data in (saved(gray), saved(gray, "JPEG"), pnm(b"P5", gray, 255), tiff(gray)):
            with_rule = decode(data)
            use_rules(Rules())
            assert np.array_equal(decode(data), with_rule)
            use_rules(Rules(choice))


def test_colour_of_sixteen_bits_in_a_ppm_has_a_range_too():
    colour = np.dstack([TWELVE, TWELVE.T, TWELVE[::-1]])
    use_rules(Rules((0, 4095)))
    assert np.array_equal(decode(pnm(b"P6", colour, 65535)), np.floor(colour / 4095 * 255 + 0.5))


def test_one_value_alone_is_black_and_nothing_is_divided_by_zero():
    use_rules(Rules("percentile"))
    assert not decode(saved(np.full((5, 6), 700, np.uint16))).any()


@pytest.mark.parametrize(
    "values, words", [((0, 255), "values from 0 to 255, beyond 0..1.*data.range"), ((0, np.nan), "not finite")]
)
def test_floating_point_that_is_no_share_is_bad_and_says_what_to_do(values, words):
    data = tiff(np.array([values] * 2, np.float32), kind=3)
    with pytest.raises(DecodeError, match=words):
        decode(data)
    if np.isfinite(values).all():
        use_rules(Rules((0, 255)))
        assert decode(data)[..., 0].tolist() == [[0, 255]] * 2


def test_a_pgm_with_more_than_its_header_says_is_bad():
    with pytest.raises(DecodeError, match="a value of 300, where the header says 256"):
        decode(pnm(b"P5", np.full((2, 2), 300), 256))


@pytest.mark.parametrize("wrong", [("half", "full, percentile"), ((5, 5), "low < high"), ((0, np.inf), "low < high")])
def test_ranges_without_a_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match=f"range: .*{wrong[1]}"):
        Rules(wrong[0])
    with pytest.raises(UserError, match="data.max_pixels: must be at least 1"):
        load_recipe("mae_vit-tiny", ["train.max_steps=1", "data.max_pixels=0"])
    assert load_recipe("mae_vit-tiny", ["train.max_steps=1", "data.range=[0,4095]"]).data.range == (0, 4095)


@pytest.mark.parametrize("kind", ["cpu", "dali", "memory"])
def test_every_loader_keeps_the_rule(kind, sensor):
    use_rules(Rules((0, 4095)))
    loader = make_loader(open_source(sensor), InputSpec((WHOLE,)), Order(8, 4, shuffle=False), kind=kind, threads=2)
    view = next(loader).views["whole"][0, 1, 0] * 255
    loader.close()
    assert np.abs(view.numpy() - np.roll(TWELVE, 1) / 4095 * 255).max() <= 0.51


def test_a_set_that_uses_a_small_part_of_its_range_is_told(sensor, tmp_path, capsys):
    words = (
        f"{sensor}: values of its images of more than eight bits run from {TWELVE.min()} to {TWELVE.max()} of 0..65535"
    )
    note = small_range(open_source(sensor))
    assert note.startswith(words) and "16 of 256 grey levels" in note and "data.range" in note
    assert run_command(lambda: checking.main([str(sensor), "--json", str(tmp_path / "report.json")])) == 0
    assert words in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["notes"] == [note]
    assert run_command(lambda: checking.main([str(sensor), "--range", "0,4095"])) == 0
    assert "grey levels" not in capsys.readouterr().out
    use_rules(Rules())
    (sensor / "0.png").write_bytes(saved(np.array([[0, 40000]], np.uint16)))
    assert small_range(open_source(sensor)) is None
    (tmp_path / "colour").mkdir()
    dark = np.dstack([TWELVE] * 3)
    (tmp_path / "colour" / "dark.ppm").write_bytes(pnm(b"P6", dark, 65535))
    (tmp_path / "colour" / "dark.tif").write_bytes(tiff(dark, photometric=2))
    assert "grey levels" in small_range(open_source(tmp_path / "colour"))
    assert small_range(open_source(f"file:{tmp_path}/none.tar#samples=8")) is None  # a stream is read once


def test_evaluation_sees_the_pixels_of_training(sensor, tmp_path, capsys):
    """Whatever of a run is evaluated, the range is that of the run; a recipe that starts from it takes it over."""
    run, words = tmp_path / "run", ["--smoke", f"data.train={sensor}", "train.max_steps=1"]
    assert run_command(lambda: pretrain(["mae_vit-tiny", *words, f"train.out={run}", "data.range=[0,4095]"])) == 0
    assert "warning" not in capsys.readouterr().out
    for name in (run, run / "step-00000001.pt", run / "encoder.safetensors"):
        use_rules(Rules())
        load_encoder(str(name))
        assert rules() == Rules((0, 4095)), name
    use_rules(Rules())
    for name in (run, run / "step-00000001.pt"):
        weights = encoder_file(name, tmp_path / "start")
        changed = load_recipe("mae_vit-tiny", [*inherited(weights), "train.max_steps=1"])
        assert changed.data.rules == Rules((0, 4095)), name
    assert run_command(lambda: pretrain(["mae_vit-tiny", *words, f"train.out={tmp_path / 'other'}"])) == 0
    assert rules() == Rules() and f"warning: {sensor}: values of its images" in capsys.readouterr().out
    assert inherited(encoder_file(tmp_path / "other", tmp_path / "start")) == []


# too many pixels


def test_the_limit_is_a_key_that_the_reason_names(tmp_path):
    data = saved(np.zeros((40, 50, 3), np.uint8))
    use_rules(Rules(max_pixels=1999))
    for function in (decode, image_size):
        with pytest.raises(
            DecodeError, match="50x40 pixels, more than the 1,999 that data.max_pixels, or --max-pixels"
        ):
            function(data)
    use_rules(Rules(max_pixels=2000))
    assert decode(data).shape == (40, 50, 3)
    recipe = load_recipe("mae_vit-tiny", ["train.max_steps=1", "data.max_pixels=200000000"])
    assert recipe.data.rules == Rules(max_pixels=200_000_000)


def test_more_pixels_than_pillow_allows_are_a_matter_of_the_key():
    """Pillow itself stops at twice its own number, 179 million."""
    data = saved(Image.new("1", (20_000, 10_000)), "TIFF", compression="group4")
    with pytest.raises(DecodeError, match="20000x10000 pixels, more than the 89,478,485"):
        image_size(data)
    use_rules(Rules(max_pixels=200_000_000))
    assert image_size(data) == (10_000, 20_000)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": 6}])
def test_a_jpeg_of_too_many_pixels_is_shrunk_while_it_is_decoded(options):
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = coarse.resize((800, 600), Image.Resampling.BICUBIC)
    turned = options.pop("exif", None)
    if turned:
        options["exif"] = Image.Exif()
        options["exif"][0x112] = turned
    data = np.frombuffer(saved(image, "JPEG", quality=95, **options), np.uint8)
    wanted, height, width = Encoding(max_side=80, quality=95).apply(data)
    use_rules(Rules(max_pixels=40_000))
    found, *size = Encoding(max_side=80, quality=95).apply(data)
    assert size == [height, width] == ([80, 60] if turned else [60, 80])
    error = np.abs(decode(found).astype(float) - decode(wanted))
    assert error.mean() < 2
    use_rules(Rules(max_pixels=7_000))  # an eighth of each side is 7,500
    with pytest.raises(DecodeError, match="[68]00x[68]00 pixels, more than the 7,000"):
        Encoding(max_side=20).apply(data)


def test_max_side_in_worker_processes(tmp_path, capsys):
    root = tmp_path / "large"
    root.mkdir()
    photo = Image.fromarray(np.random.default_rng(2).integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((480, 360))
    for index in range(4):
        photo.save(root / f"{index}.jpg", quality=90)
    photo.save(root / "4.bmp")
    words = ["--max-side", "60", "--shard-samples", "2", "--workers", "2", "--max-pixels", "20000"]
    out = tmp_path / "out"
    assert run_command(lambda: sharding.main([str(root), str(out), *words])) == 2
    assert "4.bmp: 480x360 pixels" in (said := capsys.readouterr().err) and "only JPEG, PNG and TIFF are" in said
    assert run_command(lambda: sharding.main([str(root), str(out), *words, "--skip-bad"])) == 0
    source = open_source(out)
    use_rules(Rules())
    assert [image_size(source.read(index)) for index in range(len(source))] == [(45, 60)] * 4
    assert json.loads((out / "dataset.json").read_text())["request"]["rules"] == {"max_pixels": 20000}
    capsys.readouterr()
    assert run_command(lambda: sharding.main([str(root), str(out), *words[:-2]])) == 2  # another rule, other bytes
    assert "rules" in capsys.readouterr().err


def test_shards_of_a_sensor_are_written_by_the_rule(sensor, tmp_path):
    words = ["--max-side", "32", "--quality", "95", "--workers", "1", "--no-shuffle", "--range", "0,4095"]
    assert run_command(lambda: sharding.main([str(sensor), str(tmp_path / "out"), *words])) == 0
    use_rules(Rules())
    error = np.abs(decode(open_source(tmp_path / "out").read(2))[..., 0] - np.roll(TWELVE, 2) / 4095 * 255)
    assert error.mean() < 6


OVERSIZE = {
    "rgb": ("PNG", "RGB", {}),
    "gray": ("PNG", "L", {}),
    "alpha": ("PNG", "RGBA", {}),
    "palette": ("PNG", "P", {}),
    "sixteen": ("PNG", "I;16", {}),
    "turned": ("PNG", "RGB", {"exif": 6}),
    "mirrored": ("TIFF", "RGB", {"tiffinfo": {274: 7}}),
    "lzw": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "sixteen-tiff": ("TIFF", "I;16", {}),
    "white-is-zero": ("TIFF", "1", {"tiffinfo": {262: 0}}),
}


@pytest.mark.parametrize("kind", OVERSIZE)
def test_png_and_tiff_of_too_many_pixels_are_shrunk_row_by_row(kind):
    """To what Pillow makes of the whole of them."""
    pytest.importorskip("pyvips", reason="needs the extra [huge]", exc_type=ImportError)
    form, mode, options = OVERSIZE[kind]
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = coarse.resize((803, 601), Image.Resampling.BICUBIC)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "1":
        image = image.convert("L").point(lambda level: 255 * (level > 127)).convert("1")
    else:
        image = image.convert(mode)
    turned = "exif" in options or 274 in options.get("tiffinfo", {})
    if "exif" in options:
        exif = Image.Exif()
        exif[0x112] = options["exif"]
        options = options | {"exif": exif}
    if form == "TIFF":
        options = options | {"tiffinfo": options.get("tiffinfo", {}) | {278: 20}}  # rows of a strip
    data = np.frombuffer(saved(image, form, **options), np.uint8)
    wanted, height, width = Encoding(max_side=80, quality=95).apply(data)
    use_rules(Rules(max_pixels=40_000))
    found, *size = Encoding(max_side=80, quality=95).apply(data)
    assert size == [height, width] == ([80, 60] if turned else [60, 80])
    error = np.abs(decode(found).astype(float) - decode(wanted))
    assert error.mean() < (4 if mode == "1" else 2)
    cut = data[: len(data) // 2]
    with pytest.raises(DecodeError):
        Encoding(max_side=80).apply(cut)


def test_what_is_decoded_at_once_stays_refused(monkeypatch):
    image = Image.new("RGB", (300, 200))
    use_rules(Rules(max_pixels=40_000))
    interlaced = bytearray(saved(image, "PNG"))
    interlaced[28] = 1
    interlaced[29:33] = zlib.crc32(interlaced[12:29]).to_bytes(4, "big")
    with pytest.raises(DecodeError, match="an interlaced PNG is decoded all at once; save it without"):
        Encoding(max_side=80).apply(bytes(interlaced))
    with pytest.raises(DecodeError, match="a strip of its TIFF has 60,000; save it in smaller strips or in tiles"):
        Encoding(max_side=80).apply(saved(image, "TIFF", tiffinfo={278: 200}))
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(DecodeError, match=r"pip install 'headrace\[huge\]'"):
        Encoding(max_side=80).apply(saved(image, "PNG"))
