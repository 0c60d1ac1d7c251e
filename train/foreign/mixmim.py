"""MixMIM. Ours is `models.backbones.mixmim.MixMIMTransformer`."""

from .names import Layout
from .swin import OPENMMLAB_CORNERS

_MERGES = tuple(
    (f"layers.{s}.downsample.{theirs}", f"body.merges.{s}.{ours}")
    for s in range(3)
    for theirs, ours in (("norm", "norm"), ("reduction", "reduce"))
)


def _blocks(norm: str, mlp: tuple[str, str]):
    pairs = (
        (f"{norm}1", "norm1"),
        ("attn.qkv", "qkv"),
        ("attn.proj", "proj"),
        ("attn.relative_position_bias_table", "bias_table"),
        (f"{norm}2", "norm2"),
        (mlp[0], "fc1"),
        (mlp[1], "fc2"),
    )
    return tuple((f"layers.{{s}}.blocks.{{b}}.{theirs}", f"body.stages.{{s}}.{{b}}.{ours}") for theirs, ours in pairs)


AUTHORS = Layout(
    "authors",
    "mixmim",
    (
        ("patch_embed.proj", "patch_embed.conv"),
        ("patch_embed.norm", "patch_embed.norm"),
        ("absolute_pos_embed", "positions"),
        *_blocks("norm", ("mlp.fc1", "mlp.fc2")),
        *_MERGES,
        ("norm", "norm"),
    ),
    mark="patch_embed.proj.weight",
    needs=("absolute_pos_embed", "layers.0.blocks.0.norm1"),
    rebuilt=("relative_position_index",),
)
OPENMMLAB = Layout(
    "openmmlab",
    "mixmim",
    (
        ("patch_embed.projection", "patch_embed.conv"),
        ("patch_embed.norm", "patch_embed.norm"),
        ("absolute_pos_embed", "positions"),
        *_blocks("ln", ("ffn.layers.0.0", "ffn.layers.1")),
        *_MERGES,
        ("norm", "norm"),
    ),
    mark="patch_embed.projection.weight",
    needs=("absolute_pos_embed", "layers.0.blocks.0.ln1"),
    corners=OPENMMLAB_CORNERS,
    rebuilt=("relative_position_index",),
    classifiers=("head.fc",),
)
LAYOUTS = (AUTHORS, OPENMMLAB)
