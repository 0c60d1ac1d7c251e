"""`headrace params`: multiply-adds against formulas, rows that add up, totals of the table of models."""

import json
from functools import cache

import pytest
import torch
from tiny_encoders import BEIT, HIVIT, MIXMIM, PLAIN, RESNET, SIZE, SWIN, encoder

import headrace
from headrace.errors import UserError
from headrace.models.backbones import ViT
from headrace.tools import models_api, models_command
from headrace.tools.flops import multiply_adds
from headrace.tools.models_api import random_encoder
from headrace.tools.params import main, tree


@pytest.mark.parametrize("config", [PLAIN, BEIT])
def test_a_vision_transformer_by_hand(config):
    """Of N tokens D wide: 4 N D² of projections, 2 N H D of the MLP, 2 N² D of attention, in each of two blocks."""
    counts = multiply_adds(encoder(config), SIZE)
    n, d, hidden = 65, 24, 96
    attention, mlp = 4 * n * d * d + 2 * n * n * d, 2 * n * hidden * d
    assert counts["patch_embed"] == 64 * d * 3 * 8 * 8
    assert counts["blocks.1"] == attention + mlp and counts["blocks.1.fc1"] == n * hidden * d
    assert counts[""] == counts["patch_embed"] + 2 * (attention + mlp)


def test_a_residual_network_by_hand():
    """ResNet-18 of width 8 at 64 px: the stem, and in the first stage four convolutions of 3 x 3 on maps of 16 x 16."""
    counts = multiply_adds(encoder(RESNET), SIZE)
    assert counts["body.conv1"] == 32 * 32 * 8 * 3 * 49
    assert counts["body.layer1"] == 4 * 16 * 16 * 8 * 8 * 9
    assert counts["body.layer2.0.downsample"] == 8 * 8 * 8 * 16


@pytest.mark.parametrize("config", [PLAIN, BEIT, SWIN, MIXMIM, HIVIT, RESNET])
def test_the_rows_of_a_part_add_up_to_it(config):
    model = encoder(config)
    counts = multiply_adds(encoder(config), SIZE)
    for depth in (1, 2, 4):
        rows = list(tree(model, counts, depth))
        assert rows[0][0] == 0 and rows[0][2] == sum(p.numel() for p in model.parameters()) and rows[0][3] == counts[""]
        for place, (level, _, held, done) in enumerate(rows):
            below = []
            for other in rows[place + 1 :]:
                if other[0] <= level:
                    break
                below += [other] if other[0] == level + 1 else []
            if below:
                assert sum(row[2] for row in below) == held and sum(row[3] for row in below) == done
        assert max(row[0] for row in rows) <= depth


def test_totals_are_those_of_the_table(capsys):
    for name in ("vit-tiny", "resnet18", "hivit-tiny"):
        assert main([name, "--depth", "0"]) == 0
        cells = capsys.readouterr().out.splitlines()[-1].split()
        assert cells[-3] == f"{models_api.gflops(name):.3f}" and cells[1] == f"{parameters(random_encoder(name)):.3f}"
    assert multiply_adds(random_encoder("vit-tiny"), 224)[""] == pytest.approx(models_api.gflops("vit-tiny") * 1e9)


def parameters(model):
    return sum(p.numel() for p in model.parameters()) / 1e6


def test_every_count_of_a_model_is_that_of_its_tensors(capsys, monkeypatch):
    """The table, `params` and the model that `get_model` gives, with and without a head: one number each."""
    monkeypatch.setattr("headrace.tools.params.multiply_adds", lambda *_: {})
    monkeypatch.setattr(models_api, "_random", cache(models_api._random))  # large ones take a second each
    assert models_command.main([]) == 0
    table = {row.split()[0]: row.split()[2] for row in capsys.readouterr().out.splitlines()[1:]}
    assert list(table) == headrace.list_models()
    assert json.loads(models_command.TABLE.read_text("utf-8")) == models_command.made()
    for name in table:
        with torch.device("meta"):
            encoder, whole = (headrace.get_model(name, head=head) for head in (None, "linear"))
        sizes = [sum(p.numel() for p in model.parameters()) for model in (encoder, whole)]
        assert [models_api.parameters(name, None), models_api.parameters(name)] == sizes
        assert table[name] == f"{sizes[1]:,}" and sizes[1] - sizes[0] == 1000 * (whole.head[-1].in_features + 1)
        assert main([name, "--depth", "0"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(" M,")[0].split()[-1] for line in lines[:2]] == [f"{size / 1e6:.3f}" for size in sizes]
        assert lines[-1].split()[1] == f"{sizes[0] / 1e6:.3f}"


def test_a_recipe_counts_at_its_own_size(capsys):
    assert main(["mae_vit-tiny_cifar10", "--depth", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    with torch.device("meta"):
        model = ViT(ViT.Config("vit_tiny", patch_size=4), 32)
    expected = multiply_adds(model, 32)[""] / 1e9
    assert "one image of 32 px" in lines[3]  # after the encoder and all
    (whole,) = [line.split() for line in lines if line.startswith("ViT")]
    assert whole[1] == f"{parameters(model):.3f}" and whole[4] == f"{expected:.3f}" and whole[3] == "100.0%"
    shares = [float(line.split()[-1].rstrip("%")) for line in lines[5:]]
    assert sum(shares) == pytest.approx(100, abs=0.3)


def test_mistakes_end_in_one_line():
    for arguments, words in (
        (["vit-tiny", "train.max_steps=1"], "vit-tiny is a model"),
        (["mae_vit-tiny", "--depth", "-1"], "--depth"),
        (["mae_vit-tinny"], "did you mean"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            main(arguments)
        assert "\n" not in str(caught.value)
