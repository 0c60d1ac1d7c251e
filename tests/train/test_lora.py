"""train.lora: what learns, what is merged, and that nothing else moves."""

import pytest
import torch
from safetensors.torch import load_file

from headrace.errors import UserError
from headrace.models.algorithms import find_algorithm
from headrace.models.backbones.low_rank import merged
from headrace.train.engine import checkpoint
from headrace.train.init import encoder_places
from headrace.train.lora import add_lora
from headrace.train.pretrain import main
from headrace.train.recipe.settings import Lora, TrainSettings


def tiny(name, seed=0):
    kind = find_algorithm(name)
    torch.manual_seed(seed)
    return kind(kind.Config().smoke())


@pytest.mark.parametrize("name", ["dinov3", "mae", "beit", "simmim", "mixmim"])
def test_the_merged_encoder_is_the_other_in_float64(name):
    """Of every kind of transformer: nothing changes at first, then both change alike."""
    plain, own = tiny(name).double().eval(), tiny(name).double().eval()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    add_lora(own, encoder_places(own), Lora(rank=3, alpha=6.0))
    with torch.no_grad():
        assert torch.allclose(own.encoder(images), plain.encoder(images), rtol=1e-12, atol=1e-12)
        for key, parameter in own.named_parameters():
            if key.endswith((".0.up", ".0.down")):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        adapted = own.encoder(images)
        plain.load_state_dict(merged(own.state_dict()))
        assert torch.allclose(plain.encoder(images), adapted, rtol=1e-12, atol=1e-12)
    assert (adapted - tiny(name).double().eval().encoder(images)).abs().max() > 1e-6


def test_only_matrices_and_heads_learn():
    algorithm = tiny("ibot")
    report = add_lora(algorithm, encoder_places(algorithm), Lora(rank=2))
    learning = {name for name, p in algorithm.named_parameters() if p.requires_grad}
    own = {name for name in learning if name.startswith("backbone.")}
    assert len(own) == 2 * 4 * 2 and all(name.endswith((".0.up", ".0.down")) for name in own)
    assert {name.partition(".")[0] for name in learning - own} == {"head", "mask_token"}
    assert "rank 2 beside 8 layers of backbone, teacher.backbone" in report


def test_an_encoder_without_blocks_is_refused():
    algorithm = tiny("simclr")
    with pytest.raises(UserError, match="train.lora: goes with the blocks of transformers"):
        add_lora(algorithm, encoder_places(algorithm), Lora())
    with pytest.raises(ValueError, match="lora: needs the weights"):
        TrainSettings(max_steps=1, lora=Lora())


def test_a_run_learns_beside_given_weights_and_leaves_them_merged(tmp_path):
    """Interrupted and resumed bit for bit; encoder.safetensors and the checkpoint's encoder are one without LoRA."""
    recipe = ["dinov3_vit-tiny_cifar10", "--smoke"]
    assert main([*recipe, f"train.out={tmp_path / 'first'}", "train.max_steps=2"]) == 0
    lora = [f"train.init={tmp_path / 'first'}", "train.lora={rank: 2, alpha: 8}", "train.save_every=2"]
    for folder, more in (("whole", ()), ("resumed", [f"train.resume={tmp_path / 'whole' / 'step-00000002.pt'}"])):
        assert main([*recipe, *lora, *more, f"train.out={tmp_path / folder}", "train.max_steps=4"]) == 0
    whole, resumed = (checkpoint.newest(tmp_path / folder)[1] for folder in ("whole", "resumed"))
    assert all(torch.equal(value, resumed["model"][name]) for name, value in whole["model"].items())
    first = checkpoint.load_algorithm(tmp_path / "first")[1]
    state, given = whole["model"], first.encoder.state_dict()
    for name, value in state.items():
        if name.endswith(".original") and ".blocks." in name:
            plain = name.split("backbone.")[1].replace(".parametrizations.weight.original", ".weight")
            assert torch.equal(value, given[plain]), name
    assert torch.equal(state["backbone.norm.weight"], given["norm.weight"])
    matrices = [name for name in state if name.startswith("backbone.") and name.endswith((".0.up", ".0.down"))]
    rest = [name for name in state if name.startswith(("head.", "patch_head.", "mask_token"))]
    assert len(matrices) == 16 and len(whole["optimizer"]["state"]) == len(matrices) + len(rest)
    exported = load_file(tmp_path / "whole" / "encoder.safetensors")
    loaded = checkpoint.load_algorithm(tmp_path / "whole")[1].encoder.state_dict()
    assert exported.keys() == given.keys() == loaded.keys()
    assert all(torch.equal(exported[name], loaded[name]) for name in exported)
    assert not torch.equal(exported["blocks.0.qkv.weight"], given["blocks.0.qkv.weight"])
