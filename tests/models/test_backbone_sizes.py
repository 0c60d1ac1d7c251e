"""Encoders have the published numbers of parameters and of operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from headrace.models.backbones.hivit import HiViT
from headrace.models.backbones.mixmim import MixMIMTransformer
from headrace.models.backbones.swin import Swin
from headrace.models.backbones.vit import ViT

CLASSES = 1000


BEIT = dict(positions="none", qkv_bias="qv", layer_scale=0.1)


DEIT3 = dict(positions="learned", layer_scale=1e-6, pool="cls")


GIANT = dict(patch_size=14, width=1536, depth=40, heads=24, mlp="swiglu", **DEIT3)


DINOV3 = dict(positions="rotary", registers=4, qkv_bias="qv", layer_scale=1e-5)


PUBLISHED = {  # encoder and a linear classifier; sources: the papers' and OpenMMLab's model tables
    "vit-b": (ViT, ViT.Config("vit_base", positions="learned"), 224, 86_567_656),
    "deit3-s": (ViT, ViT.Config("vit_small", **DEIT3), 224, 22_059_496),
    "deit3-m": (ViT, ViT.Config("vit_medium", **DEIT3), 224, 38_849_512),
    "deit3-b": (ViT, ViT.Config("vit_base", **DEIT3), 224, 86_585_320),
    "deit3-l": (ViT, ViT.Config("vit_large", **DEIT3), 224, 304_374_760),
    "deit3-h": (ViT, ViT.Config("vit_huge", patch_size=14, **DEIT3), 224, 632_126_440),
    "deit3-b-384": (ViT, ViT.Config("vit_base", **DEIT3), 384, 86_877_160),
    "dinov2-s-reg": (ViT, ViT.Config("vit_small", patch_size=14, registers=4, **DEIT3), 518, 22_442_344),
    "dinov2-g": (ViT, ViT.Config(**GIANT), 518, 1_138_016_232),
    "dinov3-s": (ViT, ViT.Config("vit_small", **DINOV3), 224, 21_981_160),
    "dinov3-h+": (ViT, ViT.Config("vit_huge", heads=20, hidden=5120, mlp="swiglu", **DINOV3), 224, 841_872_360),
    "clip-b": (ViT, ViT.Config("vit_base", positions="learned", pre_norm=True), 224, 86_568_424),
    "beit-b": (ViT, ViT.Config("vit_base", relative_bias="block", norm="pooled", **BEIT), 224, 86_530_984),
    "swin-b-w6": (Swin, Swin.Config("swin_base", window=6), 192, 87_750_176),
    "swin-b-w7": (Swin, Swin.Config("swin_base"), 224, 87_768_224),
    "swin-l-w14": (Swin, Swin.Config("swin_large", windows=(14,) * 4), 224, 196_848_316),
    "mixmim-b": (MixMIMTransformer, MixMIMTransformer.Config(), 224, 88_344_352),
    "mixmim-l": (MixMIMTransformer, MixMIMTransformer.Config("mixmim_large"), 224, 197_396_668),
    "mixmim-h": (MixMIMTransformer, MixMIMTransformer.Config("mixmim_huge"), 224, 659_262_658),
    "mixmim-b-384": (MixMIMTransformer, MixMIMTransformer.Config(windows=(16, 16, 24, 12)), 384, 89_577_440),
    "hivit-b": (HiViT, HiViT.Config(positions="learned", relative_bias=True), 224, 66_418_952),
}


# In these tables positions have a row for the class token, which is part of the class token here, and MixMIM's fixed
# positions count; HiViT's smaller models are listed without a last norm.
MORE = {
    "vit-b": 768,
    "clip-b": 768,
    "dinov2-g": 1536,
    "mixmim-b": 3136 * 128,
    "mixmim-l": 3136 * 192,
    "mixmim-h": 3136 * 352,
}


MORE["mixmim-b-384"] = 96 * 96 * 128


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    kind, config, size, published = PUBLISHED[name]
    with torch.device("meta"):
        model = kind(config, size)
    assert parameters(model) + (model.features + 1) * CLASSES + MORE.get(name, 0) == published


MULTIPLICATIONS = {  # published GFLOPs of a forward, which count a multiplication and an addition as one
    "vit-b": 17.58,
    "deit3-s": 4.61,
    "deit3-m": 8.00,
    "deit3-b": 17.58,
    "deit3-l": 61.60,
    "deit3-h": 167.40,
    "deit3-b-384": 55.54,
    "swin-b-w6": 11.30,
    "swin-b-w7": 15.47,
    "swin-l-w14": 38.85,
    "mixmim-b": 16.35,
    "mixmim-l": 35.9,
    "mixmim-b-384": 52.6,
    "hivit-b": 15.85,
}


@pytest.mark.parametrize("name", MULTIPLICATIONS)
def test_operations_are_the_published_ones(name):
    """Within 1 %: the classifier, and what is no matrix product or convolution, is left out here."""
    kind, config, size, _ = PUBLISHED[name]
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        kind(config, size).eval()(torch.empty(1, 3, size, size))
    assert counter.get_total_flops() / 2e9 == pytest.approx(MULTIPLICATIONS[name], rel=0.01)


@pytest.mark.parametrize(("name", "published"), [("hivit_tiny", 19_180_900), ("hivit_small", 37_525_696)])
def test_hivit_as_listed_without_its_last_norm(name, published):
    with torch.device("meta"):
        model = HiViT(HiViT.Config(name, positions="learned", relative_bias=True))
    assert parameters(model) - 2 * model.features + (model.features + 1) * CLASSES == published
