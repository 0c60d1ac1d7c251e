"""The library transformers. Its models have other names in memory, from version 5, than in the files that it writes.

`hf...` are the names in memory, which `load_state_dict` takes; `hf4...` those of published files and of older versions.
DINOv3 and CLIP differ in a prefix alone.
"""

from dataclasses import replace

from . import swin
from .names import Layout, Pair, blocks

_VIT: tuple[Pair, ...] = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.register_tokens", "registers"),
    ("embeddings.position_embeddings", "positions"),
    ("embeddings.patch_embeddings.projection", "patch_embed"),
    ("layernorm", "norm"),
)
_ATTENTION = ((("attention.q_proj", "attention.k_proj", "attention.v_proj"), "qkv"), ("attention.o_proj", "proj"))
_ATTENTION_4 = (
    (tuple(f"attention.attention.{part}" for part in ("query", "key", "value")), "qkv"),
    ("attention.output.dense", "proj"),
)
_NORMS = (("layernorm_before", "norm1"), ("layernorm_after", "norm2"))
_NORMS_2 = (
    ("norm1", "norm1"),
    ("norm2", "norm2"),
    ("layer_scale1.lambda1", "scale1"),
    ("layer_scale2.lambda1", "scale2"),
)
_MLP = (("mlp.fc1", "fc1"), ("mlp.fc2", "fc2"))
_MLP_4 = (("intermediate.dense", "fc1"), ("output.dense", "fc2"))
_GATED = ((("mlp.gate_proj", "mlp.up_proj"), "fc1"), ("mlp.down_proj", "fc2"))
_POOLER = ("pooler.dense.weight", "pooler.dense.bias")
_MARK = "embeddings.patch_embeddings.projection.weight"
_COMMON = dict(kind="vit", class_row=True, rebuilt=_POOLER, classifiers=("classifier",))

HUGGING_FACE = Layout(
    "hf",
    pairs=(*_VIT, *blocks("layers.{i}", (*_NORMS, *_MLP, *_ATTENTION))),
    mark=_MARK,
    needs=("layers.0.",),
    lacks=("layers.0.lambda_1",),
    **_COMMON,
)
HUGGING_FACE_4 = Layout(  # ViT, ViTMAE, DINOv2, which differ in norms and MLPs
    "hf4",
    pairs=(
        *_VIT,
        *blocks("encoder.layer.{i}", (*_NORMS, *_NORMS_2, *_MLP_4, *_MLP, *_ATTENTION_4)),
        *blocks("encoder.layer.{i}", (("mlp.weights_in", "fc1"), ("mlp.weights_out", "fc2"))),
    ),
    mark=_MARK,
    needs=("encoder.layer.0.attention.attention",),
    lacks=("encoder.layer.0.lambda_1",),
    **_COMMON,
)
DINOV2 = Layout(
    "hf_dinov2",
    pairs=(*_VIT, *blocks("encoder.layer.{i}", (*_NORMS_2, *_MLP, *_ATTENTION))),
    mark=_MARK,
    needs=("encoder.layer.0.attention.q_proj", "encoder.layer.0.mlp.fc1"),
    **_COMMON,
)
DINOV2_GATED = replace(
    DINOV2,
    pairs=(*_VIT, *blocks("encoder.layer.{i}", (*_NORMS_2, *_GATED, *_ATTENTION))),
    needs=("encoder.layer.0.attention.q_proj", "encoder.layer.0.mlp.gate_proj"),
)

_QV = (
    (tuple(f"attention.{part}_proj.weight" for part in "qkv"), "qkv.weight"),
    ("attention.q_proj.bias", "q_bias"),
    ("attention.v_proj.bias", "v_bias"),
    ("attention.o_proj", "proj"),
)


def _dinov3(mlp: tuple[Pair, ...]) -> tuple[Pair, ...]:
    return (
        *(pair for pair in _VIT if pair[1] in ("cls_token", "registers")),
        ("embeddings.patch_embeddings", "patch_embed"),
        ("norm", "norm"),
        *(pair for layers in ("model.layer.{i}", "layer.{i}") for pair in blocks(layers, (*_NORMS_2, *mlp, *_QV))),
    )


DINOV3 = Layout(
    "hf_dinov3",
    "vit",
    _dinov3((("mlp.up_proj", "fc1"), ("mlp.down_proj", "fc2"))),
    mark="embeddings.patch_embeddings.weight",
    needs=("embeddings.register_tokens",),
    lacks=("layer.0.mlp.gate_proj", "model.layer.0.mlp.gate_proj"),
    implies=(("positions", "rotary"), ("norm_eps", 1e-5), ("pool", "cls")),
    classifiers=("classifier",),
)
DINOV3_GATED = replace(DINOV3, pairs=_dinov3(_GATED), lacks=())

CLIP = Layout(
    "hf_clip",
    "vit",
    (
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding.weight", "positions"),
        ("embeddings.patch_embedding", "patch_embed"),
        ("pre_layrnorm", "pre_norm"),
        ("post_layernorm", "norm"),
        *blocks(
            "encoder.layers.{i}",
            (
                ("layer_norm1", "norm1"),
                (tuple(f"self_attn.{part}_proj" for part in "qkv"), "qkv"),
                ("self_attn.out_proj", "proj"),
                ("layer_norm2", "norm2"),
                *_MLP,
            ),
        ),
    ),
    mark="embeddings.patch_embedding.weight",
    needs=("pre_layrnorm",),
    class_row=True,
    flat=True,
    rebuilt=("embeddings.position_ids",),
    implies=(("mlp", "quick_gelu"),),
)

_GAMMA = (("lambda_1", "scale1"), ("lambda_2", "scale2"))
BEIT = Layout(
    "hf_beit",
    pairs=(
        ("pooler.layernorm", "norm"),
        *_VIT,
        ("shared_position_bias.relative_position_bias_table", "relative_bias.table"),
        ("layers.{i}.relative_position_bias.relative_position_bias_table", "block_biases.{i}.table"),
        *blocks("layers.{i}", (*_NORMS, *_GAMMA, *_MLP, *_QV)),
    ),
    mark=_MARK,
    needs=("layers.0.lambda_1",),
    kind="vit",
    class_row=True,
    rebuilt=("relative_position_index",),
    classifiers=("classifier",),
)
_TABLE = "attention.attention.relative_position_bias.relative_position_bias_table"
BEIT_4 = replace(
    BEIT,
    name="hf4_beit",
    pairs=(
        ("pooler.layernorm", "norm"),
        *_VIT,
        ("encoder.relative_position_bias.relative_position_bias_table", "relative_bias.table"),
        (f"encoder.layer.{{i}}.{_TABLE}", "block_biases.{i}.table"),
        *blocks(
            "encoder.layer.{i}",
            (
                *_NORMS,
                *_GAMMA,
                *_MLP_4,
                (tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value")), "qkv.weight"),
                ("attention.attention.query.bias", "q_bias"),
                ("attention.attention.value.bias", "v_bias"),
                ("attention.output.dense", "proj"),
            ),
        ),
    ),
    needs=("encoder.layer.0.lambda_1",),
)


def _swin(attention: tuple[Pair, ...], mlp: tuple[Pair, ...]) -> tuple[Pair, ...]:
    return (
        ("embeddings.patch_embeddings.projection", "patch_embed.conv"),
        ("embeddings.norm", "patch_embed.norm"),
        *blocks("encoder.layers.{s}.blocks.{b}", (*_NORMS, *attention, *mlp), swin.OURS),
        *swin.merges("encoder.layers.{}.downsample"),
        ("layernorm", "norm"),
    )


SWIN = Layout(
    "hf",
    "swin",
    _swin(
        (*_ATTENTION, ("attention.relative_position_bias.relative_position_bias_table", "bias_table")),
        _MLP,
    ),
    mark="embeddings.patch_embeddings.projection.weight",
    needs=("encoder.layers.0.blocks.0.attention.q_proj",),
    rebuilt=("relative_position_index",),
    classifiers=("classifier",),
)
SWIN_4 = replace(
    SWIN,
    name="hf4",
    pairs=_swin(
        (
            (tuple(f"attention.self.{part}" for part in ("query", "key", "value")), "qkv"),
            ("attention.output.dense", "proj"),
            ("attention.self.relative_position_bias_table", "bias_table"),
        ),
        _MLP_4,
    ),
    needs=("encoder.layers.0.blocks.0.attention.self",),
)
_UNIT = (
    ("shortcut.convolution", "downsample.0"),
    ("shortcut.normalization", "downsample.1"),
    *((f"layer.{n}.convolution", f"conv{n + 1}") for n in range(3)),
    *((f"layer.{n}.normalization", f"bn{n + 1}") for n in range(3)),
)
RESNET = Layout(
    "hf",
    "resnet",
    (
        ("embedder.embedder.convolution", "body.conv1"),
        ("embedder.embedder.normalization", "body.bn1"),
        *(
            pair
            for stage in range(4)
            for pair in blocks(f"encoder.stages.{stage}.layers.{{b}}", _UNIT, f"body.layer{stage + 1}.{{b}}")
        ),
    ),
    mark="embedder.embedder.convolution.weight",
    classifiers=("classifier.1",),
)
LAYOUTS = (
    HUGGING_FACE,
    HUGGING_FACE_4,
    DINOV2,
    DINOV2_GATED,
    DINOV3,
    DINOV3_GATED,
    CLIP,
    BEIT,
    BEIT_4,
    SWIN,
    SWIN_4,
    RESNET,
)
