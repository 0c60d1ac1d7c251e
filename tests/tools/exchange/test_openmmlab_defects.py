"""Where MMPretrain 1.2 differs from the papers' models, and by how much; put right, it computes what headrace does.

docs/differences.md and docs/encoders.md name these.
"""

import types
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("mmpretrain", reason="needs the extra [parity]")

from mmpretrain.datasets.transforms.processing import BEiTMaskGenerator  # noqa: E402
from mmpretrain.models.backbones import DeiT3  # noqa: E402
from mmpretrain.models.utils import resize_pos_embed  # noqa: E402
from mmpretrain.registry import MODELS  # noqa: E402
from openmmlab_methods import (  # noqa: E402
    ARCH,
    HEADS,
    PATCH,
    SAMPLES,
    SIZE,
    batch_of,
    beitv2,
    imported,
    mixmim,
    near,
    of_order,
    randomise,
    samples_of,
    views_of,
)

from headrace.models.algorithm import Progress  # noqa: E402
from headrace.models.algorithms.beitv2 import BEiTv2  # noqa: E402
from headrace.models.algorithms.mixmim import MixMIM  # noqa: E402
from headrace.pipelines.spec import BlockMask  # noqa: E402
from headrace.pipelines.views.masks import draw_mask  # noqa: E402
from headrace.train.foreign.convert import Options, convert  # noqa: E402
from headrace.train.foreign.shapes import Wishes  # noqa: E402

START = Progress(0, 1, 1)


def exact_positions(self, x, height, width):
    """HiViT's table as it is for the trained size, and resized to the very grid for others."""
    grid = (height // self.patch_size, width // self.patch_size)
    return resize_pos_embed(self.pos_embed, (SIZE // PATCH,) * 2, grid, num_extra_tokens=0)


def without_class_token(self, x, restore):
    """Their decoder for an encoder that has no class token."""
    x = self.decoder_embed(x)
    x = torch.cat([x, self.mask_token.expand(len(x), restore.shape[1] - x.shape[1], -1)], dim=1)
    x = x.gather(1, restore[:, :, None].expand_as(x)) + self.decoder_pos_embed[:, 1:]
    for block in self.decoder_blocks:
        x = block(x)
    return self.decoder_pred(self.decoder_norm(x))


def test_mae_hivit_once_its_decoder_has_no_class_token_and_its_positions_are_exact(tmp_path):
    theirs, ours = imported("mae_hivit", tmp_path)
    images = views_of(ours)[0]
    backbone = theirs.backbone
    with torch.no_grad():  # their features have no last norm
        near(ours.hivit.feature_maps(images)[-1], theirs.extract_feat(images)[-1])
        torch.manual_seed(2)
        as_published, hidden, restore = backbone(images)
        mask = of_order(restore, as_published.shape[1])
        stages = ours.hivit.stage_tokens(images, mask.keep)
        assert 0.1 < (stages.main - as_published).abs().max() < 1
        backbone.interpolate_pos_encoding = types.MethodType(exact_positions, backbone)
        torch.manual_seed(2)
        latent = backbone(images)[0]
        near(stages.main, latent)
        mended = without_class_token(theirs.neck, latent, restore)
        assert (theirs.neck(latent, restore) - mended).abs().max() > 0.1
        loss = theirs.head.loss(without_class_token(theirs.neck, ours.norm(latent), restore), images, hidden)
        assert ours(batch_of(ours, [images], mask), START).loss.item() == pytest.approx(loss.item(), rel=1e-5)


def test_mae_hivits_decoder_takes_the_first_visible_token_for_the_class(tmp_path):
    """The visible token of rank k lands where that of rank k - 1 belongs."""
    theirs, _ = imported("mae_hivit", tmp_path)
    neck = theirs.neck
    neck.decoder_blocks, neck.decoder_embed = torch.nn.ModuleList(), torch.nn.Identity()
    neck.ln1 = neck.decoder_pred = torch.nn.Identity()
    neck.decoder_pos_embed.data.zero_(), neck.mask_token.data.fill_(-1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))[None]
    tokens = torch.arange(4.0)[None, :, None].expand(1, 4, 16)
    landed = neck(tokens, order.argsort(1))[0, :, 0]
    assert landed[order[0, :4]].tolist() == [1, 2, 3, -1] and (landed[order[0, 4:]] == -1).all()


def test_hivits_positions_are_warped_while_tokens_are_hidden():
    """By up to a tenth of a patch at 224 px, since the number of visible tokens is compared with that of all."""
    backbone = MODELS.build(
        dict(type="MAEHiViT", arch=dict(embed_dims=16, depths=[1, 1, 1], num_heads=2), out_indices=[0])
    )
    columns = torch.arange(14.0).repeat(14)[None, :, None].expand(1, 196, 16)
    backbone.pos_embed.data.copy_(columns)
    assert torch.equal(backbone.interpolate_pos_encoding(torch.zeros(1, 196, 16), 224, 224), columns)
    off = (backbone.interpolate_pos_encoding(torch.zeros(1, 49, 16), 224, 224) - columns).abs()[..., 0].view(14, 14)
    assert 0.08 < off[:, 2:-2].max() < 0.13


def test_hivits_early_outputs_overwrite_its_features():
    """Where an output index is also the number of an early block."""
    arch = dict(embed_dims=16, depths=[1, 1, 1], num_heads=2)
    backbone = MODELS.build(dict(type="HiViT", arch=arch, img_size=SIZE, patch_size=PATCH, out_indices=[1, 0]))
    with pytest.raises(RuntimeError, match="normalized_shape"):
        backbone(torch.randn(1, 3, SIZE, SIZE))


def test_milans_decoder_expects_other_tokens_than_it_gets():
    assert MODELS.build(dict(type="MILANPretrainDecoder", decoder_depth=1)).decoder_embed.in_features == 1024


def test_hivit_at_another_size(tmp_path):
    """Their table for 6 x 6 patches is enlarged 6.1 times in 4, ours 6 times; it is the same once that is mended."""
    theirs, ours = imported("mae_hivit", tmp_path)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        own = ours.hivit.feature_maps(images)[-1]
        assert 0.01 < (own - theirs.extract_feat(images)[-1]).abs().max() < 1
        theirs.backbone.interpolate_pos_encoding = types.MethodType(exact_positions, theirs.backbone)
        near(own, theirs.extract_feat(images)[-1])


@pytest.mark.parametrize("size", [(SIZE, SIZE), (48, 40), (45, 38)])
def test_deit3_once_its_second_norm_is_used(size):
    """As published, a block normalises twice with its first norm."""
    theirs = randomise(DeiT3(arch=dict(ARCH), img_size=SIZE, patch_size=PATCH, out_type="raw"))
    state = theirs.state_dict()
    ours = convert(state, Options(wishes=Wishes(heads=HEADS))).classifier.backbone.eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        own, published = ours.tokens(images), theirs(images)[-1]
        assert (own - published).abs().max() > 0.1
        first = {name.replace("ln1", "ln2"): value for name, value in state.items() if ".ln1." in name}
        twice = convert(state | first, Options(wishes=Wishes(heads=HEADS))).classifier.backbone.eval()
        near(twice.tokens(images), published)
        for layer in theirs.layers:
            layer.forward = types.MethodType(_second_norm, layer)
        near(own, theirs(images)[-1])
        near(ours.feature_maps(images)[-1], _formatted(theirs, images, "featmap"))
        near(own[:, 0], _formatted(theirs, images, "cls_token"))
    with pytest.raises(AttributeError):
        _formatted(theirs, images, "avg_featmap")


def _second_norm(self, x):
    x = x + self.attn(self.ln1(x))
    return self.ffn(self.ln2(x), identity=x)


def _formatted(model, images, kind):
    model.out_type = kind
    return model(images)[-1]


@pytest.mark.parametrize(
    ("name", "size"),
    [("mae", (48, 40)), ("mae", (45, 38)), ("cae", (45, 38)), ("simmim", (160, 128)), ("simmim", (154, 130))],
)
def test_another_size_has_the_same_features(name, size, tmp_path):
    theirs, ours = imported(name, tmp_path)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        own = ours.encoder.feature_maps(images)[-1] if name == "simmim" else ours.vit.tokens(images)
        near(own, theirs.extract_feat(images)[-1])


def test_beits_relative_bias_has_one_size_there(tmp_path):
    theirs, ours = imported("beit", tmp_path)
    images = torch.randn(2, 3, 48, 40)
    with pytest.raises(RuntimeError, match="must match"):
        theirs.extract_feat(images)
    assert ours.encoder(images).isfinite().all()


def test_block_masks_miss_the_last_row_and_column_there():
    np.random.seed(0)
    generator = BEiTMaskGenerator(input_size=14, num_masking_patches=75, min_num_patches=16)
    theirs = np.mean([generator({})["mask"] for _ in range(300)], axis=0)
    ours = draw_mask(BlockMask((14, 14), 75, min_block=16), 0, 0, torch.arange(300)).hidden.float().mean(0).view(14, 14)
    assert theirs[-1].max() == theirs[:, -1].max() == 0 and theirs[0, :-1].min() > 0
    assert min(ours[-1].min(), ours[:, -1].min()) > 0.01


def test_beitv2s_codebook_keeps_moving_there(tmp_path):
    theirs, ours = imported("beitv2", tmp_path)
    theirs.train(), ours.train()
    images, mask = views_of(ours), draw_mask(ours.inputs().mask, 0, 0, torch.arange(SAMPLES))
    codes = theirs.target_generator.quantize.embedding.weight
    before, own = codes.clone(), ours.tokenizer.codebook.vectors.clone()
    theirs.loss(images, samples_of(ours, mask))
    ours(batch_of(ours, images, mask), START)
    moved = (codes - before).norm(dim=1)
    assert 0 < (moved > 1e-3).sum() <= SAMPLES * 16
    assert torch.equal(ours.tokenizer.codebook.vectors, own)


def test_beitv2s_neck_is_rescaled_too_early_there():
    """Deviation of the last layer's weights over 0.02: 1 there, 1 / sqrt(2 x 4) for the fourth block here."""
    theirs, options = beitv2()
    theirs = MODELS.build(theirs)
    theirs.init_weights()
    assert theirs.neck.patch_aggregation[1].attn.proj.weight.detach().std() / 0.02 == pytest.approx(1, abs=0.1)
    ours = BEiTv2(BEiTv2.Config(**options, weights=replace(BEiTv2.Config().weights, path="random")))
    assert ours.neck[1].proj.weight.detach().std() / 0.02 == pytest.approx(8**-0.5, abs=0.05)


def test_beits_mlp_is_dropped_twice_there(tmp_path):
    """With a drop path of 0.5 a quarter of the samples keep the branch there, half of them here."""
    theirs, ours = imported("beit", tmp_path)
    layer, block = theirs.backbone.layers[0].train(), ours.vit.blocks[0].train()
    layer.drop_path.drop_prob = layer.ffn.dropout_layer.drop_prob = block.drop_path = 0.5
    layer.gamma_1.data.zero_(), block.scale1.data.zero_()
    x = torch.randn(1, 2, 24).expand(2000, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        kept = [
            ((layer(x, None) - x).abs().amax((1, 2)) > 0).float().mean(),
            ((block(x) - x).abs().amax((1, 2)) > 0).float().mean(),
        ]
    assert kept == pytest.approx([0.25, 0.5], abs=0.05)


def test_mixmim_starts_from_other_weights_there():
    """Relative tables at 0 and the decoder at PyTorch's defaults; here N(0, 0.02) and Xavier, as with the authors."""
    theirs, options = mixmim()
    theirs = MODELS.build(theirs)
    theirs.init_weights()
    assert theirs.backbone.layers[0].blocks[0].attn.relative_position_bias_table.abs().max() == 0
    ours = MixMIM(MixMIM.Config(**options))
    assert ours.backbone.body.stages[0][0].bias_table.detach().std() == pytest.approx(0.02, rel=0.2)
    xavier = (2 / (16 + 64)) ** 0.5
    assert ours.decoder.blocks[0].fc1.weight.detach().std() == pytest.approx(xavier, rel=0.1)
    assert theirs.neck.decoder_blocks[0].ffn.layers[0][0].weight.detach().std() == pytest.approx(
        1 / 3**0.5 / 4, rel=0.1
    )


@pytest.mark.parametrize("name", ["mae", "mae_hivit", "mixmim"])
def test_a_mask_that_is_false_masks_there(name, tmp_path):
    theirs, ours = imported(name, tmp_path)
    assert len(theirs.backbone(views_of(ours)[0], mask=False)) in (2, 3)  # features and their mask, not features alone


def test_a_target_is_the_same_hog(tmp_path):
    theirs, ours = imported("maskfeat", tmp_path)
    images = views_of(ours)[0]
    from headrace.kernels.hog import hog

    assert F.mse_loss(hog(images), theirs.target_generator(images.clone())) < 1e-6
