"""Views cut from pixels that are there already are those of decoding: from rgb to the last bit."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from zoo import RGB, exif, saved, zoo

import headrace
from headrace.errors import UserError
from headrace.pipelines.images.planes import Planes
from headrace.pipelines.loaders.choose import choose_pixels, make_loader
from headrace.pipelines.loaders.cpu import CpuLoader
from headrace.pipelines.loaders.memory import MemoryLoader
from headrace.pipelines.loaders.quarantine import Quarantine
from headrace.pipelines.order import Order
from headrace.pipelines.pixels.command import write_pixels
from headrace.pipelines.pixels.layout import Request, bytes_of
from headrace.pipelines.pixels.sidecars import open_pixels, spans
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, RandomMask, ViewSpec
from headrace.pipelines.views.finish import cut_view
from headrace.pipelines.views.recipes import VIEWS
from headrace.train.evaluation.embed import embed

PAIR = ViewSpec("pair", count=2, size=24, jitter=0.8, brightness=0.4, hue=0.1, gray=0.2, blur=0.5)
INPUTS = InputSpec((PAIR, ViewSpec(size=16)), RandomMask(grid=(4, 4)))


class Refuses(CpuLoader):
    """A loader whose decoder must not be asked."""

    @staticmethod
    def _decode(encoded):
        raise AssertionError("decoded")


@pytest.fixture(scope="module")
def odd(tar_bytes, tmp_path_factory):
    """A tar of odd images: one pixel, 8 x 3000 both ways, gray, CMYK, turned, deep, and two that are none."""
    animals = {name: data for name, (data, _, _) in zoo().items()}
    kinds = ("JPEG", "PNG 1", "PNG 8x", "TIFF t", "PPM", "WebP")
    wanted = [name for name in animals if name.startswith(kinds)]
    files = {f"{n:03d}": animals[name] for n, name in enumerate(wanted)}
    noise = np.random.default_rng(1).integers(0, 256, (3000, 8, 3), dtype=np.uint8)
    files["700"] = saved(noise, "JPEG", quality=95, exif=exif(6))
    files["701"] = saved(noise, "JPEG", quality=95, subsampling="4:2:0")
    files["800"], files["801"] = saved(RGB, "JPEG", quality=95)[:-300], b"\xff\xd8\xff no image"
    tar = tmp_path_factory.mktemp("odd") / "odd.tar"
    tar.write_bytes(tar_bytes({f"{key}.jpg": data for key, data in files.items()}))
    write_pixels(tar, Request("rgb"), workers=1, progress=False)
    return tar


@pytest.fixture(scope="module")
def tars(photo_folder, tar_bytes, tmp_path_factory):
    """Three tars of eight photos with rgb beside them."""
    folder = tmp_path_factory.mktemp("tars")
    photos = sorted(photo_folder.rglob("*.jpg"))
    for shard in range(3):
        files = {}
        for index in range(8 * shard, 8 * shard + 8):
            files |= {f"{index:03d}.jpg": photos[index].read_bytes(), f"{index:03d}.cls": b"%d" % (index % 3)}
        (folder / f"train-{shard}.tar").write_bytes(tar_bytes(files))
    write_pixels(folder, Request("rgb"), workers=1, progress=False)
    return folder


def batches(cls, source, inputs, count, **options):
    loader = cls(source, inputs, **options)
    try:
        return [next(loader) for _ in range(count)], loader.stats()
    finally:
        loader.close()


def same(one, other):
    assert torch.equal(one.ids, other.ids) and (one.labels is None or torch.equal(one.labels, other.labels))
    assert one.views.keys() == other.views.keys()
    assert all(torch.equal(one.views[name], other.views[name]) for name in one.views)
    assert one.mask is None or torch.equal(one.mask.hidden, other.mask.hidden)


@pytest.mark.parametrize("name", VIEWS)
def test_every_named_view_of_every_odd_image_is_the_same_bits(name, odd):
    source = open_source(odd)
    order = Order(len(source), len(source), seed=2, shuffle=False)
    made = []
    for pixels in (None, open_pixels(source, "require")):
        options = {"order": order, "seed": 2, "threads": 1, "quarantine": Quarantine(source, max_bad=0.1)}
        made.append(batches(CpuLoader, source, InputSpec(VIEWS[name]), 1, **options, pixels=pixels))
    (decoded, before), (stored, after) = made
    same(decoded[0], stored[0])
    assert before.bad_images == 2 and sorted(before.replaced) == sorted(after.replaced)


def test_nothing_is_decoded(tars):
    source = open_source(tars)
    pixels = open_pixels(source, "require")
    for order in (Order(24, 6, seed=1), Order(24, 6, seed=1, blocks=8)):
        made, _ = batches(Refuses, source, INPUTS, 5, order=order, seed=1, threads=2, pixels=pixels)
        plain, _ = batches(CpuLoader, source, INPUTS, 5, order=order, seed=1, threads=2)
        for one, other in zip(plain, made, strict=True):
            same(one, other)


@pytest.mark.parametrize("form", ["rgb", "yuv420"])
def test_memory_holds_what_the_sidecar_has(form, tars, tmp_path):
    for tar in tars.glob("*.tar"):
        (tmp_path / tar.name).symlink_to(tar)
    write_pixels(tmp_path, Request(form), workers=1, progress=False)
    source = open_source(tmp_path)
    options = {"order": Order(24, 8, seed=3), "seed": 3, "pixels": open_pixels(source, "require")}
    fresh, _ = batches(CpuLoader, source, INPUTS, 6, **options)
    held, _ = batches(MemoryLoader, source, INPUTS, 6, **options)
    for one, other in zip(fresh, held, strict=True):
        same(one, other)

    class KeepsThere(MemoryLoader):
        _crops_on = ("cpu",)

    there, _ = batches(KeepsThere, source, INPUTS, 3, **options)
    assert torch.equal(there[0].ids, fresh[0].ids)
    error = (there[0].views["pair"] - fresh[0].views["pair"]).abs() * 0.225 * 255
    assert error.mean() < 0.5


def test_resume_on_other_numbers_of_processes_is_that_of_decoding(tars):
    """From pixels on two ranks, then from bytes alone, and the other way round."""
    source = open_source(tars)
    pixels, order = open_pixels(source, "require"), Order(24, 10, seed=11, last="pad")

    def start(world, state, stored):
        ranks = [
            CpuLoader(source, INPUTS, order, seed=11, rank=rank, world=world, threads=1, pixels=stored)
            for rank in range(world)
        ]
        for rank in ranks:
            rank.load_state_dict(state)
        return ranks

    whole = start(1, {"step": 0}, None)[0]
    expected = [next(whole) for _ in range(6)]
    whole.close()
    for first, then in ((pixels, None), (None, pixels)):
        two = start(2, {"step": 0}, first)
        for step in range(3):
            parts = [next(rank) for rank in two]
            assert torch.equal(torch.cat([part.views["pair"] for part in parts], 1), expected[step].views["pair"])
        states = {str(rank.state_dict()) for rank in two}
        five = start(5, two[0].state_dict(), then)
        for step in range(3, 6):
            parts = [next(rank) for rank in five]
            assert torch.equal(torch.cat([part.ids for part in parts]), expected[step].ids)
            assert torch.equal(torch.cat([part.views["pair"] for part in parts], 1), expected[step].views["pair"])
        for loader in (*two, *five):
            loader.close()
        assert len(states) == 1


def test_evaluation_sees_the_same(tars):
    class Flat(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)

    view = ViewSpec(size=16, crop="center", flip=0.0)
    rows = {
        mode: embed(Flat(), open_source(tars), view, pixels=mode, batch_size=7).vectors for mode in ("never", "require")
    }
    assert torch.equal(rows["never"], rows["require"])


def test_the_loader_for_ones_own_loop(tars, photo_folder):
    options = {"views": "simclr", "batch_size": 6, "seed": 4, "threads": 1}
    made = {}
    for mode in ("never", "auto", "require"):
        with headrace.loader(tars, **options, pixels=mode) as loader:
            made[mode] = [next(iter(loader)) for _ in range(2)]
    for mode in ("auto", "require"):
        for one, other in zip(made["never"], made[mode], strict=True):
            same(one, other)
    with pytest.raises(UserError, match="data.pixels: .* has no pixels beside it"):
        headrace.loader(photo_folder, **options, pixels="require")
    with pytest.raises(UserError, match="pixels: needs auto or never or require, got 'yes'"):
        headrace.loader(tars, **options, pixels="yes")


def test_the_choice_is_said_and_explicit_ones_are_honoured_or_refused(tars):
    source = open_source(tars)
    kind, why, pixels = choose_pixels(source, "auto", "auto", "cuda")
    assert (kind, why) == ("cpu", f"pixels: {pixels.words}") and pixels.words.startswith("rgb, 0.0 GB beside")
    assert choose_pixels(source, "cpu", "never") == ("cpu", "asked for", None)
    pytest.importorskip("nvidia.dali")
    assert choose_pixels(source, "dali", "auto")[2] is None
    with pytest.raises(UserError, match="data.pixels: the dali loader decodes by itself; use data.loader=cpu"):
        choose_pixels(source, "dali", "require")


def test_pixels_that_are_cut_short_under_a_running_loader_are_bad_images(tars, tmp_path):
    """A map of a file that shrinks would kill the process."""
    for tar in tars.glob("*.tar"):
        (tmp_path / tar.name).symlink_to(tar)
    write_pixels(tmp_path, Request("rgb"), workers=1, progress=False)
    source = open_source(tmp_path)
    pixels = open_pixels(source, "require")
    (tmp_path / "train-1.pixels").write_bytes(b"")
    loader = make_loader(source, INPUTS, Order(24, 4), kind="cpu", pixels=pixels, threads=1)
    with pytest.raises(UserError, match="cannot be read or decoded"):
        for _ in range(12):
            next(loader)
    loader.close()
    assert "its size has changed" in "".join(loader.stats().replaced)


def test_a_run_says_that_it_reads_pixels(tars, tmp_path):
    arguments = ["pretrain", "mae_vit-tiny", f"data.train={tars}", "train.max_steps=1", "train.batch_size=4"]
    code = "import sys; from headrace.cli import main; sys.exit(main())"
    run = lambda *more: subprocess.run(  # noqa: E731
        [sys.executable, "-c", code, *arguments, f"train.out={tmp_path / 'run'}", *more], capture_output=True, text=True
    )
    found = run()
    assert found.returncode == 0, found.stderr
    assert re.search(r"^loader +cpu \(pixels: rgb, 0.0 GB beside the shards\)$", found.stdout, re.MULTILINE)
    (tars / "train-1.pixels").write_bytes(b"damaged")
    found = run("train.resume=never")
    write_pixels(tars, Request("rgb"), workers=1, progress=False)
    assert found.returncode == 2
    assert [line for line in found.stderr.splitlines() if line.startswith("headrace: ")][-1].endswith(
        "too short for a file of pixels; make it again with `headrace pixels`, delete it, or use data.pixels=never"
    )


@pytest.mark.parametrize("form", ["rgb", "yuv420"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_is_made_of_the_bytes_that_are_asked_for(form, interpolation):
    """All others are noise here."""
    random, view = np.random.default_rng(4), ViewSpec(size=24, interpolation=interpolation)
    for _ in range(60):
        height, width = random.integers(1, 90, 2).tolist()
        size = bytes_of(form, np.int64(height), np.int64(width)).item()
        whole, noise = (random.integers(0, 256, size, np.uint8) for _ in range(2))
        top, left = random.integers(0, height), random.integers(0, width)
        box = [left, top, random.integers(1, width - left + 1), random.integers(1, height - top + 1), 0, 0, 0, 0]
        box, asked = [int(number) for number in box], np.zeros(size, bool)
        for first, end in spans(form, size, height, width, box[1], box[1] + box[3]):
            asked[first:end] = True
        assert asked.mean() <= min(1, (box[3] + 6) / height + 1e-9)
        made = []
        for flat in (whole, np.where(asked, whole, noise)):
            image = flat.reshape(height, width, 3) if form == "rgb" else Planes(flat, height, width)
            made.append(np.empty((24, 24, 3), np.uint8))
            cut_view(image, view, box, made[-1])
        assert np.array_equal(*made)
