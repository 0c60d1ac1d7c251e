"""Configurations of MMSelfSup's methods with all that the published ones say, in 1.x's words and in those of 0.x."""

_RESNET = dict(type="ResNet", depth=50, in_channels=3, out_indices=[4], zero_init_residual=True)
_SYNC, _OWN = dict(norm_cfg=dict(type="SyncBN")), dict(norm_cfg=dict(type="BN"))
_ENTROPY = dict(type="mmcls.CrossEntropyLoss")
_VIT = dict(arch="b", patch_size=16)
_PLAIN = dict(num_layers=2, with_bias=False, with_last_bn=True, with_last_bn_affine=False, with_last_bias=False)
_PIXELS = dict(patch_size=16, in_chans=3, embed_dim=768, decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16)
_INIT = [dict(type="Xavier", distribution="uniform", layer="Linear"), dict(type="Constant", layer="LayerNorm", val=1.0)]
_TARGET = dict(init_cfg=dict(type="Pretrained", checkpoint="https://host/dalle_encoder.pth"))
_COSINE = dict(type="CosineSimilarityLoss", shift_factor=2.0, scale_factor=2.0)
_NORMALIZED = dict(type="MAEPretrainHead", norm_pix=True, patch_size=16, loss=dict(type="MAEReconstructionLoss"))


def _mlp(inside, hidden, out, **more):
    return dict(type="NonLinearNeck", in_channels=inside, hid_channels=hidden, out_channels=out, **more)


def _contrast(temperature):
    return dict(type="ContrastiveHead", loss=_ENTROPY, temperature=temperature)


def _classes(inside, number, pooled=False):
    return dict(type="ClsHead", loss=_ENTROPY, with_avg_pool=pooled, in_channels=inside, num_classes=number)


def _masked(name, backbone, **head):
    return dict(
        type=name,
        backbone=dict(_VIT, type=backbone, mask_ratio=0.75),
        neck=dict(_PIXELS, type="MAEPretrainDecoder", mlp_ratio=4.0),
        head=head
        or dict(type="MAEPretrainHead", norm_pix=True, patch_size=16, loss=dict(type="MAEReconstructionLoss")),
        init_cfg=_INIT,
    )


def _words(backbone, head, **target):
    return dict(
        backbone=dict(type="BEiTViT", arch="base", patch_size=16, layer_scale_init_value=0.1, **backbone),
        head=dict(type=head, embed_dims=768, num_embed=8192, loss=dict(type="BEiTLoss")),
        target_generator=target,
    )


MODELS = {
    "BYOL": dict(
        base_momentum=0.99,
        backbone=_RESNET | _SYNC,
        neck=_mlp(2048, 4096, 256, num_layers=2, with_bias=True, with_last_bn=False, with_avg_pool=True),
        head=dict(
            type="LatentPredictHead",
            predictor=_mlp(256, 4096, 256, num_layers=2, with_bias=True, with_last_bn=False, with_avg_pool=False),
            loss=dict(type="CosineSimilarityLoss"),
        ),
    ),
    "BarlowTwins": dict(
        backbone=_RESNET | _SYNC,
        neck=_mlp(2048, 8192, 8192, num_layers=3, with_last_bn=False, with_last_bn_affine=False, with_avg_pool=True),
        head=dict(
            type="LatentCrossCorrelationHead", in_channels=8192, loss=dict(type="CrossCorrelationLoss", lambd=0.0051)
        ),
    ),
    "BEiT": _words(dict(drop_path_rate=0.1, final_norm=True), "BEiTV1Head", type="DALL-E", **_TARGET) | dict(neck=None),
    "BEiT v2": _words(
        dict(drop_path_rate=0.0, final_norm=False, out_indices=[-4, -1]),
        "BEiTV2Head",
        type="VQKD",
        encoder_config=dict(_VIT, arch="base", img_size=224, use_abs_pos_emb=True, norm_cfg=dict(type="LN", eps=1e-6)),
    )
    | dict(
        neck=dict(
            type="BEiTV2Neck",
            num_layers=2,
            early_layers=9,
            backbone_arch="base",
            drop_path_rate=0.0,
            layer_scale_init_value=0.1,
        )
    ),
    "CAE": dict(
        base_momentum=0.0,
        backbone=dict(_VIT, type="CAEViT", init_values=0.1, qkv_bias=False),
        neck=dict(
            type="CAENeck",
            patch_size=16,
            embed_dims=768,
            num_heads=12,
            regressor_depth=4,
            decoder_depth=4,
            mlp_ratio=4,
            init_values=0.1,
        ),
        head=dict(type="CAEHead", loss=dict(type="CAELoss", lambd=2)),
        target_generator=dict(type="DALL-E", **_TARGET),
    ),
    "DeepCluster": dict(
        backbone=_RESNET | _OWN, neck=dict(type="AvgPool2dNeck"), head=_classes(2048, 10000), with_sobel=False
    ),
    "DenseCL": dict(
        queue_len=65536,
        feat_dim=128,
        momentum=0.999,
        loss_lambda=0.5,
        backbone=_RESNET | _OWN,
        neck=dict(type="DenseCLNeck", in_channels=2048, hid_channels=2048, out_channels=128, num_grid=None),
        head=_contrast(0.2),
    ),
    "EVA": _masked("EVA", "MAEViT", type="MILANPretrainHead", loss=_COSINE)
    | dict(target_generator=dict(type="CLIPGenerator", tokenizer_path="https://host/clip.pth.tar")),
    "MAE": _masked("MAE", "MAEViT"),
    "MaskFeat": dict(
        backbone=dict(_VIT, type="MaskFeatViT"),
        neck=dict(type="LinearNeck", in_channels=768, out_channels=108, with_avg_pool=False, init_cfg=_INIT[0]),
        head=dict(type="MaskFeatPretrainHead", loss=dict(type="PixelReconstructionLoss", criterion="L2")),
        target_generator=dict(type="HOGGenerator", nbins=9, pool=8, gaussian_window=16),
    ),
    "MILAN": _masked("MILAN", "MILANViT", type="MILANPretrainHead", loss=_COSINE)
    | dict(target_generator=dict(type="CLIPGenerator", tokenizer_path="https://host/clip.pth.tar")),
    "MixMIM": dict(
        backbone=dict(
            type="MixMIMTransformerPretrain", arch="B", drop_rate=0.0, drop_path_rate=0.0, range_mask_ratio=0.0
        ),
        neck=dict(
            type="MixMIMPretrainDecoder",
            num_patches=49,
            encoder_stride=32,
            embed_dim=1024,
            decoder_embed_dim=512,
            decoder_depth=8,
            decoder_num_heads=16,
        ),
        head=dict(type="MixMIMPretrainHead", norm_pix=True, loss=dict(type="PixelReconstructionLoss", criterion="L2")),
    ),
    "MoCo": dict(
        queue_len=65536,
        feat_dim=128,
        momentum=0.999,
        backbone=_RESNET | _OWN,
        neck=dict(type="MoCoV2Neck", in_channels=2048, hid_channels=2048, out_channels=128, with_avg_pool=True),
        head=_contrast(0.2),
    ),
    "MoCoV3": dict(
        base_momentum=0.99,
        backbone=dict(type="MoCoV3ViT", arch="mocov3-small", img_size=224, patch_size=16, stop_grad_conv1=True),
        neck=_mlp(384, 4096, 256, **_PLAIN | dict(num_layers=3), with_avg_pool=False, vit_backbone=True),
        head=dict(
            type="MoCoV3Head",
            predictor=_mlp(256, 4096, 256, **_PLAIN, with_avg_pool=False),
            loss=dict(_ENTROPY, loss_weight=0.4),
            temperature=0.2,
        ),
    ),
    "NPID": dict(
        neg_num=65536,
        ensure_neg=False,
        backbone=_RESNET | _SYNC,
        neck=dict(type="LinearNeck", in_channels=2048, out_channels=128, with_avg_pool=True),
        head=_contrast(0.07),
        memory_bank=dict(type="SimpleMemory", length=1281167, feat_dim=128, momentum=0.5),
    ),
    "ODC": dict(
        backbone=_RESNET | _SYNC,
        neck=dict(type="ODCNeck", in_channels=2048, hid_channels=512, out_channels=256, with_avg_pool=True),
        head=_classes(256, 10000),
        memory_bank=dict(
            type="ODCMemory", length=1281167, feat_dim=256, momentum=0.5, num_classes=10000, min_cluster=20, debug=False
        ),
    ),
    "PixMIM": _masked("PixMIM", "MAEViT")
    | dict(target_generator=dict(type="LowFreqTargetGenerator", radius=40, img_size=224)),
    "RelativeLoc": dict(
        backbone=_RESNET | _OWN,
        neck=dict(type="RelativeLocNeck", in_channels=2048, out_channels=4096, with_avg_pool=True),
        head=_classes(4096, 8),
    ),
    "RotationPred": dict(backbone=_RESNET | _SYNC, head=_classes(2048, 4, pooled=True)),
    "SimCLR": dict(
        backbone=_RESNET | _SYNC,
        neck=_mlp(2048, 2048, 128, num_layers=2, with_avg_pool=True),
        head=_contrast(0.1),
    ),
    "SimMIM": dict(
        backbone=dict(
            type="SimMIMSwinTransformer", arch="B", img_size=192, stage_cfgs=dict(block_cfgs=dict(window_size=6))
        ),
        neck=dict(type="SimMIMNeck", in_channels=1024, encoder_stride=32),
        head=dict(type="SimMIMHead", patch_size=4, loss=dict(type="SimMIMReconstructionLoss", encoder_in_channels=3)),
    ),
    "SimSiam": dict(
        backbone=_RESNET | _SYNC,
        neck=_mlp(2048, 2048, 2048, num_layers=3, with_last_bn_affine=False, with_avg_pool=True),
        head=dict(
            type="LatentPredictHead",
            predictor=_mlp(2048, 512, 2048, with_avg_pool=False, with_last_bn=False, with_last_bias=True),
            loss=dict(type="CosineSimilarityLoss"),
        ),
    ),
    "SwAV": dict(
        backbone=_RESNET | _SYNC,
        neck=dict(type="SwAVNeck", in_channels=2048, hid_channels=2048, out_channels=128, with_avg_pool=True),
        head=dict(
            type="SwAVHead",
            loss=dict(
                type="SwAVLoss",
                feat_dim=128,
                epsilon=0.05,
                temperature=0.1,
                num_crops=[2, 6],
                num_prototypes=3000,
                sinkhorn_iterations=3,
            ),
        ),
    ),
}
MODELS = {name: dict(type=name.partition(" ")[0]) | model for name, model in MODELS.items()}
_BLOCKS = dict(type="BEiTMaskGenerator", input_size=[14, 14], num_masking_patches=75, min_num_patches=16)
MASKS = {
    **dict.fromkeys(("BEiT", "BEiT v2", "CAE", "MaskFeat"), _BLOCKS | dict(max_num_patches=None)),
    "SimMIM": dict(type="SimMIMMaskGenerator", input_size=192, mask_patch_size=32, model_patch_size=4, mask_ratio=0.6),
}
_CLUSTERING = dict(
    type="DeepClusterHook",
    extract_dataloader=dict(batch_size=128),
    clustering=dict(type="Kmeans", k=10000, pca_dim=256),
    unif_sampling=True,
    reweight=False,
    reweight_pow=0.5,
    initial=True,
    interval=1,
)
HOOKS = {
    "SwAV": dict(
        type="SwAVHook",
        priority="VERY_HIGH",
        batch_size=32,
        epoch_queue_starts=15,
        crops_for_assign=[0, 1],
        feat_dim=128,
        queue_length=3840,
        frozen_layers_cfg=dict(prototypes=5005),
    ),
    "SimSiam": dict(type="SimSiamHook", priority="HIGH", fix_pred_lr=True, lr=0.8),
    "DenseCL": dict(type="DenseCLHook", start_iters=1000),
    "DeepCluster": _CLUSTERING,
    "ODC": dict(
        type="ODCHook",
        centroids_update_interval=10,
        deal_with_small_clusters_interval=1,
        evaluate_interval=50,
        reweight=True,
        reweight_pow=0.5,
    ),
    "BYOL": dict(type="EMAHook", momentum=1e-4, priority="ABOVE_NORMAL"),
}
_RULES = {"bn": dict(decay_mult=0.0, lars_exclude=True), "bias": dict(decay_mult=0.0, lars_exclude=True)}
_RULES |= {"pos_embed": dict(decay_mult=0.0), "cls_token": dict(decay_mult=0.0), "predictor": dict(fix_lr=True)}
OPTIMIZERS = {
    "lars": dict(type="LARS", lr=0.8, momentum=0.9, weight_decay=1e-6, eta=1e-3, eps=1e-8),
    "sgd": dict(type="SGD", lr=0.8, momentum=0.9, weight_decay=1e-4, nesterov=False, dampening=0),
    "adamw": dict(type="AdamW", lr=0.8, betas=[0.9, 0.95], weight_decay=0.05, eps=1e-8),
}


def pipeline(name, normalize=()):
    crop = dict(type="RandomResizedCrop", size=224, scale=[0.2, 1.0], interpolation="bicubic")
    return [dict(type="LoadImageFromFile"), crop, *([MASKS[name]] if name in MASKS else []), *normalize]


def new(name, optimizer):
    """In 1.x's words."""
    return dict(
        model=MODELS[name],
        data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
        train_dataloader=dict(
            batch_size=32,
            num_workers=4,
            drop_last=True,
            sampler=dict(type="DefaultSampler", shuffle=True),
            dataset=dict(type="mmcls.ImageNet", ann_file="meta/train.txt", pipeline=pipeline(name)),
        ),
        optim_wrapper=dict(
            type="AmpOptimWrapper",
            loss_scale="dynamic",
            dtype="float16",
            accumulative_counts=2,
            clip_grad=dict(max_norm=3.0, norm_type=2),
            optimizer=OPTIMIZERS[optimizer],
            paramwise_cfg=dict(norm_decay_mult=0.0, flat_decay_mult=0.0, bias_lr_mult=1.0, custom_keys=_RULES),
        ),
        param_scheduler=[
            dict(type="LinearLR", start_factor=1e-4, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
            dict(type="CosineAnnealingLR", T_max=260, eta_min=1e-5, by_epoch=True, begin=40, end=300),
        ],
        train_cfg=dict(type="EpochBasedTrainLoop", max_epochs=300, val_interval=10),
        auto_scale_lr=dict(base_batch_size=512, enable=False),
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=50),
            checkpoint=dict(type="CheckpointHook", interval=10, max_keep_ckpts=3),
        ),
        custom_hooks=[HOOKS[name]] if name in HOOKS else [],
        randomness=dict(seed=0, diff_rank_seed=True, deterministic=False),
        env_cfg=dict(cudnn_benchmark=False, mp_cfg=dict(opencv_num_threads=0)),
        find_unused_parameters=True,
        load_from=None,
        resume=False,
        lr=0.8,
        train_pipeline=pipeline(name),
    )


def old(name, optimizer):
    """In 0.x's words."""
    norm = dict(type="Normalize", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    rules = {"bn": dict(weight_decay=0.0, lars_exclude=True), "bias": dict(weight_decay=0.0, lars_exclude=True)}
    return dict(
        model=MODELS[name],
        data=dict(
            samples_per_gpu=32,
            workers_per_gpu=4,
            train=dict(
                type="SingleViewDataset", data_source=dict(ann_file="train.txt"), pipeline=pipeline(name, [norm])
            ),
        ),
        optimizer=OPTIMIZERS[optimizer] | dict(paramwise_options=rules | {r"\Ahead.": dict(momentum=0.0)}),
        optimizer_config=dict(grad_clip=dict(max_norm=3.0), update_interval=2, coalesce=True),
        lr_config=dict(
            policy="CosineAnnealing",
            by_epoch=False,
            min_lr=1e-5,
            warmup="linear",
            warmup_iters=40,
            warmup_ratio=1e-4,
            warmup_by_epoch=True,
        ),
        runner=dict(type="EpochBasedRunner", max_epochs=300),
        fp16=dict(loss_scale=512.0),
        checkpoint_config=dict(interval=10, max_keep_ckpts=3),
        log_config=dict(interval=50, hooks=[dict(type="TextLoggerHook")]),
        custom_hooks=[HOOKS[name]] if name in HOOKS else [],
        cudnn_benchmark=True,
        load_from=None,
        resume_from=None,
        workflow=[["train", 1]],
        seed=0,
    )
