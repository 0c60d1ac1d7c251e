"""Images of 1 to 16 channels at sixteen bits through every loader that has them: against formulas in float64, and three
channels against RGB of eight bits."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import headrace
from headrace.errors import UserError
from headrace.kernels.augment import blur_taps
from headrace.pipelines.images.rules import Rules, use_rules
from headrace.pipelines.loaders.choose import choose_loader, choose_pixels, make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.pixels.command import main as write_pixels
from headrace.pipelines.shard import main as write_shards
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.arrays import ArraySource
from headrace.pipelines.spec import InputSpec, RandomErasing, ViewSpec
from headrace.pipelines.views.draw import draw_views
from headrace.pipelines.views.recipes import view

RNG = np.random.default_rng(0)
RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
COUNTS = (1, 2, 3, 6, 13)
LOADERS = ("cpu", "memory", "pixels", "arrays")


def plain(channels, size, **options):
    """Pixels in [0, 1] as the model gets them: the whole of a square image unless said otherwise."""
    said = {"crop": "center", "center_fraction": 1.0, "flip": 0.0, "mean": (0.0,) * channels, "std": (1.0,) * channels}
    return ViewSpec("image", size=size, **{**said, **options})


def batch_of(images, spec, kind, folder, *, seed=0, threads=1):
    """The first batch of images (H, W, C) of any type by a loader; `pixels`: out of sidecars of their shards."""
    use_rules(Rules(channels=spec.channels))
    source, loader = ArraySource(images, name="images"), "memory"
    if kind != "arrays":
        place = folder / "files"
        place.mkdir(exist_ok=True)
        for number, image in enumerate(images):
            np.save(place / f"{number:03d}.npy", image)
        source, loader = open_source(place), "cpu" if kind == "pixels" else kind
    if kind == "pixels":
        count = ["--channels", str(spec.channels)]
        if not (folder / "shards").exists():
            assert write_shards([str(place), str(folder / "shards"), "--no-shuffle", "--workers", "1", *count]) == 0
            assert write_pixels([str(folder / "shards"), "--workers", "1", *count]) == 0
        source = open_source(folder / "shards")
    inputs = InputSpec((spec,))
    loader, _, stored = choose_pixels(source, loader, "require" if kind == "pixels" else "auto", "cpu", inputs)
    order = Order(len(images), len(images), shuffle=False)
    made = make_loader(source, inputs, order, kind=loader, pixels=stored, seed=seed, threads=threads)
    try:
        return next(made).views["image"]
    finally:
        made.close()


def weights(start, length, size, radius):
    """(size, length) float64: an antialiased resize as Pillow defines it."""
    scale = length / size
    stretch = max(scale, 1.0)
    distance = np.abs((np.arange(length) + 0.5)[None] - ((np.arange(size) + 0.5) * scale)[:, None]) / stretch
    near, far = (1.5 * distance - 2.5) * distance**2 + 1, ((distance - 5) * distance + 8) * distance * -0.5 + 2
    kernel = 1 - distance if radius == 1 else np.where(distance < 1, near, far)
    kernel = np.where(distance < radius, kernel, 0)
    return kernel / kernel.sum(1, keepdims=True)


def resized(image, box, size, interpolation):
    left, top, width, height = box
    crop = image[top : top + height, left : left + width].astype(np.float64)
    radius = 1 if interpolation == "bilinear" else 2
    down, across = weights(0, height, size, radius), weights(0, width, size, radius)
    return np.einsum("yh,hwc,xw->yxc", down, crop, across).clip(0, 65535)


def levels(views):
    """(count, B, C, S, S) in [0, 1] -> (count, B, S, S, C) float64 in levels."""
    return views.double().permute(0, 1, 3, 4, 2).numpy() * 65535


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("channels", COUNTS)
def test_every_level_of_a_ramp_gets_to_the_model(kind, channels, tmp_path):
    image = np.stack([np.roll(RAMP, 37 * band, band % 2) ^ (band % 2) * 0xFFFF for band in range(channels)], -1)
    views = batch_of([image], plain(channels, 256), kind, tmp_path)
    assert views.shape == (1, 1, channels, 256, 256) and views.dtype == torch.float32
    error = np.abs(levels(views)[0, 0] - image)
    assert error.max() < 0.01, error.max()  # of a level: rounding to float32
    assert all(len(np.unique(views[0, 0, band].numpy())) == 65536 for band in range(channels))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kind", LOADERS)
def test_crops_are_resized_in_every_channel(kind, interpolation, tmp_path):
    channels = 6
    images = [RNG.integers(0, 65536, (h, w, channels)).astype(np.uint16) for h, w in ((90, 61), (33, 120), (20, 20))]
    said = {"crop": "random", "scale": (0.1, 1.0), "flip": 0.5, "interpolation": interpolation, "count": 3}
    spec = plain(channels, 27, **said)
    views = levels(batch_of(images, spec, kind, tmp_path, seed=5))
    sizes = torch.tensor([image.shape[:2] for image in images])
    params = draw_views(InputSpec((spec,)), 5, 0, torch.arange(3), sizes)["image"]
    assert params.flip.any() and not params.flip.all()
    for copy in range(3):
        for number, image in enumerate(images):
            expected = resized(image, params.crop[copy, number].tolist(), 27, interpolation)
            expected = expected[:, ::-1] if params.flip[copy, number] else expected
            assert np.abs(views[copy, number] - expected).max() < 0.6  # rounded once to whole levels


@pytest.mark.parametrize(
    "change", [{"interpolation": "lanczos"}, {"antialias": False}, {"crop": "window", "padding": 4}]
)
def test_rare_crops_work_plane_by_plane(change, tmp_path):
    """As the same planes one by one, which Pillow and torch know as images of one channel."""
    images = [RNG.integers(0, 65536, (40, 52, 2)).astype(np.uint16) for _ in range(4)]
    said = {"crop": "random", "flip": 0.5, **change}
    both = batch_of(images, plain(2, 24, **said), "arrays", tmp_path)
    for band in range(2):
        one = batch_of([image[..., band] for image in images], plain(1, 24, **said), "arrays", tmp_path)
        assert torch.equal(both[:, :, band : band + 1], one)
    if change.get("crop") == "window":
        spec = plain(2, 24, **said)
        params = draw_views(InputSpec((spec,)), 0, 0, torch.arange(4), torch.tensor([[40, 52]] * 4))["image"]
        for number, image in enumerate(images):
            left, top = (params.offset[0, number] + 4).tolist()
            padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), "reflect")[top : top + 24, left : left + 24]
            expected = padded[:, ::-1] if params.flip[0, number] else padded
            assert np.abs(levels(both)[0, number] - expected).max() < 0.01


def blurred(x, sigma, taps):
    """(S, S, C) float64, separable, mirrored at the border."""
    reach = taps // 2
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        wide = np.pad(x, [(reach, reach) if axis == a else (0, 0) for a in range(3)], "reflect")
        x = sum(k * np.take(wide, np.arange(i, i + x.shape[axis]), axis) for i, k in enumerate(kernel))
    return x


@pytest.mark.parametrize("channels", [1, 2, 6, 13])
def test_operations_are_those_of_each_channel(channels, tmp_path):
    """Brightness, contrast around a channel's own mean, blur, normalisation and channel drop."""
    images = [RNG.integers(0, 65536, (24, 24, channels)).astype(np.uint16) for _ in range(8)]
    mean, std = tuple(np.linspace(0.3, 0.6, channels)), tuple(np.linspace(0.1, 0.4, channels))
    said = {"jitter": 0.8, "brightness": 0.5, "contrast": 0.6, "blur": 0.5, "flip": 0.5, "mean": mean, "std": std}
    spec = plain(channels, 24, **said, channel_drop=0.4 if channels > 1 else 0.0)
    views = batch_of(images, spec, "cpu", tmp_path, seed=3)[0]
    params = draw_views(InputSpec((spec,)), 3, 0, torch.arange(8), torch.tensor([[24, 24]] * 8))["image"]
    done = set()
    for number, image in enumerate(images):
        x = image.astype(np.float64) / 65535
        for operation in params.order[0, number].tolist():
            factor = params.jitter[0, number, max(operation, 0)].item()
            if operation == 0:
                x = np.clip(x * factor, 0, 1)
            elif operation == 1:
                x = np.clip(factor * x + (1 - factor) * x.mean((0, 1)), 0, 1)
            done.add(operation)
        if (sigma := params.sigma[0, number].item()) > 0:
            x = blurred(x, sigma, blur_taps(spec.blur_sigma[1]))
        x = x[:, ::-1] if params.flip[0, number] else x
        x = (x - mean) / std
        if channels > 1:
            dropped = params.dropped[0, number].numpy()
            assert not dropped.all()
            x[..., dropped] = 0
            done.add(f"dropped {dropped.any()}")
        assert np.abs(views[number].permute(1, 2, 0).double().numpy() - x).max() < 2e-5
    assert {0, 1, -1} <= done and (channels == 1 or "dropped True" in done)


SIMCLR = view("simclr")
OPERATIONS = {
    "flip": {"flip": 0.5},
    "rotation": {"rotate": 40.0},
    "brightness": {"jitter": 1.0, "brightness": 0.6},
    "contrast": {"jitter": 1.0, "contrast": 0.6},
    "saturation": {"jitter": 1.0, "saturation": 0.6},
    "hue": {"jitter": 1.0, "hue": 0.3},
    "jitter": {"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "grayscale": {"gray": 0.6, "gray_weights": "mean"},
    "grayscale first": {"gray": 0.6, "gray_first": True, "jitter": 1.0, "hue": 0.1, "contrast": 0.3},
    "blur": {"blur": 0.7},
    "solarise": {"solarize": 0.5},
    "erasing": {"erasing": RandomErasing(chance=0.8)},
    "channel drop": {"channel_drop": 0.5},
    "rotations": {"parts": "rotations"},
    "window": {"crop": "window", "padding": 6},
    "all": {
        key: getattr(SIMCLR, key) for key in ("jitter", "brightness", "contrast", "saturation", "hue", "gray", "blur")
    },
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_three_channels_are_red_green_and_blue(name, tmp_path):
    """Each operation on deep images of the same pixels is what it is on RGB of eight bits, by 0.06 levels of these."""
    images = [RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8) for _ in range(12)]
    spec = ViewSpec(
        "image", count=2, size=40, **{"crop": "center", "center_fraction": 1.0, "flip": 0.0, **OPERATIONS[name]}
    )
    order = Order(12, 12, shuffle=False)
    shallow = make_loader(ArraySource(images), InputSpec((spec,)), order, kind="memory", seed=2, threads=1)
    expected = next(shallow).views["image"]
    shallow.close()
    found = batch_of([image.astype(np.uint16) * 257 for image in images], spec, "arrays", tmp_path, seed=2)
    assert found.shape == expected.shape
    error = (found.double() - expected).abs() * torch.tensor(spec.std).view(3, 1, 1) * 255
    turned = error.amax((-3, -2, -1)).flatten()
    if name in ("solarise", "all"):  # a value that rounds to the other side of the edge is inverted in one of the two
        turned = error.flatten(2).quantile(0.999, dim=2).flatten()
    assert turned.max() < 0.06, turned.max()
    assert name == "flip" or not torch.equal(expected[0], expected[1])


def test_three_channels_are_cropped_as_rgb_is(tmp_path):
    """By at most two levels of eight bits, which Pillow rounds to twice."""
    images = [np.kron(RNG.integers(0, 256, (9, 7, 3)), np.ones((9, 9, 1))).astype(np.uint8) for _ in range(6)]
    spec = ViewSpec("image", count=2, size=32, interpolation="bilinear")
    shallow = make_loader(ArraySource(images), InputSpec((spec,)), Order(6, 6, shuffle=False), kind="memory", threads=1)
    expected = next(shallow).views["image"]
    shallow.close()
    found = batch_of([image.astype(np.uint16) * 257 for image in images], spec, "arrays", tmp_path)
    error = (found.double() - expected).abs() * torch.tensor(spec.std).view(3, 1, 1) * 255
    assert error.max() < 2 and error.mean() < 0.4


@pytest.mark.parametrize(
    "channels, change, words",
    [
        (
            6,
            {"jitter": 1.0, "hue": 0.1, "saturation": 0.2},
            "image.saturation, hue: for red, green and blue alone, not for 6",
        ),
        (1, {"gray": 0.2}, "image.gray: for red, green and blue alone, not for 1 channel; set to 0"),
        (13, {"solarize": 0.2}, "image.solarize: for red, green and blue alone"),
        (1, {"channel_drop": 0.1}, "image.channel_drop: the only channel of an image cannot be dropped"),
        (3, {"randaugment": headrace.pipelines.RandAugment()}, "image.randaugment: works on RGB of eight bits"),
        (
            2,
            {"mean": (0.5,) * 3, "std": (0.5,) * 3},
            "image.mean: 3 values, the images have 2 channels; headrace check",
        ),
    ],
)
def test_what_has_no_meaning_names_its_key(channels, change, words, tmp_path):
    images = np.zeros((4, 8, 8, channels), np.uint16)
    with pytest.raises(UserError) as error:
        headrace.loader(images, views=plain(channels, 8, **change), batch_size=2, channels=channels)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["dali", "webdataset", "ffcv"])
def test_loaders_of_rgb_say_so(kind):
    use_rules(Rules(channels=2))
    with pytest.raises(UserError, match=f"data.loader: {kind} reads RGB of eight bits; with data.channels, use"):
        choose_loader(ArraySource(np.zeros((4, 8, 8, 2), np.uint16)), kind, "cpu", InputSpec((plain(2, 8),)))


def test_views_of_other_channels_than_the_images_are_refused():
    with pytest.raises(UserError, match=r"image.mean: 5 values; say so with data.channels=5"):
        headrace.loader(np.zeros((4, 8, 8, 3), np.uint8), views=plain(5, 8), batch_size=2)
    with pytest.raises(UserError, match="channels: 1 to 16, not 17"):
        headrace.loader(np.zeros((4, 8, 8, 17), np.uint16), views=plain(16, 8), batch_size=2, channels=17)
    with pytest.raises(UserError, match=r"data: an array of shape \(8, 8, 3\), neither"):
        headrace.loader(np.zeros((4, 8, 8, 3), np.uint16), views=plain(5, 8), batch_size=2, channels=5)


def test_a_loop_of_ones_own(tmp_path):
    """`headrace.loader` of arrays in planes, with a range; and a folder in which an image is of another kind."""
    planes = RNG.integers(0, 4096, (6, 5, 16, 16)).astype(np.int32)
    with headrace.loader(planes, views=plain(5, 16), batch_size=6, shuffle=False, channels=5, range=(0, 4095)) as made:
        (batch,) = made
    expected = np.floor(planes / 4095 * 65535 + 0.5) / 65535
    assert np.abs(batch.views["image"][0].double().numpy() - expected).max() < 1e-6
    for number, image in enumerate(planes):
        np.save(tmp_path / f"{number}.npy", image[:4] if number == 2 else image)
    with headrace.loader(tmp_path, views=plain(5, 16), batch_size=6, shuffle=False, max_bad=0.2) as made:
        (batch,) = made  # channels and range are still the process's
        (line,) = made.stats().replaced
    assert "2.npy: an array of shape (4, 16, 16), neither (H, W, 5) nor (5, H, W)" in line
    kept = [0, 1, 3, 4, 5]
    assert np.abs(batch.views["image"][0, kept].double().numpy() - expected[kept]).max() < 1e-6


def test_sidecars_belong_to_the_channels_and_the_range(tmp_path, capsys):
    images = [RNG.integers(0, 4096, (12, 16, 2)).astype(np.uint16) for _ in range(5)]
    whole = batch_of(images, plain(2, 12), "pixels", tmp_path)
    assert torch.equal(whole, batch_of(images, plain(2, 12), "cpu", tmp_path))
    head = (tmp_path / "shards" / "train-000000.pixels").read_bytes()[16:4096].rstrip(b"\0")
    assert json.loads(head)["format"] == "deep" and json.loads(head)["rules"]["channels"] == 2
    shards = str(tmp_path / "shards")
    for rules, words in (
        (Rules(channels=2, range=(0, 4095)), "asked for are data.range"),
        (Rules(), "data.channels=2"),
    ):
        use_rules(rules)
        with pytest.raises(UserError, match=words):
            choose_pixels(open_source(shards), "cpu", "auto")
    use_rules(Rules())
    with pytest.raises(UserError, match="--format: images of deep have --channels; here, give rgb or yuv420"):
        write_pixels([shards, "--format", "deep"])
    use_rules(Rules(channels=2))
    with pytest.raises(UserError, match="--format: images of rgb are RGB of eight bits; here, give deep"):
        write_pixels([shards, "--format", "rgb"])
    with pytest.raises(UserError, match="--max-side: writes JPEGs"):
        write_shards([str(tmp_path / "files"), str(tmp_path / "other"), "--max-side", "8"])
    assert write_pixels([shards, "--max-side", "8", "--workers", "1"]) == 0
    use_rules(Rules(channels=2))
    stored = choose_pixels(open_source(shards), "cpu", "require")[2]
    for number, image in enumerate(images):
        expected = np.stack([weights(0, 12, 6, 2) @ image[..., band] @ weights(0, 16, 8, 2).T for band in range(2)], -1)
        assert np.abs(stored.image(number).astype(float) - expected.clip(0, 65535)).max() < 0.6


def test_views_of_deep_images_do_not_depend_on_threads_or_seeds_of_others(tmp_path):
    images = [RNG.integers(0, 65536, (30, 44, 4)).astype(np.uint16) for _ in range(9)]
    spec = plain(4, 24, crop="random", jitter=1.0, brightness=0.3, contrast=0.3, blur=0.5, channel_drop=0.2, count=2)
    one = batch_of(images, spec, "cpu", tmp_path, seed=7)
    assert torch.equal(one, batch_of(images, spec, "cpu", tmp_path, seed=7, threads=3))
    without = batch_of(images, replace(spec, channel_drop=0.0), "cpu", tmp_path, seed=7)
    kept = (one == 0).all(-1).all(-1)
    assert kept.any() and torch.equal(one[~kept], without[~kept])
