"""OpenMMLab's MMPretrain 1.2.0: its models, data pipelines, data loader and `train_step`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from headrace.pipelines.spec import ViewSpec

from .heat import Heat, Racer, as_authors, optimizer

_CROP = {"type": "RandomResizedCrop", "backend": "pillow"}
_PACK = {"type": "PackInputs"}
_READ = {"type": "LoadImageFromFile"}
_PIXELS = {"type": "PixelReconstructionLoss", "criterion": "L2"}


def simclr(heat: Heat) -> Racer:
    own, view = heat.algorithm, heat.algorithm.view
    names = ("brightness", "contrast", "saturation", "hue")
    jitter = {"type": "ColorJitter"} | {name: getattr(view, name) for name in names}
    pipeline = [
        _CROP | {"scale": view.size},
        {"type": "RandomFlip", "prob": view.flip},
        {"type": "RandomApply", "transforms": [jitter], "prob": view.jitter},
        {
            "type": "RandomGrayscale",
            "prob": view.gray,
            "keep_channels": True,
            "channel_weights": (0.114, 0.587, 0.2989),
        },
    ]
    if view.blur:
        blur = {"magnitude_range": view.blur_sigma, "magnitude_std": "inf", "prob": view.blur}
        pipeline.append({"type": "GaussianBlur"} | blur)
    neck = {"in_channels": 512, "hid_channels": own.hidden, "out_channels": own.projection, "num_layers": 2}
    model = {
        "type": "SimCLR",
        "backbone": {"type": "ResNet_CIFAR" if own.backbone.small_image_stem else "ResNet", "depth": 18}
        | {"zero_init_residual": True, "norm_cfg": {"type": "BN"}},
        "neck": {"type": "NonLinearNeck", "with_avg_pool": True, "norm_cfg": {"type": "BN1d"}} | neck,
        "head": {
            "type": "ContrastiveHead",
            "loss": {"type": "CrossEntropyLoss"},
            "temperature": own.temperature,
        },
    }
    _shift_hue_by_bytes()
    return _racer(heat, model, [_READ, {"type": "MultiView", "num_views": 2, "transforms": [pipeline]}, _PACK])


def mae(heat: Heat) -> Racer:
    own = heat.algorithm
    patch, size = own.backbone.patch_size, own.view.size
    arch = {"embed_dims": 192, "num_layers": 12, "num_heads": 3, "feedforward_channels": 768}
    decoder = {"decoder_embed_dim": own.decoder.width, "decoder_depth": own.decoder.depth}
    model = {
        "type": "MAE",
        "backbone": {"type": "MAEViT", "arch": arch, "img_size": size, "patch_size": patch}
        | {"mask_ratio": own.mask_ratio},
        "neck": {"type": "MAEPretrainDecoder", "num_patches": (size // patch) ** 2, "patch_size": patch}
        | {"embed_dim": 192, "decoder_num_heads": own.decoder.heads, "mlp_ratio": 4.0}
        | decoder,
        "head": {"type": "MAEPretrainHead", "norm_pix": True, "patch_size": patch, "loss": _PIXELS},
    }
    return _racer(heat, model, _one_view(own.view))


def mixmim(heat: Heat) -> Racer:
    own = heat.algorithm
    body, size = own.backbone, own.view.size
    arch = {"embed_dims": body.width, "depths": list(body.depths), "num_heads": list(body.heads)}
    decoder = {"decoder_embed_dim": own.decoder.width, "decoder_depth": own.decoder.depth}
    model = {
        "type": "MixMIM",
        "backbone": {"type": "MixMIMPretrainTransformer", "arch": arch, "img_size": size}
        | {"window_size": list(body.windows), "mask_ratio": own.mask_ratio},
        "neck": {"type": "MixMIMPretrainDecoder", "num_patches": (size // 32) ** 2, "encoder_stride": 32}
        | {"embed_dim": 8 * body.width, "decoder_num_heads": own.decoder.heads}
        | decoder,
        "head": {"type": "MixMIMPretrainHead", "norm_pix": True, "loss": _PIXELS},
    }
    return _racer(heat, model, _one_view(own.view))


def _one_view(view: ViewSpec) -> list[dict]:
    crop = {"scale": view.size, "crop_ratio_range": view.scale, "interpolation": view.interpolation}
    return [_READ, _CROP | crop, {"type": "RandomFlip", "prob": view.flip}, _PACK]


def _shift_hue_by_bytes() -> None:
    """MMCV 2.1 turns negative shifts into unsigned bytes, which NumPy 2 refuses (findings/mmcv-hue-numpy2.sh).

    The same shift, as NumPy 1 made it.
    """
    import cv2
    import mmcv
    import numpy as np

    def shifted(img: np.ndarray, hue_factor: float, backend: str | None = None) -> np.ndarray:
        h, s, v = cv2.split(cv2.cvtColor(img.astype(np.uint8), cv2.COLOR_BGR2HSV_FULL))
        h += np.uint8(int(hue_factor * 255) % 256)
        return cv2.cvtColor(cv2.merge([h, s, v]), cv2.COLOR_HSV2BGR_FULL).astype(img.dtype)

    mmcv.adjust_hue = shifted


def _racer(heat: Heat, model: dict, pipeline: list[dict]) -> Racer:
    from mmengine.optim import OptimWrapper
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner
    from mmpretrain.registry import MODELS

    init_default_scope("mmpretrain")
    torch.set_num_threads(heat.workers)
    view = heat.algorithm.view
    levels = {"mean": [255 * v for v in view.mean], "std": [255 * v for v in view.std], "to_rgb": True}
    made = MODELS.build(model | {"data_preprocessor": {"type": "SelfSupDataPreprocessor"} | levels})
    made.init_weights()
    if heat.job.method != "simclr":
        as_authors(made)
    made.train()
    wrapper = OptimWrapper(optimizer(heat, made))
    loader = Runner.build_dataloader(
        {
            "batch_size": heat.job.batch,
            "num_workers": heat.workers,
            "persistent_workers": heat.workers > 0,
            "drop_last": True,
            "sampler": {"type": "DefaultSampler", "shuffle": True},
            "collate_fn": {"type": "default_collate"},
            "dataset": {"type": "CustomDataset", "data_root": str(heat.data), "pipeline": pipeline},
        }
    )

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    def step(batch: Any) -> torch.Tensor:
        return made.train_step(batch, wrapper)["loss"].detach()

    def views(batch: Any) -> list[torch.Tensor]:
        found = made.data_preprocessor(batch, training=True)["inputs"]
        return list(found) if isinstance(found, (list, tuple)) else [found]

    return Racer(batches(), step, views, made)
