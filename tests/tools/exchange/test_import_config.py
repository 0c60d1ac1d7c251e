"""`headrace import-config`: MMSelfSup's files are read, not run, and become recipes that are accepted."""

from pathlib import Path

import pytest
import yaml

from headrace.errors import UserError
from headrace.models.backbones import ViT
from headrace.tools.exchange.import_config import main
from headrace.tools.exchange.mmselfsup_config import translate
from headrace.tools.exchange.static_config import read_config
from headrace.train.recipe import config
from headrace.train.recipe.recipe import load_recipe

MODEL = """
model = dict(
    type='MixMIM',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53]),
    backbone=dict(type='MixMIMTransformerPretrain', arch='B', drop_rate=0.0, drop_path_rate=0.0, mask_ratio=0.5),
    neck=dict(type='MixMIMPretrainDecoder', embed_dim=1024, decoder_embed_dim=512, decoder_depth=8),
    head=dict(type='MixMIMPretrainHead', norm_pix=True))
"""
CONFIG = """
_base_ = ['base/model.py', 'base/runtime.py']
batch = 64
train_dataloader = dict(batch_size=2 * batch, num_workers=8)
optim_wrapper = dict(
    type='AmpOptimWrapper', loss_scale='dynamic', clip_grad=dict(max_norm=5.0),
    optimizer=dict(type='AdamW', lr=1.5e-4 * (2048 / 256), betas=(0.9, 0.95), weight_decay=0.05, foreach=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=40),
    dict(type='CosineAnnealingLR', T_max=260, begin=40, end=300)]
auto_scale_lr = dict(base_batch_size=2048)
train_cfg.update = None
"""


@pytest.fixture
def mixmim_file(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.py").write_text(MODEL)
    (tmp_path / "base" / "runtime.py").write_text(
        "default_scope = 'mmselfsup'\ntrain_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100)\n"
    )
    path = tmp_path / "mixmim.py"
    path.write_text(CONFIG.replace("train_cfg.update = None", "train_cfg = dict(max_epochs=300)"))
    return path


def test_a_recipe_that_is_accepted(mixmim_file, tmp_path, capsys):
    out = tmp_path / "mixmim.yaml"
    assert main([str(mixmim_file), "--out", str(out)]) == 0
    recipe = load_recipe(str(out), [])
    assert recipe.algorithm.name == "mixmim" and recipe.algorithm.backbone.name == "mixmim_base"
    assert recipe.algorithm.decoder.width == 512 and recipe.algorithm.mask_ratio == 0.5
    assert (recipe.train.batch_size, recipe.train.epochs, recipe.train.precision) == (2048, 300, "fp16")
    assert (recipe.optim.lr, recipe.optim.lr_batch, recipe.optim.warmup) == (1.2e-3, None, "40 epochs")
    assert recipe.optim.betas == (0.9, 0.95) and recipe.optim.clip_grad == 5.0
    text = out.read_text()
    assert "# no counterpart: optim_wrapper.optimizer.foreach = True" in text and "drop_rate = 0.0" in text
    with pytest.raises(UserError, match="exists"):
        main([str(mixmim_file), "--out", str(out)])


def test_dicts_merge_lists_replace_and_delete_drops(tmp_path):
    (tmp_path / "a.py").write_text("x = dict(a=1, b=dict(c=2, d=[1, 2]))\ny = dict(k=1)\n")
    (tmp_path / "b.py").write_text(
        "_base_ = 'a.py'\nx = dict(b=dict(d=[3]))\ny = dict(_delete_=True, n=_base_.x.b.c)\nx['e'] = -2 // 1\nz = x\n"
    )
    read = read_config(tmp_path / "b.py")
    assert read["x"] == {"a": 1, "b": {"c": 2, "d": [3]}, "e": -2} and read["y"] == {"n": 2}
    assert read["z"] == {"b": {"d": [3]}, "e": -2}  # an intermediate variable is what the file itself made of it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os\nos.system('true')", "b.py:2: only assignments"),
        ("from os import system\nx = system('true')", "not understood; nothing is executed"),
        ("with open('x') as y:\n    x = 1", "b.py:1: only assignments"),
        ("with read_base():\n    import os", "only imports from neighbouring"),
        ("x = 9 ** 9 ** 9 ** 9", "powers of numbers"),
        ("x = [0] * 10 ** 12", "repeated more than"),
        ("x = 'a' * 99 * 99 * 99 * 99 * 99", "too long"),
        ("x = [0]\n" + "x = dict(a=x, b=x)\n" * 60, "more than 100000 values"),
        ("x = " + "[" * 80 + "-" * 2000 + "1" + "]" * 80, "nests too deep|no Python"),
        ("x = __import__('os')", "not understood; nothing is executed"),
        ("x = open('/etc/passwd').read()", "not understood"),
        ("x = dict(a=1)\nfor i in range(3):\n    x = i", "b.py:2: only assignments"),
        ("x = [1]\nx.append(x)", "more than 100000 values|nests too deep"),
        ("x = [1]\nx.append(1, 2)", "only assignments"),
        ("x = dict(a=1)\nx += [1]", "not understood"),
        ("if open('/etc/passwd'):\n    x = 1", "not understood"),
        ("x = '{{_base_.nothing}}'", "KeyError"),
        ("x = y", "KeyError"),
        ("x = (", "no Python"),
        ("_base_ = 'b.py'", "nest more than"),
        ("_base_ = 'mmcls::x.py'", "another package"),
    ],
)
def test_nothing_is_executed(text, message, tmp_path):
    (tmp_path / "b.py").write_text(text)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "b.py")


def test_methods_and_schedules():
    """MoCo's momentum is the share of the new weights there and of the old ones here."""
    moco = {
        "model": {
            "type": "MoCo",
            "queue_len": 1024,
            "momentum": 0.001,
            "backbone": {"type": "ResNet", "depth": 50},
            "neck": {"type": "MoCoV2Neck", "hid_channels": 2048, "out_channels": 128},
            "head": {"type": "ContrastiveHead", "temperature": 0.2},
        },
        "train_dataloader": {"batch_size": 32},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.03, "weight_decay": 1e-4, "momentum": 0.9}},
        "param_scheduler": [{"type": "MultiStepLR", "milestones": [120, 160]}],
    }
    recipe, report = translate(moco)
    expected = {"hidden": 2048, "projection": 128, "queue": 1024, "momentum": 0.999, "temperature": 0.2}
    assert {key: recipe["algorithm"][key] for key in expected} == expected and not report.without
    assert recipe["train"]["batch_size"] == 256 and recipe["optim"]["milestones"] == [120, 160]
    assert yaml.safe_load(yaml.safe_dump(recipe)) == recipe
    with pytest.raises(UserError, match="'Faster' is no algorithm"):
        translate({"model": {"type": "Faster"}})


# ---- configurations as they were written over the years

RESNET = dict(type="ResNet", depth=50, out_indices=[4], norm_cfg=dict(type="BN"))
VIT = dict(type="VisionTransformer", arch="b", patch_size=16)
NECK = dict(type="NonLinearNeck", in_channels=2048, hid_channels=2048, out_channels=256)
MODELS = {  # their algorithm: backbone, neck, head, and what else the model has
    "BYOL": (RESNET, NECK, dict(type="LatentPredictHead"), dict(base_momentum=0.99)),
    "BarlowTwins": (RESNET, NECK | dict(out_channels=8192), dict(type="LatentCrossCorrelationHead"), {}),
    "BEiT": (VIT | dict(type="BEiTViT"), None, dict(type="BEiTV1Head"), {}),
    "CAE": (VIT | dict(type="CAEViT"), dict(type="CAENeck"), dict(type="CAEHead"), {}),
    "DeepCluster": (RESNET, dict(type="AvgPool2dNeck"), dict(type="ClsHead", num_classes=3000), {}),
    "DenseCL": (RESNET, dict(type="DenseCLNeck", hid_channels=2048, out_channels=64), None, dict(queue_len=4096)),
    "EVA": (VIT | dict(type="MAEViT", mask_ratio=0.6), dict(type="MAEPretrainDecoder", decoder_depth=4), None, {}),
    "MAE": (VIT | dict(type="MAEViT", mask_ratio=0.7), dict(type="MAEPretrainDecoder", decoder_depth=4), None, {}),
    "MaskFeat": (VIT | dict(type="MaskFeatViT"), dict(type="LinearNeck"), None, {}),
    "MILAN": (
        VIT | dict(type="MILANViT", mask_ratio=0.7),
        dict(type="MILANPretrainDecoder", decoder_depth=4),
        None,
        {},
    ),
    "MixMIM": (dict(type="MixMIMTransformerPretrain", arch="B"), dict(type="MixMIMPretrainDecoder"), None, {}),
    "MoCo": (RESNET, dict(type="MoCoV2Neck", hid_channels=2048, out_channels=64), None, dict(momentum=0.99)),
    "MoCoV3": (
        VIT | dict(type="MoCoV3ViT", arch="mocov3-small"),
        NECK,
        dict(temperature=0.3),
        dict(base_momentum=0.98),
    ),
    "NPID": (RESNET, dict(type="LinearNeck", out_channels=64), None, dict(neg_num=1000, ensure_neg=True)),
    "ODC": (RESNET, dict(type="ODCNeck", hid_channels=256, out_channels=64), dict(num_classes=500), {}),
    "PixMIM": (VIT | dict(type="MAEViT", mask_ratio=0.7), dict(type="MAEPretrainDecoder", decoder_depth=4), None, {}),
    "RelativeLocation": (RESNET, dict(type="RelativeLocNeck"), None, {}),
    "RotationPred": (RESNET, None, None, {}),
    "SimCLR": (RESNET, NECK, dict(type="ContrastiveHead", temperature=0.2), {}),
    "SimMIM": (dict(type="SimMIMSwinTransformer", arch="B"), dict(type="SimMIMNeck"), None, {}),
    "SimSiam": (RESNET, NECK | dict(out_channels=1024), dict(type="LatentPredictHead"), {}),
    "SwAV": (RESNET, dict(type="SwAVNeck", hid_channels=1024, out_channels=64), dict(temperature=0.2), {}),
}
SAID = {  # what the recipe says of it
    "BYOL": dict(hidden=2048, projection=256, momentum=0.99),
    "BarlowTwins": dict(projection=8192),
    "DeepCluster": dict(clusters=3000),
    "DenseCL": dict(hidden=2048, projection=64, queue=4096),
    "MoCo": dict(hidden=2048, projection=64, momentum=0.99),
    "MoCoV3": dict(hidden=2048, projection=256, temperature=0.3, momentum=0.98),
    "NPID": dict(projection=64, negatives=1000, exclude_self=True),
    "ODC": dict(hidden=256, projection=64, clusters=500),
    "SimCLR": dict(hidden=2048, projection=256, temperature=0.2),
    "SimSiam": dict(projection=1024),
    "SwAV": dict(hidden=1024, projection=64, temperature=0.2),
    **{name: dict(mask_ratio=0.7) for name in ("MAE", "MILAN", "PixMIM")},
    "EVA": dict(mask_ratio=0.6),
}
OLD = """
model = {model!r}
data = dict(samples_per_gpu=32, workers_per_gpu=4)
optimizer = dict(type='AdamW', lr=2e-3, weight_decay=0.1, betas=(0.9, 0.95),
    paramwise_options={{'norm': dict(weight_decay=0.), 'bias': dict(weight_decay=0.)}})
optimizer_config = dict(grad_clip=dict(max_norm=3.0), update_interval=2)
lr_config = dict(policy='CosineAnnealing', min_lr=1e-5, by_epoch=False, warmup='linear', warmup_iters=40,
    warmup_ratio=1e-4, warmup_by_epoch=True)
runner = dict(type='EpochBasedRunner', max_epochs=300)
fp16 = dict(loss_scale='dynamic')
checkpoint_config = dict(interval=10)
"""
NEW = """
model = {model!r}
train_dataloader = dict(batch_size=32, num_workers=4)
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic', accumulative_counts=2, clip_grad=dict(max_norm=3.0),
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.1, betas=(0.9, 0.95)),
    paramwise_cfg=dict(custom_keys={{'norm': dict(decay_mult=0.), 'bias': dict(decay_mult=0.)}}))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=40, end=300, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300)
"""
CLASSES = """
from mmengine.config import read_base
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, LinearLR
from torch.optim import AdamW
from mmpretrain.models import {name}

with read_base():
    from .base.schedule import *
    from .base.loader import train_dataloader as loader

train_dataloader = loader
train_dataloader.update(batch_size=32)
model = {model!r}
model.update(dict(type={name}))
optim_wrapper['optimizer'].update(type=AdamW, betas=(0.9, 0.95))
optim_wrapper['type'] = AmpOptimWrapper
"""


@pytest.mark.parametrize("name", MODELS)
def test_the_same_method_in_three_dialects(name, tmp_path):
    """0.x, 1.x, and 1.x with imported classes say the same recipe, which is accepted."""
    backbone, neck, head, more = MODELS[name]
    model = dict(type=name, backbone=backbone, neck=neck, head=head) | more
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "loader.py").write_text("train_dataloader = dict(batch_size=1, num_workers=4)\n")
    schedule = NEW.replace("type='AdamW', ", "").replace(", betas=(0.9, 0.95)", "").format(model={})
    (tmp_path / "base" / "schedule.py").write_text(schedule)
    recipes = []
    for dialect, text in (("old", OLD), ("new", NEW), ("classes", CLASSES)):
        path = tmp_path / f"{dialect}_16xb32.py"
        path.write_text(text.format(model=model, name=name))
        recipe, _ = translate(read_config(path), path.stem)
        recipes.append(recipe)
    assert recipes[0] == recipes[1] == recipes[2]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipes[0]))
    found = load_recipe(str(tmp_path / "recipe.yaml"), [])
    assert (found.train.batch_size, found.train.accumulate, found.train.epochs) == (1024, 2, 300)
    assert (found.optim.name, found.optim.lr, found.optim.lr_batch, found.optim.clip_grad) == ("adamw", 2e-3, None, 3.0)
    assert (found.optim.warmup, found.optim.warmup_from, found.optim.per_epoch) == ("40 epochs", 1e-4, False)
    assert found.optim.final_lr == pytest.approx(5e-3) and found.optim.exempt == "vectors"
    for key, value in SAID.get(name, {}).items():
        assert getattr(found.algorithm, key) == value, key
    if neck and "decoder_depth" in neck:
        assert found.algorithm.decoder.depth == 4
    if name == "MoCoV3":
        assert found.algorithm.backbone.shape == (384, 12, 12)


def test_silence_means_what_it_means_there():
    """No betas, no rules for norms and biases, a cosine that moves once an epoch."""
    config = {
        "model": {"type": "SimSiam", "backbone": RESNET},
        "optim_wrapper": {
            "optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9},
            "paramwise_cfg": {"custom_keys": {"predictor": {"fix_lr": True}}},
        },
        "param_scheduler": [{"type": "CosineAnnealingLR", "T_max": 100, "by_epoch": True}],
        "train_dataloader": {"batch_size": 32},
    }
    optim = translate(config, "simsiam_resnet50_4xb64-coslr-100e")[0]["optim"]
    assert optim["weight_decay"] == 0 and optim["exempt"] == "none" and optim["per_epoch"]
    assert optim["groups"] == [{"match": r"^predictor\.", "fixed_lr": True}]
    recipe, report = translate(config, "simsiam_resnet50_4xb64-coslr-100e")
    assert recipe["train"]["batch_size"] == 128 and "the file's name has 4xb64" in report.without[0]


# ---- MMPretrain's own files

REVIEWED = {  # what differs on purpose, and why
    "resolved": "",
    "description": "",
    "name": "",
    "train.precision": "half precision is bfloat16 here, which needs no loss scale",
    "data.last_batch": "not said there",
    "train.keep": "no matter of what is learned",
    "train.log_every": "likewise",
    "optim.form": "LARS as the authors of MoCo v3 and Barlow Twins have it",
    "optim.warmup_from": "the authors' where theirs differs by rounding, or by 1e-9 for 1e-4",
}
MORE = {
    "maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k": {"optim.groups"},  # training stalls without it
    "simclr_resnet50_16xb256-coslr-800e_in1k": {"train.batch_size"},  # 32 there, against its name and its rate
    # 256 there, against two names; and its mask token decays there, not with the authors
    "simmim_swin-base-w6_16xb128-amp-coslr-800e_in1k-192px": {"train.batch_size", "optim.groups"},
    "simmim_swin-large-w12_16xb128-amp-coslr-800e_in1k-192px": {"train.batch_size", "optim.groups"},
    "simmim_swin-base-w6_16xb128-amp-coslr-100e_in1k-192px": {"optim.groups"},
    "simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px": {"optim.groups"},
}
RENAMED = {
    "eva-mae-style_vit-base-p16_16xb256-coslr-400e_in1k": "eva-mae-style_vit-base-p16_16xb256-amp-coslr-400e_in1k",
    "swav_resnet50_8xb32-mcrop-coslr-200e_in1k-224px-96px": "swav_resnet50_8xb32-mcrop-2-6-coslr-200e_in1k-224-96",
}
OURS = "barlowtwins beit beitv2 byol cae densecl eva mae maskfeat milan mixmim mocov2 mocov3 simclr simmim simsiam swav"
THEIRS = "itpn mff spark"


def flat(plain, start=""):
    found = {}
    for key, value in plain.items():
        found |= flat(value, f"{start}{key}.") if isinstance(value, dict) else {start + key: value}
    return found


def alike(a, b):
    return a == (pytest.approx(b) if isinstance(a, float) and isinstance(b, float) else b)


def hyper_parameters(recipe):
    found = flat(config.plain(recipe))
    base, batch = found.pop("optim.lr_batch"), found["train.batch_size"]
    found["optim.lr"] *= batch / base if base else 1.0
    backbone = recipe.algorithm.backbone
    if isinstance(backbone, ViT.Config):
        found |= {"algorithm.backbone.heads": backbone.shape}
    return found


@pytest.mark.parametrize("family", [*OURS.split(), *THEIRS.split()])
def test_mmpretrains_configurations_are_our_recipes(family, tmp_path):
    """Each of a method that we have is accepted, and equals our recipe of the same name."""
    package = pytest.importorskip("mmpretrain", reason="needs the extra [parity]")
    files = sorted((Path(package.__file__).parent / ".mim" / "configs" / family).glob("*.py"))
    if family == "eva":
        files = [path for path in files if "mae-style" in path.name]
    assert files
    for path in files:
        if family in THEIRS.split():
            with pytest.raises(UserError, match="is no algorithm of headrace"):
                translate(read_config(path), path.stem)
            continue
        recipe, _ = translate(read_config(path), path.stem)
        (tmp_path / path.name).with_suffix(".yaml").write_text(yaml.safe_dump(recipe))
        name = RENAMED.get(path.stem, path.stem.replace("mae_hivit", "mae-hivit_hivit"))
        theirs = hyper_parameters(load_recipe(str((tmp_path / path.name).with_suffix(".yaml")), []))
        ours = hyper_parameters(load_recipe(name, []))
        different = {key for key in theirs.keys() | ours.keys() if not alike(theirs.get(key), ours.get(key))}
        assert different - REVIEWED.keys() - MORE.get(path.stem, set()) == set(), path.stem
