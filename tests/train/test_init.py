"""train.init and train.guard: what is taken over and what starts anew, what fits after resizing, what stops a run."""

import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from headrace.cli import dispatch
from headrace.errors import UserError, run_command
from headrace.models.algorithms import find_algorithm
from headrace.models.backbones.transformer import resize_positions
from headrace.train.engine import checkpoint
from headrace.train.init import Guard, encoder_places, fit_patches, initialise
from headrace.train.pretrain import main
from headrace.train.recipe import config


def tiny(name, seed=0, **change):
    kind = find_algorithm(name)
    torch.manual_seed(seed)
    small = kind.Config().smoke()
    if "backbone" in change:
        change["backbone"] = replace(small.backbone, **change["backbone"])
    return kind(replace(small, **change))


def saved(algorithm, folder):
    state = {"model": algorithm.state_dict(), "config": {"algorithm": config.plain(algorithm.config)}}
    return checkpoint.save(folder, 3, state, keep=1)


def moved(algorithm):
    """The same with a teacher that differs from its student."""
    with torch.no_grad():
        for p in algorithm.teacher.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return algorithm


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["ibot", "dinov3"])
def test_a_run_of_the_same_method_gives_encoder_heads_and_centres(name, tmp_path):
    """Student and teacher both begin as the encoder that was evaluated, which is the teacher's."""
    old, new = moved(tiny(name)), tiny(name, seed=1)
    report = initialise(new, str(saved(old, tmp_path).parent))
    assert equal(new.teacher.backbone, old.encoder) and equal(new.backbone, old.encoder)
    assert equal(new.head, old.head) and equal(new.teacher.head, old.teacher.head)
    assert "into backbone, teacher.backbone" in report and "0 start anew" in report
    wider = tiny(name, seed=1, prototypes=40)
    report = initialise(wider, str(tmp_path))
    assert equal(wider.encoder, old.encoder) and "start anew, such as head.1.weight" in report.replace("gain", "weight")


def test_a_run_of_another_method_gives_its_encoder(tmp_path):
    old = tiny("dino")
    new = tiny("ibot", seed=1, backbone={"init": "xavier", "drop_path": 0.1})
    report = initialise(new, str(saved(old, tmp_path)))
    assert equal(new.encoder, old.encoder) and equal(new.backbone, old.encoder)
    assert "head.0.0.weight" in report


@pytest.mark.parametrize("name, places", [("mae", ["vit"]), ("byol", ["backbone", "teacher.backbone"])])
def test_every_method_begins_with_an_encoder(name, places, tmp_path):
    old, new = tiny(name), tiny(name, seed=1)
    save_file({k: v.contiguous() for k, v in old.encoder.state_dict().items()}, tmp_path / "encoder.safetensors")
    initialise(new, str(tmp_path))
    assert encoder_places(new) == places and equal(new.encoder, old.encoder)


def test_positions_and_patches_are_fitted(tmp_path):
    old = tiny("ibot")
    view = {key: replace(getattr(old.config, key), size=64) for key in ("first", "second")}
    new = tiny("ibot", seed=1, **view, backbone={"patch_size": 16})  # as many patches
    saved(old, tmp_path)
    assert "fitted to other sizes: patch_embed.weight" in initialise(new, str(tmp_path))
    images = torch.randn(2, 3, 32, 32)
    tiles = images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(0, 3)[:, None]
    large = F.interpolate(tiles, (16, 16), mode="bicubic", align_corners=False)
    large = large.view(2, 3, 4, 4, 16, 16).transpose(3, 4).reshape(2, 3, 64, 64)  # each patch enlarged by itself
    with torch.no_grad():
        assert torch.allclose(new.encoder(large), old.encoder(images), atol=1e-4)
    finer = tiny("ibot", seed=1, **view)
    initialise(finer, str(tmp_path))
    expected = resize_positions(old.encoder.positions, (4, 4), (8, 8), **finer.encoder.resizing)
    assert torch.equal(finer.encoder.positions, expected)


def test_grey_patches_see_in_colour():
    grey = {"patch_embed.weight": torch.randn(6, 1, 4, 4)}
    colour = fit_patches(grey, {"patch_embed.weight": torch.empty(6, 3, 4, 4)})["patch_embed.weight"]
    image = torch.randn(2, 1, 4, 4)
    seen = F.conv2d(image.expand(-1, 3, -1, -1), colour)
    assert torch.allclose(seen, F.conv2d(image, grey["patch_embed.weight"]), atol=1e-5)


def test_a_timm_model_under_its_own_names(monkeypatch, tmp_path):
    """Names and layout as timm has them; nothing is fetched."""
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda name, **options: model)
    kind = find_algorithm("ibot")
    backbone = replace(kind.Config().backbone, name="vit_tiny", resize_offset=0.0)
    algorithm = kind(replace(kind.Config(), backbone=backbone, hidden=8, bottleneck=8, prototypes=8))
    initialise(algorithm, "timm:vit_tiny_patch16_224")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        for encoder in (algorithm.backbone, algorithm.encoder):
            assert torch.allclose(encoder.eval()(images), model.eval()(images), atol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    new = tiny("ibot")
    for change, words in (
        ({"width": 32}, "has in another shape"),
        ({"depth": 3}, "has besides 12 of the encoder's tensors, such as blocks.2"),
        ({"depth": 1}, "lacks 12 of the encoder's tensors"),
    ):
        path = saved(tiny("ibot", backbone=change), tmp_path / str(change))
        before = {key: value.clone() for key, value in new.state_dict().items()}
        with pytest.raises(UserError, match=words) as error:
            initialise(new, str(path))
        assert "\n" not in str(error.value) and all(torch.equal(v, before[k]) for k, v in new.state_dict().items())
    with pytest.raises(UserError, match="no run, checkpoint, encoder.safetensors or timm:NAME"):
        initialise(new, str(tmp_path / "nothing"))
    (tmp_path / "encoder.safetensors").write_bytes(b"not one")
    with pytest.raises(UserError, match="not a readable .safetensors"):
        initialise(new, str(tmp_path / "encoder.safetensors"))
    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(list_models=lambda: ["vit"]))
    with pytest.raises(UserError, match="timm has no model 'vlt'"):
        initialise(new, "timm:vlt")


def test_the_guard_keeps_the_best_and_stops_after_a_fall(tmp_path):
    values, weights = iter([0.5, 0.6, 0.45, 0.39]), iter("abcd")
    guard = Guard(lambda: {"knn": next(values)}, 0.1, lambda: {"model": {}, "of": next(weights)}, tmp_path)
    assert guard.start == 0.5 and guard() == {"knn": 0.6} and guard() == {"knn": 0.45}
    with pytest.raises(UserError, match="fallen from 0.5000 at the start to 0.3900.*best weights .0.6000.") as error:
        guard()
    assert str(tmp_path / "best.pt") in str(error.value)
    best = torch.load(tmp_path / "best.pt")
    assert best["of"] == "b" and best["guard"] == [0.5, 0.6]
    again = Guard(lambda: {"knn": 0.39}, 0.1, dict, tmp_path, resumed=True)
    assert again.start == 0.5
    with pytest.raises(UserError, match="fallen from 0.5000"):
        again()


def test_a_run_begins_with_another_and_is_resumed_without_it(tmp_path, capsys):
    """With a rate of 0 for the encoder it ends with the encoder that it began with; heads have moved."""
    first, second = tmp_path / "first", tmp_path / "second"
    recipe = ["ibot_vit-tiny_cifar10", "--smoke"]
    assert main([*recipe, f"train.out={first}", "train.max_steps=2"]) == 0
    frozen = "optim.frozen=[{match: '^(backbone|mask_token)', until: 1.0}]"
    more = [*recipe, f"train.out={second}", f"train.init={first}", frozen]
    assert main([*more, "train.max_steps=4"]) == 0
    assert "tensors of the encoder into backbone, teacher.backbone" in capsys.readouterr().out
    one, other = (checkpoint.load_algorithm(path)[1] for path in (first, second))
    for name, value in one.encoder.state_dict().items():
        assert torch.allclose(other.encoder.state_dict()[name], value, atol=1e-7), name
    assert not equal(one.head, other.head)
    for file in first.iterdir():
        file.unlink() if file.is_file() else None
    assert main([*more, "train.max_steps=6"]) == 0
    assert "train.init" not in capsys.readouterr().out


def command(*words):
    return run_command(lambda: dispatch(list(words)))


@pytest.fixture
def colours(tmp_path):
    """Two classes that any encoder tells apart, unless it has collapsed."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 8)):
        for name, colour in {"blue": (30, 30, 220), "red": (220, 30, 30)}.items():
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(count):
                noise = (rng.normal(0, 20, (32, 32, 3)) + colour).clip(0, 255).astype(np.uint8)
                Image.fromarray(noise).save(tmp_path / "images" / part / name / f"{index}.png")
    return tmp_path / "images"


def test_the_guard_stops_a_run_that_collapses(colours, tmp_path, capsys):
    """A decay that leaves nothing of matrices, and a teacher that follows at once: every image looks alike."""
    out = tmp_path / "run"
    words = ["ibot_vit-tiny_cifar10", "--smoke", f"data.train={colours / 'train'}", f"data.val={colours / 'val'}"]
    words += [f"train.out={out}", "train.max_steps=8", "train.guard=0.2", "train.knn_every=1", "optim.warmup=0"]
    words += ["optim.lr=1e-12", "optim.weight_decay=1e12", "optim.weight_decay_end=null"]
    words += ["algorithm.momentum=0", "algorithm.momentum_end=0"]
    assert command("pretrain", *words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("headrace: ") and "train.guard: k-NN accuracy has fallen from 1.0000" in said
    assert str(out / "best.pt") in said and not (out / "encoder.safetensors").exists()
    sets = [
        "--train",
        str(colours / "train"),
        "--val",
        str(colours / "val"),
        "--k",
        "5",
        "--features",
        str(tmp_path / "kept"),
    ]
    assert command("knn", str(out / "best.pt"), *sets, "--results", str(tmp_path / "found.jsonl")) == 0
    assert json.loads((tmp_path / "found.jsonl").read_text().splitlines()[-1])["figures"][0]["top1"] == 1.0


@pytest.mark.parametrize(
    "words, message",
    [
        (["train.init={wide}"], "train.init: {wide}"),
        (["algorithm.gram={{teacher: {wide}}}"], "has 32 features, and the run's encoder 128"),
        (["algorithm.first.size=30", "algorithm.second.size=30"], "30 px are not whole patches of 8"),
        (["algorithm.gram={{enlarge: 1.4375}}"], "46 px, 1.4375 times 32, are not whole patches of 8"),
    ],
)
def test_what_does_not_fit_ends_the_command_in_a_line(words, message, tmp_path, photo_folder, capsys):
    wide = tmp_path / "wide"
    wide.mkdir()
    saved(tiny("dinov3", backbone={"width": 32}), wide)
    before = sorted(tmp_path.rglob("*"))
    words = [word.format(wide=wide) for word in words]
    out = [f"data.train={photo_folder}", f"train.out={tmp_path / 'run'}", "train.batch_size=24"]
    out += ["train.max_steps=2", "algorithm.koleo_group=8"]
    assert command("pretrain", "dinov3_vit-tiny_cifar10", *out, *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("headrace: ") and message.format(wide=wide) in line
    assert sorted(tmp_path.rglob("*")) == before
