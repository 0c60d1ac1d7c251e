"""Named views against the published figures, written out here a second time."""

from dataclasses import fields

import pytest

from headrace.errors import UserError
from headrace.models.algorithms.simclr import SimCLR
from headrace.pipelines.spec import InputSpec, ViewSpec
from headrace.pipelines.views.recipes import VIEWS, view
from headrace.train.recipe import config

# recipe -> for each view: count, pixels, least area, filter, jitter (b, c, s, h; p), gray, blur, solarise.
# Filters: "linear", "cubic", "lanczos", and with a minus what OpenCV makes of them.
NO = (0, 0, 0, 0, 0)
MOCO = (2, 224, 0.2, "linear", (0.4, 0.4, 0.4, 0.1, 0.8), 0.2, 0.5, 0)
STRONG = (0.8, 0.8, 0.8, 0.2, 0.8)
WEAK = (0.4, 0.4, 0.2, 0.1, 0.8)
CLUSTER = (1, 224, 0.08, "linear", (0.4, 0.4, 1.0, 0.5, 1), 0.2, 0, 0)
FULL = (0.4, 0.4, 0.4, 0.4, 1)
MAE = (1, 224, 0.2, "cubic", NO, 0, 0, 0)
RANDOM_CROPS = {
    "moco_v1": [(2, 224, 0.2, "-linear", FULL, 0.2, 0, 0)],
    "moco_v2": [MOCO],
    "densecl": [MOCO],
    "simsiam": [MOCO],
    "simclr": [(2, 224, 0.08, "linear", STRONG, 0.2, 0.5, 0)],
    "byol": [(1, 224, 0.08, "cubic", WEAK, 0.2, 1, 0), (1, 224, 0.08, "cubic", WEAK, 0.2, 0.1, 0.2)],
    "barlow": [(1, 224, 0.08, "cubic", WEAK, 0.2, 1, 0), (1, 224, 0.08, "cubic", WEAK, 0.2, 0.1, 0.2)],
    "moco_v3_resnet": [(1, 224, 0.2, "linear", WEAK, 0.2, 1, 0), (1, 224, 0.2, "linear", WEAK, 0.2, 0.1, 0.2)],
    "moco_v3_vit": [(1, 224, 0.08, "linear", WEAK, 0.2, 1, 0), (1, 224, 0.08, "linear", WEAK, 0.2, 0.1, 0.2)],
    "swav_2x224_6x96": [(2, 224, 0.14, "linear", STRONG, 0.2, 0.5, 0), (6, 96, 0.05, "linear", STRONG, 0.2, 0.5, 0)],
    "dino_2x224_8x96": [
        (1, 224, 0.4, "cubic", WEAK, 0.2, 1, 0),
        (1, 224, 0.4, "cubic", WEAK, 0.2, 0.1, 0.2),
        (8, 96, 0.05, "cubic", WEAK, 0.2, 0.5, 0),
    ],
    "lejepa_2x224_6x98": [
        (2, 224, 0.3, "cubic", WEAK, 0.2, 0.5, 0.2),
        (6, 98, 0.05, "cubic", WEAK, 0.2, 0.5, 0.2),
    ],
    "lejepa_4x128": [(4, 128, 0.08, "linear", STRONG, 0.2, 0.5, 0.2)],
    "ibot_2x224_10x96": [
        (1, 224, 0.25, "cubic", WEAK, 0.2, 1, 0),
        (1, 224, 0.25, "cubic", WEAK, 0.2, 0.1, 0.2),
        (10, 96, 0.05, "cubic", WEAK, 0.2, 0.5, 0),
    ],
    "dinov2": [
        (1, 224, 0.32, "cubic", WEAK, 0.2, 0, 0),
        (1, 224, 0.32, "cubic", WEAK, 0.2, 0.9, 0.2),
        (8, 96, 0.05, "cubic", WEAK, 0.2, 0.5, 0),
    ],
    "dinov2_as_written": [
        (1, 224, 0.32, "cubic", WEAK, 0.2, 1, 0),
        (1, 224, 0.32, "cubic", WEAK, 0.2, 0.1, 0.2),
        (8, 96, 0.05, "cubic", WEAK, 0.2, 0.5, 0),
    ],
    "npid": [(1, 224, 0.2, "linear", FULL, 0.2, 0, 0)],
    "deepcluster": [CLUSTER],
    "odc": [CLUSTER],
    "rotation": [(1, 224, 0.08, "linear", NO, 0, 0, 0)],
    "mae": [MAE],
    "milan": [MAE],
    "eva": [MAE],
    "mixmim": [MAE],
    "simmim": [(1, 192, 0.67, "-linear", NO, 0, 0, 0)],
    "simmim_vit": [(1, 224, 0.67, "-linear", NO, 0, 0, 0)],
    "maskfeat": [(1, 224, 0.5, "-cubic", NO, 0, 0, 0)],
    "beit": [
        (1, 224, 0.08, "cubic", (0.4, 0.4, 0.4, 0, 1), 0, 0, 0),
        (1, 112, 0.08, "lanczos", (0.4, 0.4, 0.4, 0, 1), 0, 0, 0),
    ],
    "beitv2": [(1, 224, 0.2, "cubic", (0.4, 0.4, 0.4, 0, 1), 0, 0, 0)] * 2,
    "cae": [(1, 224, 0.08, "cubic", NO, 0, 0, 0), (1, 112, 0.08, "lanczos", NO, 0, 0, 0)],
    "distill": [(1, 224, 0.2, "cubic", WEAK, 0.2, 0.5, 0)],
    "distill_cifar": [(1, 32, 0.2, "linear", NO, 0, 0, 0)],
    "capi": [(1, 224, 0.6, "cubic", NO, 0, 0, 0)],
    "capi_cifar": [(1, 32, 0.6, "linear", NO, 0, 0, 0)],
    "ijepa": [(1, 224, 0.3, "linear", NO, 0, 0, 0)],
    "ijepa_cifar": [(1, 32, 0.3, "linear", NO, 0, 0, 0)],
    "linear_train": [(1, 224, 0.08, "linear", NO, 0, 0, 0)],
    "linear_stages_train": [(1, 224, 0.08, "cubic", (0.4, 0.4, 0.4, 0, 1), 0, 0, 0)],
    "finetune_mae": [(1, 224, 0.08, "cubic", NO, 0, 0, 0)],
    "simclr_cifar": [(2, 32, 0.08, "linear", (0.4, 0.4, 0.4, 0.1, 0.8), 0.2, 0, 0)],
    "byol_cifar": [(1, 32, 0.08, "linear", WEAK, 0.2, 0, 0), (1, 32, 0.08, "linear", WEAK, 0.2, 0, 0.2)],
    "moco_cifar": [(2, 32, 0.2, "linear", (0.4, 0.4, 0.4, 0.1, 0.8), 0.2, 0, 0)],
    "lejepa_cifar": [(4, 32, 0.2, "linear", WEAK, 0.2, 0, 0.2)],
    "dinov2_cifar": [
        (1, 32, 0.32, "linear", WEAK, 0.2, 0, 0),
        (1, 32, 0.32, "linear", WEAK, 0.2, 0, 0.2),
        (4, 16, 0.05, "linear", WEAK, 0.2, 0, 0),
    ],
    "dino_cifar": [
        (1, 32, 0.4, "linear", WEAK, 0.2, 0, 0),
        (1, 32, 0.4, "linear", WEAK, 0.2, 0, 0.2),
        (8, 16, 0.05, "linear", WEAK, 0.2, 0, 0),
    ],
}
LARGEST_AREA = {
    "swav_2x224_6x96": [1, 0.14],
    "dino_2x224_8x96": [1, 1, 0.4],
    "dino_cifar": [1, 1, 0.4],
    "ibot_2x224_10x96": [1, 1, 0.25],
    "dinov2": [1, 1, 0.32],
    "dinov2_as_written": [1, 1, 0.32],
    "dinov2_cifar": [1, 1, 0.32],
    "lejepa_2x224_6x98": [1, 0.3],
}
IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CIFAR = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)
DALLE = (-31.875,) * 3, (318.75,) * 3  # 0.8 v + 0.1
HALF = (127.5,) * 3, (127.5,) * 3
_DINOV2 = ["dinov2", "dinov2_as_written", "dinov2_cifar"]
NAMES = {
    "first second": ["byol", "barlow", "moco_v3_resnet", "moco_v3_vit", "byol_cifar"],
    "large small": ["swav_2x224_6x96", "lejepa_2x224_6x98"],
    "first second small": ["dino_2x224_8x96", "dino_cifar", "ibot_2x224_10x96", *_DINOV2],
    "image target": ["beit", "beitv2", "cae"],
}
FILTERS = {"linear": "bilinear", "cubic": "bicubic", "lanczos": "lanczos"}


@pytest.mark.parametrize("name", RANDOM_CROPS)
def test_random_crops_are_the_published_ones(name):
    assert len(VIEWS[name]) == len(RANDOM_CROPS[name])
    for place, (v, expected) in enumerate(zip(VIEWS[name], RANDOM_CROPS[name])):
        count, size, least, kind, jitter, gray, blur, solarize = expected
        largest = LARGEST_AREA[name][place] if name in LARGEST_AREA else 1
        assert v.crop == "random" and (v.count, v.size, v.scale) == (count, size, (least, largest))
        assert v.interpolation == FILTERS[kind.strip("-")] and v.antialias == (kind[0] != "-")
        assert (v.brightness, v.contrast, v.saturation, v.hue, v.jitter) == jitter
        assert (v.gray, v.blur, v.solarize) == (gray, blur, solarize) and v.blur_sigma == (0.1, 2.0)
        assert v.flip == (0 if name.startswith("ijepa") else 0.5)
        assert v.ratio == pytest.approx((3 / 4, 4 / 3), abs=1e-4)
        assert v.rotate == (2 if name in ("deepcluster", "odc") else 0)
        assert v.gray_first == (name in ("moco_v1", "npid"))
        assert v.gray_weights == ("mean" if name == "moco_v1" else "luma")
        assert v.parts == ("rotations" if name == "rotation" else None)
        assert (v.randaugment is not None) == (v.erasing is not None) == (name == "finetune_mae")


def test_views_that_are_no_random_crops():
    (patches,), (pixmim,) = VIEWS["relative_loc"], VIEWS["pixmim"]
    assert (patches.crop, patches.resize, patches.squash, patches.size) == ("window", 292, True, 255)
    assert (patches.flip, patches.gray, patches.gray_weights, patches.jitter) == (0, 0.66, "mean", 0)
    assert (patches.antialias, patches.parts, patches.side, patches.copies) == (False, "patches", 64, 9)
    assert [round(255 * m, 6) for m in patches.mean] == [124, 117, 104]
    assert [round(255 * s, 6) for s in patches.std] == [59, 58, 58]
    assert (pixmim.crop, pixmim.resize, pixmim.squash, pixmim.size) == ("window", 224, False, 224)
    assert (pixmim.padding, pixmim.padding_mode, pixmim.flip, pixmim.antialias) == (4, "reflect", 0.5, True)
    for name, antialias in (("eval", True), ("knn", False)):
        (v,) = VIEWS[name]
        assert (v.crop, v.size, v.center_fraction, v.flip) == ("center", 224, 224 / 256, 0)
        assert (v.interpolation, v.antialias, v.jitter) == ("bilinear", antialias, 0)
    assert set(VIEWS) == {*RANDOM_CROPS, "relative_loc", "pixmim", "eval", "knn"}


def test_fine_tuning():
    v = view("finetune_mae")
    policy, erasing = v.randaugment, v.erasing
    assert (policy.operations, policy.level, policy.spread, policy.chance) == (2, 9, 0.5, 0.5)
    assert policy.fill == tuple(round(m) for m in IMAGENET[0])
    assert (erasing.chance, erasing.area, erasing.ratio) == (0.25, (0.02, 1 / 3), (0.3, 10 / 3))


def test_names_and_normalisation():
    several = {recipe: names.split() for names, recipes in NAMES.items() for recipe in recipes}
    for recipe, views in VIEWS.items():
        InputSpec(views)  # distinct names, known draws
        assert [v.name for v in views] == several.get(recipe, ["image"])
        for v in views:
            target = v.name == "target"
            assert v.draws == ("image" if target else None)
            expected = CIFAR if recipe.endswith("_cifar") else IMAGENET
            if target:
                expected = HALF if recipe == "beitv2" else DALLE
            if recipe != "relative_loc":
                assert [255 * m for m in v.mean] == pytest.approx(expected[0])
                assert [255 * s for s in v.std] == pytest.approx(expected[1])
    low, high = ((value - view("beit.target").mean[0]) / view("beit.target").std[0] for value in (0, 1))
    assert (low, high) == pytest.approx((0.1, 0.9))


def test_a_view_by_name():
    assert view("simclr") is VIEWS["simclr"][0] and view("byol.second") is VIEWS["byol"][1]
    for wrong, words in (
        ("byol", "it is one of byol.first, byol.second"),
        ("simclrr", "did you mean simclr?"),
        ("zzz", "see VIEWS"),
    ):
        with pytest.raises(ValueError, match="no view is named") as caught:
            view(wrong)
        assert words in str(caught.value)


def load(tmp_path, text, *overrides, base=None):
    if base:
        (tmp_path / "base.yaml").write_text(base)
        text = f"base: base.yaml\n{text}"
    (tmp_path / "recipe.yaml").write_text(text)
    tree = config.load(tmp_path / "recipe.yaml", overrides)
    return tree, config.build(tree, {"algorithm": SimCLR.Config})


def changed(v, other):
    return {f.name: getattr(v, f.name) for f in fields(ViewSpec) if getattr(v, f.name) != getattr(other, f.name)}


def test_a_recipe_may_name_a_view(tmp_path):
    (whole, part) = "algorithm: {view: moco_v2}\n", "algorithm: {view: {recipe: moco_v2, size: 96}}\n"
    named = load(tmp_path, whole)[1]["algorithm"].view
    assert named == view("moco_v2")
    assert changed(load(tmp_path, part)[1]["algorithm"].view, named) == {"size": 96}
    assert changed(load(tmp_path, whole, "algorithm.view.size=64")[1]["algorithm"].view, named) == {"size": 64}
    assert load(tmp_path, part, "algorithm.view=simsiam")[1]["algorithm"].view == view("simsiam")
    above = load(tmp_path, "algorithm: {view: {scale: [0.5, 1]}}\n", base=part)[1]["algorithm"].view
    assert changed(above, named) == {"size": 96, "scale": (0.5, 1.0)}
    tree, sections = load(tmp_path, part, "algorithm.view.flip=0.0")
    shown = {line.split(":")[0].strip(): line for line in config.show(tree, sections).splitlines()}
    assert shown["gray"].endswith("recipe.yaml:1, moco_v2") and shown["size"].endswith("recipe.yaml:1")
    assert shown["flip"].endswith("command line") and "96" in shown["size"]


def test_an_unknown_name_is_one_line(tmp_path):
    with pytest.raises(UserError) as caught:
        load(tmp_path, "algorithm:\n  view: {recipe: moco_v22, sizing: 3}\n")
    name, key = str(caught.value).splitlines()
    assert name.endswith("recipe.yaml:2: algorithm.view: no view is named 'moco_v22'; did you mean moco_v2?")
    assert "algorithm.view.sizing: unknown key" in key
