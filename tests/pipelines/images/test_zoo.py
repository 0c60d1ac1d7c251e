"""The rows of the table of formats in docs/data.md: every loader makes the same pixels of an odd image, and the right
ones."""

import io
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from zoo import LOSSY, SIDE, zoo

from headrace.pipelines.images.decode import DecodeError, decode, image_size
from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.loaders.stream import _hash
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, ViewSpec
from headrace.pipelines.views.cut import crop_and_resize, decode_fast
from headrace.pipelines.views.reference import reference_views

ZOO = zoo()
NAMES = list(ZOO)
# the middle square; of an image of 32 x 32, its own pixels
WHOLE = ViewSpec("whole", size=SIDE, crop="center", center_fraction=1.0, flip=0.0, mean=(0, 0, 0), std=(1, 1, 1))
INPUTS = InputSpec((WHOLE,))
EXACT = {"reference": 0.51, "dali": 1.0}  # grey levels: rounding in the middle of a view, DALI's in its resize


class Zoo:
    name, classes = "zoo", None

    def __len__(self):
        return len(NAMES)

    def read(self, index):
        return np.frombuffer(ZOO[NAMES[index]][0], np.uint8)

    def key(self, index):
        return NAMES[index]

    def label(self, index):
        return -1

    def size(self, index):
        return None


def middle(pixels):
    height, width = pixels.shape[:2]
    side, out = min(height, width), np.empty((SIDE, SIDE, 3), np.uint8)
    crop_and_resize(
        np.ascontiguousarray(pixels), ((width - side) // 2, (height - side) // 2, side, side), "bilinear", out
    )
    return out


def compare(name, found, slack):
    """Pixels (SIDE, SIDE, 3) of a view against those that the image means."""
    _, pixels, lossy = ZOO[name]
    error = np.abs(found - middle(pixels).astype(float))
    assert (error.mean() <= LOSSY) if lossy else (error.max() <= slack), (name, error.mean(), error.max())


@pytest.mark.parametrize("name", NAMES)
def test_an_image_means_its_pixels(name):
    data, pixels, lossy = ZOO[name]
    found = decode(data)
    assert image_size(data) == found.shape[:2] == pixels.shape[:2]
    error = np.abs(found.astype(float) - pixels)
    assert error.mean() <= LOSSY if lossy else error.max() == 0
    assert np.array_equal(decode_fast(np.frombuffer(data, np.uint8)), found)


@pytest.mark.parametrize("kind", ["cpu", "dali", "memory", "reference", "webdataset"])
def test_every_loader_makes_them(kind, tmp_path, tar_bytes):
    if kind == "reference":
        views = reference_views(Zoo(), INPUTS, 0, 0, torch.arange(len(NAMES)))["whole"][0]
        ids = range(len(NAMES))
    else:
        source = Zoo()
        if kind == "webdataset":
            (tmp_path / "zoo.tar").write_bytes(
                tar_bytes({f"{n:03d}.png": ZOO[name][0] for n, name in enumerate(NAMES)})
            )
            source = open_source(f"file:{tmp_path}/zoo.tar#samples={len(NAMES)}")
        order = Order(len(NAMES), 1, shuffle=False)  # one at a time, as any decoder can take what it does not know
        loader = make_loader(source, INPUTS, order, kind=kind, threads=2)
        batches = [next(loader) for _ in NAMES]
        loader.close()
        assert not loader.stats().bad_images, loader.stats().replaced
        hashes = {_hash(f"zoo.tar/{n:03d}.png"): n for n in range(len(NAMES))}
        ids = [hashes.get(one, one) for batch in batches for one in batch.ids.tolist()]
        views = torch.cat([batch.views["whole"][0] for batch in batches])
    assert sorted(ids) == list(range(len(NAMES)))
    slack = EXACT.get(kind, 0.001)
    for n, view in zip(ids, views):
        compare(NAMES[n], (view.permute(1, 2, 0) * 255).double().numpy(), slack)


def test_ffcv_has_the_raw_ones_and_its_own_jpegs(tmp_path, beton_bytes):
    pytest.importorskip("ffcv", reason="needs the extra [ffcv]")
    chosen = [name for name, (_, pixels, _) in ZOO.items() if pixels.shape == (SIDE, SIDE, 3)]
    rows = []
    for name in chosen:
        data, pixels, _ = ZOO[name]
        rows.append((data if name.startswith("JPEG") else pixels.tobytes(), 0, *pixels.shape[:2]))
    (tmp_path / "zoo.beton").write_bytes(beton_bytes(rows))
    source = open_source(tmp_path / "zoo.beton")
    loader = make_loader(source, INPUTS, Order(len(rows), len(rows), shuffle=False), kind="ffcv", threads=2)
    batch = next(loader)
    loader.close()
    for name, view in zip(chosen, batch.views["whole"][0]):
        compare(name, (view.permute(1, 2, 0) * 255).double().numpy(), 0.001)


def test_dali_is_given_plain_jpegs_alone(monkeypatch):
    """Which formats go where, counted at DALI's own door."""
    from headrace.pipelines.loaders import dali

    given = Counter()
    feed = dali.DaliLoader._feed

    def counted(self):
        arrays = feed(self)
        given.update(bytes(encoded) for encoded in arrays[0])
        return arrays

    monkeypatch.setattr(dali.DaliLoader, "_feed", counted)
    loader = make_loader(Zoo(), INPUTS, Order(len(NAMES), 1), kind="dali", threads=2)
    for _ in NAMES:
        next(loader)
    loader.close()
    seen = {name for name in NAMES if ZOO[name][0] in given}
    assert len(given) == len(seen) + 1  # and one image that stands in for all others
    ordinary = (
        "4:4:4",
        "4:2:2",
        "4:2:0",
        "411",
        "440",
        "progressive",
        "gray",
        "restart markers",
        "stored as RGB",
        "1 px",
    )
    assert seen == {f"JPEG {name}" for name in ordinary}


@pytest.mark.parametrize("kind", ["EPS", "PDF"])
def test_no_program_is_started_for_a_file(kind):
    """Pillow gives a drawing to Ghostscript, whatever its name."""
    Image.new("RGB", (8, 8)).save(buffer := io.BytesIO(), kind)
    for function in (decode, image_size):
        with pytest.raises(DecodeError, match="not an image in any known format"):
            function(buffer.getvalue())


def test_a_cut_photo_of_a_phone_is_no_image():
    if "HEIC" not in ZOO:
        pytest.skip("needs the extra [formats]")
    data = ZOO["HEIC"][0]
    for end in (40, len(data) // 2, len(data) - 9):
        for read in (image_size, decode):
            with pytest.raises(DecodeError):
                read(data[:end])
