"""MAE against formulas written from the paper."""

import math

import pytest
import torch

from headrace.kernels.patch_loss.reference import patchify
from headrace.models.algorithm import Progress
from headrace.models.algorithms.mae import MAE
from headrace.models.backbones.transformer import resize_positions, sincos_positions
from headrace.models.backbones.vit import ViT
from headrace.models.decoders import MAEDecoder
from headrace.pipelines.spec import Batch, ViewSpec
from headrace.pipelines.views.masks import draw_mask

SMALL = MAE.Config(
    view=ViewSpec(size=32),
    backbone=ViT.Config(name="vit_tiny", patch_size=8, width=24, depth=2, heads=2),
    decoder=MAEDecoder.Config(width=16, depth=1, heads=2),
)


def make_batch(algorithm, n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = algorithm.config.view.size
    images = torch.randn(n, 3, size, size, generator=generator)
    mask = draw_mask(algorithm.config.mask, seed, 0, torch.arange(n))
    return Batch(views={"image": images[None]}, ids=torch.arange(n), labels=None, mask=mask, step=0, epoch=0)


@pytest.fixture
def mae():
    torch.manual_seed(0)
    return MAE(SMALL)


def test_positions_by_hand():
    """Row 1, column 2 of a 3 x 4 grid: sin and cos of the column's angles, then of the row's."""
    table = sincos_positions(8, 3, 4)
    omega = [1.0, 10000 ** (-1 / 2)]
    expected = [f(position * w) for position in (2, 1) for f in (math.sin, math.cos) for w in omega]
    assert torch.allclose(table[1 * 4 + 2], torch.tensor(expected))


def test_patchify_by_hand():
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    patches = patchify(images, 2)
    for b, (row, column), (u, v), c in [(1, (1, 2), (0, 1), 2), (0, (0, 1), (1, 0), 1)]:
        assert patches[b, row * 3 + column, (u * 2 + v) * 3 + c] == images[b, c, row * 2 + u, column * 2 + v]


def test_loss_is_the_papers(mae):
    batch = make_batch(mae)
    prediction, _ = mae.predict(batch.views["image"][0], batch.mask)
    target = patchify(batch.views["image"][0], 8).double()
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    error = ((prediction.double() - (target - mean) / (variance + 1e-6).sqrt()) ** 2).mean(-1)
    expected = error[batch.mask.hidden].mean()
    assert abs(mae(batch, Progress(0, 1, 1)).loss.item() - expected.item()) < 1e-5


def test_hidden_pixels_do_not_reach_the_encoder(mae):
    batch = make_batch(mae)
    images = batch.views["image"][0].clone()
    before = mae.vit.tokens(images, batch.mask.keep)
    hidden = batch.mask.hidden.view(4, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    noise = torch.randn(images.shape)
    assert torch.equal(mae.vit.tokens(torch.where(hidden, noise, images), batch.mask.keep), before)
    assert not torch.allclose(mae.vit.tokens(torch.where(hidden, images, noise), batch.mask.keep), before)


def test_keeping_every_patch_is_the_plain_encoder(mae):
    images = torch.randn(2, 3, 32, 32)
    everything = torch.arange(16).expand(2, 16)
    assert torch.allclose(mae.vit.tokens(images, everything), mae.vit.tokens(images), atol=1e-6)


def test_visible_predictions_get_no_gradient(mae):
    batch = make_batch(mae)
    predicted = []
    mae.decoder.register_forward_hook(
        lambda module, inputs, output: (output.retain_grad(), predicted.append(output))[1]
    )
    mae(batch, Progress(0, 1, 1)).loss.backward()
    gradient = predicted[0].grad
    assert (gradient[~batch.mask.hidden] == 0).all() and (gradient[batch.mask.hidden] != 0).any(-1).all()


def test_decoder_puts_tokens_back_in_raster_order(mae):
    """With an identity embedding and no blocks or positions, a visible token comes out at its own place."""
    decoder = mae.decoder
    decoder.blocks = torch.nn.ModuleList()
    decoder.embed = torch.nn.Identity()
    decoder.norm = torch.nn.Identity()
    decoder.predict = torch.nn.Identity()
    decoder.positions.zero_()
    mask = draw_mask(SMALL.mask, 0, 0, torch.arange(3))
    tokens = torch.cat([torch.zeros(3, 1, 1), 100.0 + mask.keep[:, :, None]], dim=1).expand(-1, -1, 16)
    out = decoder(tokens, mask.restore)
    places = torch.arange(16.0).expand(3, 16)
    assert torch.equal(out[~mask.hidden][:, 0], 100 + places[~mask.hidden])
    assert torch.equal(out[mask.hidden], decoder.mask_token[0].expand(int(mask.hidden.sum()), -1))


def test_perfect_predictions_reconstruct_the_image(mae):
    """If the decoder says exactly the normalised target, the reconstruction is the input."""
    batch = make_batch(mae)
    images = batch.views["image"][0]
    target = patchify(images, 8)
    variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
    mae.predict = lambda *_: ((target - mean) / (variance + 1e-6).sqrt(), None)
    restored = mae.reconstruct(images, batch.mask)
    assert torch.allclose(restored.images, images, atol=1e-4) and restored.error.max() < 1e-9


@pytest.mark.parametrize("name, width, depth", [("vit_tiny", 192, 12), ("vit_small", 384, 12), ("vit_base", 768, 12)])
def test_encoder_parameter_counts(name, width, depth):
    """Patch embedding, class token, 12 w² + 13 w for each block, last norm."""
    by_hand = 768 * width + width + width + depth * (12 * width**2 + 13 * width) + 2 * width
    assert sum(p.numel() for p in ViT(ViT.Config(name=name)).parameters()) == by_hand


def test_published_parameter_count():
    """111,907,840 for MAE-B, which counts the two fixed position tables of 197 rows as parameters."""
    assert sum(p.numel() for p in MAE().parameters()) + 197 * (768 + 512) == 111_907_840


def test_encoder_takes_another_image_size(mae):
    assert mae.encoder(torch.randn(2, 3, 48, 40)).shape == (2, 24)
    assert resize_positions(mae.vit.positions, (4, 4), (4, 4)) is mae.vit.positions
    ramp = torch.arange(8.0).view(1, 8, 1).expand(1, 8, 4).repeat(1, 8, 1)  # the column's number, on an 8 x 8 grid
    finer = resize_positions(ramp, (8, 8), (16, 16)).view(16, 16, 4)
    expected = (torch.arange(16) + 0.5) / 2 - 0.5  # near it: torch's cubic (a = -0.75) is not exact on a ramp
    assert torch.allclose(finer[:, 4:12], expected[None, 4:12, None].expand(16, 8, 4), atol=0.05)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="view: needs one view whose size is a multiple"):
        MAE.Config(view=ViewSpec(size=30), backbone=ViT.Config(patch_size=8))
    with pytest.raises(ValueError, match="width: 100 must be a multiple"):
        ViT.Config(width=100, heads=3)


def test_a_mask_that_leaves_nothing_is_refused():
    for ratio in (1.0, -0.1, 0.99):
        with pytest.raises(ValueError, match="^mask_ratio: "):
            MAE.Config(view=ViewSpec(size=32), backbone=ViT.Config(patch_size=8), mask_ratio=ratio)
