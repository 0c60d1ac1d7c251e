"""Settings of OpenMMLab's models that need no translation where they have the value that headrace has in any case.

A value that begins with @ is a fact of the translated algorithm: "@projection" a field of it, "@features" the width of
its encoder's features; `facts` in mmselfsup_config.py has them all.
"""

from __future__ import annotations

from typing import Any

_CONTRAST = {"head.type": "ContrastiveHead", "head.loss.type": "CrossEntropyLoss"}
_MLP = {"neck.type": "NonLinearNeck", "neck.in_channels": "@features", "neck.norm_cfg.type": "SyncBN"}
_PREDICTOR = {
    "head.predictor.type": "NonLinearNeck",
    "head.predictor.in_channels": "@projection",
    "head.predictor.out_channels": "@projection",
    "head.predictor.num_layers": 2,
    "head.predictor.with_avg_pool": False,
    "head.predictor.norm_cfg.type": "SyncBN",
}
_CLUSTERS = {
    "head.type": "ClsHead",
    "head.loss.type": "CrossEntropyLoss",
    "head.with_avg_pool": False,
    "with_sobel": "@sobel",
}
_PIXELS = {
    "neck.type": "MAEPretrainDecoder",
    "neck.patch_size": "@patch_size",
    "neck.num_patches": "@patches",
    "neck.in_chans": 3,
    "neck.embed_dim": "@features",
    "neck.mlp_ratio": 4,
    "head.type": "MAEPretrainHead",
    "head.patch_size": "@patch_size",
    "head.loss.type": ("PixelReconstructionLoss", "MAEReconstructionLoss"),
    "head.loss.criterion": "L2",
}
_COSINE = {
    "neck.predict_feature_dim": 512,
    "head.type": ("MIMHead", "MILANPretrainHead"),
    "head.loss.type": "CosineSimilarityLoss",
    "head.loss.shift_factor": 2.0,
    "head.loss.scale_factor": 2.0,
    "target_generator.type": "CLIPGenerator",
}
_HOG = {"nbins": 9, "pool": 8, "gaussian_window": 16}
_WORDS = {"head.embed_dims": "@features", "head.num_embed": 8192, "head.loss.type": ("CrossEntropyLoss", "BEiTLoss")}
_BANK = {"memory_bank.feat_dim": "@projection"}

# of a method: paths below `model` -> what headrace has there in any case; a tuple: any of these
SAME: dict[str, dict[str, Any]] = {
    "barlowtwins": _MLP
    | {
        "neck.hid_channels": "@projection",
        "neck.num_layers": 3,
        "neck.with_bias": False,
        "neck.with_last_bn": False,
        "neck.with_last_bn_affine": False,
        "neck.with_avg_pool": True,
        "head.type": "LatentCrossCorrelationHead",
        "head.in_channels": "@projection",
        "head.loss.type": "CrossCorrelationLoss",
    },
    "byol": _MLP
    | _PREDICTOR
    | {
        **{f"{part}.{key}": value for part in ("neck", "head.predictor") for key, value in (("with_bias", True),)},
        "neck.num_layers": 2,
        "neck.with_last_bn": False,
        "neck.with_avg_pool": True,
        "head.type": "LatentPredictHead",
        "head.predictor.hid_channels": "@hidden",
        "head.predictor.with_last_bn": False,
        "head.loss.type": "CosineSimilarityLoss",
    },
    "cae": {
        "neck.type": "CAENeck",
        "neck.patch_size": "@patch_size",
        "neck.embed_dims": "@features",
        "neck.num_heads": "@heads",
        "neck.mlp_ratio": 4,
        "neck.init_values": "@layer_scale",
        "neck.layer_scale_init_value": "@layer_scale",
        "neck.num_classes": 8192,
        "neck.mask_tokens_num": "@hidden_patches",
        "head.type": "CAEHead",
        "head.loss.type": "CAELoss",
        "target_generator.type": "DALL-E",
        "base_momentum": 0.0,
    },
    "deepcluster": _CLUSTERS | {"neck.type": "AvgPool2dNeck", "head.in_channels": "@features"},
    "densecl": _CONTRAST
    | {
        "neck.type": "DenseCLNeck",
        "neck.in_channels": "@features",
        "neck.num_grid": None,
        "feat_dim": "@projection",
    },
    "eva": _PIXELS | _COSINE,
    "mae": _PIXELS,
    "mae_hivit": _PIXELS,
    "maskfeat": {
        "neck.type": "LinearNeck",
        "neck.in_channels": "@features",
        "neck.out_channels": 108,
        "neck.with_avg_pool": False,
        "neck.norm_cfg": None,
        "head.type": ("MIMHead", "MaskFeatPretrainHead"),
        "head.hog_dim": 108,
        "head.loss.type": "PixelReconstructionLoss",
        "head.loss.criterion": "L2",
        "target_generator.type": "HOGGenerator",
        **{f"{place}.{key}": value for place in ("target_generator", "hog_para") for key, value in _HOG.items()},
    },
    "milan": _PIXELS | _COSINE | {"neck.type": "MILANPretrainDecoder"},
    "mixmim": _PIXELS
    | {
        "neck.type": "MixMIMPretrainDecoder",
        "neck.num_patches": "@cells",
        "neck.encoder_stride": 32,
        "head.type": "MixMIMPretrainHead",
        "head.loss.type": ("PixelReconstructionLoss", "MixMIMReconstructionLoss"),
    },
    "moco": _CONTRAST
    | {
        "neck.type": ("MoCoV2Neck", "LinearNeck"),
        "neck.in_channels": "@features",
        "neck.with_avg_pool": True,
        "feat_dim": "@projection",
    },
    "mocov3": _MLP
    | _PREDICTOR
    | {
        **{
            f"{part}.{key}": False
            for part in ("neck", "head.predictor")
            for key in ("with_bias", "with_last_bn_affine", "with_last_bias")
        },
        "neck.num_layers": "@layers",
        "neck.with_last_bn": True,
        "neck.with_avg_pool": "@convolutions",
        "neck.vit_backbone": "@attention",
        "head.type": "MoCoV3Head",
        "head.predictor.hid_channels": "@hidden",
        "head.predictor.with_last_bn": "@attention",
        "head.loss.type": "CrossEntropyLoss",
        "head.loss.loss_weight": "@twice_temperature",
    },
    "npid": _CONTRAST
    | _BANK
    | {
        "neck.type": "LinearNeck",
        "neck.in_channels": "@features",
        "neck.with_avg_pool": True,
        "memory_bank.type": "SimpleMemory",
    },
    "odc": _CLUSTERS
    | _BANK
    | {
        "neck.type": "ODCNeck",
        "neck.in_channels": "@features",
        "neck.with_avg_pool": True,
        "head.in_channels": "@projection",
        "memory_bank.type": "ODCMemory",
        "memory_bank.num_classes": "@clusters",
        "memory_bank.debug": False,
    },
    "pixmim": _PIXELS | {"target_generator.type": "LowFreqTargetGenerator", "target_generator.img_size": "@size"},
    "relative_loc": _CLUSTERS
    | {
        "neck.type": "RelativeLocNeck",
        "neck.in_channels": "@features",
        "neck.with_avg_pool": True,
        "head.in_channels": "@hidden",
        "head.num_classes": 8,
    },
    "rotation_pred": _CLUSTERS | {"head.with_avg_pool": True, "head.in_channels": "@features", "head.num_classes": 4},
    "simclr": _MLP | _CONTRAST | {"neck.num_layers": 2, "neck.with_bias": False, "neck.with_avg_pool": True},
    "simmim": {
        "neck.type": ("SimMIMLinearDecoder", "SimMIMNeck"),
        "neck.in_channels": "@features",
        "neck.encoder_stride": "@stride",
        "head.type": "SimMIMHead",
        "head.patch_size": "@patch_size",
        "head.encoder_in_channels": 3,
        "head.loss.type": ("PixelReconstructionLoss", "SimMIMReconstructionLoss"),
        "head.loss.encoder_in_channels": 3,
        "head.loss.criterion": "L1",
        "head.loss.channel": 3,
    },
    "simsiam": _MLP
    | _PREDICTOR
    | {
        "neck.hid_channels": "@projection",
        "neck.num_layers": 3,
        "neck.with_last_bn_affine": False,
        "neck.with_avg_pool": True,
        "head.type": "LatentPredictHead",
        "head.predictor.with_last_bn": False,
        "head.predictor.with_last_bias": True,
        "head.loss.type": "CosineSimilarityLoss",
    },
    "swav": {
        "neck.type": "SwAVNeck",
        "neck.in_channels": "@features",
        "neck.with_avg_pool": True,
        "neck.with_l2norm": True,
        "neck.norm_cfg.type": "SyncBN",
        "head.type": "SwAVHead",
        "head.loss.type": "SwAVLoss",
        **{
            f"{place}.{key}": value
            for place in ("head.loss", "head")
            for key, value in (
                ("feat_dim", "@projection"),
                ("crops_for_assign", [0, 1]),
                ("num_crops", "@crops"),
            )
        },
    },
    "beit": _WORDS | {"neck": None, "head.type": "BEiTV1Head", "target_generator.type": "DALL-E"},
    "beitv2": _WORDS
    | {
        "backbone.out_indices": "@early_and_last",
        "backbone.final_norm": False,
        "neck.type": "BEiTV2Neck",
        "neck.backbone_arch": "@arch",
        "neck.drop_path_rate": "@drop_path",
        "neck.layer_scale_init_value": "@layer_scale",
        "head.type": "BEiTV2Head",
        "target_generator.type": "VQKD",
    },
}
