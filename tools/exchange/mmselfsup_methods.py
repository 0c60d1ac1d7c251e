"""OpenMMLab's methods as tables: which of a model's settings arrive where. What the others are: mmselfsup_same.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# model.type -> the method; two are told from others by their parts (`method_of`)
ALGORITHMS = {
    "BYOL": "byol",
    "BarlowTwins": "barlowtwins",
    "BEiT": "beit",
    "CAE": "cae",
    "DeepCluster": "deepcluster",
    "DenseCL": "densecl",
    "EVA": "eva",
    "MAE": "mae",
    "MaskFeat": "maskfeat",
    "MILAN": "milan",
    "MixMIM": "mixmim",
    "MoCo": "moco",
    "MoCoV3": "mocov3",
    "NPID": "npid",
    "ODC": "odc",
    "PixMIM": "pixmim",
    "RelativeLoc": "relative_loc",
    "RelativeLocation": "relative_loc",
    "RotationPred": "rotation_pred",
    "SimCLR": "simclr",
    "SimMIM": "simmim",
    "SimSiam": "simsiam",
    "SwAV": "swav",
}


def method_of(model: dict[str, Any]) -> str:
    part = {key: str((model.get(key) or {}).get("type")) for key in ("backbone", "neck")}
    if model["type"] == "MAE" and "HiViT" in part["backbone"]:
        return "mae_hivit"
    if model["type"] == "BEiT" and "V2" in part["neck"]:
        return "beitv2"
    return ALGORITHMS[model["type"]]


def old_share(momentum: float) -> float:
    """Of a teacher's weights, those of before: 0.x's and MMSelfSup's momentum; MMPretrain's is the new ones' share."""
    return momentum if momentum > 0.5 else round(1 - momentum, 9)


_PROJECTOR = {"neck.hid_channels": "hidden", "neck.out_channels": "projection"}
_TEMPERATURE = {"head.temperature": "temperature", "head.loss.temperature": "temperature"}
_DECODER = {
    "neck.decoder_embed_dim": "decoder.width",
    "neck.decoder_depth": "decoder.depth",
    "neck.decoder_num_heads": "decoder.heads",
    "backbone.mask_ratio": "mask_ratio",
}
_NORMALIZED = {**_DECODER, "head.norm_pix": "normalize_pixels"}
# what a method's loader does to masks, by the transform's keys
BLOCKS = {
    "num_masking_patches": "hidden_patches",
    "min_num_patches": "smallest_block",
    "max_num_patches": "largest_block",
}
MASKS: dict[str, dict[str, str]] = {
    "beit": BLOCKS,
    "beitv2": BLOCKS,
    "cae": BLOCKS,
    "maskfeat": {key: BLOCKS[key] for key in ("num_masking_patches", "min_num_patches")},
    "simmim": {"mask_ratio": "mask_ratio", "mask_patch_size": "cell"},
}

# of a method: paths below `model` -> fields of its Config
ARRIVES: dict[str, dict[str, str]] = {
    "barlowtwins": {
        "neck.out_channels": "projection",
        "head.loss.lambd": "off_diagonal",
        "head.lambd": "off_diagonal",
    },
    "byol": {**_PROJECTOR, "base_momentum": "momentum"},
    "cae": {
        "neck.regressor_depth": "regressor_depth",
        "neck.decoder_depth": "decoder_depth",
        "head.loss.lambd": "alignment",
        "head.lambd": "alignment",
    },
    "deepcluster": {"head.num_classes": "clusters"},
    "densecl": {
        **_PROJECTOR,
        **_TEMPERATURE,
        "queue_len": "queue",
        "momentum": "momentum",
        "loss_lambda": "dense_weight",
    },
    "eva": _DECODER,
    "mae": _NORMALIZED,
    "mae_hivit": _NORMALIZED,
    "milan": _DECODER,
    "mixmim": {**_NORMALIZED, "backbone.range_mask_ratio": "mask_spread"},
    "moco": {**_PROJECTOR, **_TEMPERATURE, "queue_len": "queue", "momentum": "momentum"},
    "mocov3": {**_PROJECTOR, **_TEMPERATURE, "base_momentum": "momentum"},
    "npid": {
        "neck.out_channels": "projection",
        **_TEMPERATURE,
        "neg_num": "negatives",
        "ensure_neg": "exclude_self",
        "memory_bank.momentum": "momentum",
    },
    "odc": {
        **_PROJECTOR,
        "head.num_classes": "clusters",
        "memory_bank.momentum": "momentum",
        "memory_bank.min_cluster": "min_size",
    },
    "pixmim": {**_NORMALIZED, "target_generator.radius": "radius"},
    "relative_loc": {"neck.out_channels": "hidden"},
    "simclr": {**_PROJECTOR, **_TEMPERATURE},
    "simsiam": {"neck.out_channels": "projection", "head.predictor.hid_channels": "bottleneck"},
    "swav": {
        **_PROJECTOR,
        **_TEMPERATURE,
        **{
            f"{place}.{theirs}": own
            for place in ("head.loss", "head")
            for theirs, own in (
                ("epsilon", "epsilon"),
                ("num_prototypes", "prototypes"),
                ("sinkhorn_iterations", "iterations"),
            )
        },
    },
    "beitv2": {"neck.num_layers": "neck_depth", "neck.early_layers": "early_block"},
}
# a field of a method whose value is written another way there
CONVERTED: dict[tuple[str, str], Callable[[Any], Any]] = {
    **{(method, "momentum"): old_share for method in ("byol", "densecl", "moco", "mocov3")},
    ("beitv2", "early_block"): lambda layers: layers - 1,
}
# what their code does where a configuration has the part but is silent about it, and headrace does not
SILENT: dict[str, dict[str, Any]] = {
    "moco": {"head.temperature": 0.1},
    "mocov3": {"head.temperature": 1.0},
    "densecl": {"head.temperature": 0.1},
    "npid": {"head.temperature": 0.1},
}
