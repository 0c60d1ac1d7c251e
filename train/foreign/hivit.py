"""HiViT. Ours is `models.backbones.hivit.HiViT`.

Theirs is a flat list `blocks`: MLP blocks, a merging, MLP blocks, a merging, transformer blocks. The numbers follow
from the depths, so a layout is made for each pair of merging numbers.
"""

from .names import Layout, Pair

_MLP = (("norm2", "norm"), ("mlp.fc1", "fc1"), ("mlp.fc2", "fc2"))
_MERGE = (("norm", "norm"), ("reduction", "reduce"))
_MAIN = (
    ("norm1", "norm1"),
    ("attn.qkv", "qkv"),
    ("attn.proj", "proj"),
    ("norm2", "norm2"),
    ("mlp.fc1", "fc1"),
    ("mlp.fc2", "fc2"),
    ("gamma_1", "scale1"),
    ("gamma_2", "scale2"),
)
_MOST = 80  # blocks; the largest model has 50


def _flat(first_merge: int, second_merge: int) -> tuple[Pair, ...]:
    pairs: list[Pair] = []
    for k in range(_MOST):
        if k < first_merge:
            ours, inner = f"inner_blocks.{k}", _MLP
        elif k == first_merge:
            ours, inner = "inner_merge", _MERGE
        elif k < second_merge:
            ours, inner = f"merged_blocks.{k - first_merge - 1}", _MLP
        elif k == second_merge:
            ours, inner = "merged_merge", _MERGE
        else:
            ours, inner = f"blocks.{k - second_merge - 1}", _MAIN
            number = k - second_merge - 1
            pairs.append((f"blocks.{k}.attn.relative_position_bias_table", f"block_biases.{number}.table"))
        pairs += [(f"blocks.{k}.{a}", f"{ours}.{b}") for a, b in inner]
    return tuple(pairs)


def layouts(first_merge: int, second_merge: int) -> tuple[Layout, Layout]:
    """The authors' and OpenMMLab's, merging in `blocks.<first_merge>` and `blocks.<second_merge>`."""
    common = (
        ("patch_embed.proj", "patch_embed"),
        ("patch_embed.norm", "patch_norm"),
        *_flat(first_merge, second_merge),
        ("norm", "norm"),
        ("fc_norm", "norm"),
    )
    shared = dict(kind="hivit", mark="patch_embed.proj.weight", rebuilt=("relative_position_index",))
    needs = ("patch_embed.norm", "blocks.0.norm2", f"blocks.{second_merge}.reduction")
    authors = Layout(
        "authors", pairs=(("absolute_pos_embed", "positions"), ("fc_norm", "norm"), *common), needs=needs, **shared
    )
    openmmlab = Layout(
        "openmmlab",
        pairs=(("pos_embed", "positions"), *common),
        needs=needs,
        lacks=("absolute_pos_embed",),
        classifiers=("head.fc",),
        **shared,
    )
    return authors, openmmlab
