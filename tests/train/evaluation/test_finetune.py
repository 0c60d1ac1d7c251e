"""The classifier as an algorithm: what it loads, freezes, mixes and averages; its recipes; the command."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from headrace.errors import UserError
from headrace.models.algorithm import Progress
from headrace.models.algorithms.classifier import Classifier
from headrace.models.backbones import ResNet, ViT
from headrace.models.backbones.hivit import HiViT
from headrace.models.backbones.mixmim import MixMIMTransformer
from headrace.models.backbones.swin import Swin
from headrace.models.backbones.transformer import relative_index
from headrace.models.weights import adapt
from headrace.pipelines.spec import Batch, ViewSpec
from headrace.pipelines.views.mixing import Mixing
from headrace.train import pretrain
from headrace.train.engine import checkpoint
from headrace.train.engine.optim import Schedules, build_optimizer, peak_lr
from headrace.train.engine.step import Stepper
from headrace.train.evaluation import finetune
from headrace.train.evaluation.embed_encoder import encoder_file
from headrace.train.recipe.config import RECIPES
from headrace.train.recipe.recipe import load_recipe, smoke

NAMES = sorted(path.stem for path in (RECIPES / "finetune").glob("*.yaml"))
VIT = ViT.Config(patch_size=8, width=24, depth=2, heads=2)
PLAIN = Mixing(0.0, 0.0, 0.0)


def classifier(**change):
    torch.manual_seed(0)
    values = {"view": ViewSpec(size=32), "backbone": VIT, "classes": 5, "mixing": PLAIN, "head_std": 0.1, **change}
    return Classifier(Classifier.Config(**values))


def batch(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, n, 3, 32, 32, generator=generator)
    return Batch({"image": images}, torch.arange(n), torch.arange(n) % 5, None, 0, 0)


def test_loss_is_cross_entropy_and_the_gradient_reaches_what_is_trained():
    for frozen in (False, True):
        algorithm, given = classifier(frozen=frozen).train(), batch()
        output = algorithm(given, Progress(0, 10, 5))
        scores = algorithm.scorer(given.views["image"][0])
        assert output.loss.item() == pytest.approx(F.cross_entropy(scores, given.labels).item(), rel=1e-5)
        output.loss.backward()
        trained = [name for name, p in algorithm.named_parameters() if p.grad is not None]
        assert all(name.startswith("head.") for name in trained) if frozen else len(trained) > 20


def test_mixed_images_and_labels_are_those_of_one_draw():
    """Every pair is a pure function of the seed of the step, and the loss is that of the two labels in the shares."""
    algorithm = classifier(mixing=Mixing(mixup=0.8, cutmix=0.0, smoothing=0.0)).eval()
    given, seen = batch(), []
    algorithm.backbone.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(algorithm(given, Progress(0, 10, 5)).loss.item())
    assert losses[0] == losses[1] != losses[2] and torch.equal(seen[0], seen[1])
    images, labels = given.views["image"][0], given.labels
    mixed = seen[0]
    flat = images.flatten(1).T.double()
    shares = torch.linalg.lstsq(flat, mixed.flatten(1).T.double()).solution.T  # which image is how much in each
    assert (shares.sum(1) - 1).abs().max() < 1e-5
    soft = (shares @ F.one_hot(labels, 5).double()).float()
    assert losses[0] == pytest.approx(F.cross_entropy(algorithm.scorer(mixed), soft).item(), rel=1e-4)


def test_a_frozen_encoder_keeps_its_statistics_and_bits():
    algorithm = classifier(backbone=ResNet.Config("resnet18", width=8), frozen=True, head_norm=True).train()
    before = {name: value.clone() for name, value in algorithm.backbone.state_dict().items()}
    optim = load_recipe("finetune/resnet18_cifar10", []).optim
    stepper = Stepper(algorithm, algorithm, build_optimizer(algorithm, optim), Schedules(optim, 6, 20, 5))
    losses = [stepper(batch(), Progress(step, 20, 5)).loss.item() for step in range(20)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[name], value) for name, value in algorithm.backbone.state_dict().items())
    assert algorithm.head[0].running_mean.abs().max() > 0


def test_the_average_of_weights_written_out():
    algorithm = classifier(ema=0.75, backbone=ResNet.Config("resnet18", width=8)).train()
    name = "head.1.weight"
    history = [algorithm.state_dict()[name].clone()]
    for step in range(3):
        with torch.no_grad():
            algorithm.head[1].weight.add_(step + 1.0)
            algorithm.backbone.body.bn1.running_mean.fill_(float(step))
        algorithm.after_step(Progress(step, 10, 5))
        history.append(0.75 * history[-1] + 0.25 * algorithm.state_dict()[name])
    assert (algorithm.average.head[1].weight - history[-1]).abs().max() < 1e-6
    assert algorithm.encoder is algorithm.average.backbone
    assert (algorithm.average.backbone.body.bn1.running_mean == 2.0).all()


BACKBONES = [
    VIT,
    ViT.Config(patch_size=8, width=24, depth=2, heads=2, positions="learned", layer_scale=1e-4),  # DeiT III
    Swin.Config(width=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 2)),
    MixMIMTransformer.Config("mixmim_base", width=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 2)),
    HiViT.Config(patch_size=16, width=32, depths=(1, 1, 2), heads=2),
    ResNet.Config("resnet18", width=8, small_image_stem=True),
]


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda b: type(b).__qualname__.split(".")[0])
def test_weights_arrive(backbone, tmp_path):
    """From one encoder's file into another of the same kind; a head is not in it, `fresh` parts start anew."""
    first = classifier(backbone=backbone)
    torch.manual_seed(1)
    weights = {
        name: torch.randn_like(v) if v.is_floating_point() else v for name, v in first.backbone.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "x.safetensors")
    one = next(name for name, p in first.backbone.named_parameters() if p.dim() > 1)
    second = classifier(backbone=backbone, weights=f"{tmp_path}/x.safetensors", fresh=(f"^{one}$",), ema=0.9)
    initial = second.backbone.state_dict()[one].clone()
    second.prepare(100)
    got = second.backbone.state_dict()
    assert torch.equal(got[one], initial)
    assert all(torch.equal(got[name], weights[name]) for name in weights if name != one)
    for own, other in zip(second.average.backbone.parameters(), second.backbone.parameters()):
        assert torch.equal(own, other)
    wrong = classifier(
        weights=f"{tmp_path}/x.safetensors", backbone=ViT.Config(patch_size=8, width=32, heads=2, depth=2)
    )
    with pytest.raises(UserError, match="of the backbone's tensors, such as"):
        wrong.prepare(100)


def test_weights_for_another_size():
    """Smooth tables keep their values where old and new places meet; a shared bias becomes that of every block."""
    old = ViT(ViT.Config(patch_size=8, width=24, depth=2, heads=2, positions="learned", relative_bias="shared"), 32)
    new = ViT(ViT.Config(patch_size=8, width=24, depth=2, heads=2, positions="learned", relative_bias="block"), 96)
    rows = torch.arange(4.0).repeat_interleave(4)  # the row of each of 4 x 4 patches
    with torch.no_grad():
        old.positions.copy_(rows[None, :, None].expand(1, 16, 24))
        old.relative_bias.table.normal_()
    got = adapt(old.state_dict(), new)
    assert {name: value.shape for name, value in got.items()} == {n: v.shape for n, v in new.state_dict().items()}
    positions = got["positions"][0, :, 0].view(12, 12)
    assert (positions[:, :1] - positions).abs().max() < 1e-5  # still a function of the row
    # row 3 r + 1 of twelve has its centre where row r of four has it; the outermost see the border
    assert positions[4, 0] == pytest.approx(1.0, abs=0.02) and positions[7, 0] == pytest.approx(2.0, abs=0.02)
    for block in (0, 1):
        assert torch.equal(got[f"block_biases.{block}.table"][-3:], old.relative_bias.table[-3:])
    with torch.no_grad():  # a bias that is a smooth function of the offset, before and after
        offsets = torch.linspace(-1, 1, 7)
        old.relative_bias.table[:49] = (offsets[:, None] + 2 * offsets).reshape(49, 1)
        table = adapt(old.state_dict(), new)["block_biases.0.table"]
        assert relative_index((12, 12), True).max() == len(table) - 1
        wide = table[:529, 0].view(23, 23)
        assert wide[11, 11] == pytest.approx(0.0, abs=1e-5) and (wide.diff(dim=1)[:, 6:16] > 0).all()


PUBLISHED = {  # recipe: batch, rate, layer decay, drop path, epochs, warm-up, smallest rate
    "mae_vit-base-p16_8xb128-coslr-100e_in1k": (1024, 2e-3, 0.65, 0.1, 100, "5 epochs", 1e-6),
    "mae_vit-large-p16_8xb128-coslr-50e_in1k": (1024, 4e-3, 0.75, 0.2, 50, "5 epochs", 1e-6),
    "mae_vit-huge-p14_8xb128-coslr-50e_in1k": (1024, 4e-3, 0.75, 0.3, 50, "5 epochs", 1e-6),
    "maskfeat_vit-base-p16_8xb256-coslr-100e_in1k": (2048, 8e-3, 0.65, 0.1, 100, "20 epochs", 1e-6),
    "beit_beit-base-p16_8xb128-coslr-100e_in1k": (1024, 4e-3, 0.65, 0.1, 100, "20 epochs", 1e-6),
    "beitv2-1600e_beit-base-p16_8xb128-coslr-100e_in1k": (1024, 5e-4, 0.6, 0.2, 100, "20 epochs", 1e-6),
    "cae_beit-base-p16_8xb128-coslr-100e_in1k": (1024, 8e-3, 0.65, 0.1, 100, "5 epochs", 1e-6),
    "milan_vit-base-p16_8xb128-coslr-100e_in1k": (1024, 4e-4, 0.65, 0.1, 100, "5 epochs", 1e-6),
    "mixmim_mixmim-base_8xb128-coslr-100e_in1k": (1024, 2e-3, 0.7, 0.1, 100, "5 epochs", 1e-6),
    "simmim_swin-base-w6_8xb256-coslr-100e_in1k-192px": (2048, 5e-3, 0.9, 0.1, 100, "20 epochs", 1e-6),
    "simmim_swin-large-w14_8xb256-coslr-100e_in1k": (2048, 5e-3, 0.7, 0.2, 100, "20 epochs", 1e-6),
    "mocov3_vit-base-p16_8xb64-coslr-150e_in1k": (512, 5e-4, None, 0.1, 150, "5 epochs", 1e-5),
    "mocov3_vit-large-p16_8xb64-coslr-100e_in1k": (512, 5e-4, None, 0.5, 100, "5 epochs", 1e-5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes(name):
    recipe = load_recipe(f"finetune/{name}", [])
    optim, train, algorithm = recipe.optim, recipe.train, recipe.algorithm
    peak = peak_lr(optim, train.batch_size)
    assert (optim.betas, optim.weight_decay) == ((0.9, 0.999), 0.05)
    *exact, floor = PUBLISHED[name]
    drop = algorithm.backbone.drop_path
    assert [train.batch_size, peak, optim.layer_decay, drop, train.epochs, optim.warmup] == exact
    assert peak * optim.final_lr == pytest.approx(floor, rel=1e-6)
    view = algorithm.view
    assert (algorithm.mixing.mixup, algorithm.mixing.cutmix, algorithm.mixing.smoothing) == (0.8, 1.0, 0.1)
    assert (view.randaugment.operations, view.randaugment.level, view.erasing.chance) == (2, 9.0, 0.25)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_takes_steps(name, tmp_path):
    """Three steps of the tiny copy: its rules match something, and layer decay spreads the rates."""
    recipe = smoke(load_recipe(f"finetune/{name}", [f"train.out={tmp_path}", "algorithm.classes=4"]))
    arguments = [f"finetune/{name}", "--smoke", "algorithm.classes=4", f"train.out={tmp_path}", "train.max_steps=3"]
    assert pretrain.main([*arguments, "train.log_every=1"]) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 3 and len(set(losses)) == 3 and all(map(math.isfinite, losses))
    assert losses[0] == pytest.approx(math.log(4), abs=0.7)
    if recipe.optim.layer_decay:
        groups = build_optimizer(Classifier(recipe.algorithm), recipe.optim).param_groups
        scales = sorted({group["lr_scale"] for group in groups})
        assert len(scales) >= 4  # their values, name by name, are in test_published_groups.py


@pytest.fixture(scope="module")
def colours(red_and_blue, tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    red_and_blue(root / "train", 16)
    red_and_blue(root / "val", 6)
    return root


def test_command(colours, tmp_path, monkeypatch, capsys):
    """Stopped and resumed: the same weights as in one go, tested once it is finished."""
    monkeypatch.chdir(tmp_path)
    start = ["mae_vit-tiny", "--smoke", f"data.train={colours}/train", "data.threads=1", "train.max_steps=2"]
    assert pretrain.main([*start, "train.out=mae"]) == 0
    tiny = ["algorithm.view.size=32", *(f"algorithm.backbone.{key}" for key in ("patch_size=8", "width=24"))]
    tiny += ["algorithm.backbone.depth=2", "algorithm.backbone.heads=2", "train.device=cpu", "train.batch_size=8"]
    tiny += [f"data.train={colours}/train", f"data.val={colours}/val", "data.threads=1", "train.epochs=15"]
    tiny += ["train.save_every=10", "optim.lr=1e-2"]
    command = ["finetune/vit-tiny_cifar10", "mae", *tiny]
    assert finetune.main([*command, "train.out=whole"]) == 0
    (row,) = map(json.loads, (tmp_path / "evaluation.jsonl").read_text().splitlines())
    assert row["figures"]["top1"] == 1.0 and row["protocol"] == "finetune vit-tiny_cifar10"
    assert row["settings"]["algorithm"]["classes"] == 2
    # a finished run is another's only where that is accepted, and then it is still the old one that is tested
    other = [*command, "train.out=whole", "optim.lr=2e-2"]
    with pytest.raises(UserError, match="optim.lr: 0.01 -> 0.02; .*train.accept_changes=true"):
        finetune.main(other)
    assert len((tmp_path / "evaluation.jsonl").read_text().splitlines()) == 1
    assert finetune.main([*other, "train.accept_changes=true", f"data.val={colours}/train"]) == 0
    _, second = map(json.loads, (tmp_path / "evaluation.jsonl").read_text().splitlines())
    assert second["settings"] == row["settings"] and second["encoder"]["digest"] == row["encoder"]["digest"]
    assert (second["data"]["train"], second["data"]["val"]) == (f"{colours}/train", f"{colours}/train")

    whole = checkpoint.newest(tmp_path / "whole")[1]["model"]
    checkpoint.checkpoints(tmp_path / "whole")[-1].unlink()
    (tmp_path / "whole" / "encoder.safetensors").unlink()
    assert finetune.main([*command, "train.out=whole"]) == 0
    parts = checkpoint.newest(tmp_path / "whole")[1]
    assert parts["step"] == 30 and all(torch.equal(whole[name], parts["model"][name]) for name in whole)
    began, ended = (load_file(tmp_path / name / "encoder.safetensors") for name in ("mae", "whole"))
    assert not torch.equal(began["patch_embed.weight"], ended["patch_embed.weight"])
    (tmp_path / "mae" / "encoder.safetensors").unlink()  # then the checkpoint is what there is
    written = load_file(encoder_file("mae", tmp_path / "new"))
    assert written.keys() == began.keys() and all(torch.equal(written[name], began[name]) for name in began)
    # another encoder under the same name is another run, not a resumed one
    save_file({name: value + 1 for name, value in began.items()}, tmp_path / "mae" / "encoder.safetensors")
    with pytest.raises(UserError, match="another algorithm section"):
        finetune.main([*command, "train.out=whole"])
    assert len([*(tmp_path / "whole").glob("start-*")]) == 1  # and leaves nothing of itself, here or in a new folder
    for refused in ("train.accumulate=3", "algorithm.backbone.depth=3", "optim.lr=x"):
        with pytest.raises(UserError):
            finetune.main([*command, refused, "train.out=new/run"])
    assert not (tmp_path / "new/run").exists()
    with pytest.raises(UserError, match="trains no classifier"):
        finetune.main(["mae_vit-tiny", "mae", f"data.train={colours}/train", f"data.val={colours}/val"])
    with pytest.raises(UserError, match="data.train, data.val"):
        finetune.main(["finetune/vit-tiny_cifar10", "mae"])
