"""Vision Transformers. Ours is `models.backbones.vit.ViT`."""

from .names import Layout, Pair

_INDEX = ("relative_position_index",)
_SHARED_TABLE = ("rel_pos_bias.relative_position_bias_table", "relative_bias.table")


def _blocks(block: str, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """Pairs inside a block -> pairs of names."""
    return tuple(
        (
            f"{block}.{theirs}" if isinstance(theirs, str) else tuple(f"{block}.{part}" for part in theirs),
            f"blocks.{{i}}.{b}",
        )
        for theirs, b in pairs
    )


_PLAIN = (
    ("norm1", "norm1"),
    ("attn.qkv", "qkv"),
    ("attn.q_bias", "q_bias"),
    ("attn.v_bias", "v_bias"),
    ("attn.proj", "proj"),
    ("norm2", "norm2"),
    ("mlp.fc1", "fc1"),
    ("mlp.fc2", "fc2"),
)
_GAMMA = (("gamma_1", "scale1"), ("gamma_2", "scale2"))
_LAYER_SCALE = (("ls1.gamma", "scale1"), ("ls2.gamma", "scale2"))
_STEM = (
    ("cls_token", "cls_token"),
    ("pos_embed", "positions"),
    ("patch_embed.proj", "patch_embed"),
    ("norm", "norm"),
    ("fc_norm", "norm"),
    _SHARED_TABLE,
    ("blocks.{i}.attn.relative_position_bias_table", "block_biases.{i}.table"),
)
_MARK = "patch_embed.proj.weight"
_NOT_PLAIN = ("patch_embed.norm", "layers.", "stages.", "absolute_pos_embed")
# a file cut into chunks, as in DINOv2's training: blocks.<chunk>.<block>, blocks counted over all chunks
_CHUNKS = tuple((f"blocks.{{_}}.{{i}}.{a}", f"blocks.{{i}}.{b}") for a, b in (*_PLAIN, *_LAYER_SCALE))

TIMM = Layout(
    "timm",
    "vit",
    (*_STEM, *_blocks("blocks.{i}", _PLAIN + _LAYER_SCALE + _GAMMA), *_CHUNKS),
    mark=_MARK,
    lacks=(*_NOT_PLAIN, "blocks.0.gamma_1", "blocks.0.attn.q_bias"),
    class_row=True,
    rebuilt=_INDEX,
)
BEIT = Layout(  # the authors of BEiT and DeiT III, and timm's BEiT
    "beit",
    "vit",
    (*_STEM, *_blocks("blocks.{i}", _PLAIN + _GAMMA)),
    mark=_MARK,
    needs=("blocks.0.gamma_1",),
    lacks=_NOT_PLAIN,
    class_row=True,
    rebuilt=(*_INDEX, "k_bias"),
)
VQKD = Layout(  # encoders without layer scale, but with BEiT's biases
    "vqkd",
    "vit",
    (*_STEM, *_blocks("blocks.{i}", _PLAIN)),
    mark=_MARK,
    needs=("blocks.0.attn.q_bias",),
    lacks=(*_NOT_PLAIN, "blocks.0.gamma_1"),
    class_row=True,
    rebuilt=(*_INDEX, "k_bias"),
)
OPENMMLAB = Layout(
    "openmmlab",
    "vit",
    (
        ("cls_token", "cls_token"),
        ("pos_embed", "positions"),
        ("patch_embed.projection", "patch_embed"),
        ("ln1", "norm"),
        ("ln2", "norm"),
        _SHARED_TABLE,
        ("layers.{i}.attn.relative_position_bias_table", "block_biases.{i}.table"),
        *_blocks(
            "layers.{i}",
            (
                ("ln1", "norm1"),
                ("attn.qkv", "qkv"),
                ("attn.q_bias", "q_bias"),
                ("attn.v_bias", "v_bias"),
                ("attn.proj", "proj"),
                ("ln2", "norm2"),
                ("ffn.layers.0.0", "fc1"),
                ("ffn.layers.1", "fc2"),
                *_GAMMA,
                ("attn.gamma1.weight", "scale1"),
                ("ffn.gamma2.weight", "scale2"),
            ),
        ),
    ),
    mark="patch_embed.projection.weight",
    needs=("layers.0.ln1",),
    lacks=("patch_embed.norm", "stages."),
    class_row=True,
    rebuilt=_INDEX,
    classifiers=("head.fc", "head.layers.head"),
    outside=(("neck.norm", "norm"),),  # BEiT v2
)
TORCHVISION = Layout(
    "torchvision",
    "vit",
    (
        ("class_token", "cls_token"),
        ("encoder.pos_embedding", "positions"),
        ("conv_proj", "patch_embed"),
        ("encoder.ln", "norm"),
        *_blocks(
            "encoder.layers.encoder_layer_{i}",
            (
                ("ln_1", "norm1"),
                ("self_attention.in_proj_weight", "qkv.weight"),
                ("self_attention.in_proj_bias", "qkv.bias"),
                ("self_attention.out_proj", "proj"),
                ("ln_2", "norm2"),
                ("mlp.0", "fc1"),
                ("mlp.3", "fc2"),
                ("mlp.linear_1", "fc1"),
                ("mlp.linear_2", "fc2"),
            ),
        ),
    ),
    mark="conv_proj.weight",
    class_row=True,
    classifiers=("heads.head",),
)
_HUGGING_FACE = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "positions"),
    ("embeddings.patch_embeddings.projection", "patch_embed"),
    ("layernorm", "norm"),
)
_HUGGING_FACE_LAYERS = (
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("norm1", "norm1"),
    ("norm2", "norm2"),
    ("layer_scale1.lambda1", "scale1"),
    ("layer_scale2.lambda1", "scale2"),
    ("mlp.fc1", "fc1"),
    ("mlp.fc2", "fc2"),
)
HUGGING_FACE = Layout(  # ViT of transformers 5
    "hf",
    "vit",
    (
        *_HUGGING_FACE,
        *_blocks("layers.{i}", _HUGGING_FACE_LAYERS),
        *_blocks(
            "layers.{i}.attention",
            ((("q_proj", "k_proj", "v_proj"), "qkv"), ("o_proj", "proj")),
        ),
    ),
    mark="embeddings.patch_embeddings.projection.weight",
    needs=("layers.0.",),
    class_row=True,
    rebuilt=("pooler.dense.weight", "pooler.dense.bias"),
    classifiers=("classifier",),
)
HUGGING_FACE_4 = Layout(  # and of earlier ones, the names of published files: ViT, ViTMAE, DINOv2 without registers
    "hf4",
    "vit",
    (
        *_HUGGING_FACE,
        *_blocks(
            "encoder.layer.{i}",
            (
                *_HUGGING_FACE_LAYERS,
                (tuple(f"attention.attention.{part}" for part in ("query", "key", "value")), "qkv"),
                ("attention.output.dense", "proj"),
                ("intermediate.dense", "fc1"),
                ("output.dense", "fc2"),
            ),
        ),
    ),
    mark="embeddings.patch_embeddings.projection.weight",
    needs=("encoder.layer.0.",),
    class_row=True,
    rebuilt=("pooler.dense.weight", "pooler.dense.bias"),
    classifiers=("classifier",),
)
LAYOUTS = (TIMM, BEIT, VQKD, OPENMMLAB, TORCHVISION, HUGGING_FACE, HUGGING_FACE_4)
