"""Every value of a foreign configuration arrives in the recipe, is stated to be as here, or is reported: whichever of
them is changed, the recipe or its comments change."""

from itertools import cycle
from pathlib import Path

import pytest
import yaml
from config_models import MODELS, OPTIMIZERS, new, old

from headrace.errors import UserError
from headrace.tools.exchange.config_source import copied
from headrace.tools.exchange.import_config import main
from headrace.tools.exchange.mmselfsup_config import translate
from headrace.tools.exchange.static_config import read_config
from headrace.train.recipe.recipe import load_recipe


def leaves(value, path=()):
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inside is None:
        yield path, value
    for key, inner in inside or ():
        yield from leaves(inner, (*path, key))


def changed(value):
    if isinstance(value, bool) or value is None:
        return not value
    return value + "X" if isinstance(value, str) else value * 2 + 3


def put(config, path, value):
    config = copied(config)
    section = config
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return config


def told(config, name):
    """All that a user gets to see."""
    try:
        recipe, report = translate(config, name)
    except UserError as fault:
        return str(fault)
    return repr(recipe), report.comments()


def silent(config, name=""):
    """The leaves that can be changed without a trace."""
    before = told(config, name)
    return [path for path, value in leaves(config) if told(put(config, path, changed(value)), name) == before]


CASES = [(write, name, kind) for write in (new, old) for name, kind in zip(MODELS, cycle(OPTIMIZERS))]


@pytest.mark.parametrize(("write", "name", "optimizer"), CASES)
def test_no_value_is_changed_without_a_trace(write, name, optimizer):
    config = write(name, optimizer)
    assert isinstance(told(config, ""), tuple) and silent(config) == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nor_one_of_an_optimizer_of_a_schedule_in_steps_or_of_a_loop_in_iterations(optimizer):
    config = new("MoCo", optimizer)
    steps = [
        dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=500),
        dict(type="MultiStepLR", by_epoch=False, milestones=[6000, 8000], gamma=0.1, begin=500, end=9000),
        dict(type="PolyLR", power=0.9),
        dict(type="CosineAnnealingLR", eta_min=1e-3),
    ]
    config |= dict(param_scheduler=steps, train_cfg=dict(type="IterBasedTrainLoop", max_iters=9000))
    config["default_hooks"]["checkpoint"] = dict(interval=500, by_epoch=False, save_last=True)
    assert silent(config) == []
    recipe, report = translate(config)
    assert recipe["train"]["max_steps"] == 9000 and recipe["train"]["save_every"] == 500
    assert (recipe["optim"]["warmup"], recipe["optim"]["milestones"]) == ("500 steps", ["6000 steps", "8000 steps"])
    assert {line.split(" = ")[0] for line in report.without} >= {"param_scheduler.2", "param_scheduler.3"}


@pytest.mark.parametrize("family", ["swav", "mae", "beitv2", "mocov3"])
def test_nor_one_of_mmpretrains_own_files(family):
    package = pytest.importorskip("mmpretrain", reason="needs the extra [parity]")
    path = sorted((Path(package.__file__).parent / ".mim" / "configs" / family).glob("*.py"))[0]
    assert silent(read_config(path), path.stem) == []


@pytest.mark.parametrize("write", [new, old])
def test_a_value_of_another_kind_is_translated_or_refused_in_one_line(write):
    config = write("SwAV", "lars")
    inner = {path[:depth] for path, _ in leaves(config) for depth in range(1, len(path) + 1)}
    for path in inner:
        for value in ("x", [], {"type": "x"}):
            assert "\n" not in str(told(put(config, path, value), "a_8xb32"))


ARRIVING = [  # method, path, its value -> where it is in the recipe
    ("SwAV", "model.head.loss.num_prototypes", 500, "algorithm.prototypes", 500),
    ("SwAV", "model.head.loss.epsilon", 0.03, "algorithm.epsilon", 0.03),
    ("SwAV", "model.head.loss.sinkhorn_iterations", 5, "algorithm.iterations", 5),
    ("SwAV", "custom_hooks.0.queue_length", 1920, "algorithm.queue", 1920),
    ("SwAV", "custom_hooks.0.epoch_queue_starts", 7, "algorithm.queue_from", 7),
    ("SwAV", "custom_hooks.0.frozen_layers_cfg.prototypes", 313, "algorithm.freeze_prototypes", 313),
    ("NPID", "model.memory_bank.momentum", 0.4, "algorithm.momentum", 0.4),
    ("BarlowTwins", "model.head.loss.lambd", 0.01, "algorithm.off_diagonal", 0.01),
    ("SimSiam", "model.head.predictor.hid_channels", 256, "algorithm.bottleneck", 256),
    ("PixMIM", "model.target_generator.radius", 30, "algorithm.radius", 30),
    ("CAE", "model.head.loss.lambd", 3, "algorithm.alignment", 3),
    ("CAE", "model.neck.regressor_depth", 6, "algorithm.regressor_depth", 6),
    ("ODC", "model.memory_bank.min_cluster", 15, "algorithm.min_size", 15),
    ("ODC", "custom_hooks.0.centroids_update_interval", 5, "algorithm.centroids_every", 5),
    ("DeepCluster", "custom_hooks.0.clustering.pca_dim", 128, "algorithm.components", 128),
    ("DenseCL", "custom_hooks.0.start_iters", 900, "algorithm.dense_from", 900),
    ("BEiT v2", "model.neck.early_layers", 7, "algorithm.early_block", 6),
    ("BEiT", "train_dataloader.dataset.pipeline.2.num_masking_patches", 60, "algorithm.hidden_patches", 60),
    ("SimMIM", "train_dataloader.dataset.pipeline.2.mask_ratio", 0.5, "algorithm.mask_ratio", 0.5),
    ("SimMIM", "train_dataloader.dataset.pipeline.2.mask_patch_size", 64, "algorithm.cell", 64),
    ("MixMIM", "model.head.norm_pix", False, "algorithm.normalize_pixels", False),
    ("MixMIM", "model.backbone.range_mask_ratio", 0.1, "algorithm.mask_spread", 0.1),
    ("MAE", "model.backbone.patch_size", 14, "algorithm.backbone.patch_size", 14),
    ("MAE", "data_preprocessor.mean", [127.5, 127.5, 51.0], "algorithm.view.mean", [0.5, 0.5, 0.2]),
    ("BYOL", "data_preprocessor.std", [51.0, 51.0, 51.0], "algorithm.second.std", [0.2, 0.2, 0.2]),
    ("MAE", "randomness.seed", 3, "train.seed", 3),
    ("MAE", "randomness.deterministic", True, "train.deterministic", True),
    ("MAE", "default_hooks.logger.interval", 20, "train.log_every", 20),
    ("MAE", "default_hooks.checkpoint.max_keep_ckpts", 5, "train.keep", 5),
    ("MAE", "optim_wrapper.dtype", "bfloat16", "train.precision", "bf16"),
    ("MAE", "optim_wrapper.optimizer.eps", 1e-6, "optim.eps", 1e-6),
    ("MAE", "resume", True, "train.resume", "auto"),
]


@pytest.mark.parametrize(("name", "path", "value", "place", "expected"), ARRIVING)
def test_what_has_a_counterpart_arrives(name, path, value, place, expected, tmp_path):
    config = new(name, "adamw")
    recipe, _ = translate(put(config, [int(k) if k.isdigit() else k for k in path.split(".")], value))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(recipe))
    found = load_recipe(str(tmp_path / "a.yaml"), [])
    for key in place.split("."):
        found = getattr(found, key)
    assert (list(found) if isinstance(found, tuple) else found) == pytest.approx(expected)


REPORTED = [  # method, path, its value -> a line of the report
    ("MAE", "model.neck.embed_dim", 512, "model.neck.embed_dim = 512 (here 768)"),
    ("MAE", "model.neck.with_extra", 1, "model.neck.with_extra = 1"),
    ("SimSiam", "model.neck.num_layers", 2, "model.neck.num_layers = 2 (here 3)"),
    ("SimSiam", "model.neck.hid_channels", 1024, "model.neck.hid_channels = 1024 (here 2048)"),
    ("MoCoV3", "model.head.loss.loss_weight", 1.0, "model.head.loss.loss_weight = 1.0 (here 0.4)"),
    ("MoCo", "model.backbone.norm_cfg.type", "SyncBN", "model.backbone.norm_cfg.type = SyncBN (here BN)"),
    ("MoCo", "load_from", "a.pth", "load_from = a.pth; headrace import takes its encoder over"),
    ("MAE", "custom_hooks", [dict(type="EMAHook", momentum=0.1)], "custom_hooks.0 = EMAHook(momentum=0.1)"),
    ("MAE", "train_dataloader.drop_last", False, "train_dataloader.drop_last = False (here True)"),
    (
        "MAE",
        "optim_wrapper.paramwise_cfg.custom_keys.bias.decay_mult",
        0.5,
        "optim_wrapper.paramwise_cfg.custom_keys.bias.decay_mult = 0.5",
    ),
    (
        "MAE",
        "default_hooks.checkpoint.interval",
        7,
        "default_hooks.checkpoint.interval = 7 epochs; train.save_every counts steps",
    ),
]


@pytest.mark.parametrize(("name", "path", "value", "line"), REPORTED)
def test_what_has_none_is_in_the_report_with_what_is_here(name, path, value, line):
    assert line not in translate(new(name, "adamw"))[1].without
    assert line in translate(put(new(name, "adamw"), path.split("."), value))[1].without


def test_variables_of_a_file_are_no_settings():
    """They do something where they are used; one that is used nowhere is reported in full."""
    config = new("MAE", "adamw")
    assert "train_pipeline: a variable, as where it is used" in translate(config)[1].aside
    unused = translate(put(config, ("train_pipeline", 1, "size"), 96))[1].views
    assert "train_pipeline.1 = RandomResizedCrop(size=96, scale=[0.2, 1.0], interpolation=bicubic)" in unused


def test_tokens_without_a_rule_decay():
    """Of CAE's rules none is for tokens: they decay there, and would not here, where vectors are exempt together."""
    config = new("CAE", "adamw")
    free = {"norm": dict(decay_mult=0.0), "bias": dict(decay_mult=0.0)}
    config["optim_wrapper"] = config["optim_wrapper"] | dict(paramwise_cfg=dict(custom_keys=free))
    optim = translate(config)[0]["optim"]
    assert (optim["exempt"], optim["groups"]) == ("vectors", [{"match": "mask_token|cls_token", "weight_decay": 0.05}])
    del free["bias"]
    assert translate(config)[0]["optim"]["exempt"] == [r"norm|bn|downsample\.1"]


FILES = {  # of 1.0.0 and 0.x, what kept their own files from being read -> what it is
    "interpolation": ("x = dict(head=dict(num_classes={{_base_.num_classes}}))", {"head": {"num_classes": 10000}}),
    "deep interpolation": ("x = {{_base_.loader.batch_size}} * 2", 64),
    "in a text": ("x = 'of {{_base_.num_classes}} in {{ fileBasenameNoExtension }}'", "of 10000 in file"),
    "of a text": ("x = '{{_base_.loader}}'", {"batch_size": 32}),
    "from outside": ("x = '{{$HEADRACE_NO_SUCH_VARIABLE:9}}'", "9"),
}


@pytest.mark.parametrize("name", FILES)
def test_values_of_bases_in_double_braces(name, tmp_path):
    text, expected = FILES[name]
    (tmp_path / "base.py").write_text("num_classes = 10000\nloader = dict(batch_size=32)\n")
    (tmp_path / "file.py").write_text(f"_base_ = 'base.py'\n{text}\n")
    assert read_config(tmp_path / "file.py")["x"] == expected


@pytest.mark.parametrize("prefetch", [False, True])
def test_choices_and_additions_are_pythons(prefetch, tmp_path):
    """As 0.x's data sets have them; a list is the same one under all its names."""
    text = f"""
prefetch = {prefetch}
norm = dict(mean=[1, 2])
steps = [dict(type='A')]
data = dict(pipeline=steps)
if not prefetch and 1 < 2:
    steps.extend([dict(type='Normalize', **norm)])
elif prefetch == 3:
    steps = 3
else:
    steps.append(9)
steps.append(dict(type='Z'))
more = [*steps, 5]
more += [6]
number = 1 if prefetch else 2
number += 1
"""
    (tmp_path / "file.py").write_text(text)
    expected: dict = {}
    exec(text, expected)
    del expected["__builtins__"]
    assert read_config(tmp_path / "file.py") == expected


def test_the_command_prints_what_did_not_arrive(tmp_path, capsys):
    config = put(new("SwAV", "lars"), ("model", "neck", "with_l2norm"), False)
    (tmp_path / "swav.py").write_text("\n".join(f"{key} = {value!r}" for key, value in config.items()))
    assert main([str(tmp_path / "swav.py"), "--out", str(tmp_path / "swav.yaml")]) == 0
    printed, written = capsys.readouterr().out, (tmp_path / "swav.yaml").read_text()
    assert "  model.neck.with_l2norm = False (here True)\n" in printed
    assert "# no counterpart: model.neck.with_l2norm = False (here True)\n" in written
    assert "#   model.neck.in_channels = 2048\n" in written and "settings as in headrace" in printed
