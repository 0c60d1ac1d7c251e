"""The demo at a fraction of its size, on the generated set and on folders a user might have."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from headrace.errors import UserError
from headrace.pipelines.images.rules import Rules, use_rules
from headrace.tools import demo as module
from headrace.tools.demo import _generated, _own, demo
from headrace.tools.demo_images import CLASSES, demo_image, write_demo_images
from headrace.train.engine.step import Stepper

QUICK = [
    "train.max_steps=3",
    "train.batch_size=16",
    "train.save_every=2",
    "train.device=cpu",
    "algorithm.backbone.width=24",
    "algorithm.backbone.depth=1",
    "algorithm.backbone.heads=2",
]
LEFT = {
    "config.yaml",
    "metrics.jsonl",
    "encoder.safetensors",
    "loss.png",
    "reconstruction.png",
    "views.png",
    "results.json",
}


@pytest.fixture
def pictures(tmp_path):
    """What a user's folder looks like: nested, mixed formats and sizes, one file that is no image, one broken."""
    root = tmp_path / "Pictures"
    for index in range(30):
        rng = np.random.default_rng(index)
        image = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        folder = root / ("2023" if index % 2 else "2024") / "deep" / "er"
        folder.mkdir(parents=True, exist_ok=True)
        size = tuple(int(side) for side in rng.integers(40, 300, 2))
        image.resize(size, Image.Resampling.BICUBIC).save(
            folder / f"my photo {index}{('.jpg', '.png', '.webp', '.gif')[index % 4]}"
        )
    (root / "notes.txt").write_text("not a picture")
    (root / "2023" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    return root


def test_images_are_a_function_of_seed_split_and_index(tmp_path):
    one = write_demo_images(tmp_path / "one", train=20, val=10, seed=3)
    two = write_demo_images(tmp_path / "two", train=20, val=10, seed=3)
    files = sorted(p.relative_to(one) for p in one.rglob("*.jpg"))
    assert len(files) == 30 and all((one / f).read_bytes() == (two / f).read_bytes() for f in files)
    counts = {name: len(list((one / "train" / name).iterdir())) for name in CLASSES}
    assert set(counts.values()) == {20 // len(CLASSES)}
    image, name = demo_image(3, "train", 4)
    assert name == CLASSES[4 % len(CLASSES)] and np.asarray(image).std() > 10
    assert not np.array_equal(
        np.asarray(demo_image(4, "train", 4)[0].resize((64, 64))), np.asarray(image.resize((64, 64)))
    )


def test_a_labelled_folder_gets_a_knn_table(pictures, tmp_path, capsys):
    out = tmp_path / "demo"
    figures = demo(out, pictures, QUICK)
    printed = capsys.readouterr().out
    assert "left out: 2023/broken.jpg" in printed and "k-NN accuracy, 25 neighbours, 5 queries, chance 50.0%" in printed
    assert LEFT <= {p.name for p in out.iterdir()} and (out / "step-00000003.pt").exists()
    assert set(figures) == {"raw pixels", "untrained encoder", "pre-trained encoder"}
    assert json.loads((out / "results.json").read_text())["figures"] == figures
    for name in ("loss.png", "reconstruction.png", "views.png"):
        assert np.asarray(Image.open(out / name).convert("L")).std() > 5  # not an empty sheet
    assert demo(out, pictures, QUICK) == figures  # a second call trains nothing and finds the same
    with pytest.raises(UserError, match="holds a demo of"):
        demo(out, tmp_path, QUICK)


def test_pictures_of_more_than_eight_bits_are_read_by_the_rules_of_the_run(tmp_path):
    """And by no others that the process had before: their thumbnails, and the pixels beside the shards."""
    photos, out = tmp_path / "sensor", tmp_path / "demo"
    photos.mkdir()
    for index in range(24):
        Image.fromarray(np.full((40, 40), 1000 + 10 * index, np.uint16)).save(photos / f"{index:02d}.png")
    use_rules(Rules((0, 65535)))
    demo(out, photos, [*QUICK, "data.range=[0,4095]"])
    middle = [np.asarray(Image.open(path).convert("L"))[20, 20] for path in sorted((out / "images").rglob("*.*"))]
    assert len(middle) == 24 and middle == pytest.approx([(1000 + 10 * i) / 4095 * 255 for i in range(24)], abs=1.5)


def test_a_demo_of_ones_own_images_is_not_that_of_the_generated_ones(pictures, tmp_path, monkeypatch):
    """One after the other, as the README has them: each has a folder, and neither is shown as the other."""
    asked = []
    monkeypatch.setattr(module, "demo", lambda out, data, overrides: asked.append((str(out), data)))
    monkeypatch.chdir(tmp_path)
    assert module.main([]) == module.main(["--data", str(pictures)]) == module.main(["--out", "here"]) == 0
    assert asked == [("runs/demo", None), (f"runs/demo-{pictures.name}", pictures), ("here", None)]
    monkeypatch.setattr(module, "write_demo_images", lambda folder: shutil.copytree(pictures, folder / "train"))
    monkeypatch.setattr(module, "_sharded", lambda folder, out: out.mkdir(parents=True, exist_ok=True))
    for made_by_an_older_version in (False, True):
        out = tmp_path / f"demo-{made_by_an_older_version}"
        _generated(out)
        if made_by_an_older_version:
            (out / "images-of.txt").unlink()
        with pytest.raises(UserError, match="holds a demo of the generated set; delete it or give another --out"):
            _own(out, pictures)
        assert (out / "images" / "train").is_dir()  # nothing is lost
    other = tmp_path / "own"
    (other / "images").mkdir(parents=True)
    (other / "images-of.txt").write_text(str(pictures))
    with pytest.raises(UserError, match=f"holds a demo of {pictures}"):
        _generated(other)


def test_a_demo_told_to_stop_shows_nothing_and_goes_on(pictures, tmp_path, monkeypatch, capsys):
    whole = demo(tmp_path / "whole", pictures / "2024", QUICK)
    out, true_step = tmp_path / "parts", Stepper.__call__

    def step(self, batch, progress):
        if progress.step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return true_step(self, batch, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "__call__", step)
        capsys.readouterr()
        assert demo(out, pictures / "2024", QUICK) == {}
    said = capsys.readouterr().out
    assert "stopped before its end; the same command continues" in said and "pre-trained encoder" not in said
    assert not {"results.json", "encoder.safetensors", "loss.png"} & {path.name for path in out.iterdir()}
    assert demo(out, pictures / "2024", QUICK) == whole


def test_thumbnails_without_a_note_of_whose_they_are_are_made_anew(pictures, tmp_path):
    """A kill has come between the two; the next command may be about other pictures."""
    bank = _own(tmp_path / "demo", pictures / "2024")[0]
    (tmp_path / "demo" / "images-of.txt").unlink()
    shutil.rmtree(tmp_path / "demo" / "shards")
    other = _own(tmp_path / "demo", pictures)[0]
    assert (len(bank), len(other)) == (15, 30)


def test_an_unlabelled_folder_gets_the_retrieval_table(pictures, tmp_path, capsys):
    figures = demo(tmp_path / "demo", pictures / "2024", QUICK)
    assert "nearest of 15 (no labels to go by), chance 6.7%" in capsys.readouterr().out
    # smooth random colours: raw pixels of two crops of one image are alike, those of different images are not
    assert figures["raw pixels"] > 0.3
