"""`headrace import-config`: MMSelfSup's files are read, not run, and become recipes that are accepted."""

import pytest
import yaml

from headrace.errors import UserError
from headrace.tools.import_config import main
from headrace.tools.mmselfsup_config import read_config, translate
from headrace.train.recipe import load_recipe

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
def config(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.py").write_text(MODEL)
    (tmp_path / "base" / "runtime.py").write_text(
        "default_scope = 'mmselfsup'\ntrain_cfg = dict(type='EpochBasedTrainLoop', max_epochs=100)\n"
    )
    path = tmp_path / "mixmim.py"
    path.write_text(CONFIG.replace("train_cfg.update = None", "train_cfg = dict(max_epochs=300)"))
    return path


def test_a_recipe_that_is_accepted(config, tmp_path, capsys):
    out = tmp_path / "mixmim.yaml"
    assert main([str(config), "--out", str(out)]) == 0
    recipe = load_recipe(str(out), [])
    assert recipe.algorithm.name == "mixmim" and recipe.algorithm.backbone.name == "mixmim_base"
    assert recipe.algorithm.decoder.width == 512 and recipe.algorithm.mask_ratio == 0.5
    assert (recipe.train.batch_size, recipe.train.epochs, recipe.train.precision) == (2048, 300, "fp16")
    assert (recipe.optim.lr, recipe.optim.lr_batch, recipe.optim.warmup) == (1.2e-3, None, "40 epochs")
    assert recipe.optim.betas == (0.9, 0.95) and recipe.optim.clip_grad == 5.0
    text = out.read_text()
    assert "# no counterpart: optim_wrapper.optimizer.foreach = True" in text and "drop_rate = 0.0" in text
    with pytest.raises(UserError, match="exists"):
        main([str(config), "--out", str(out)])


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
        ("import os", "b.py:1: only assignments"),
        ("x = __import__('os')", "not understood; nothing is executed"),
        ("x = open('/etc/passwd').read()", "not understood"),
        ("x = dict(a=1)\nfor i in range(3):\n    x = i", "b.py:2: only assignments"),
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
    recipe, without = translate(moco)
    expected = {"hidden": 2048, "projection": 128, "queue": 1024, "momentum": 0.999, "temperature": 0.2}
    assert {key: recipe["algorithm"][key] for key in expected} == expected and not without
    assert recipe["train"]["batch_size"] == 256 and recipe["optim"]["milestones"] == [120, 160]
    assert yaml.safe_load(yaml.safe_dump(recipe)) == recipe
    with pytest.raises(UserError, match="'Faster' is no algorithm"):
        translate({"model": {"type": "Faster"}})
