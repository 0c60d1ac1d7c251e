"""Encoders that timm, transformers and MMPretrain build, with random weights: converted, they give the same features,
at the size of their training and at another one. pip install headrace[parity]"""

from dataclasses import replace

import pytest
import torch

from headrace.tools.exchange.import_weights import import_checkpoint
from headrace.train.foreign.convert import Options, convert
from headrace.train.foreign.shapes import Wishes

HEADS = Wishes(heads=2)
CLS = replace(HEADS, pool="cls")
MEAN = replace(HEADS, pool="mean")
QUICK = replace(HEADS, mlp="quick_gelu")


def stirred(model):
    """Random tensors of a size that keeps activations near 1; no two layers, biases or norms are alike."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if "running_var" in name:
            tensor.uniform_(0.5, 2)
        elif tensor.dim() >= 2 and "token" not in name and "pos" not in name and "table" not in name:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        else:
            tensor.normal_(std=0.3).add_("norm" in name and name.endswith("weight"))
    model.eval()  # which gives None in MMPretrain
    return model


def compare(model, features, imported, *sizes):
    """`features(images)` of a foreign model are those of the encoder."""
    encoder = imported.classifier.backbone
    assert not imported.missing
    for size in sizes:
        images = torch.randn(2, 3, *((size, size) if isinstance(size, int) else size))
        with torch.no_grad():
            theirs, ours = features(images), encoder(images)
        assert theirs.std() > 0.05 and (theirs - ours).abs().max() < 1e-5 * theirs.abs().max().clamp(min=1), size


SMALL = dict(embed_dim=32, depth=2, num_heads=2, img_size=56, num_classes=0, dynamic_img_size=True)
TIMM = {  # its name of the model, what is made small, wishes, further sizes: larger, smaller, not square
    "vit_base_patch16_224": (dict(img_size=64), HEADS, (96, 48, (80, 32))),
    "vit_base_patch16_224.mae": (dict(img_size=64, global_pool="avg"), MEAN, (96, 48, (80, 32))),
    "vit_small_patch16_224.dino": (dict(img_size=64), HEADS, (96, 48)),
    "vit_small_patch14_reg4_dinov2": ({}, HEADS, (84, 42)),
    "vit_giant_patch14_reg4_dinov2": ({}, HEADS, (84,)),
    "vit_giant_patch14_dinov2": ({}, HEADS, (84, 42)),
    "vit_small_patch16_dinov3_qkvb": (dict(img_size=64, global_pool="token"), HEADS, (96, (48, 80))),
    "vit_small_plus_patch16_dinov3_qkvb": (dict(img_size=64), MEAN, (96,)),
    "vit_large_patch16_dinov3": (dict(img_size=64), MEAN, (96,)),
    "vit_base_patch16_clip_224": (dict(img_size=64), HEADS, (96, 48)),
    "vit_base_patch16_clip_quickgelu_224": (dict(img_size=64), QUICK, (96,)),
    "deit3_base_patch16_224": (dict(img_size=64), HEADS, (96, 48)),
    "beitv2_base_patch16_224": (dict(img_size=64, dynamic_img_size=None), HEADS, ()),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = pytest.importorskip("timm", reason="needs the extra [parity]")
    changed, wishes, sizes = TIMM[name]
    options = {key: value for key, value in (SMALL | changed).items() if value is not None}
    model = stirred(timm.create_model(name, **options))
    compare(model, model, convert(model.state_dict(), Options(wishes=wishes)), options["img_size"], *sizes)


SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8)
GATED = dict(use_swiglu_ffn=True)
TABLE = dict(use_relative_position_bias=True)
SHARED = dict(use_shared_relative_position_bias=True)
WINDOWS = dict(image_size=64, patch_size=4, embed_dim=8, depths=[1, 2, 2, 1], num_heads=[1, 2, 2, 2], window_size=2)
UNITS = dict(embedding_size=64, depths=[2, 2, 2, 2])
HUGGING_FACE = [  # model, its configuration, wishes, features, further sizes
    ("ViT", dict(SHAPE, layer_norm_eps=1e-6), CLS, "last_hidden_state[:, 0]", ()),
    ("Dinov2", SHAPE, HEADS, "last_hidden_state[:, 0]", (96, 40)),
    ("Dinov2", SHAPE | GATED, MEAN, "last_hidden_state[:, 1:].mean(1)", (96,)),
    ("Dinov2WithRegisters", SHAPE, HEADS, "pooler_output", (96, 40)),
    ("Dinov2WithRegisters", SHAPE | GATED, MEAN, "last_hidden_state[:, 5:].mean(1)", (96,)),
    ("DINOv3ViT", dict(SHAPE, num_register_tokens=4), HEADS, "pooler_output", (96, (40, 72))),
    (
        "DINOv3ViT",
        dict(SHAPE, use_gated_mlp=True, hidden_act="silu", num_register_tokens=4),
        HEADS,
        "pooler_output",
        (96,),
    ),
    ("CLIPVision", SHAPE, HEADS, "pooler_output", (96,)),
    ("CLIPVision", dict(SHAPE, hidden_act="gelu"), replace(HEADS, mlp="gelu"), "pooler_output", ()),
    ("Beit", SHAPE | TABLE, MEAN, "pooler_output", ()),
    ("Beit", SHAPE | SHARED | dict(use_mean_pooling=False, layer_norm_eps=1e-6), CLS, "pooler_output", ()),
    ("Swin", WINDOWS, HEADS, "pooler_output", (96,)),
    (
        "ResNet",
        UNITS | dict(hidden_sizes=[64, 128, 256, 512], layer_type="basic"),
        HEADS,
        "pooler_output.flatten(1)",
        (96,),
    ),
    (
        "ResNet",
        dict(UNITS, hidden_sizes=[256, 512, 1024, 2048], depths=[3, 4, 6, 3]),
        HEADS,
        "pooler_output.flatten(1)",
        (),
    ),
]


@pytest.mark.parametrize(
    "number", range(len(HUGGING_FACE)), ids=[f"{name}-{i}" for i, (name, *_) in enumerate(HUGGING_FACE)]
)
def test_transformers_in_memory_and_as_it_writes_files(number, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra [parity]")
    name, config, wishes, expression, sizes = HUGGING_FACE[number]
    config = getattr(transformers, f"{name}Config")(**config)
    model = stirred(getattr(transformers, f"{name}Model")(config))
    more = {"interpolate_pos_encoding": True} if name == "CLIPVision" else {}

    def features(images):
        return eval(f"found.{expression}", {"found": model(images, **more)})

    compare(model, features, convert(model.state_dict(), Options(wishes=wishes)), 64, *sizes)
    model.save_pretrained(tmp_path)
    written = import_checkpoint(tmp_path / "model.safetensors", Options(wishes=wishes))
    compare(model, features, written, 64, *sizes)


def block(width, hidden, *, gate):
    """Shapes of a block of DINOv2, or DINOv3 with a gate."""
    mlp = {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    if gate == 2:
        mlp = {"mlp.w12": (2 * hidden, width), "mlp.w3": (width, hidden)}
    elif gate == 3:
        mlp = {"mlp.w1": (hidden, width), "mlp.w2": (hidden, width), "mlp.w3": (width, hidden)}
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm1": (width,), "norm2": (width,)} | mlp
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    return shapes | {"ls1.gamma": (width,), "ls2.gamma": (width,)}


def authors(version, *, gate=0, registers=0):
    """A checkpoint of DINOv2's or DINOv3's authors, of two blocks."""
    width, patch, hidden = 32, 16 if version == 3 else 14, 88 if gate else 128
    shapes = {"cls_token": (1, 1, width), "patch_embed.proj.weight": (width, 3, patch, patch)}
    shapes |= {"patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,)}
    shapes["mask_token"] = (1, width) if version == 2 else (1, 1, width)
    if version == 2:
        shapes["pos_embed"] = (1, 17, width)
    if registers:
        shapes["register_tokens" if version == 2 else "storage_tokens"] = (1, registers, width)
    shapes |= {f"blocks.{i}.{name}": shape for i in (0, 1) for name, shape in block(width, hidden, gate=gate).items()}
    torch.manual_seed(0)
    state = {name: torch.randn(shape) * (0.15 if len(shape) > 1 else 0.5) for name, shape in shapes.items()}
    if version == 3:
        state["rope_embed.periods"] = (100 ** (torch.arange(4) / 4)).bfloat16()
        for i in (0, 1):
            mask = torch.ones(3 * width)
            mask[width : 2 * width] = 0
            state[f"blocks.{i}.attn.qkv.bias_mask"] = mask
    return state


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("vit_small_patch14_dinov2", authors(2)),
        ("vit_small_patch14_reg4_dinov2", authors(2, registers=4)),
        ("vit_giant_patch14_reg4_dinov2", authors(2, registers=4, gate=2)),
        ("vit_small_patch16_dinov3_qkvb", authors(3, registers=4)),
        ("vit_small_plus_patch16_dinov3_qkvb", authors(3, registers=4, gate=3)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dinos_authors(name, state):
    """timm has its own converter of these files."""
    timm = pytest.importorskip("timm", reason="needs the extra [parity]")
    family = timm.models.eva if "dinov3" in name else timm.models.vision_transformer
    shape = SMALL | {"img_size": 64 if "dinov3" in name else 56, "global_pool": "token"}
    if "giant" in name or "plus" in name:
        shape["mlp_ratio"] = 88 / 32 * (2 if "giant" in name else 1)
    model = timm.create_model(name, **shape).eval()
    model.load_state_dict(family.checkpoint_filter_fn(dict(state), model))
    compare(model, model, convert(state, Options(wishes=HEADS)), shape["img_size"])


def openai():
    """The names in OpenAI's files, as the published ViT-B-16 has them."""
    width = 32
    shapes = {"conv1.weight": (width, 3, 16, 16), "class_embedding": (width,), "positional_embedding": (17, width)}
    shapes |= {f"{norm}.{kind}": (width,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    for i in (0, 1):
        inner = {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)}
        for layer, outputs, inputs in (("attn.out_proj", 32, 32), ("mlp.c_fc", 128, 32), ("mlp.c_proj", 32, 128)):
            inner |= {f"{layer}.weight": (outputs, inputs), f"{layer}.bias": (outputs,)}
        inner |= {f"{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        shapes |= {f"transformer.resblocks.{i}.{name}": shape for name, shape in inner.items()}
    torch.manual_seed(0)
    state = {f"visual.{name}": torch.randn(shape) * 0.15 for name, shape in shapes.items()}
    text = {"text_projection": torch.ones(32, 24), "transformer.resblocks.0.ln_1.weight": torch.ones(32)}
    return state | text | {"visual.proj": torch.randn(32, 24), "logit_scale": torch.ones(())}


def test_openais_clip():
    timm = pytest.importorskip("timm", reason="needs the extra [parity]")
    shape = SMALL | {"img_size": 64}
    model = timm.create_model("vit_base_patch16_clip_quickgelu_224", **shape).eval()
    found = timm.models.vision_transformer.checkpoint_filter_fn(openai(), model)
    model.load_state_dict({key: value for key, value in found.items() if not key.startswith("head.")})
    imported = convert(openai(), Options(wishes=HEADS))
    assert imported.family == "clip-vit" and "visual.proj" in imported.left_over
    assert imported.classifier.config.view.mean == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)
    compare(model, model, imported, 64)


ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128)
STAGES = dict(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 2])
VIT = dict(arch=ARCH, img_size=64, patch_size=8)
OPENMMLAB = [  # class, its arguments, wishes, what is made of the output, further sizes
    ("VisionTransformer", VIT, HEADS, "[-1]", (96,)),
    ("VisionTransformer", dict(VIT, pre_norm=True, norm_cfg=dict(type="LN", eps=1e-5)), HEADS, "[-1]", (96,)),
    (
        "VisionTransformer",
        dict(VIT, layer_scale_init_value=0.1, layer_cfgs=dict(ffn_type="swiglu_fused")),
        HEADS,
        "[-1]",
        (96,),
    ),
    ("VisionTransformer", dict(VIT, out_type="avg_featmap", final_norm=False), MEAN, "[-1]", (96,)),
    (
        "BEiTViT",
        VIT | dict(out_type="avg_featmap", use_abs_pos_emb=False, use_rel_pos_bias=True, final_norm=False),
        MEAN,
        "[-1]",
        (),
    ),
    (
        "SwinTransformer",
        dict(arch=dict(STAGES, depths=[1, 2, 2, 1]), img_size=64, window_size=2),
        HEADS,
        "[-1].mean((2, 3))",
        (96,),
    ),
    ("MixMIMTransformer", dict(arch=STAGES, img_size=64, window_size=[8, 4, 4, 2]), HEADS, "[-1]", ()),
    ("ResNet", dict(depth=18), HEADS, "[-1].mean((2, 3))", (96,)),
]


@pytest.mark.parametrize("number", range(len(OPENMMLAB)), ids=[f"{name}-{i}" for i, (name, *_) in enumerate(OPENMMLAB)])
def test_mmpretrain(number):
    models = pytest.importorskip("mmpretrain.models", reason="needs the extra [parity]")
    name, arguments, wishes, expression, sizes = OPENMMLAB[number]
    model = stirred(getattr(models, name)(**arguments))
    imported = convert({f"backbone.{key}": value for key, value in model.state_dict().items()}, Options(wishes=wishes))
    features = lambda images: eval(f"found{expression}", {"found": model(images)})
    compare(model, features, imported, 64, *sizes)
