"""Runs on deep images: what the recipe must say, what is measured for it, two methods and their evaluations, weights
of RGB for other channels."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from headrace.errors import UserError
from headrace.models.backbones import HiViT, MixMIMTransformer, ResNet, Swin, ViT, build_backbone
from headrace.models.backbones.capi import CAPIEncoder
from headrace.models.smoke import tiny_backbone
from headrace.models.weights import adapt, fit_channels, load_weights
from headrace.pipelines.check import main as check
from headrace.pipelines.images.rules import Rules, rules, use_rules
from headrace.train.evaluation.embed_encoder import load_encoder
from headrace.train.evaluation.finetune import main as finetune
from headrace.train.evaluation.knn import main as knn
from headrace.train.pretrain import main as pretrain
from headrace.train.recipe.recipe import load_recipe

RNG = np.random.default_rng(0)
BANDS = 5


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """24 images of five bands, 12 bits, in two classes that the last band tells apart."""
    root = tmp_path_factory.mktemp("tiles")
    for number in range(24):
        image = RNG.integers(0, 1024, (8, 8, BANDS)).repeat(5, 0).repeat(5, 1)
        image[..., -1] += 3000 * (number % 2)
        (root / f"class{number % 2}").mkdir(exist_ok=True)
        np.save(root / f"class{number % 2}" / f"{number:02d}.npy", image.astype(np.uint16))
    return root


def said(channels, mean=0.3, std=0.2):
    values = [f"algorithm.view.{key}=[{','.join([str(v)] * channels)}]" for key, v in (("mean", mean), ("std", std))]
    return [f"data.channels={channels}", f"algorithm.backbone.in_channels={channels}", *values]


GRAY = ["algorithm.view.saturation=0", "algorithm.view.hue=0", "algorithm.view.gray=0"]


def test_what_the_channels_hold_is_measured(tiles, tmp_path, capsys):
    images = np.stack([np.load(path) for path in sorted(tiles.rglob("*.npy"))]).reshape(-1, BANDS).astype(np.float64)
    for span in (None, (0, 4095)):
        use_rules(Rules())
        given = [] if span is None else ["--range", f"{span[0]},{span[1]}"]
        out = tmp_path / "report.json"
        assert check([str(tiles), "--channels", str(BANDS), "--json", str(out), *given]) == 0
        found, printed = json.loads(out.read_text())["channels"], capsys.readouterr().out
        levels = np.clip(images / (65535 if span is None else span[1]), 0, 1)
        assert found["images"] == 24
        assert np.allclose(found["mean"], levels.mean(0), atol=1e-5) and np.allclose(
            found["std"], levels.std(0), atol=1e-5
        )
        assert found["least"] == images.min(0).tolist() and found["most"] == images.max(0).tolist()
        assert np.allclose([found["low"], found["high"]], np.percentile(images, (1, 99), axis=0))
        (line,) = re.findall(r"algorithm.view.mean=\[(.*?)\]", printed)
        assert np.allclose([float(value) for value in line.split(",")], levels.mean(0), rtol=1e-3)
        ends = np.percentile(images, (1, 99), axis=0)
        assert f"data.range=[{ends[0].min():g},{ends[1].max():g}]" in printed
    use_rules(Rules())
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", RNG.normal(300, 20, (9, 9)))
    assert check([str(tmp_path), "--channels", "1"]) == 0
    assert "data.range=full: some values lie outside; measure again with --range" in capsys.readouterr().out


@pytest.mark.parametrize(
    "recipe, overrides, words",
    [
        ("mae_vit-tiny", ["data.channels=5"], "algorithm.backbone.in_channels: 3, but data.channels is 5; they must"),
        (
            "mae_vit-tiny",
            ["algorithm.backbone.in_channels=5"],
            "5, but images are RGB unless data.channels says otherwise",
        ),
        (
            "mae_vit-tiny",
            said(5)[:2],
            "algorithm.view.mean: 3 values, the images have 5 channels; headrace check --channels",
        ),
        ("simclr_resnet18", said(1), "algorithm.view.saturation, hue, gray: for red, green and blue alone, not for 1"),
        ("mae_vit-tiny", said(5)[2:], "algorithm.view.mean: 5 values, images are RGB; data.channels=5 says otherwise"),
        ("mae_vit-tiny", ["data.channels=17"], "data.channels: 1 to 16, not 17"),
        (
            "deepcluster-sobel_resnet50_8xb64-steplr-200e_in1k",
            ["data.channels=2", "algorithm.backbone.in_channels=2"],
            "algorithm.backbone.sobel: edges of RGB images, not of 2 channels",
        ),
        (
            "beit_beit-base-p16_8xb256-amp-coslr-300e_in1k",
            ["data.channels=3"],
            "data.channels: beit has a tokenizer of RGB images; leave it out",
        ),
        (
            "maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k",
            ["data.channels=1"],
            "data.channels: maskfeat predicts gradients of the colours of RGB images",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_names_the_key(recipe, overrides, words):
    with pytest.raises(UserError) as error:
        load_recipe(recipe, overrides)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_loader_of_rgb_is_refused_before_anything_is_written(tiles, tmp_path):
    with pytest.raises(UserError, match="data.loader: dali reads RGB of eight bits; with data.channels, use"):
        pretrain(
            ["mae_vit-tiny", "--smoke", f"data.train={tiles}", "data.loader=dali", *said(5), f"train.out={tmp_path}/o"]
        )
    assert not (tmp_path / "o").exists()


def test_mae_its_evaluations_and_its_weights_in_other_channels(tiles, tmp_path, capsys):
    out = tmp_path / "mae"
    span = "data.range=[0,4095]"
    assert (
        pretrain(
            ["mae_vit-tiny", "--smoke", f"data.train={tiles}", span, *said(5), "train.max_steps=2", f"train.out={out}"]
        )
        == 0
    )
    assert not (out / "quarantine.jsonl").exists()
    use_rules(Rules())
    encoder = load_encoder(str(out))  # of encoder.safetensors, or the checkpoint: both remember
    assert rules() == Rules((0.0, 4095.0), channels=5) and encoder.view.channels == 5
    use_rules(Rules())
    results = ["--results", str(tmp_path / "results.jsonl")]
    sets = ["--train", str(tiles), "--val", str(tiles), "--features", str(tmp_path / "features")]
    assert knn([str(out), *sets, "--k", "3", *results]) == 0
    row = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[-1])
    assert "knn" in json.dumps(row) and rules().channels == 5
    use_rules(Rules())
    tuned = [
        "finetune/vit-tiny_cifar10",
        str(out),
        f"data.train={tiles}",
        f"data.val={tiles}",
        f"train.out={tmp_path}/tuned",
    ]
    small = ["algorithm.backbone.width=24", "algorithm.backbone.depth=2", "algorithm.backbone.heads=2"]
    small += ["algorithm.backbone.patch_size=8", "algorithm.view.size=32", "train.max_steps=1", "train.batch_size=4"]
    small += ["algorithm.backbone.in_channels=5", "optim.warmup=0"]
    assert finetune([*tuned, *small, *said(5), *results]) == 0
    row = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[-1])
    assert row["config"]["data"]["range"] == [0, 4095] if "config" in row else "finetune" in json.dumps(row)


def test_simclr_on_gray_of_sixteen_bits_starts_from_colour(tiles, tmp_path, capsys):
    small = ["--smoke", "train.max_steps=1"]
    assert pretrain(["simclr_resnet18", *small, f"train.out={tmp_path}/colour"]) == 0
    grays = tmp_path / "grays"
    grays.mkdir()
    for number, path in enumerate(sorted(tiles.rglob("*.npy"))[:16]):
        np.save(grays / f"{number}.npy", np.load(path)[..., 0])
    given = [f"data.train={grays}", *said(1), *GRAY, f"train.init={tmp_path}/colour", f"train.out={tmp_path}/gray"]
    assert pretrain(["simclr_resnet18", *small, "optim.lr=1e-30", *given]) == 0
    assert "fitted to other sizes: body.conv1.weight" in capsys.readouterr().out
    colour, gray = (load_file(tmp_path / name / "encoder.safetensors") for name in ("colour", "gray"))
    assert torch.allclose(gray["body.conv1.weight"], colour["body.conv1.weight"].sum(1, keepdim=True), atol=1e-6)
    assert torch.equal(gray["body.layer1.0.conv1.weight"], colour["body.layer1.0.conv1.weight"])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 13])
def test_channels_are_fitted_by_timms_rule(channels):
    weight = torch.randn(4, 3, 5, 5)
    found = fit_channels(weight, channels).double()
    if channels == 1:
        expected = weight.double().sum(1, keepdim=True)
    else:
        expected = torch.stack([weight[:, band % 3].double() * 3 / channels for band in range(channels)], 1)
    assert torch.allclose(found, expected, atol=1e-6)
    if channels == 3:
        assert torch.equal(fit_channels(weight, 3), weight)


SMALL = {
    kind.__qualname__: tiny_backbone(config)
    for kind, config in (
        (ViT, ViT.Config("vit_tiny")),
        (ResNet, ResNet.Config("resnet18")),
        (Swin, Swin.Config("swin_tiny")),
        (MixMIMTransformer, MixMIMTransformer.Config("mixmim_base")),
        (HiViT, HiViT.Config("hivit_tiny")),
    )
} | {"ResNet-D": replace(tiny_backbone(ResNet.Config("resnet18", v1d=True)), small_image_stem=False)}


@pytest.mark.parametrize("name", [*SMALL, "CAPI"])
def test_a_network_of_other_channels_sees_gray_as_one_of_rgb_does(name, tmp_path):
    """Through the whole network: weights of RGB in one of 1, 6 and 12 channels that all show the same picture."""
    torch.manual_seed(0)
    if name == "CAPI":
        own = CAPIEncoder.Config(width=16, depth=1, heads=2, patch_size=8, registers=1)
        build = CAPIEncoder
    else:
        own, build = SMALL[name], lambda config: build_backbone(config, 64)
    colour = build(own).eval()
    save_file({key: value.contiguous() for key, value in colour.state_dict().items()}, tmp_path / "rgb.safetensors")
    images = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        expected = colour(images.expand(-1, 3, -1, -1))
        for channels in (1, 6, 12):
            network = build(replace(own, in_channels=channels)).eval()
            if name == "CAPI":
                network.load_state_dict(adapt(colour.state_dict(), network))
            else:
                load_weights(network, str(tmp_path / "rgb.safetensors"))
            assert torch.allclose(network(images.expand(-1, channels, -1, -1)), expected, atol=1e-4)
