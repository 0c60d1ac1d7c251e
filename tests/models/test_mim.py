"""SimMIM, MixMIM and MAE with HiViT against formulas written from their papers, and what must not leak."""

import pytest
import torch
import torch.nn.functional as F

from headrace.kernels.patch_loss.reference import patchify
from headrace.models.algorithm import Progress
from headrace.models.algorithms.mae_hivit import MAEHiViT
from headrace.models.algorithms.mixmim import MixMIM
from headrace.models.algorithms.simmim import SimMIM
from headrace.models.backbones.vit import ViT
from headrace.pipelines.spec import Batch
from headrace.pipelines.views.masks import draw_mask
from headrace.pipelines.views.recipes import view

VIT = SimMIM.Config(view=view("simmim_vit"), backbone=ViT.Config("vit_base", relative_bias="shared", qkv_bias="qv"))
CONFIGS = {
    "simmim-swin": (SimMIM, SimMIM.Config().smoke()),
    "simmim-vit": (SimMIM, VIT.smoke()),
    "mixmim": (MixMIM, MixMIM.Config().smoke()),
    "mae-hivit": (MAEHiViT, MAEHiViT.Config().smoke()),
}
START = Progress(0, 1, 1)


@pytest.fixture(params=CONFIGS)
def algorithm(request):
    return build(request.param)


def build(name):
    kind, config = CONFIGS[name]
    torch.manual_seed(0)
    return kind(config)


def batch_of(algorithm, n=4, seed=0):
    size = algorithm.config.view.size
    images = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
    mask = draw_mask(algorithm.config.mask, seed, 0, torch.arange(n))
    return Batch(views={"image": images[None]}, ids=torch.arange(n), labels=None, mask=mask, step=0, epoch=0)


def pixels_of(hidden, grid, size):
    """(B, L) -> (B, 1, S, S) bool"""
    return F.interpolate(hidden.unflatten(1, grid)[:, None].float(), size=(size, size)) > 0


def normalised(patches):
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("name", ["simmim-swin", "simmim-vit"])
def test_simmim_is_the_mean_absolute_error_of_hidden_pixels(name):
    algorithm = build(name).eval()  # no drop path
    batch, p = batch_of(algorithm), algorithm.config.output
    images = batch.views["image"][0]
    prediction, _ = algorithm.predict(images, batch.mask.hidden)
    side = images.shape[-1] // p
    # (B, L, (y, x, c)) -> a picture, by a way that shares nothing with the operator
    picture = torch.zeros_like(images)
    for row in range(side):
        for column in range(side):
            square = prediction[:, row * side + column].view(-1, p, p, 3).permute(0, 3, 1, 2)
            picture[:, :, row * p : row * p + p, column * p : column * p + p] = square
    hidden = pixels_of(batch.mask.hidden, algorithm.config.mask.grid, images.shape[-1])
    expected = ((images - picture).abs() * hidden).sum() / hidden.sum() / 3
    assert algorithm(batch, START).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    restored = algorithm.reconstruct(images, batch.mask).images
    assert torch.allclose(restored, torch.where(hidden, picture, images), atol=1e-5)


@pytest.mark.parametrize("name", ["simmim-swin", "simmim-vit", "mae-hivit"])
def test_hidden_pixels_reach_nothing_but_the_target(name):
    algorithm = build(name).eval()
    batch = batch_of(algorithm)
    images, mask = batch.views["image"][0], batch.mask
    given = mask if name == "mae-hivit" else mask.hidden
    hidden = pixels_of(mask.hidden, algorithm.config.mask.grid, images.shape[-1])
    before = algorithm.predict(images, given)[0]
    assert torch.equal(algorithm.predict(torch.where(hidden, 7.0, images), given)[0], before)
    assert not torch.allclose(algorithm.predict(torch.where(hidden, images, 7.0), given)[0], before)


def test_hivit_decoder_puts_tokens_back_in_their_places():
    """Without a class token: a visible token's place must not shift by one (arXiv 2205.14949's own wiring)."""
    algorithm = build("mae-hivit").eval()
    batch = batch_of(algorithm)
    seen = {}
    decoder = algorithm.decoder
    decoder.blocks = torch.nn.ModuleList()
    decoder.norm = decoder.predict = torch.nn.Identity()
    decoder.embed.register_forward_hook(lambda module, inputs, output: seen.update(tokens=output))
    out = algorithm.predict(batch.views["image"][0], batch.mask)[0] - decoder.positions
    for b, keep in enumerate(batch.mask.keep):
        assert torch.allclose(out[b, keep], seen["tokens"][b], atol=1e-6)
        assert torch.allclose(out[b, batch.mask.hidden[b]], decoder.mask_token[0], atol=1e-6)


def test_mae_hivit_keeping_everything_is_the_plain_encoder():
    algorithm = build("mae-hivit").eval()
    images = torch.randn(2, 3, 32, 32)
    keep = torch.arange(16).expand(2, 16)
    main = algorithm.hivit.stage_tokens(images, keep).main
    assert torch.allclose(algorithm.hivit.norm(main.mean(1)), algorithm.encoder(images), atol=1e-6)


@pytest.mark.parametrize("per_sample", [False, True])
def test_mixmim_images_do_not_see_each_other(per_sample):
    """Image B-1-b changes b's mixed tokens at hidden places only, in every stage, and b's own changes only others."""
    algorithm = MixMIM(MixMIM.Config(mask_per_sample=per_sample).smoke()).eval()
    batch = batch_of(algorithm)
    images = batch.views["image"][0]
    hidden = batch.mask.hidden
    if per_sample:
        hidden = torch.cat([hidden[:2], hidden[:2].flip(0)])
    grid = algorithm.config.mask.grid
    cells = hidden.unflatten(1, grid)
    for changed in (0, 3):
        other = images.clone()
        other[changed] += torch.randn(3, 64, 64)
        pairs = zip(algorithm.backbone.maps(images, cells), algorithm.backbone.maps(other, cells), strict=True)
        for one, two in pairs:
            moved = (one - two).abs().amax(-1) > 0
            assert not moved[1].any() and not moved[2].any()
            places = pixels_of(hidden, grid, one.shape[1])[:, 0].expand(4, -1, -1)
            assert torch.equal(moved[0], places[0] if changed == 3 else ~places[0])
            assert torch.equal(moved[3], places[3] if changed == 0 else ~places[3])


def test_mixmim_with_nothing_hidden_is_the_plain_encoder():
    algorithm = build("mixmim").eval()
    images = torch.randn(4, 3, 64, 64)
    tokens = algorithm.backbone.tokens(images, torch.zeros(1, 2, 2, dtype=torch.bool))
    assert torch.allclose(tokens.mean(1), algorithm.encoder(images), atol=1e-5)


def test_mixmim_restores_every_patch_from_the_pass_that_hid_it():
    """The loss of the paper, from two streams decoded one by one."""
    algorithm = build("mixmim").eval()
    batch = batch_of(algorithm)
    images, m = batch.views["image"][0], batch.mask.hidden[0]
    tokens = algorithm.backbone.tokens(images, batch.mask.hidden.unflatten(1, (2, 2)))
    decoder = algorithm.decoder

    def decode(visible):
        x = decoder.embed(tokens)
        x = torch.where(visible[None, :, None], x, decoder.mask_token) + decoder.positions
        for block in decoder.blocks:
            x = block(x)
        return decoder.predict(decoder.norm(x))

    own, partner = decode(~m), decode(m)
    target = normalised(patchify(images, 32))
    total = 0.0
    for b in range(4):
        for place in range(4):
            guess = own[b, place] if m[place] else partner[3 - b, place]
            total += ((guess - target[b, place]) ** 2).mean().item() / 16
    assert algorithm(batch, START).loss.item() == pytest.approx(total, rel=1e-5)
    with pytest.raises(ValueError, match="even, not 3"):
        algorithm.predict(images[:3], batch.mask.hidden)


def test_losses_fall_on_a_fixed_batch(algorithm):
    """Adam fits eight images; a wiring that loses the signal cannot. bf16 gives finite losses and gradients."""
    batch = batch_of(algorithm, n=8)
    optimizer = torch.optim.Adam([p for p in algorithm.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(30):
        loss = algorithm(batch, START).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = algorithm(batch, START).loss
    loss.backward()
    trained = [p for p in algorithm.parameters() if p.requires_grad]
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in trained)


PUBLISHED = {  # parameters; the authors' and OpenMMLab's tables. Fixed position tables are counted there.
    "simmim-swin-b": (SimMIM, SimMIM.Config(), 89_874_104, 0),
    "mixmim-b": (MixMIM, MixMIM.Config(), 114_665_784, 3136 * 128 + 49 * 512),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    kind, config, published, tables = PUBLISHED[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in kind(config).parameters()) + tables == published
