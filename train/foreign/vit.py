"""Vision Transformers. Ours is `models.backbones.vit.ViT`."""

from dataclasses import replace

from ...models.targets import clip
from .names import Layout, blocks

_INDEX = ("relative_position_index",)
_SHARED_TABLE = ("rel_pos_bias.relative_position_bias_table", "relative_bias.table")


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
_PACKED = (("mlp.w12", "fc1"), ("mlp.w3", "fc2"))  # gated MLPs of DINOv2's authors
_AS_TIMM = (("antialias", True),)  # how timm resizes positions; files of others in its names are taken for timm's
# a file cut into chunks, as in DINOv2's training: blocks.<chunk>.<block>, blocks counted over all chunks
_CHUNKS = tuple((f"blocks.{{_}}.{{i}}.{a}", f"blocks.{{i}}.{b}") for a, b in (*_PLAIN, *_LAYER_SCALE, *_PACKED))

TIMM = Layout(
    "timm",
    "vit",
    (
        *_STEM,
        ("reg_token", "registers"),
        ("register_tokens", "registers"),
        ("norm_pre", "pre_norm"),
        *blocks("blocks.{i}", _PLAIN + _LAYER_SCALE + _GAMMA + _PACKED),
        *_CHUNKS,
    ),
    mark=_MARK,
    lacks=(*_NOT_PLAIN, "blocks.0.gamma_1", "blocks.0.attn.q_bias"),
    class_row=True,
    implies=_AS_TIMM,
    rebuilt=_INDEX,
)
DINOV2 = replace(  # the authors, who have a mask token beside the encoder and a rule of their own for other sizes
    TIMM,
    name="dinov2",
    needs=("mask_token", "blocks.0.ls1.gamma"),
    lacks=(*TIMM.lacks, "register_tokens", "reg_token", "decoder"),
    implies=(("resize_offset", 0.1),),
)
BEIT = Layout(  # the authors of BEiT and DeiT III, and timm's BEiT
    "beit",
    "vit",
    (*_STEM, *blocks("blocks.{i}", _PLAIN + _GAMMA)),
    mark=_MARK,
    needs=("blocks.0.gamma_1",),
    lacks=_NOT_PLAIN,
    class_row=True,
    implies=_AS_TIMM,
    rebuilt=(*_INDEX, "k_bias"),
)
VQKD = Layout(  # encoders without layer scale, but with BEiT's biases
    "vqkd",
    "vit",
    (*_STEM, *blocks("blocks.{i}", _PLAIN)),
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
        ("pre_norm", "pre_norm"),
        ("ln1", "norm"),
        ("ln2", "norm"),
        _SHARED_TABLE,
        ("layers.{i}.attn.relative_position_bias_table", "block_biases.{i}.table"),
        *blocks(
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
                ("ffn.w12", "fc1"),
                ("ffn.w3", "fc2"),
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
        *blocks(
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
CLIP = Layout(  # OpenAI and OpenCLIP
    "clip",
    "vit",
    (*clip.STEM.items(), *blocks("transformer.resblocks.{i}", tuple(clip.BLOCK.items()))),
    mark="conv1.weight",
    needs=("transformer.resblocks.0.ln_1", "ln_pre"),
    class_row=True,
    flat=True,
    implies=(("mlp", "quick_gelu"),),
)
_ROTARY = (("positions", "rotary"), ("norm_eps", 1e-5), ("pool", "cls"))
DINOV3 = Layout(  # the authors
    "dinov3",
    "vit",
    (
        ("cls_token", "cls_token"),
        ("storage_tokens", "registers"),
        ("patch_embed.proj", "patch_embed"),
        ("norm", "norm"),
        *blocks(
            "blocks.{i}",
            (*_PLAIN, *_LAYER_SCALE, (("mlp.w1", "mlp.w2"), "fc1"), ("mlp.w3", "fc2")),
        ),
    ),
    mark=_MARK,
    needs=("storage_tokens",),
    rebuilt=("rope_embed.periods",),
    implies=_ROTARY,
)
TIMM_DINOV3 = Layout(
    "timm_dinov3",
    "vit",
    (
        ("cls_token", "cls_token"),
        ("reg_token", "registers"),
        ("patch_embed.proj", "patch_embed"),
        ("norm", "norm"),
        *blocks("blocks.{i}", (*_PLAIN, *_GAMMA)),
    ),
    mark=_MARK,
    needs=("cls_token", "reg_token", "norm.", "blocks.0.gamma_1"),
    lacks=("pos_embed", "fc_norm", "blocks.0.attn.qkv.bias", "blocks.0.mlp.fc1_g"),
    implies=_ROTARY,
)
_GATED = blocks("blocks.{i}", ((("mlp.fc1_g", "mlp.fc1_x"), "fc1"),))
TIMM_DINOV3_GATED = replace(
    TIMM_DINOV3,
    pairs=(*_GATED, *TIMM_DINOV3.pairs),
    needs=(*TIMM_DINOV3.needs, "blocks.0.mlp.fc1_g"),
    lacks=TIMM_DINOV3.lacks[:-1],
)
LAYOUTS = (DINOV2, TIMM, BEIT, VQKD, OPENMMLAB, TORCHVISION, CLIP, DINOV3, TIMM_DINOV3, TIMM_DINOV3_GATED)
