"""Swin. Ours is `models.backbones.swin.Swin`."""

from .names import Layout, Pair, blocks

OPENMMLAB_CORNERS = (0, 2, 1, 3)  # row by row, channels outermost; the authors, timm and we go column by column
OURS = "body.stages.{s}.{b}"
_REBUILT = ("relative_position_index", "attn_mask")
_STEM: tuple[Pair, ...] = (("patch_embed.proj", "patch_embed.conv"), ("patch_embed.norm", "patch_embed.norm"))


def _block(attention: str = "attn", mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2")) -> tuple[Pair, ...]:
    return (
        ("norm1", "norm1"),
        (f"{attention}.qkv", "qkv"),
        (f"{attention}.proj", "proj"),
        (f"{attention}.relative_position_bias_table", "bias_table"),
        ("norm2", "norm2"),
        (mlp[0], "fc1"),
        (mlp[1], "fc2"),
    )


def merges(theirs: str, first: int = 0, step: int = 1) -> tuple[Pair, ...]:
    """The merging after stage s is theirs with the number `first` + `step` s."""
    pairs = []
    for stage in range(3):
        name = theirs.format(first + step * stage)
        pairs += [(f"{name}.norm", f"body.merges.{stage}.norm"), (f"{name}.reduction", f"body.merges.{stage}.reduce")]
    return tuple(pairs)


AUTHORS = Layout(
    "authors",
    "swin",
    (*_STEM, *blocks("layers.{s}.blocks.{b}", _block(), OURS), *merges("layers.{}.downsample"), ("norm", "norm")),
    mark="patch_embed.proj.weight",
    needs=("layers.0.blocks.0.norm1", "layers.0.downsample"),
    lacks=("absolute_pos_embed",),
    rebuilt=_REBUILT,
)
TIMM = Layout(  # merges before a stage
    "timm",
    "swin",
    (
        *_STEM,
        *blocks("layers.{s}.blocks.{b}", _block(), OURS),
        *merges("layers.{}.downsample", first=1),
        ("norm", "norm"),
    ),
    mark="patch_embed.proj.weight",
    needs=("layers.0.blocks.0.norm1", "layers.3.downsample"),
    lacks=("absolute_pos_embed",),
    rebuilt=_REBUILT,
    classifiers=("head.fc",),
)
OPENMMLAB = Layout(
    "openmmlab",
    "swin",
    (
        ("patch_embed.projection", "patch_embed.conv"),
        ("patch_embed.norm", "patch_embed.norm"),
        *blocks("stages.{s}.blocks.{b}", _block("attn.w_msa", ("ffn.layers.0.0", "ffn.layers.1")), OURS),
        *merges("stages.{}.downsample"),
        ("norm3", "norm"),
    ),
    mark="patch_embed.projection.weight",
    needs=("stages.0.blocks.0.norm1",),
    corners=OPENMMLAB_CORNERS,
    rebuilt=_REBUILT,
    classifiers=("head.fc",),
)
TORCHVISION = Layout(
    "torchvision",
    "swin",
    (
        ("features.0.0", "patch_embed.conv"),
        ("features.0.2", "patch_embed.norm"),
        *(
            pair
            for stage in range(4)
            for pair in blocks(
                f"features.{2 * stage + 1}.{{b}}", _block(mlp=("mlp.0", "mlp.3")), f"body.stages.{stage}.{{b}}"
            )
        ),
        *merges("features.{}", first=2, step=2),
        ("norm", "norm"),
    ),
    mark="features.0.0.weight",
    needs=("features.1.0.attn.qkv",),
    rebuilt=_REBUILT,
)
LAYOUTS = (AUTHORS, TIMM, OPENMMLAB, TORCHVISION)
