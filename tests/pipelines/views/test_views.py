"""Every loader against the oracle (Pillow and torchvision), pixel by pixel, in grey levels."""

import itertools

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from headrace.errors import UserError
from headrace.kernels.augment import augment, blur_taps, parameter_table
from headrace.pipelines.images.decode import decode
from headrace.pipelines.loaders.choose import choose_loader
from headrace.pipelines.loaders.cpu import CpuLoader
from headrace.pipelines.loaders.dali import DaliLoader
from headrace.pipelines.loaders.memory import MemoryLoader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.arrays import ArraySource
from headrace.pipelines.spec import InputSpec, RandAugment, RandomErasing, RandomMask, ViewSpec
from headrace.pipelines.views.reference import reference_views

FULL = ViewSpec(
    name="full",
    count=2,
    size=64,
    jitter=0.8,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    gray=0.2,
    blur=0.5,
    solarize=0.3,
)
PLAIN = ViewSpec(name="plain", size=48, interpolation="bicubic")
LOADERS = {"cpu": CpuLoader, "dali": DaliLoader, "memory": MemoryLoader}


def changed(pixels, **change):
    """The crops with some of the parameters drawn and the others neutral, not normalised."""
    n = len(pixels)
    options = {"sigma_max": 2.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    options |= {name: change.pop(name) for name in options if name in change}
    neutral = dict(
        flip=torch.zeros(n, dtype=torch.bool),
        jitter=torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(n, 1),
        order=torch.full((n, 4), -1, dtype=torch.int8),
        gray=torch.zeros(n, dtype=torch.bool),
        sigma=torch.zeros(n),
        solarize=torch.zeros(n, dtype=torch.bool),
    )
    return augment(pixels, parameter_table(**{**neutral, **change}), **options)


@pytest.fixture(scope="module")
def pixels():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (24, 20, 20, 3), dtype=np.uint8))


def as_float(pixels):
    return pixels.permute(0, 3, 1, 2).float() / 255


def test_all_colour_orders_match_torchvision(pixels):
    orders = torch.tensor(list(itertools.permutations(range(4))), dtype=torch.int8)
    factors = torch.tensor([[1.4, 0.6, 1.7, -0.15]]).repeat(24, 1) * torch.linspace(0.8, 1.1, 24)[:, None]
    ours = changed(pixels, order=orders, jitter=factors)
    functions = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for n, x in enumerate(as_float(pixels)):
        for operation in orders[n].tolist():
            x = functions[operation](x, factors[n, operation].item())
        assert (ours[n] - x).abs().max() < 2e-5


def test_gray_blur_solarise_flip_and_normalise_match_torchvision(pixels):
    x = as_float(pixels)
    on = torch.ones(24, dtype=torch.bool)
    sigma = torch.linspace(0.1, 2.0, 24)
    assert (changed(pixels, gray=on) - tv.rgb_to_grayscale(x, 3)).abs().max() < 1e-5
    assert torch.equal(changed(pixels, flip=on), x.flip(-1))
    assert (changed(pixels, solarize=on) - tv.solarize(x, 128 / 255)).abs().max() < 1e-6
    blurred = torch.stack([tv.gaussian_blur(image, blur_taps(2.0), float(s)) for image, s in zip(x, sigma)])
    assert (changed(pixels, sigma=sigma) - blurred).abs().max() < 1e-5
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    assert (changed(pixels, mean=mean, std=std) - tv.normalize(x, mean, std)).abs().max() < 1e-5


def test_samples_do_not_touch_each_other(pixels):
    """Only the chosen samples change, and the input stays as it was."""
    before = pixels.clone()
    gray = torch.zeros(24, dtype=torch.bool)
    gray[3] = True
    out = changed(pixels, gray=gray)
    other = (out - as_float(pixels)).abs().flatten(1).amax(1) > 0
    assert other.nonzero().flatten().tolist() == [3] and torch.equal(pixels, before)


def grey_levels(ours, oracle, view):
    std = torch.tensor(view.std).view(3, 1, 1) * 255
    return ((ours - oracle) * std).abs()


@pytest.mark.parametrize("loader", LOADERS)
def test_loaders_match_the_oracle(loader, photo_folder):
    """Pillow rounds between its two resize passes and DALI does not: one grey level; DALI's taps also replicate the
    crop's border where Pillow's stop. Contrast and saturation up to 1.8 enlarge either difference."""
    source = open_source(photo_folder)
    inputs = InputSpec((FULL, PLAIN))
    batches = LOADERS[loader](source, inputs, Order(len(source), 12, seed=3), seed=3)
    try:
        for _ in range(3):  # into the second epoch
            batch = next(batches)
            oracle = reference_views(source, inputs, 3, batch.epoch, batch.ids)
            for view, typical, worst in ((PLAIN, 0.3, 14), (FULL, 0.5, 30)):
                error = grey_levels(batch.views[view.name], oracle[view.name], view)
                assert error.mean() < typical and error.max() < worst
                assert error.flatten().quantile(0.99) < (2.1 if view is PLAIN else 4.5)
    finally:
        batches.close()


@pytest.mark.parametrize("loader", LOADERS)
def test_contract(loader, photo_folder):
    """Order, labels, masks, memory format, endless epochs, resume: the same for every loader."""
    source = open_source(photo_folder)
    inputs = InputSpec((PLAIN,), RandomMask(grid=(6, 6), ratio=0.5))
    order = Order(len(source), 10, seed=1)
    batches = LOADERS[loader](source, inputs, order, seed=1)
    try:
        seen = [next(batches) for _ in range(5)]
        assert batches.steps_per_epoch == 2 and [b.step for b in seen] == [0, 1, 2, 3, 4] and seen[4].epoch == 2
        for step, batch in enumerate(seen):
            assert torch.equal(batch.ids, order.ids(step))
            assert batch.labels.tolist() == [source.label(i) for i in batch.ids.tolist()]
            assert batch.views["plain"].shape == (1, 10, 3, 48, 48)
            assert batch.views["plain"][0].is_contiguous(memory_format=torch.channels_last)
            assert (batch.mask.hidden.sum(1) == 18).all()
        state = batches.state_dict()
        assert all(isinstance(value, int) for value in state.values())
        following = next(batches)
        batches.load_state_dict({"step": 1})
        again = next(batches)
        assert torch.equal(again.views["plain"], seen[1].views["plain"]) and torch.equal(
            again.mask.keep, seen[1].mask.keep
        )
        batches.load_state_dict(state)
        assert torch.equal(next(batches).views["plain"], following.views["plain"])
        assert batches.stats().images == 8 * 10 and batches.stats().wait_seconds > 0
    finally:
        batches.close()
        batches.close()


@pytest.mark.parametrize("loader", LOADERS)
def test_ranks_share_the_global_batch(loader, photo_folder):
    source = open_source(photo_folder)
    order = Order(len(source), 12, seed=2)
    whole = LOADERS[loader](source, InputSpec((FULL,)), order, seed=2)
    parts = [LOADERS[loader](source, InputSpec((FULL,)), order, seed=2, rank=rank, world=3) for rank in range(3)]
    try:
        for _ in range(2):
            expected = next(whole).views["full"]
            assert torch.equal(torch.cat([next(part).views["full"] for part in parts], dim=1), expected)
    finally:
        for each in (whole, *parts):
            each.close()


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "vanished"])
def test_a_bad_image_is_replaced_counted_and_named(loader, damage, photo_folder, tmp_path):
    for index, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[:8]):
        (tmp_path / f"{index}.jpg").write_bytes(path.read_bytes())
    source = open_source(tmp_path)
    bad = tmp_path / "3.jpg"
    data = bad.read_bytes()
    bad.unlink()
    if damage != "vanished":
        bad.write_bytes({"truncated": data[: len(data) // 2], "garbage": b"no image" * 50, "empty": b""}[damage])
    order = Order(8, 4, shuffle=False)
    batches = LOADERS[loader](source, InputSpec((PLAIN,)), order)
    try:
        assert [next(batches).ids.tolist() for _ in range(3)] == [[0, 1, 2, 4], [4, 5, 6, 7], [0, 1, 2, 4]]
        stats = batches.stats()
        assert stats.bad_images == 1 and stats.replaced[0].startswith("3.jpg: ")
    finally:
        batches.close()


@pytest.mark.parametrize("loader", LOADERS)
def test_damage_that_headers_do_not_show(loader, photo_folder, tmp_path):
    """Header and end marker intact, no scan in between: only decoding finds out, in the middle of a pipeline."""
    for index, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[:8]):
        (tmp_path / f"{index}.jpg").write_bytes(path.read_bytes())
    bad = tmp_path / "5.jpg"
    data = bad.read_bytes()
    bad.write_bytes(data[: data.index(b"\xff\xda")] + b"\xff\xd9")
    batches = LOADERS[loader](open_source(tmp_path), InputSpec((PLAIN,)), Order(8, 4, shuffle=False))
    try:
        assert [next(batches).ids.tolist() for _ in range(3)] == [[0, 1, 2, 3], [4, 6, 6, 7], [0, 1, 2, 3]]
        assert batches.stats().bad_images == 1
    finally:
        batches.close()


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("header", [True, False])
def test_a_source_without_a_single_good_image_is_an_error(loader, header, photo_folder, tmp_path):
    for index, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[:5]):
        data = path.read_bytes()
        (tmp_path / f"{index}.jpg").write_bytes(data[: data.index(b"\xff\xda")] + b"\xff\xd9" if header else data[:100])
    with pytest.raises(
        UserError, match="of 5 images cannot be read or decoded, more than the 1 that data.max_bad allows: .*jpg"
    ):
        batches = LOADERS[loader](open_source(tmp_path), InputSpec((PLAIN,)), Order(5, 4))
        try:
            next(batches)
        finally:
            batches.close()


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "kind",
    ["gif", "png", "png16", "rgba", "cmyk", "turned", "gray", "progressive", "webp", "palette", "bmp", "tiff", "ppm"],
)
def test_formats_mean_the_same_everywhere(loader, kind, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    base = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((56, 40), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x112] = 6
    image, name, options = {
        "gif": (base, "x.gif", {}),
        "png": (base, "x.png", {}),
        "bmp": (base, "x.bmp", {}),
        "tiff": (base, "x.tif", {}),
        "ppm": (base, "x.ppm", {}),
        "progressive": (base, "x.jpg", {"quality": 95, "progressive": True}),
        "png16": (Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257), "x.png", {}),
        "rgba": (base.convert("RGBA"), "x.png", {}),
        "cmyk": (base.convert("CMYK"), "x.jpg", {"quality": 95}),
        "turned": (base, "x.jpg", {"exif": exif, "quality": 95}),
        "gray": (base.convert("L"), "x.jpg", {"quality": 95}),
        "webp": (base, "x.webp", {"lossless": True}),
        "palette": (base.convert("P"), "x.png", {}),
    }[kind]
    for index in range(2):
        image.save(tmp_path / f"{index}{name}", **options)
    source = open_source(tmp_path)
    view = ViewSpec(size=32, crop="center", center_fraction=1.0, flip=0)
    batches = LOADERS[loader](source, InputSpec((view,)), Order(2, 2, shuffle=False))
    try:
        oracle = reference_views(source, InputSpec((view,)), 0, 0, torch.arange(2))
        error = grey_levels(next(batches).views["image"], oracle["image"], view)
        # what the file holds, as another program wrote it
        pixels = decode(source.read(0))
        assert pixels.shape == ((56, 40, 3) if kind == "turned" else (40, 56, 3))
        if kind in ("webp", "rgba", "palette", "gif", "png", "bmp", "tiff", "ppm"):
            tolerance = 60 if kind in ("palette", "gif") else 0
            assert np.abs(pixels.astype(int) - np.asarray(base)).max() <= tolerance
        if kind in ("cmyk", "progressive"):
            assert np.abs(pixels.astype(int) - np.asarray(base)).mean() < 3
        if kind == "png16":
            assert np.array_equal(pixels[..., 0], np.asarray(base.convert("L")))
        assert error.mean() < 0.6 and error.max() < 14
        assert batches.stats().bad_images == 0
    finally:
        batches.close()


def test_arrays_are_a_source():
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    view = ViewSpec(size=32, crop="center", center_fraction=1.0, flip=0, mean=(0, 0, 0), std=(1, 1, 1))
    batch = next(MemoryLoader(ArraySource(images, [0, 1, 2, 0, 1, 2]), InputSpec((view,)), Order(6, 6, shuffle=False)))
    assert (batch.views["image"][0] * 255 - torch.from_numpy(images).permute(0, 3, 1, 2)).abs().max() < 1e-3
    assert batch.labels.tolist() == [0, 1, 2, 0, 1, 2]


RARE = {
    "window": ViewSpec(crop="window", size=40, resize=48, padding=6, gray=0.5, gray_weights="mean"),
    "aliased": ViewSpec(size=40, antialias=False, jitter=1.0, brightness=0.4, gray=0.5, gray_first=True),
    "aliased cubic": ViewSpec(size=40, antialias=False, interpolation="bicubic"),
    "lanczos": ViewSpec(size=40, interpolation="lanczos"),
    "rotated": ViewSpec(size=40, count=2, parts="rotations"),
    "patches": ViewSpec(size=96, count=2, parts="patches"),
    "turned": ViewSpec(size=64, rotate=2.0, jitter=0.5, brightness=0.4),
    "fine-tuning": ViewSpec(size=64, randaugment=RandAugment(chance=1.0), erasing=RandomErasing(chance=1.0)),
}


@pytest.mark.parametrize("name", RARE)
@pytest.mark.parametrize("loader", LOADERS)
def test_every_loader_makes_rare_views_or_refuses_them(loader, name, photo_folder):
    """DALI's lanczos replicates the crop's border; nearest neighbours tie here and there; the rest is exact."""
    view, source = RARE[name], open_source(photo_folder)
    make = lambda: LOADERS[loader](source, InputSpec((view,)), Order(len(source), 8, seed=3), seed=3)  # noqa: E731
    if loader == "dali" and name in ("window", "aliased cubic"):
        with pytest.raises(UserError, match="data.loader: dali .* 'image' needs; use data.loader=cpu"):
            make()
        return
    batches = make()
    try:
        batch = next(batches)
        oracle = reference_views(source, InputSpec((view,)), 3, 0, batch.ids)["image"]
        assert batch.views["image"].shape == oracle.shape == (view.copies, 8, 3, view.side, view.side)
        assert batch.views["image"][0].is_contiguous(memory_format=torch.channels_last)
        error = grey_levels(batch.views["image"], oracle, view)
        exact = loader != "dali" and name in ("window", "aliased", "aliased cubic", "lanczos")
        assert error.mean() < (0.15 if exact else 0.6) and error.flatten().quantile(0.99) < (1.6 if exact else 5)
    finally:
        batches.close()


def test_the_choice_of_a_loader_knows_the_views(photo_folder):
    source = open_source(photo_folder)
    window = InputSpec((PLAIN, RARE["window"]))
    assert choose_loader(source, "auto", "cuda", window) == ("cpu", "dali cuts no windows")
    assert choose_loader(source, "auto", "cuda", InputSpec((PLAIN,)))[0] == "dali"
    with pytest.raises(UserError, match="data.loader: dali cuts no windows; use data.loader=cpu"):
        choose_loader(source, "dali", "cpu", window)
