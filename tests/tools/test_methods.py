"""Whole methods out of OpenMMLab's and the authors' files: decoders, projectors, momentum networks and queues."""

import pytest
import torch

from headrace.errors import UserError
from headrace.models.algorithms import find_algorithm
from headrace.models.algorithms.mae import MAE
from headrace.tools.import_weights import main
from headrace.tools.weights import mixmim, resnet, swin, vit
from headrace.tools.weights.convert import to_layout
from headrace.tools.weights.methods import METHODS, load_method
from headrace.tools.weights.names import Names
from headrace.train.checkpoint import load_algorithm
from headrace.train.recipe import load_recipe


def tiny(name):
    torch.manual_seed(0)
    kind = find_algorithm(name)
    algorithm = kind(kind.Config().smoke())
    for tensor in algorithm.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    return algorithm


def fresh(algorithm):
    torch.manual_seed(1)
    return type(algorithm)(algorithm.config)


def test_moco_with_its_queue_and_key_encoder():
    """OpenMMLab writes the queue as columns, and the key encoder as modules 0 and 1."""
    own = tiny("moco")
    state = {"queue": own.queue.rows.T, "queue_ptr": torch.tensor([8])}
    state |= to_layout(own.backbone.state_dict(), resnet.OPENMMLAB, "backbone.")
    state |= to_layout(own.teacher.backbone.state_dict(), resnet.OPENMMLAB, "encoder_k.module.0.")
    state |= {f"neck.mlp.{name}": tensor for name, tensor in own.head.state_dict().items()}
    state |= {f"encoder_k.module.1.mlp.{name}": tensor for name, tensor in own.teacher.head.state_dict().items()}
    found = fresh(own)
    load_method(found, state, METHODS["moco"])
    for name, tensor in own.state_dict().items():
        assert torch.equal(found.state_dict()[name], torch.tensor(8) if name == "queue.next" else tensor), name
    with pytest.raises(UserError, match="no head.0.weight"):
        load_method(found, {n: t for n, t in state.items() if n != "neck.mlp.0.weight"}, METHODS["moco"])


DECODER = {  # authors -> OpenMMLab
    "norm1": "ln1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "norm2": "ln2",
    "mlp.fc1": "ffn.layers.0.0",
    "mlp.fc2": "ffn.layers.1",
}


def masked_autoencoder(own, layouts, openmmlab):
    """MAE's or MixMIM's file, as the authors or OpenMMLab write it."""
    neck = "neck." if openmmlab else ""
    state = to_layout(own.encoder.state_dict(), layouts[openmmlab], "backbone." if openmmlab else "")
    decoder = own.decoder.state_dict()
    row = [torch.zeros_like(decoder["positions"][:, :1])] if own.config.name == "mae" else []
    state[f"{neck}decoder_pos_embed"] = torch.cat([*row, decoder["positions"]], dim=1)
    state[f"{neck}mask_token"] = decoder["mask_token"]
    for kind in ("weight", "bias"):
        state[f"{neck}decoder_embed.{kind}"] = decoder[f"embed.{kind}"]
        state[f"{neck}decoder_pred.{kind}"] = decoder[f"predict.{kind}"]
        state[f"neck.ln1.{kind}" if openmmlab else f"decoder_norm.{kind}"] = decoder[f"norm.{kind}"]
        for i in range(len(own.decoder.blocks)):
            for authors, omm in DECODER.items():
                ours = decoder[f"blocks.{i}.{authors.rsplit('.')[-1]}.{kind}"]
                state[f"{neck}decoder_blocks.{i}.{omm if openmmlab else authors}.{kind}"] = ours
    return state


@pytest.mark.parametrize("openmmlab", [False, True])
@pytest.mark.parametrize(("name", "layouts"), [("mae", vit.LAYOUTS[::3]), ("mixmim", mixmim.LAYOUTS)])
def test_masked_autoencoders_with_their_decoders(name, layouts, openmmlab):
    own = tiny(name)
    found = fresh(own)
    report = load_method(found, masked_autoencoder(own, layouts, openmmlab), METHODS[name])
    assert all(torch.equal(found.state_dict()[key], tensor) for key, tensor in own.state_dict().items())
    assert "missing     0" in report


def test_a_whole_method_from_the_command_line(tmp_path, capsys):
    """What the command writes is a checkpoint like that of a run, and not written over."""
    recipe = "mae_vit-tiny_cifar10"
    torch.manual_seed(0)
    own = MAE(load_recipe(recipe, []).algorithm)
    torch.save({"model": masked_autoencoder(own, vit.LAYOUTS[::3], False)}, tmp_path / "mae.pth")
    arguments = [str(tmp_path / "mae.pth"), "--to", str(tmp_path / "out"), "--recipe", recipe]
    assert main(arguments) == 0 and "recognised  timm-vit" in capsys.readouterr().out
    _, found = load_algorithm(tmp_path / "out")
    assert all(torch.equal(found.state_dict()[key], tensor) for key, tensor in own.state_dict().items())
    with pytest.raises(UserError, match="already holds a checkpoint"):
        main(arguments)
    with pytest.raises(UserError, match="leave --recipe out"):
        main([*arguments[:2], str(tmp_path / "new"), "--recipe", "relative-loc_resnet50_8xb64-steplr-70e_in1k"])


def test_simmims_head_predicts_the_same_pixels():
    """A 1 x 1 convolution and a pixel shuffle there, a linear layer with channels innermost here."""
    own = tiny("simmim")
    cell = round((len(own.head.weight) / 3) ** 0.5)
    weight, bias = torch.randn(3 * cell**2, own.head.in_features, 1, 1), torch.randn(3 * cell**2)
    state = to_layout(own.backbone.state_dict(), swin.OPENMMLAB, "backbone.")
    state |= {"backbone.mask_token": own.mask_token.data, "neck.decoder.0.weight": weight, "neck.decoder.0.bias": bias}
    load_method(own, state, METHODS["simmim"])
    features = torch.randn(1, own.head.in_features, 1, 1)
    picture = torch.nn.functional.pixel_shuffle(torch.nn.functional.conv2d(features, weight, bias), cell)
    ours = own.head(features[:, :, 0, 0]).view(cell, cell, 3).permute(2, 0, 1)
    assert torch.allclose(ours, picture[0], atol=1e-5)


PUBLISHED = {  # method: some names of its published file -> their place
    "byol": {"neck.bn0.running_mean": "head.1.running_mean", "target_net.module.1.fc1.weight": "teacher.head.3.weight"},
    "swav": {"neck.projection_neck.3.bias": "head.3.bias", "head.loss.prototypes.weight": "prototypes.weight"},
    "simsiam": {"neck.fc2.weight": "head.6.weight", "head.predictor.fc1.bias": "predictor.3.bias"},
    "barlowtwins": {"neck.bn1.weight": "head.4.weight", "module.projector.6.weight": "head.6.weight"},
    "mocov3": {"neck.bn2.running_var": "head.7.running_var", "module.predictor.0.weight": "predictor.0.weight"},
    "dino": {
        "neck.mlp.4.bias": "head.0.4.bias",
        "head.center": "center",
        "teacher.head.mlp.0.bias": "teacher.head.0.0.bias",
    },
    "densecl": {"neck.mlp2.2.weight": "head.dense.2.weight", "queue2": "dense_queue.rows"},
    "beitv2": {"neck.patch_aggregation.1.ffn.layers.0.0.weight": "neck.1.fc1.weight", "lm_head.bias": "head.bias"},
    "odc": {"neck.fc1.weight": "head.4.weight", "memory_bank.centroids": "centroids"},
    "rotation_pred": {"head.fc_cls.weight": "head.weight"},
    "simclr": {"neck.bn1.bias": "head.4.bias"},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_of_methods(name):
    """Their places are tensors that the algorithm has."""
    own, names = tiny(name).state_dict(), Names(METHODS[name])
    for theirs, ours in PUBLISHED[name].items():
        assert names.ours(theirs).name == ours and ours in own
