"""The bounds that docs/parity.md states, and that its measure sees what is there to see."""

import re

import pytest
import torch

from headrace.pipelines.loaders.base import BaseLoader
from headrace.pipelines.sources import open_source
from headrace.pipelines.views import cpu_augment
from headrace.pipelines.views.recipes import VIEWS
from headrace.tools import parity

# recipes whose views have steps: nearest neighbours, RandAugment, bytes that are rounded half-way
STEPS = {"odc", "deepcluster", "finetune_mae", "relative_loc", "simmim", "simmim_vit", "maskfeat", "knn", "moco_v1"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return open_source(parity.write_photos(tmp_path_factory.mktemp("parity"), 3))


@pytest.mark.parametrize("name", parity.OPERATIONS)
def test_every_operation_of_ours_is_within_a_tenth_of_a_grey_level(name, photos):
    error = parity.measure("cpu", photos, parity.OPERATIONS[name])
    step = name in ("solarise", "crop, bilinear, not antialiased")
    assert error.most < (1.1 if step else 0.1) and error.mean < (0.2 if step else 0.02)
    if name in ("crop, bilinear", "crop, bicubic", "crop, lanczos", "flip"):
        assert error.most < 1e-3  # bit for bit: what is left is the rounding of normalised floats


@pytest.mark.parametrize("name", ["moco_v2", "byol", "swav_2x224_6x96", "mae", "eval", "simclr_cifar"])
def test_named_views_are_within_a_grey_level(name, photos):
    solarized = any(view.solarize for view in VIEWS[name])
    error = parity.measure("cpu", photos, VIEWS[name])
    assert error.most < (1.1 if solarized else 0.1) and error.mean < 0.02


@pytest.mark.parametrize("back_end, most, mean", [("torch", 0.1, 0.01), ("dali", 12, 0.5)])
def test_other_back_ends_are_as_near_as_the_page_says(back_end, most, mean, photos):
    error = parity.measure(back_end, photos, parity.OPERATIONS["jitter, all four"])
    assert error.most < most and error.mean < mean


@pytest.mark.parametrize("name", parity.OPERATIONS)
def test_planes_of_halved_photos_are_as_near_as_the_page_says(name, photos):
    error = parity.measure(parity.YUV[0], photos, parity.OPERATIONS[name])
    assert 0 < error.mean < 1.0


def test_photos_are_told_apart_by_their_chroma(photos, tmp_path):
    fine = open_source(parity.write_photos(tmp_path, 2, subsampling="4:4:4"))
    assert {name: len(found) for name, found in parity.by_chroma(photos).items()} == {parity.YUV[0]: 3}
    assert {name: len(found) for name, found in parity.by_chroma(fine).items()} == {parity.YUV[1]: 2}


def test_what_dali_cannot_make_is_said(photos):
    assert "windows" in parity.measure("dali", photos, VIEWS["pixmim"])


def test_an_error_of_two_grey_levels_is_measured(photos, monkeypatch):
    finish = BaseLoader._finish
    shift = lambda self, view, *rest: finish(self, view, *rest) + 2 / 255 / torch.tensor(view.std).view(3, 1, 1)
    monkeypatch.setattr(BaseLoader, "_finish", shift)
    error = parity.measure("cpu", photos, parity.OPERATIONS["crop, bilinear"])
    assert error.most == pytest.approx(2, abs=1e-3) and error.mean == pytest.approx(2, abs=1e-3)


def test_torch_is_the_reference_of_augment_and_not_the_compiled_loops(photos, monkeypatch):
    monkeypatch.setattr(cpu_augment.ViewMaker, "views", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(cpu_augment.ViewMaker, "finish", lambda *_: pytest.fail("compiled"))
    parity.measure("torch", photos, parity.OPERATIONS["blur"])


def test_the_page_has_a_row_for_everything_and_only_plain_figures(photos, monkeypatch, tmp_path):
    monkeypatch.setattr(parity, "VIEWS", {name: VIEWS[name] for name in ("moco_cifar", "pixmim")})
    monkeypatch.setattr(parity, "OPERATIONS", {"hue": parity.OPERATIONS["hue"]})
    monkeypatch.setattr(parity, "_SAMPLES", 2)
    assert parity.main(["--data", photos.name, "--out", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text()
    for name in ("hue", "moco_cifar", "pixmim"):
        (row,) = re.findall(rf"^\| {name} \|(.*)\|$", text, re.M)
        cells = [cell.strip() for cell in row.split("|")]
        assert len(cells) == len(parity.BACK_ENDS) + 1  # of planes as well: these photos have half of the chroma
        assert all(re.fullmatch(r"\d+\.\d{3} \(\d+\.\d{4}\)", cell) for cell in cells[:2])
