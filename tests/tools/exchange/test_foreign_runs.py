"""Checkpoints of other people's runs: MMEngine's objects, averages, wrappers in names, files in pieces."""

import pickle

import pytest
import torch
from tiny_encoders import PLAIN, SIZE, encoder

from headrace.errors import UserError
from headrace.train.foreign import vit
from headrace.train.foreign.convert import Options, convert, to_layout
from headrace.train.foreign.read import AVERAGE, TRAINED, read_tensors
from headrace.train.foreign.shapes import Wishes


def test_a_run_of_mmengine(tmp_path):
    """With what its runner writes: buffers of losses, settings, its average that has changed places."""
    mmengine = pytest.importorskip("mmengine", reason="needs the extra [parity]")
    hub = mmengine.logging.MessageHub.get_instance("headrace")
    hub.update_scalar("train/loss", 1.0)
    hub.update_info("cfg", mmengine.ConfigDict(lr=1.0, inner=dict(a=1)))
    own = to_layout(encoder(PLAIN).state_dict(), vit.OPENMMLAB, "backbone.")
    trained = {f"module.{name}": tensor + 1 for name, tensor in own.items()} | {"steps": torch.tensor(4)}
    content = {"meta": {"cfg": mmengine.Config(dict(a=1)), "epoch": 3}, "state_dict": own, "ema_state_dict": trained}
    torch.save(content | {"message_hub": hub.state_dict(), "param_schedulers": [{"last_step": 1}]}, tmp_path / "a.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)
    found = read_tensors(tmp_path / "a.pth")
    assert {name for name in found if not name.startswith(TRAINED)} == own.keys()
    result = convert(found, Options(wishes=Wishes(heads=2)))
    assert torch.equal(
        result.classifier.backbone.cls_token, own["backbone.cls_token"] + own["backbone.pos_embed"][:, :1]
    )
    assert "average     of the weights, by MMEngine's EMAHook" in result.report()
    with pytest.raises(UserError, match="has put the average where the weights were"):
        convert(found, Options(teacher=True, wishes=Wishes(heads=2)))


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_averaged_weights_of_timm_and_deit(key, tmp_path):
    """`--teacher` takes them, classifier and all; the report says that they are there."""
    trained = to_layout(encoder(PLAIN).state_dict(), vit.TIMM)
    trained |= {"head.weight": torch.randn(5, 24), "head.bias": torch.randn(5)}
    average = {f"module.{name}": tensor * 2 for name, tensor in trained.items()}
    torch.save({"state_dict" if key.startswith("state") else "model": trained, key: average}, tmp_path / "a.pth")
    found = read_tensors(tmp_path / "a.pth")
    assert sum(name.startswith(AVERAGE) for name in found) == len(trained)
    for teacher in (False, True):
        result = convert(found, Options(teacher=teacher, wishes=Wishes(heads=2)))
        factor = 1 + teacher
        assert torch.equal(result.classifier.backbone.norm.weight, factor * trained["norm.weight"])
        assert result.scores and torch.equal(result.classifier.head[1].weight, factor * trained["head.weight"])
        assert ("--teacher takes it" in result.report()) is not teacher


WRAPPED = {
    "torch.compile of a block": lambda name: name.replace("blocks.0.", "blocks.0._orig_mod."),
    "torch.compile of all": lambda name: f"_orig_mod.{name}",
    "DDP around torch.compile": lambda name: f"module._orig_mod.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name.replace('blocks.1.', 'blocks.1._fsdp_wrapped_module.')}",
    "checkpointed blocks": lambda name: name.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."),
    "FSDP around both": lambda name: name.replace(
        "blocks.1.", "blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod."
    ),
    "a module inside": lambda name: name.replace("mlp.", "mlp.module."),
    "Fabric": lambda name: f"_forward_module.module.{name}",
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers_inside_of_names_are_taken_off(how):
    own = encoder(PLAIN).state_dict()
    state = {WRAPPED[how](name): tensor for name, tensor in to_layout(own, vit.TIMM, "backbone.").items()}
    result = convert(state, Options(wishes=Wishes(heads=2)))
    found = result.classifier.backbone.state_dict()
    assert result.prefix == "backbone." and not result.left_over
    assert all(torch.equal(found[name], own[name]) for name in own)
    assert result.classifier.config.view.size == SIZE


PIECES = {  # the names of files in a folder -> which of them is given, and the tool that joins them
    "DeepSpeed": (
        ["zero_to_fp32.py", "latest", "global_step9/zero_pp_rank_0_mp_rank_00_optim_states.pt"],
        "zero_to_fp32",
    ),
    "FSDP": ([".metadata", "__0_0.distcp", "__1_0.distcp"], "dcp_to_torch"),
    "safetensors": (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "save_pretrained"),
    "bin": (["pytorch_model-00001-of-00002.bin"], "save_pretrained"),
    "index": (["model.safetensors.index.json"], "save_pretrained"),
    "Megatron": (["mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt"], "tools/checkpoint/convert.py"),
    "Megatron, pipelined": (["mp_rank_00_001/model_optim_rng.pt"], "tools/checkpoint/convert.py"),
}


@pytest.mark.parametrize("kind", PIECES)
def test_of_checkpoints_in_pieces_the_tool_is_named_that_joins_them(kind, tmp_path):
    names, tool = PIECES[kind]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for given in (tmp_path, tmp_path / names[-1]):
        with pytest.raises(UserError, match=tool):
            read_tensors(given)


def test_parts_of_tensors_are_told_by_what_is_in_the_file(tmp_path):
    class DTensor:
        pass

    DTensor.__module__, DTensor.__qualname__ = __name__, "DTensor"
    globals()["DTensor"] = DTensor
    for content, tool in (
        ({"model": {"a": torch.ones(2), "b": DTensor()}}, "full_state_dict=True"),
        ({"model": {"_flat_param": torch.ones(2)}}, "full_state_dict=True"),
        ({"module": {"a": torch.empty(0)}, "ds_version": "0.14", "param_shapes": []}, "zero_to_fp32.py"),
    ):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(UserError, match=tool):
            read_tensors(tmp_path / "a.pth")
    torch.save({"module": {"a": torch.ones(1)}, "ds_version": "0.14"}, tmp_path / "a.pth")  # ZeRO-1, ZeRO-2: whole
    assert list(read_tensors(tmp_path / "a.pth")) == ["a"]
