"""MMPretrain's methods at a tiny size with random weights, and ours with the same weights taken over.

Imported where mmpretrain is installed alone.
"""

import math
from dataclasses import replace

import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from headrace.models.algorithms import find_algorithm
from headrace.models.backbones.hivit import HiViT
from headrace.models.backbones.mixmim import MixMIMTransformer
from headrace.models.backbones.swin import Swin
from headrace.models.backbones.vit import ViT
from headrace.models.decoders import MAEDecoder
from headrace.models.targets.frozen import Weights
from headrace.pipelines.spec import Batch, Mask, ViewSpec
from headrace.pipelines.views.recipes import view
from headrace.train.foreign.methods import METHODS, load_method

WIDTH, DEPTH, HEADS, PATCH = 24, 3, 2, 8
SIZE, GRID = 32, 4  # pixels, patches
SAMPLES = 4
DECODER = MAEDecoder.Config(width=16, depth=2, heads=2)
ARCH = dict(embed_dims=WIDTH, num_layers=DEPTH, num_heads=HEADS, feedforward_channels=4 * WIDTH)
_VIT = ViT.Config(patch_size=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS)
_BEIT = replace(_VIT, positions="none", relative_bias="shared", qkv_bias="qv", layer_scale=0.1)
_VIEW = ViewSpec(size=SIZE)
_WORDS = dict(view=_VIEW, hidden_patches=6, smallest_block=2)
_DALLE_VIEW = replace(view("beit.target"), size=GRID * 8)
_PIXELS = dict(type="PixelReconstructionLoss", criterion="L2")


def randomise(model):
    """Every parameter drawn anew, of a size that keeps activations near 1, where published files allow it."""
    torch.manual_seed(0)
    for name, tensor in model.named_parameters():
        with torch.no_grad():
            if "norm" in name or ".ln" in name or name.startswith("ln"):
                tensor.normal_(float(name.endswith("weight")), 0.2)
            elif tensor.dim() < 2 or any(word in name for word in ("bias_table", "pos_embed", "token")):
                tensor.normal_(0, 0.5)
            else:
                tensor.normal_(0, tensor[0].numel() ** -0.5)
            if name.endswith("decoder_pos_embed") and math.isqrt(tensor.shape[1]) ** 2 != tensor.shape[1]:
                tensor[:, 0] = 0  # the class token's row
            if name.endswith("quantize.embedding.weight"):
                tensor.div_(tensor.norm(dim=-1, keepdim=True))
    model.eval()
    return model


def _mae(**options):
    decoder = dict(patch_size=PATCH, embed_dim=WIDTH, decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2)
    return dict(
        type="MAE",
        backbone=dict(type="MAEViT", arch=dict(ARCH), img_size=SIZE, patch_size=PATCH, **options),
        neck=dict(type="MAEPretrainDecoder", num_patches=GRID**2, mlp_ratio=4, **decoder),
        head=dict(type="MAEPretrainHead", norm_pix=True, patch_size=PATCH, loss=dict(_PIXELS)),
    )


def mae():
    return _mae(), dict(view=_VIEW, backbone=_VIT, decoder=DECODER)


def mae_hivit():
    theirs = _mae()
    theirs["backbone"] = dict(
        type="MAEHiViT",
        arch=dict(embed_dims=32, depths=[1, 1, 7], num_heads=2),  # fewer, and its output index hits an early block
        img_size=SIZE,
        patch_size=PATCH,
        out_indices=[6],
    )
    theirs["neck"]["embed_dim"] = 32
    backbone = HiViT.Config(width=32, depths=(1, 1, 7), heads=2, patch_size=PATCH)
    return theirs, dict(view=_VIEW, backbone=backbone, decoder=DECODER, fuse_stages=False)


def simmim():
    arch = dict(embed_dims=8, depths=[1, 2, 2, 1], num_heads=[1, 2, 2, 2])
    windows = dict(block_cfgs=dict(window_size=4))
    theirs = dict(
        type="SimMIM",
        backbone=dict(type="SimMIMSwinTransformer", arch=arch, img_size=128, stage_cfgs=windows),
        neck=dict(type="SimMIMLinearDecoder", in_channels=64, encoder_stride=32),
        head=dict(
            type="SimMIMHead", patch_size=4, loss=dict(type="PixelReconstructionLoss", criterion="L1", channel=3)
        ),
    )
    backbone = Swin.Config(width=8, depths=(1, 2, 2, 1), heads=(1, 2, 2, 2), window=4)
    return theirs, dict(view=replace(_VIEW, size=128), backbone=backbone)


def mixmim():
    arch = dict(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 2])
    backbone = dict(type="MixMIMPretrainTransformer", arch=arch, img_size=96, window_size=[12, 12, 6, 3])
    decoder = dict(embed_dim=64, encoder_stride=32, decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2)
    theirs = dict(
        type="MixMIM",
        backbone=backbone,
        neck=dict(type="MixMIMPretrainDecoder", num_patches=9, **decoder),
        head=dict(type="MixMIMPretrainHead", norm_pix=True, loss=dict(_PIXELS)),
    )
    own = MixMIMTransformer.Config(width=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 2), windows=(12, 12, 6, 3))
    return theirs, dict(view=replace(_VIEW, size=96), backbone=own, decoder=DECODER)


def maskfeat():
    theirs = dict(
        type="MaskFeat",
        backbone=dict(type="MaskFeatViT", arch=dict(ARCH), img_size=224, patch_size=16),
        neck=dict(type="LinearNeck", in_channels=WIDTH, out_channels=108, norm_cfg=None),
        head=dict(type="MIMHead", loss=dict(_PIXELS)),
        target_generator=dict(type="HOGGenerator", nbins=9, pool=8, gaussian_window=16),
    )
    backbone = replace(_VIT, patch_size=16, positions="learned")
    return theirs, dict(view=replace(_VIEW, size=224), backbone=backbone)


def beit():
    theirs = dict(
        type="BEiT",
        backbone=dict(type="BEiTPretrainViT", arch=dict(ARCH), img_size=SIZE, patch_size=PATCH),
        head=dict(type="BEiTV1Head", embed_dims=WIDTH, num_embed=8192, loss=dict(type="CrossEntropyLoss")),
        target_generator=dict(type="DALL-E", n_hid=8),
    )
    return theirs, dict(**_WORDS, target_view=_DALLE_VIEW, backbone=_BEIT, tokenizer_width=8)


def beitv2():
    tokenizer = dict(arch=dict(ARCH), img_size=SIZE, patch_size=PATCH, out_type="featmap", final_norm=True)
    tokenizer |= dict(
        use_abs_pos_emb=True, use_rel_pos_bias=False, use_shared_rel_pos_bias=False, layer_scale_init_value=0.0
    )
    backbone = dict(type="BEiTPretrainViT", arch=dict(ARCH), img_size=SIZE, patch_size=PATCH)
    theirs = dict(
        type="BEiT",
        backbone=dict(**backbone, out_indices=[-2, -1], final_norm=False),
        neck=dict(type="BEiTV2Neck", num_layers=2, early_layers=2, backbone_arch=dict(**ARCH, depth=DEPTH)),
        head=dict(type="BEiTV2Head", embed_dims=WIDTH, num_embed=8192, loss=dict(type="CrossEntropyLoss")),
        target_generator=dict(type="VQKD", encoder_config=tokenizer, quantize_kmeans_init=False),
    )
    own = dict(**_WORDS, target_view=replace(_VIEW, name="target", draws="image"), backbone=_BEIT, early_block=1)
    return theirs, dict(**own, tokenizer=replace(_VIT, positions="learned", qkv_bias="qv"))


def cae():
    backbone = dict(type="CAEPretrainViT", arch=dict(ARCH), img_size=SIZE, patch_size=PATCH)
    neck = dict(type="CAENeck", embed_dims=WIDTH, num_heads=HEADS, regressor_depth=2, decoder_depth=2)
    theirs = dict(
        type="CAE",
        backbone=dict(**backbone, layer_scale_init_value=0.1),
        neck=dict(**neck, layer_scale_init_value=0.1, mask_tokens_num=6),
        head=dict(type="CAEHead", loss=dict(type="CAELoss", lambd=2)),
        target_generator=dict(type="DALL-E", n_hid=8),
    )
    own = dict(**_WORDS, target_view=_DALLE_VIEW, backbone=replace(_VIT, qkv_bias="qv", layer_scale=0.1))
    return theirs, dict(**own, regressor_depth=2, decoder_depth=2, tokenizer_width=8)


METHOD_CASES = {f.__name__: f for f in (mae, mae_hivit, simmim, mixmim, maskfeat, beit, beitv2, cae)}


def imported(name, folder):
    """(theirs, ours), in evaluation mode, with the same random weights; target networks through a file in `folder`."""
    config, options = METHOD_CASES[name]()
    theirs = randomise(MODELS.build(config))
    if "target_view" in options:
        torch.save(theirs.target_generator.state_dict(), folder / "target.pth")
        options["weights"] = Weights(str(folder / "target.pth"))
    kind = find_algorithm(name)
    ours = kind(kind.Config(**options)).eval()
    state = theirs.state_dict()
    if name == "mae_hivit":  # of whose features theirs are not normalised
        state |= {"norm.weight": torch.rand(32) + 0.5, "norm.bias": torch.randn(32)}
    load_method(ours, state, METHODS[name])
    return theirs, ours


def views_of(ours):
    """Images of every view."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SAMPLES, 3, view.size, view.size, generator=generator) for view in ours.inputs().views]


def batch_of(ours, images, mask):
    views = {view.name: x[None] for view, x in zip(ours.inputs().views, images, strict=True)}
    return Batch(views=views, ids=torch.arange(SAMPLES), labels=None, mask=mask, step=0, epoch=0)


def near(ours, theirs, tolerance=1e-5):
    assert ours.shape == theirs.shape and theirs.std() > 1e-6
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def samples_of(ours, mask):
    """What their loader passes on for each image."""
    masks = mask.hidden.unflatten(1, ours.config.mask.grid)
    samples = [DataSample() for _ in masks]
    for sample, own in zip(samples, masks, strict=True):
        sample.set_field(own.float(), "mask")
    return samples


def of_order(restore, kept):
    """Our mask of their shuffling: the first `kept` of the shuffled patches are visible."""
    order = restore.argsort(dim=1)
    hidden = restore >= kept
    return Mask(hidden, keep=order[:, :kept], restore=restore)
