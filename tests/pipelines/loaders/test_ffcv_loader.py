"""FFCV's pixels under our order and crops; without FFCV, one line that says what to install."""

import importlib.util
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from headrace.errors import UserError
from headrace.pipelines.images.decode import decode
from headrace.pipelines.loaders.choose import choose_loader, make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, ViewSpec
from headrace.pipelines.views.reference import reference_views

VIEW = ViewSpec(count=2, size=32, scale=(0.6, 1.0))
INPUTS = InputSpec((VIEW,))


@pytest.fixture(scope="module")
def beton(photo_folder, beton_bytes, tmp_path_factory):
    """Sixteen photos as FFCV lays them out: the first eight JPEG, of which the third is damaged, then raw pixels."""
    rows = []
    for number, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[:16]):
        content = path.read_bytes()
        height, width, _ = decode(content).shape
        if number == 2:
            table_at = content.index(b"\xff\xc4") + 4  # a Huffman table of nonsense: only decoding finds out
            content = content[:table_at] + b"\x00" + b"\xff" * 30 + content[table_at + 31 :]
        rows.append((decode(content).tobytes() if number >= 8 else content, number % 3, height, width))
    file = tmp_path_factory.mktemp("beton") / "x.beton"
    file.write_bytes(beton_bytes(rows))
    return open_source(file)


def ffcv_loader(source, **order):
    order = Order(len(source), 8, **order)
    return make_loader(source, INPUTS, order, kind=choose_loader(source, "ffcv")[0], threads=2)


def test_without_ffcv_the_extra_is_named(beton, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv.libffcv", None)
    with pytest.raises(UserError, match="headrace\\[ffcv\\]"):
        ffcv_loader(beton)


def test_other_files_are_refused(photo_folder):
    with pytest.raises(UserError, match="ffcv reads .beton files"):
        choose_loader(open_source(photo_folder), "ffcv")


def test_raw_pixels_need_no_codec(beton):
    assert beton.pixels(0) is None and (beton.pixels(9) == decode(beton.read(9))).all()
    assert not beton.pixels(9).flags.owndata


if importlib.util.find_spec("ffcv") is not None:

    def test_order_crops_and_substitutes_are_ours_and_pixels_near_the_oracle(beton):
        """At 32 px, from crops two to four times as wide: area and triangle filters differ most where edges are."""
        before = set(threading.enumerate())
        loader = ffcv_loader(beton, shuffle=False)
        batches = [next(loader) for _ in range(4)]
        assert not loader.exact and loader.stats().bad_images == 1 and "00000002.jpg" in loader.stats().replaced[0]
        assert batches[0].ids.tolist() == [0, 1, 3, 3, 4, 5, 6, 7] and batches[3].epoch == 1
        for batch in batches:
            oracle = reference_views(beton, INPUTS, 0, batch.epoch, batch.ids)["image"]
            error = ((batch.views["image"] - oracle) * torch.tensor(VIEW.std).view(3, 1, 1) * 255).abs()
            assert 0 < error.mean() < 2 and error.flatten().quantile(0.99) < 12
            others = reference_views(beton, INPUTS, 0, batch.epoch + 1, batch.ids)["image"]
            assert (batch.views["image"] - others).abs().mean() > 5 * (batch.views["image"] - oracle).abs().mean()
            assert batch.labels.tolist() == [i % 3 for i in batch.ids.tolist()]
        loader.load_state_dict({"step": 2})
        assert torch.equal(next(loader).views["image"], batches[2].views["image"])
        loader.close()
        assert set(threading.enumerate()) == before

    def test_a_crop_at_its_own_size_is_the_pixels_of_the_file(beton):
        pixels, out = np.ascontiguousarray(beton.pixels(9)), np.zeros((20, 20, 3), np.uint8)
        loader = ffcv_loader(beton)
        loader._own_crop(pixels, ViewSpec(size=20), [3, 5, 20, 20, 20, 20, 0, 0], out)
        loader.close()
        assert (out == pixels[5:25, 3:23]).all()

    def test_importing_ffcv_leaves_torch_its_threads(beton):
        code = (
            "import sys, torch; torch.set_num_threads(2)\n"
            "from headrace.pipelines.loaders.ffcv_file import FfcvLoader\n"
            "from headrace.pipelines.order import Order\n"
            "from headrace.pipelines.sources import open_source\n"
            "from headrace.pipelines.spec import InputSpec, ViewSpec\n"
            "source = open_source(sys.argv[1])\n"
            "FfcvLoader(source, InputSpec((ViewSpec(size=32),)), Order(len(source), 4), threads=1).close()\n"
            "print(torch.get_num_threads())\n"
        )
        result = subprocess.run([sys.executable, "-c", code, beton.name], capture_output=True, text=True, timeout=120)
        assert result.stdout.strip() == "2", result.stderr
