"""Whole methods out of OpenMMLab's and the authors' files: decoders, projectors, momentum networks and queues."""

import re

import pytest
import torch
from tiny_encoders import CLIP, PLAIN, encoder

from headrace.errors import UserError
from headrace.models.algorithms import find_algorithm
from headrace.models.algorithms.mae import MAE
from headrace.tools.exchange.import_weights import main
from headrace.train.engine.checkpoint import load_algorithm
from headrace.train.foreign import mixmim, resnet, swin, vit
from headrace.train.foreign.convert import to_layout
from headrace.train.foreign.methods import METHODS, load_method
from headrace.train.foreign.recognise import recognise
from headrace.train.recipe.recipe import load_recipe


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
        main([*arguments[:2], str(tmp_path / "new"), "--recipe", "vqkd_vit-base-p16_8xb64-amp-coslr-100e_in1k"])


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


FILES = {  # (method, whose file): where the encoder is, where parts of ours are, what follows by momentum, the rest
    "relative_loc, 1.x": ("backbone.", {"head.0": "neck.fc", "head.1": "neck.bn", "head.4": "head.fc_cls"}),
    "rotation_pred, 1.x": ("backbone.", {"head": "head.fc_cls"}),
    "deepcluster, 1.x": ("backbone.", {"classifier": "head.fc_cls"}),
    "npid, 1.x": ("backbone.", {"head": "neck.fc", "bank.rows": "memory_bank.feature_bank"}),
    "odc, 1.x": (
        "backbone.",
        {"head.0": "neck.fc0", "head.1": "neck.bn0", "head.4": "neck.fc1", "classifier": "head.fc_cls"}
        | {"centroids": "memory_bank.centroids"},
    ),
    "densecl, 1.x": (
        "backbone.",
        {"head.whole": "neck.mlp", "head.dense": "neck.mlp2", "teacher.head.whole": "encoder_k.module.1.mlp"}
        | {"teacher.head.dense": "encoder_k.module.1.mlp2", "teacher.backbone": "encoder_k.module.0"}
        | {
            "queue.rows": "queue",
            "queue.next": "queue_ptr",
            "dense_queue.rows": "queue2",
            "dense_queue.next": "queue2_ptr",
        },
    ),
    "densecl, 0.x": (
        "encoder_q.0.",
        {"head.whole": "neck.mlp", "head.dense": "neck.mlp2", "teacher.head.whole": "encoder_k.1.mlp"}
        | {"teacher.head.dense": "encoder_k.1.mlp2", "teacher.backbone": "encoder_k.0"}
        | {
            "queue.rows": "queue",
            "queue.next": "queue_ptr",
            "dense_queue.rows": "queue2",
            "dense_queue.next": "queue2_ptr",
        },
    ),
    "moco, 0.x": (
        "encoder_q.0.",
        {"head": "neck.mlp", "teacher.head": "encoder_k.1.mlp", "teacher.backbone": "encoder_k.0"}
        | {"queue.rows": "queue", "queue.next": "queue_ptr"},
    ),
    "moco, authors": (
        "module.encoder_q.",
        {"head": "module.encoder_q.fc", "teacher.head": "module.encoder_k.fc", "teacher.backbone": "module.encoder_k"}
        | {"queue.rows": "module.queue", "queue.next": "module.queue_ptr"},
    ),
    "simclr, 1.x": (
        "backbone.",
        {"head.0": "neck.fc0", "head.1": "neck.bn0", "head.3": "neck.fc1", "head.4": "neck.bn1"},
    ),
    "byol, 1.x": (
        "backbone.",
        {"head.0": "neck.fc0", "head.1": "neck.bn0", "head.3": "neck.fc1"}
        | {
            "predictor.0": "head.predictor.fc0",
            "predictor.1": "head.predictor.bn0",
            "predictor.3": "head.predictor.fc1",
        }
        | {"teacher.head.0": "target_net.module.1.fc0", "teacher.head.1": "target_net.module.1.bn0"}
        | {"teacher.head.3": "target_net.module.1.fc1", "teacher.backbone": "target_net.module.0"},
    ),
    "byol, 0.x": (
        "online_net.0.",
        {"head.0": "neck.fc0", "head.1": "neck.bn0", "head.3": "neck.fc1"}
        | {
            "predictor.0": "head.predictor.fc0",
            "predictor.1": "head.predictor.bn0",
            "predictor.3": "head.predictor.fc1",
        }
        | {"teacher.head.0": "target_net.1.fc0", "teacher.head.1": "target_net.1.bn0"}
        | {"teacher.head.3": "target_net.1.fc1", "teacher.backbone": "target_net.0"},
    ),
    "swav, 1.x": ("backbone.", {"head": "neck.projection_neck", "prototypes": "head.loss.prototypes"}),
    "swav, mmpretrain": ("backbone.", {"head": "neck.projection_neck", "prototypes": "head.loss_module.prototypes"}),
    "swav, authors": ("module.", {"head": "module.projection_head", "prototypes": "module.prototypes"}),
    "simsiam, 1.x": (
        "backbone.",
        {f"head.{3 * n + k}": f"neck.{kind}{n}" for n in range(3) for k, kind in enumerate(("fc", "bn"))}
        | {
            "predictor.0": "head.predictor.fc0",
            "predictor.1": "head.predictor.bn0",
            "predictor.3": "head.predictor.fc1",
        },
    ),
    "simsiam, authors": ("module.encoder.", {"head": "module.encoder.fc", "predictor": "module.predictor"}),
    "barlowtwins, 1.x": (
        "backbone.",
        {f"head.{3 * n + k}": f"neck.{kind}{n}" for n in range(3) for k, kind in enumerate(("fc", "bn"))},
    ),
    "barlowtwins, authors": ("module.backbone.", {"head": "module.projector"}),
    "mocov3, 1.x": (
        "backbone.",
        {f"head.{3 * n + k}": f"neck.{kind}{n}" for n in range(3) for k, kind in enumerate(("fc", "bn"))}
        | {f"predictor.{3 * n + k}": f"head.predictor.{kind}{n}" for n in (0, 1) for k, kind in enumerate(("fc", "bn"))}
        | {
            f"teacher.head.{3 * n + k}": f"momentum_encoder.module.1.{kind}{n}"
            for n in range(3)
            for k, kind in enumerate(("fc", "bn"))
        }
        | {"teacher.backbone": "momentum_encoder.module.0"},
    ),
    "mocov3, authors": (
        "module.base_encoder.",
        {"head": "module.base_encoder.head", "predictor": "module.predictor"}
        | {"teacher.head": "module.momentum_encoder.head", "teacher.backbone": "module.momentum_encoder"},
    ),
    "dino, 1.x": (
        "backbone.",
        {"head.0": "neck.mlp", "head.1.weight": "neck.last_layer.weight_v", "teacher.head.0": "teacher.module.1.mlp"}
        | {"teacher.head.1.weight": "teacher.module.1.last_layer.weight_v", "teacher.backbone": "teacher.module.0"}
        | {"center": "head.center"},
    ),
    "dino, authors": (
        "student.module.backbone.",
        {"head.0": "student.module.head.mlp", "head.1.weight": "student.module.head.last_layer.weight_v"}
        | {"teacher.head.0": "teacher.head.mlp", "teacher.head.1.weight": "teacher.head.last_layer.weight_v"}
        | {"teacher.backbone": "teacher.backbone", "center": "dino_loss.center"},
    ),
}


@pytest.mark.parametrize("file", FILES)
def test_files_of_whole_methods(file):
    """Written under their names, read into another algorithm: every tensor is there, and nothing is left over."""
    name, whose = file.split(", ")
    prefix, places = FILES[file]
    own = tiny(name)
    if name == "npid":
        own.bank.allocate(7)
        own.bank.rows.normal_()
    state, written = {}, set()
    library = {"authors": vit.TIMM}.get(whose, vit.OPENMMLAB) if name in ("dino", "mocov3") else resnet.TORCHVISION
    for start, module in ((prefix, own.backbone), (places.get("teacher.backbone"), getattr(own, "teacher", None))):
        if module is not None and start is not None:
            encoder = module if start == prefix else module.backbone
            state |= to_layout(encoder.state_dict(), library, start if start == prefix else f"{start}.")
            written |= {f"{'' if start == prefix else 'teacher.'}backbone.{key}" for key in encoder.state_dict()}
    for key, tensor in own.state_dict().items():
        ours = max((part for part in places if key == part or key.startswith(f"{part}.")), key=len, default="")
        if key in written or not ours:
            continue
        written.add(key)
        theirs = places[ours] + key[len(ours) :]
        columns = theirs.rsplit(".")[-1].startswith("queue") and tensor.dim() == 2
        dense = "mlp2" in theirs and tensor.dim() == 2
        state[theirs] = tensor.T if columns else tensor[:, :, None, None] if dense else tensor
        state[theirs] = state[theirs].reshape(1) if tensor.dim() == 0 and "ptr" in theirs else state[theirs]
    if whose in ("0.x", "1.x"):
        state |= {"loss_weight": torch.ones(3)} if name in ("odc", "deepcluster") else {}
        state |= {"encoder_k.steps": torch.tensor(5)} if name in ("moco", "densecl") else {}
    found = fresh(own)
    report = load_method(found, state, METHODS[name])
    own_state, found_state = own.state_dict(), found.state_dict()
    for key in written:
        assert torch.equal(found_state[key], own_state[key]), key
    unwritten = [key for key in own_state if key not in written]
    assert all(re.match(r"sizes|memory|queues", key) for key in unwritten), unwritten
    left = int(re.search(r"left over +(\d+)", report)[1])
    assert left == sum(key in ("loss_weight", "encoder_k.steps") for key in state)


@pytest.mark.parametrize("name", ["npid", "moco"])
def test_wrong_shapes_and_missing_parts_are_said(name):
    own = tiny(name)
    state = to_layout(own.backbone.state_dict(), resnet.OPENMMLAB, "backbone.")
    with pytest.raises(UserError, match="no head|no second network"):
        load_method(fresh(own), state, METHODS[name])


def test_a_target_that_is_larger_than_the_encoder_is_not_taken_for_it():
    """MILAN's file: CLIP's tower has more tensors than the encoder."""
    clip = {
        f"target_generator.tokenizer.visual.{k}": t for k, t in to_layout(encoder(CLIP).state_dict(), vit.CLIP).items()
    }
    state = clip | to_layout(encoder(PLAIN).state_dict(), vit.OPENMMLAB, "backbone.")
    assert recognise(clip)[0] is vit.CLIP
    layout, prefix = recognise(state)
    assert (layout, prefix) == (vit.OPENMMLAB, "backbone.")


@pytest.mark.parametrize("neck", ["neck.patch_aggregation.{}.{}", "cls_pt_layers.{}.{}"])
def test_beitv2s_second_prediction(neck):
    """OpenMMLab keeps the encoder's norm in the neck; the authors call the neck's blocks cls_pt_layers."""
    own, authors = tiny("beitv2"), neck.startswith("cls")
    layout, prefix = (vit.BEIT, "") if authors else (vit.OPENMMLAB, "backbone.")
    inner = {ours: theirs if not authors else theirs_too for theirs_too, theirs, ours in DECODER_OF_BEIT}
    state = to_layout(own.vit.state_dict(), layout, prefix)
    if not authors:
        state |= {f"neck.norm.{kind}": state.pop(f"backbone.ln1.{kind}") for kind in ("weight", "bias")}
    for key, tensor in own.neck.state_dict().items():
        number, part = key.split(".", 1)
        ours = next(name for name in inner if part == name or part.startswith(f"{name}."))
        state[neck.format(number, inner[ours] + part[len(ours) :])] = tensor
    head = "lm_head" if authors else "head.cls_head"
    state |= {f"{head}.{kind}": tensor for kind, tensor in own.head.state_dict().items()}
    state["mask_token" if authors else "backbone.mask_token"] = own.mask_token.data
    found = fresh(own)
    load_method(found, state, METHODS["beitv2"])
    assert all(torch.equal(found.state_dict()[key], tensor) for key, tensor in own.state_dict().items())


DECODER_OF_BEIT = [(authors, omm, authors.rsplit(".")[-1]) for authors, omm in DECODER.items()]
DECODER_OF_BEIT += [(f"attn.{bias}", f"attn.{bias}", bias) for bias in ("q_bias", "v_bias")]
DECODER_OF_BEIT += [(f"gamma_{n}", f"gamma_{n}", f"scale{n}") for n in (1, 2)]


def test_cae_with_its_regressor_decoder_and_teacher():
    """OpenMMLab's names; the cross attention's biases are tensors of their own there."""
    own = tiny("cae")
    state = to_layout(own.vit.state_dict(), vit.OPENMMLAB, "backbone.")
    state |= to_layout(own.teacher.vit.state_dict(), vit.OPENMMLAB, "teacher.")
    parts = {
        "q.bias": "cross_attn.q_bias",
        "v.bias": "cross_attn.v_bias",
        "fc1": "ffn.layers.0.0",
        "fc2": "ffn.layers.1",
    }
    parts |= {f"norm_{x}": f"norm1_{x}_cross" for x in "qkv"} | {f"{x}.weight": f"cross_attn.{x}.weight" for x in "qkv"}
    parts |= {"proj": "cross_attn.proj", "norm2": "norm2_cross", "scale1": "gamma_1_cross", "scale2": "gamma_2_cross"}
    for key, tensor in own.regressor[0].state_dict().items():
        ours = next(part for part in parts if key.startswith(part))
        state[f"neck.regressors.0.{parts[ours]}{key[len(ours) :]}"] = tensor
    blocks = to_layout({f"blocks.0.{k}": t for k, t in own.decoder[0].state_dict().items()}, vit.OPENMMLAB, "neck.")
    state |= {key.replace("neck.layers.", "neck.decoders."): tensor for key, tensor in blocks.items()}
    for theirs, module in (("norm_regressor", "regressor_norm"), ("norm_decoder", "decoder_norm"), ("head", "head")):
        state |= {f"neck.{theirs}.{key}": tensor for key, tensor in getattr(own, module).state_dict().items()}
    state["neck.mask_token"] = own.mask_token.data
    found = fresh(own)
    load_method(found, state, METHODS["cae"])
    for key, tensor in own.state_dict().items():
        assert torch.equal(found.state_dict()[key], tensor), key
