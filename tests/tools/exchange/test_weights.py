"""Layouts of other code bases: every name of theirs has its place, values survive both ways, and what is no encoder of
ours is refused."""

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_encoders import (
    BEIT,
    CLIP,
    DINOV2,
    DINOV3,
    GATED,
    HIVIT,
    MIXMIM,
    PLAIN,
    REGISTERS,
    RESNET,
    SIZE,
    SWIN,
    encoder,
)

import headrace
from headrace.errors import UserError
from headrace.models.backbones.hivit import HiViT
from headrace.models.backbones.transformer import sincos_positions
from headrace.models.backbones.vit import ViT
from headrace.train.foreign import hivit, hugging_face, mixmim, resnet, swin, vit
from headrace.train.foreign.convert import Options, convert, to_layout
from headrace.train.foreign.recognise import FIXED, recognise
from headrace.train.foreign.shapes import Wishes

CASES = [
    (PLAIN, vit.TIMM),
    (replace(PLAIN, layer_scale=0.1), vit.TIMM),
    (PLAIN, vit.OPENMMLAB),
    (PLAIN, vit.TORCHVISION),
    (PLAIN, hugging_face.HUGGING_FACE),
    (PLAIN, hugging_face.HUGGING_FACE_4),
    *((config, layout) for config in (REGISTERS, GATED) for layout in (vit.TIMM, hugging_face.HUGGING_FACE_4)),
    (REGISTERS, hugging_face.DINOV2),
    (GATED, hugging_face.DINOV2_GATED),
    *((config, vit.OPENMMLAB) for config in (DINOV2, CLIP)),
    *((CLIP, layout) for layout in (vit.CLIP, hugging_face.CLIP, vit.TIMM)),
    *((DINOV3, layout) for layout in (vit.TIMM_DINOV3, hugging_face.DINOV3)),
    *((replace(DINOV3, mlp="swiglu"), layout) for layout in (vit.TIMM_DINOV3_GATED, hugging_face.DINOV3_GATED)),
    *((replace(BEIT, relative_bias=bias), hugging_face.BEIT) for bias in ("block", "shared")),
    *((replace(BEIT, relative_bias=bias), hugging_face.BEIT_4) for bias in ("block", "shared")),
    *((SWIN, layout) for layout in (hugging_face.SWIN, hugging_face.SWIN_4)),
    (RESNET, hugging_face.RESNET),
    (BEIT, vit.BEIT),
    (replace(BEIT, relative_bias="block"), vit.OPENMMLAB),
    *((SWIN, layout) for layout in swin.LAYOUTS),
    *((MIXMIM, layout) for layout in mixmim.LAYOUTS),
    *((HIVIT, layout) for layout in hivit.layouts(2, 7)),
    *((RESNET, layout) for layout in (resnet.TORCHVISION, resnet.SEQUENTIAL)),
]


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.encoder_q."])
@pytest.mark.parametrize(("config", "layout"), CASES)
def test_there_and_back_gives_identical_tensors(config, layout, prefix):
    """Through each layout, under each prefix; and the configuration is read off the tensors."""
    own = encoder(config).state_dict()
    state = to_layout(own, layout, prefix)
    assert all(name.startswith(prefix) for name in state)
    heads = config.heads if isinstance(config, (ViT.Config, HiViT.Config)) else None
    result = convert(state, Options(wishes=Wishes(heads=heads)))
    found = result.classifier.backbone.state_dict()
    assert result.family == f"{layout.name}-{layout.kind}" and not result.left_over
    assert result.prefix == prefix.removeprefix("module.")
    assert found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)
    backbone = result.classifier.config.backbone
    shared = ("width", "depth", "depths", "heads", "relative_bias", "qkv_bias", "patch_size", "registers", "pre_norm")
    assert all(getattr(backbone, key) == getattr(config, key) for key in shared if hasattr(config, key))


VIT_B = {  # OpenMMLab's names of a ViT-B, and timm's, from the published tables
    "cls_token": ("cls_token", (1, 1, 768)),
    "pos_embed": ("pos_embed", (1, 197, 768)),
    "patch_embed.proj.weight": ("patch_embed.projection.weight", (768, 3, 16, 16)),
    "patch_embed.proj.bias": ("patch_embed.projection.bias", (768,)),
    "norm.weight": ("ln1.weight", (768,)),
    "norm.bias": ("ln1.bias", (768,)),
    **{
        f"blocks.{i}.{timm}.{kind}": (f"layers.{i}.{omm}.{kind}", shape[: 2 if kind == "weight" else 1])
        for i in range(12)
        for timm, omm, shape in (
            ("norm1", "ln1", (768,)),
            ("attn.qkv", "attn.qkv", (2304, 768)),
            ("attn.proj", "attn.proj", (768, 768)),
            ("norm2", "ln2", (768,)),
            ("mlp.fc1", "ffn.layers.0.0", (3072, 768)),
            ("mlp.fc2", "ffn.layers.1", (768, 3072)),
        )
        for kind in ("weight", "bias")
    },
}


def zeros(shapes):
    return {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("library", ["timm", "openmmlab"])
def test_published_names_and_shapes_of_a_vit_base(library):
    """MAE's pre-training file: every encoder tensor has its place, the decoder's are left over, and it is a ViT-B."""
    timm = library == "timm"
    shapes = {theirs if timm else f"backbone.{omm}": shape for theirs, (omm, shape) in VIT_B.items()}
    extra = {"mask_token": (1, 1, 512), "decoder_embed.weight": (512, 768), "decoder_blocks.0.norm1.weight": (512,)}
    extra = {(name if timm else f"neck.{name}"): shape for name, shape in extra.items()}
    result = convert(zeros(shapes | extra))
    backbone = result.classifier.config.backbone
    assert (backbone.name, backbone.shape, backbone.hidden_width) == ("vit_base", (768, 12, 12), 3072)
    assert len(result.matched) + len(result.renamed) == len(shapes) and set(result.left_over) == set(extra)
    assert sum(p.numel() for p in result.classifier.backbone.parameters()) == 85_798_656 - 768  # the table's class row


def test_published_names_of_a_mixmim_base():
    """Window tables give windows and heads, positions the image size; index buffers are rebuilt."""
    shapes = {
        "backbone.patch_embed.projection.weight": (128, 3, 4, 4),
        "backbone.patch_embed.projection.bias": (128,),
        "backbone.absolute_pos_embed": (1, 3136, 128),
        "neck.mask_token": (1, 1, 512),
    }
    shapes |= {
        f"backbone.{n}.{k}": (c,) for n, c in (("patch_embed.norm", 128), ("norm", 1024)) for k in ("weight", "bias")
    }
    for stage, (depth, heads, window) in enumerate(zip((2, 2, 18, 2), (4, 8, 16, 32), (14, 14, 14, 7))):
        c = 128 << stage
        for block in range(depth):
            name = f"backbone.layers.{stage}.blocks.{block}"
            shapes[f"{name}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads)
            shapes[f"{name}.attn.relative_position_index"] = (window**2, window**2)
            for part, outputs, inputs in (
                ("attn.qkv", 3 * c, c),
                ("attn.proj", c, c),
                ("ffn.layers.0.0", 4 * c, c),
                ("ffn.layers.1", c, 4 * c),
            ):
                shapes |= {f"{name}.{part}.weight": (outputs, inputs), f"{name}.{part}.bias": (outputs,)}
            shapes |= {f"{name}.{norm}.{kind}": (c,) for norm in ("ln1", "ln2") for kind in ("weight", "bias")}
        if stage < 3:
            name = f"backbone.layers.{stage}.downsample"
            shapes |= {f"{name}.norm.weight": (4 * c,), f"{name}.norm.bias": (4 * c,)}
            shapes[f"{name}.reduction.weight"] = (2 * c, 4 * c)
    result = convert(zeros(shapes))
    config = result.classifier.config
    assert result.family == "openmmlab-mixmim" and config.view.size == 224 and config.backbone.name == "mixmim_base"
    assert config.backbone.windows == (14, 14, 14, 7) and len(result.rebuilt) == 24
    assert result.left_over == ["neck.mask_token"]


def test_a_class_row_of_the_position_table_is_added_to_the_class_token():
    """Also where it is not zero: the first token stays what it was."""
    state = to_layout(encoder(PLAIN).state_dict(), vit.TIMM)
    state["pos_embed"] = torch.randn_like(state["pos_embed"])
    found = convert(state, Options(wishes=Wishes(heads=2))).classifier.backbone
    assert torch.equal(found.cls_token, state["cls_token"] + state["pos_embed"][:, :1])
    assert torch.equal(found.positions, state["pos_embed"][:, 1:])


@pytest.mark.parametrize("rows_first", [False, True])
def test_fixed_tables_are_loaded_not_rebuilt(rows_first):
    """Both orders of a sin-cos table are known for one, and stay as they are."""
    state = to_layout(encoder(PLAIN).state_dict(), vit.TIMM)
    table = sincos_positions(24, 8, 8)
    table = table.view(8, 8, 24).transpose(0, 1).reshape(64, 24) if rows_first else table
    state["pos_embed"] = torch.cat([torch.zeros(1, 24), table])[None]
    classifier = convert(state, Options(wishes=Wishes(heads=2))).classifier
    assert classifier.config.backbone.positions == "sincos" and torch.equal(classifier.backbone.positions[0], table)


def test_merging_of_openmmlab_interleaves_channels():
    """Column 4 c + s of theirs is column pi(s) C + c of ours, pi = (0, 2, 1, 3); without it all shapes would fit."""
    own = encoder(SWIN).state_dict()
    theirs = to_layout(own, swin.OPENMMLAB)
    for name in ("reduction.weight", "norm.weight"):
        omm = theirs[f"stages.0.downsample.{name}"]
        off = own[f"body.merges.0.{'reduce.weight' if 'reduction' in name else name}"]
        for s, order in enumerate((0, 2, 1, 3)):
            for c in range(8):
                assert torch.equal(omm[..., 4 * c + s], off[..., order * 8 + c])


def test_another_size_resizes_tables_and_keeps_the_rest():
    own = encoder(replace(BEIT, relative_bias="block", positions="learned")).state_dict()
    state = to_layout(own, vit.BEIT)
    result = convert(state, Options(size=96))
    found = result.classifier.backbone.state_dict()
    assert sorted(result.resized) == ["block_biases.0.table", "block_biases.1.table", "positions"]
    assert found["positions"].shape == (1, 144, 24) and found["block_biases.0.table"].shape == (23**2 + 3, 2)
    assert torch.equal(found["block_biases.0.table"][-3:], own["block_biases.0.table"][-3:])
    assert torch.equal(found["blocks.1.fc1.weight"], own["blocks.1.fc1.weight"])
    shared = convert(to_layout(encoder(BEIT).state_dict(), vit.BEIT), Options(block_tables=True)).classifier.backbone
    assert torch.equal(shared.block_biases[0].table, shared.block_biases[1].table)
    bigger = convert(to_layout(encoder(MIXMIM).state_dict(), mixmim.AUTHORS), Options(size=128, windows=(4, 4, 4, 4)))
    assert bigger.classifier.backbone.body.stages[0][0].bias_table.shape == (49, 1)


def test_the_teacher_is_taken_when_asked_for():
    student, teacher = encoder(PLAIN).state_dict(), encoder(PLAIN).state_dict()
    teacher["cls_token"] = teacher["cls_token"] + 1
    state = to_layout(student, vit.TIMM, "student.module.backbone.") | to_layout(teacher, vit.TIMM, "teacher.backbone.")
    wishes = Wishes(heads=2)
    assert torch.equal(convert(state, Options(wishes=wishes)).classifier.backbone.cls_token, student["cls_token"])
    found = convert(state, Options(teacher=True, wishes=wishes)).classifier.backbone
    assert torch.equal(found.cls_token, teacher["cls_token"])
    with pytest.raises(UserError, match="no second network"):
        convert(to_layout(student, vit.TIMM), Options(teacher=True))


def test_a_linear_probe_comes_with_its_normalisation():
    """MAE's probe: scores are those of batch normalisation without affine, then the linear layer."""
    model = encoder(PLAIN).eval()
    state = to_layout(model.state_dict(), vit.TIMM)
    mean, variance = torch.randn(24), torch.rand(24) + 0.5
    weight, bias = torch.randn(5, 24), torch.randn(5)
    state |= {"head.0.running_mean": mean, "head.0.running_var": variance, "head.1.weight": weight, "head.1.bias": bias}
    result = convert(state, Options(wishes=Wishes(heads=2, pool="cls")))
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        features = result.classifier.backbone(images)
        expected = (features - mean) / (variance + 1e-6).sqrt() @ weight.T + bias
        assert result.scores and torch.allclose(result.classifier.scorer(images), expected, atol=1e-4)


def test_what_would_change_the_encoder_is_refused():
    state = to_layout(encoder(PLAIN).state_dict(), vit.TIMM)
    with pytest.raises(UserError, match="dist_token.*would change"):
        convert(state | {"dist_token": torch.zeros(1, 1, 24)})
    with pytest.raises(UserError, match="q_norm.*would change"):
        convert(state | {"blocks.0.attn.q_norm.weight": torch.zeros(12)})
    with pytest.raises(UserError, match="no position table and no relative biases"):
        convert({name: tensor for name, tensor in state.items() if name != "pos_embed"})
    eva02 = to_layout(encoder(replace(GATED, qkv_bias="qv", layer_scale=None)).state_dict(), vit.VQKD)
    with pytest.raises(UserError, match="EVA-02, which headrace does not have"):
        convert(eva02)
    rotary = to_layout(encoder(DINOV3).state_dict(), vit.DINOV3)
    periods = 100 ** (torch.arange(3) / 3)
    assert convert(rotary | {"rope_embed.periods": periods}, Options(wishes=Wishes(heads=2))).classifier
    with pytest.raises(UserError, match="not the periods of DINOv3"):
        convert(rotary | {"rope_embed.periods": 1.1 * periods})
    with pytest.raises(UserError, match="no blocks.1.fc2.bias"):
        convert({name: tensor for name, tensor in state.items() if name != "blocks.1.mlp.fc2.bias"})
    with pytest.raises(UserError, match="no encoder of a known family among 1 tensors"):
        recognise({"weight": torch.zeros(1)})
    with pytest.raises(UserError, match="no family 'tim'"):
        recognise(state, "tim")


def mutations(state, seed):
    """What can be wrong with one tensor."""
    chance = random.Random(seed)
    name = chance.choice(sorted(state))
    tensor = state[name]
    rest = {key: value for key, value in state.items() if key != name}
    numbered = re.sub(r"\d+", "7000000", name, count=1)
    yield rest
    yield rest | {numbered: tensor}
    for shape in ((), (3,), (2, 2), tuple(reversed(tensor.shape)), (*tensor.shape, 1), (0, *tensor.shape[1:])):
        yield rest | {name: torch.zeros(shape)}


@pytest.mark.parametrize("number", range(0, len(CASES), 2))
def test_whatever_is_wrong_with_a_tensor_is_said_in_one_line(number):
    config, layout = CASES[number]
    state = to_layout(encoder(config).state_dict(), layout)
    for mutated in mutations(state, number):
        try:
            convert(mutated, Options(wishes=Wishes(heads=2)))
        except UserError as fault:
            assert "\n" not in str(fault)


def test_positions_are_resized_as_by_whose_names_a_file_has():
    """timm's rule for its names, that of DINOv2's authors for theirs, plain bicubic for all others."""
    rule = lambda state: (lambda b: (b.antialias, b.resize_offset))(convert(state).classifier.config.backbone)
    plain, scaled = (encoder(config).state_dict() for config in (PLAIN, replace(PLAIN, layer_scale=0.1)))
    assert rule(to_layout(plain, vit.TIMM)) == rule(to_layout(scaled, vit.TIMM)) == (True, 0.0)
    mask_token = {"mask_token": torch.zeros(1, 24)}
    assert rule(to_layout(scaled, vit.TIMM) | mask_token) == (False, 0.1)
    assert rule(to_layout(encoder(REGISTERS).state_dict(), vit.TIMM) | mask_token) == (True, 0.0)
    for layout in (vit.OPENMMLAB, vit.TORCHVISION, hugging_face.HUGGING_FACE):
        assert rule(to_layout(plain, layout)) == (False, 0.0)


def test_the_manual_names_every_family():
    text = (Path(headrace.__file__).parent / "docs" / "migrating.md").read_text()
    assert [
        n for n in {f"{lay.name}-{lay.kind}" for lay in (*FIXED, *hivit.layouts(4, 9))} if f"`{n}`" not in text
    ] == []
