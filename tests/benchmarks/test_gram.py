"""Maps with and without Gram anchoring: the score against scikit-learn's, and two runs that differ by Gram alone."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from headrace.benchmarks import gram
from headrace.benchmarks.ledger import NOT_YET, TABLES
from headrace.benchmarks.record import append, read
from headrace.pipelines.spec import ViewSpec
from headrace.train.engine.step import Stepper
from headrace.train.evaluation.embed import evaluation_view
from headrace.train.evaluation.embed_encoder import Encoder
from headrace.train.patches import features

SIDE, CELL = 64, 8
VIEW = evaluation_view(ViewSpec(size=SIDE))
SMALL = ["--images", "24", "--masks", "12", "--val", "6", "--batch", "8", "--size", "32", "--seeds", "4"]
SHORT = ["--steps", "2", "--decay", "2", "--more", "3"]


def planted(seed, split, index):
    """An image whose cells of 8 px have, roughly, the colour of the backdrop or of pieces."""
    rng = np.random.default_rng([seed, len(split), index])
    covered = rng.random((SIDE // CELL,) * 2) < 0.4
    colour = np.where(covered[:, :, None], (120, 90, 150), (100, 130, 110)) + rng.normal(0, 25, (*covered.shape, 3))
    pixels = colour.clip(0, 255).astype(np.uint8).repeat(CELL, 0).repeat(CELL, 1)
    return Image.fromarray(pixels), "any", covered.repeat(CELL, 0).repeat(CELL, 1)


class Colours(nn.Module):
    """The mean colour of each cell."""

    patch_size = CELL

    def feature_maps(self, images):
        return [F.avg_pool2d(images, CELL)]


def read_back(folder, split, count):
    """(images, 64 cells, 3) colours and (images, 64, 64) masks of what was written."""
    colours, masks = [], []
    for index in range(count):
        pixels = np.asarray(Image.open(folder / "images" / split / f"{index:05d}.jpg"), np.float64) / 255
        pixels = (pixels - VIEW.mean) / VIEW.std
        colours.append(pixels.reshape(8, CELL, 8, CELL, 3).mean((1, 3)).reshape(64, 3))
        masks.append(np.asarray(Image.open(folder / "annotations" / split / f"{index:05d}.png")))
    return np.array(colours), np.array(masks)


def test_the_score_is_that_of_scikit_learn(tmp_path, monkeypatch):
    """Shares of the ten nearest cells' votes, enlarged bilinearly by a matrix; the mean of Jaccard indices."""
    monkeypatch.setattr(gram, "masked_demo_image", planted)
    encoder = Encoder("planted", Colours(), VIEW, "planted")
    monkeypatch.setattr(features, "load_encoder", lambda name: encoder)
    args = SimpleNamespace(images=10, masks=20, val=10, size=SIDE)
    found = gram.Bench(args, tmp_path).mean_iou("planted")

    known, labels = read_back(tmp_path / "masks", "training", 20)
    asked, truth = read_back(tmp_path / "masks", "validation", 10)
    votes = KNeighborsClassifier(10, metric="cosine", algorithm="brute", weights=lambda away: np.exp(-away / 0.02))
    votes.fit(known.reshape(-1, 3), labels[:, ::CELL, ::CELL].ravel())
    shares = votes.predict_proba(asked.reshape(-1, 3)).reshape(10, 8, 8, -1)
    at = ((np.arange(SIDE) + 0.5) / CELL - 0.5).clip(0, 7)
    enlarge = np.array([np.interp(at, range(8), row) for row in np.eye(8)]).T  # (64, 8)
    shares = np.einsum("yr,nrck,xc->nyxk", enlarge, shares, enlarge)
    predicted = votes.classes_[shares.argmax(-1)]
    wanted = 100 * jaccard_score(truth.ravel(), predicted.ravel(), average="macro")
    assert set(np.unique(truth)) == {1, 2} and 30 < wanted < 90
    assert found == pytest.approx(wanted, abs=0.02)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The benchmark in small: its folder and, of the first step of each run, recipe, weights and images."""
    folder, began, step = tmp_path_factory.mktemp("gram"), [], Stepper.__call__

    def noted(self, batch, progress):
        if progress.step == 0:
            state = {name: value.clone() for name, value in self.algorithm.state_dict().items()}
            views = {name: value.clone() for name, value in batch.views.items()}
            began.append((self.algorithm.config, state, views, asdict(progress)))
        return step(self, batch, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "__call__", noted)
        for _ in range(2):  # the second finds everything in the folder
            assert gram.main([*SMALL, *SHORT, "--work", str(folder), "--out", str(folder)]) == 0
    return folder, began


def test_both_begin_with_the_decayed_weights_and_see_the_same(runs):
    folder, began = runs
    assert [config.name for config, *_ in began] == ["dinov3"] * 4
    early, decayed = (load_file(folder / "seed-4" / name / "encoder.safetensors") for name in ("early", "decayed"))
    (_, first, _, _), (_, without, views, at), (_, anchored, more, also) = began[1:]
    for name, value in early.items():
        assert torch.equal(first[f"backbone.{name}"], value) and torch.equal(first[f"teacher.backbone.{name}"], value)
        assert torch.equal(anchored[f"gram.backbone.{name}"], value)
        assert torch.equal(without[f"backbone.{name}"], decayed[name])
    assert not torch.equal(early["norm.weight"], decayed["norm.weight"])
    assert {name for name in anchored if name not in without} == {f"gram.backbone.{name}" for name in early}
    assert all(torch.equal(anchored[name], value) for name, value in without.items())
    assert {name for name in more if name not in views} == {"first_gram", "second_gram"} and at == also
    assert all(torch.equal(more[name], value) for name, value in views.items())


def test_their_recipes_differ_by_gram_alone_and_so_do_their_encoders(runs):
    folder, began = runs
    plain, anchored = (
        yaml.safe_load((folder / "seed-4" / name / "config.yaml").read_text()) for name in ("without-Gram", "with-Gram")
    )
    added = anchored["algorithm"].pop("gram")
    assert plain["algorithm"].pop("gram") is None and plain["train"].pop("out") != anchored["train"].pop("out")
    assert plain == anchored and plain["algorithm"]["patch_weight"] == 0
    assert (added["teacher"], added["from"], added["weight"]) == (str(folder / "seed-4" / "early"), 0, 30.0)
    encoders = [load_file(folder / "seed-4" / n / "encoder.safetensors") for n in ("without-Gram", "with-Gram")]
    assert any(not torch.equal(value, encoders[1][name]) for name, value in encoders[0].items())


def test_rows_of_both_times_are_the_same(runs):
    """An interrupted benchmark goes on where it was: nothing is learned twice."""
    rows = read("gram", runs[0])
    figures = [(row["seed"], row["contender"], row["mIoU"], row["cpu_seconds"]) for row in rows]
    assert len(runs[1]) == 4 and figures[:5] == figures[5:]
    assert [name for _, name, *_ in figures[:5]] == [gram.UNTRAINED, gram.BEFORE, gram.DECAYED, gram.WITHOUT, gram.WITH]
    assert all(0 < miou < 100 for *_, miou, _ in figures) and rows[0]["config"]["size"] == 32


def test_the_table_has_means_and_seeds_of_the_last_run(tmp_path):
    assert TABLES["gram"](tmp_path) == [NOT_YET]
    names = (gram.UNTRAINED, gram.BEFORE, gram.DECAYED, gram.WITHOUT, gram.WITH)
    append("gram", {"job": "an older form", "contender": gram.WITH, "mIoU": 99.0}, folder=tmp_path)
    for seed in (1, 2):
        for number, name in enumerate(names):
            append(
                "gram", {"job": "steps", "contender": name, "seed": seed, "mIoU": 10.0 * number + seed}, folder=tmp_path
            )
    assert TABLES["gram"](tmp_path)[2:] == [
        "| mIoU | mean | seed 1 | seed 2 |",
        "| --- | ---: | ---: | ---: |",
        *(f"| {name} | {10 * n + 1.5} | {10 * n + 1.0} | {10 * n + 2.0} |" for n, name in enumerate(names)),
    ]
