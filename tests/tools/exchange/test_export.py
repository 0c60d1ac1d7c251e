"""Exports: the Python that is printed, run as it stands, gives the encoder's own features; commands from end to end."""

import hashlib
import importlib.util
import itertools
import pickle
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from tiny_encoders import (
    BEIT,
    CLIP,
    DINOV2,
    DINOV3,
    GATED,
    HIVIT,
    KINDS,
    MIXMIM,
    PLAIN,
    REGISTERS,
    RESNET,
    SIZE,
    SWIN,
    encoder,
)

import headrace
from headrace.errors import UserError
from headrace.models.algorithms.classifier import Classifier
from headrace.tools import models_api, models_command
from headrace.tools.exchange.export import Part, export, main, part_of
from headrace.tools.exchange.import_weights import import_checkpoint, save_algorithm
from headrace.tools.exchange.import_weights import main as import_main
from headrace.tools.params import main as params_main
from headrace.tools.predict import main as predict_main
from headrace.train import pretrain
from headrace.train.evaluation.embed_encoder import load_encoder
from headrace.train.foreign.convert import Options
from headrace.train.foreign.read import read_tensors
from headrace.train.foreign.shapes import Wishes, sizes_of

LIBRARIES = {
    "timm": [
        PLAIN,
        DINOV2,
        REGISTERS,
        GATED,
        CLIP,
        DINOV3,
        replace(DINOV3, mlp="swiglu", pool="mean", qkv_bias="none"),
        replace(PLAIN, norm="pooled"),
        replace(BEIT, norm="pooled"),
        replace(BEIT, relative_bias="block", pool="cls"),
        replace(BEIT, relative_bias="block"),
        SWIN,
        replace(RESNET, width=64),
        replace(RESNET, width=64, v1d=True),
    ],
    "torchvision": [replace(PLAIN, pool="cls"), SWIN, replace(RESNET, width=64)],
    "hf": [
        PLAIN,
        replace(PLAIN, pool="cls"),
        DINOV2,
        REGISTERS,
        replace(GATED, registers=3, pool="mean"),
        CLIP,
        DINOV3,
        replace(DINOV3, mlp="swiglu", pool="mean"),
        replace(BEIT, norm="pooled"),
        replace(BEIT, relative_bias="block", pool="cls"),
        replace(BEIT, relative_bias="block", norm="pooled"),
        SWIN,
        replace(RESNET, width=64),
        replace(RESNET, name="resnet50", width=64),
    ],
    "openmmlab": [
        PLAIN,
        DINOV2,
        GATED,
        CLIP,
        replace(PLAIN, norm="pooled"),
        BEIT,
        replace(BEIT, relative_bias="block"),
        SWIN,
        replace(SWIN, depths=(1, 2, 1, 1), windows=(4, 4, 4, 4)),
        MIXMIM,
        replace(HIVIT, depths=(1, 1, 8)),
        replace(RESNET, width=64),
    ],
    "onnx": [PLAIN, SWIN, MIXMIM],
}
_PACKAGES = {"hf": "transformers", "openmmlab": "mmpretrain", "onnx": "onnxruntime"}
# the others are compared where their libraries are: pip install headrace[parity]
HERE = [
    (library, config)
    for library, configs in LIBRARIES.items()
    if importlib.util.find_spec(_PACKAGES.get(library, library))
    for config in configs
]


def calm(config):
    """An encoder whose activations stay near 1, in evaluation mode, with statistics of its own."""
    model = encoder(config).eval()
    for name, tensor in model.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and name != "positions":
            tensor.mul_(0.1 if tensor.dim() < 2 or "table" in name else tensor[0].numel() ** -0.5)
    return model


def run(code, images):
    """The last line's value, and all names."""
    *lines, last = code.splitlines()
    scope = {"images": images}
    exec("\n".join(lines), scope)
    with torch.no_grad():
        return torch.as_tensor(eval(last, scope)), scope


@pytest.mark.parametrize(("library", "config"), HERE)
def test_another_library_gives_the_same_features(library, config, tmp_path):
    model = calm(config)
    path, code = export(Part(model, config, SIZE), library, tmp_path, "x")
    assert [path] == list(tmp_path.iterdir())
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = model(images)
    found, scope = run(code, images)
    assert expected.std() > 1e-3 and torch.allclose(
        found, expected, atol=1e-5 * float(expected.abs().max().clamp(min=1))
    )
    if "state" in scope:  # nothing of the file was left aside
        missing, unexpected = scope["model"].load_state_dict(scope["state"], strict=False)
        rebuilt = ("relative_position_index", "k_bias", "embeddings.mask_token")  # the last is of pre-training
        assert not unexpected and all(name.endswith(rebuilt) for name in missing)


def passed_on(part, library, folder):
    """The file of a library, and what importing it gives."""
    path, _ = export(part, library, folder, "x")
    mlp = part.config.mlp if getattr(part.config, "mlp", None) == "quick_gelu" else None
    wishes = Wishes(heads=2, pool=getattr(part.config, "pool", None), mlp=mlp)
    imported = import_checkpoint(path, Options(wishes=wishes))
    assert not imported.left_over and not imported.resized
    config = imported.classifier.config
    return path, Part(imported.classifier.backbone, config.backbone, config.view.size)


FILES = {"timm", "torchvision", "hf", "openmmlab"}
CHAINS = [
    (config, first, second)
    for first, second in itertools.combinations_with_replacement(sorted(FILES), 2)
    for config in LIBRARIES[first]
    if config in LIBRARIES[second] and config.name != "resnet50"  # which is slow, and in ResNet-18's words
]


@pytest.mark.parametrize(("config", "first", "second"), CHAINS)
def test_there_by_two_libraries_and_back_gives_the_same_file(config, first, second, tmp_path):
    """Ours -> first -> ours -> second -> ours -> first: names and tensors are those of the first time."""
    model = calm(config)
    before, part = passed_on(Part(model, config, SIZE), first, tmp_path / "a")
    _, part = passed_on(part, second, tmp_path / "b")
    after, part = passed_on(part, first, tmp_path / "c")
    old, new = read_tensors(before), read_tensors(after)
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    own, found = model.state_dict(), part.encoder.state_dict()
    assert own.keys() == found.keys() and all(torch.equal(own[name], found[name]) for name in own)
    digest = hashlib.sha256(before.read_bytes()).hexdigest()
    assert before.stem == f"x_{time.strftime('%Y%m%d')}-{digest[:8]}"


def test_a_classifier_is_exported_with_its_normalisation_folded_in(tmp_path):
    config = replace(RESNET, width=64)
    view = replace(Classifier.Config().view, size=SIZE)
    classifier = Classifier(Classifier.Config(view=view, backbone=config, classes=7, head_norm=True)).eval()
    classifier.backbone.load_state_dict(calm(config).state_dict())
    classifier.head[0].running_mean.normal_(), classifier.head[0].running_var.uniform_(0.5, 2)
    save_algorithm(classifier, tmp_path / "run")
    part = part_of(tmp_path / "run")
    _, code = export(part, "torchvision", tmp_path, "x")
    images = torch.randn(2, 3, SIZE, SIZE)
    found, _ = run(code, images)
    with torch.no_grad():
        assert found.shape == (2, 7) and torch.allclose(found, classifier.scorer(images), atol=1e-4)


def test_detectron2_takes_numpy_arrays_under_its_own_names(tmp_path):
    model = calm(replace(RESNET, width=64))
    path, _ = export(Part(model, replace(RESNET, width=64), SIZE), "detectron2", tmp_path, "r")
    content = pickle.loads(path.read_bytes())
    assert content["matching_heuristics"] is True
    own = model.body.state_dict()
    for theirs, ours in {
        "stem.conv1.weight": "conv1.weight",
        "stem.conv1.norm.bias": "bn1.bias",
        "res4.0.shortcut.norm.running_mean": "layer3.0.downsample.1.running_mean",
        "res2.1.conv2.norm.weight": "layer1.1.bn2.weight",
    }.items():
        assert (content["model"][theirs] == own[ours].numpy()).all()
    assert not any("num_batches" in name for name in content["model"])


@pytest.mark.parametrize(
    ("library", "config", "message"),
    [
        ("timm", MIXMIM, "has no MixMIMTransformer; use --to openmmlab"),
        ("torchvision", PLAIN, "class token"),
        ("torchvision", DINOV2, "none of: layer scale"),
        ("hf", replace(PLAIN, norm="pooled"), "none has together, or does without: a norm after pooling"),
        ("torchvision", DINOV3, "none of: keys without biases, registers, rotary positions, layer scale"),
        ("openmmlab", REGISTERS, "neither registers nor rotary"),
        ("timm", RESNET, "other stems and widths"),
        ("detectron2", PLAIN, "ResNets alone"),
    ],
)
def test_what_a_library_lacks_is_said(library, config, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export(Part(encoder(config), config, SIZE), library, tmp_path, "x")


_V3 = "{qkv_bias: qv, layer_scale: 0.1, registers: 4}"
RUNS = [  # recipe, its backbone's options, library, the class that there has such encoders
    ("dinov2_vit-tiny_cifar10", "{layer_scale: 0.1, registers: 4}", "hf", "Dinov2WithRegistersModel"),
    ("dinov2_vit-tiny_cifar10", "{layer_scale: 0.1, registers: 4}", "timm", "VisionTransformer"),
    ("dinov3_vit-tiny_cifar10", _V3, "hf", "DINOv3ViTModel"),
    ("dinov3_vit-tiny_cifar10", _V3, "timm", "Eva"),
]


@pytest.mark.parametrize(("recipe", "backbone", "library", "kind"), RUNS)
def test_encoders_of_runs_are_the_same_elsewhere(recipe, backbone, library, kind, photo_folder, tmp_path):
    """What DINOv2 and DINOv3 have trained."""
    pytest.importorskip(_PACKAGES.get(library, library), reason="needs the extra [parity]")
    out = tmp_path / "run"
    options = [f"data.train={photo_folder}", f"train.out={out}", "train.max_steps=2", "optim.warmup=0"]
    assert pretrain.main([recipe, "--smoke", *options, f"algorithm.backbone={backbone}"]) == 0
    part = part_of(out)
    _, code = export(part, library, tmp_path, "x")
    model = part.encoder.eval()
    images = torch.randn(2, 3, part.size, part.size)
    with torch.no_grad():
        expected = model(images)
    found, scope = run(code, images)
    assert type(scope["model"]).__name__ == kind
    assert expected.std() > 1e-2 and torch.allclose(
        found, expected, atol=1e-5 * float(expected.abs().max().clamp(min=1))
    )


@pytest.fixture(scope="module")
def dino(photo_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "dino"
    arguments = ["dino_vit-tiny_cifar10", "--smoke", f"data.train={photo_folder}", f"train.out={out}"]
    assert pretrain.main([*arguments, "train.max_steps=2"]) == 0
    return out


def test_from_a_run_to_a_file_and_back(dino, tmp_path, capsys):
    """export --teacher, import, and what evaluations then load: the teacher's encoder."""
    part = part_of(dino, teacher=True)
    assert main([str(dino), "--to", "openmmlab", "--teacher", "--out", str(tmp_path), "--name", "t"]) == 0
    (path,) = tmp_path.glob("t_*.pth")
    assert import_main([str(path), "--to", str(tmp_path / "in"), "--heads", "2", "--pool", "cls"]) == 0
    assert "recognised  openmmlab-vit, under backbone." in capsys.readouterr().out
    found = load_encoder(str(tmp_path / "in"))  # the folder stands for a run; it has no checkpoint
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(found.module(images), part.encoder.eval()(images), atol=1e-6) and found.view.size == 32
        assert not torch.allclose(found.module(images), part_of(dino).encoder.eval()(images), atol=1e-6)
    with pytest.raises(UserError, match="already holds an encoder"):
        import_main([str(path), "--to", str(tmp_path / "in"), "--heads", "2"])
    with pytest.raises(UserError, match="holds the encoder alone"):
        part_of(dino / "encoder.safetensors", teacher=True)


def test_our_own_file_stands_for_itself(dino, tmp_path):
    path, code = export(part_of(dino), "safetensors", tmp_path, "own")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(run(code, images)[0], part_of(dino).encoder.eval()(images), atol=1e-6)
    assert load_encoder(str(path)).view.size == 32


def test_a_foreign_classifier_predicts(tmp_path, photo_folder, capsys):
    """torchvision's own ResNet-18 with a bias that makes class 3 certain; and its scores."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=5).eval()
    theirs.fc.bias.data[3] += 100
    torch.save(theirs.state_dict(), tmp_path / "r.pth")
    photo = str(next(photo_folder.rglob("*.jpg")))
    assert import_main([str(tmp_path / "r.pth"), "--to", str(tmp_path / "in")]) == 0
    report = capsys.readouterr().out
    assert "left over   0" in report and "classifier  5 classes" in report
    for checkpoint in (tmp_path / "r.pth", tmp_path / "in"):
        assert predict_main([photo, "--checkpoint", str(checkpoint)]) == 0
        assert capsys.readouterr().out == f"{photo}  class 3  1.0000\n"
        model = headrace.get_model(checkpoint=checkpoint, head="linear")
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            assert torch.allclose(model(images), theirs(images), atol=1e-4)
            theirs_features = torch.nn.Sequential(*list(theirs.children())[:-1])(images).flatten(1)
            assert torch.allclose(model.extract_feat(images), theirs_features, atol=1e-5)
    with pytest.raises(UserError, match="has 2 lines for 5 classes"):
        (tmp_path / "names").write_text("a\nb\n")
        predict_main([photo, "--checkpoint", str(tmp_path / "in"), "--classes", str(tmp_path / "names")])
    with pytest.raises(UserError, match="no such file"):
        predict_main(["none.jpg", "--checkpoint", str(tmp_path / "in")])


PUBLISHED = {  # parameters with 1000 classes; a class token's row of fixed positions, which ours lack, taken off
    "vit-base": 86_567_656 - 768,
    "vit-large": 304_326_632 - 1024,
    "vit-huge": 632_045_800 - 1280,
    "deit3-small": 22_059_496,
    "deit3-medium": 38_849_512,
    "deit3-base": 86_585_320,
    "beit-base": 86_530_984,
    "swin-base": 87_768_224,
    "swin-base-w6-192": 87_750_176,
    "swin-large-w14": 196_848_316,
    "mixmim-base": 88_344_352,
    "mixmim-large": 197_396_668,
    "mixmim-huge": 659_262_658,
    "mixmim-base-384": 89_577_440,
    "hivit-base": 66_418_952,
    "resnet50": 25_557_032,
    "dinov3-small": 21_596_160 + 385_000,  # as timm has them, without a classifier
    "dinov3-huge-plus": 840_591_360 + 1_281_000,
    "dinov2-giant": 1_136_479_232 - 1536 + 1_537_000,
    "clip-large-p14": 303_179_776 - 1024 + 1_025_000,
}


def test_models_have_the_published_numbers_of_parameters():
    """Others keep fixed tables of positions among their parameters."""
    for name, published in PUBLISHED.items():
        buffers = models_api.random_encoder(name).named_buffers()
        tables = sum(buffer.numel() for key, buffer in buffers if key.endswith("positions"))
        assert models_api.parameters(name) + tables == published, name
    assert set(PUBLISHED) <= set(headrace.list_models()) and headrace.list_models("mixmim")[0] == "mixmim-base"


@pytest.mark.parametrize(
    ("name", "published"),
    [("vit-base", 17.58), ("deit3-small", 4.61), ("resnet50", 4.11), ("mixmim-base", 16.35), ("swin-base", 15.47)],
)
def test_multiply_adds(name, published):
    """Within 1 % of what others count, who add the norms and activations."""
    assert models_api.gflops(name) == pytest.approx(published, rel=0.01)


def test_the_page_has_the_table_of_models(capsys, monkeypatch):
    """Every row and column; multiply-adds, which take seconds for large models, of the small ones."""
    page = (Path(headrace.__file__).parent / "docs" / "encoders.md").read_text()
    rows = re.search(r"```text\n(name  .*?)```", page, re.S)[1].splitlines()
    counted = {row.split()[0]: float(row.split()[3]) for row in rows[1:]}
    small = ("vit-tiny", "dinov3-small", "clip-base-p32", "mixmim-base", "hivit-tiny", "swin-base", "resnet18")
    own = models_api.gflops
    monkeypatch.setattr(models_api, "gflops", lambda name: own(name) if name in small else counted[name])
    assert models_command.main(["--gflops"]) == 0
    assert capsys.readouterr().out.splitlines() == rows


def test_params_of_a_recipe(capsys):
    """MoCo v2 as published: 55,933,312 with both copies, 27,966,656 of them trained."""
    assert params_main(["mocov2_resnet50_8xb32-coslr-200e_in1k"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "23.508 M" in lines[0] and "55.933 M" in lines[1] and "27.967 M with gradient" in lines[1]


def test_models_by_name(monkeypatch, tmp_path):
    """Scores (1, classes), features (1, D), weights of a checkpoint at another size, and wrong names."""
    monkeypatch.setitem(models_api.MODELS, "tiny", models_api.Entry(replace(PLAIN, pool="cls"), SIZE))
    model = headrace.get_model("tiny", head="linear")
    images = torch.randn(1, 3, SIZE, SIZE)
    assert model(images).shape == (1, 1000) and model.extract_feat(images).shape == (1, 24)
    assert torch.equal(headrace.get_model("tiny").eval()(images).isfinite(), torch.ones(1, 24, dtype=torch.bool))
    own = encoder(replace(PLAIN, pool="cls")).eval()
    path, _ = export(Part(own, replace(PLAIN, pool="cls"), SIZE), "safetensors", tmp_path, "tiny")
    found = headrace.get_model("tiny", checkpoint=path)
    assert torch.equal(found(images), own(images))
    larger = headrace.get_model("tiny", checkpoint=path, size=96).encoder
    assert larger.positions.shape == (1, 144, 24) and torch.equal(larger.blocks[0].fc1.weight, own.blocks[0].fc1.weight)
    with pytest.raises(UserError, match="is not mixmim-base but"):
        headrace.get_model("mixmim-base", checkpoint=path)
    with pytest.raises(UserError, match="did you mean mixmim-base"):
        headrace.get_model("mixmim_base")
    assert len(sizes_of(KINDS[type(MIXMIM)])) == 3
