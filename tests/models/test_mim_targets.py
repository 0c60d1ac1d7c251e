"""PixMIM, MaskFeat, BEiT, BEiT v2, CAE, MILAN, EVA and VQ-KD: losses from their papers' formulas."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mim_samples import RANDOM, START, batch_of, build

from headrace.models.algorithm import Progress
from headrace.models.algorithms import find_algorithm
from headrace.models.targets.hog_picture import hog_picture
from headrace.models.targets.lowpass import low_pass
from headrace.models.words import hidden_places

NAMES = ("pixmim", "maskfeat", "beit", "beitv2", "cae", "milan", "eva", "vqkd")


# ---- PixMIM


def test_low_pass_keeps_a_disc_of_frequencies():
    x = np.random.default_rng(0).random((1, 3, 20, 24))
    spectrum = np.fft.fftshift(np.fft.fft2(x), axes=(-2, -1))
    for i in range(20):
        for j in range(24):
            if (i - 9.5) ** 2 + (j - 11.5) ** 2 > 49:
                spectrum[..., i, j] = 0
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))))
    assert np.allclose(low_pass(torch.from_numpy(x).float(), 7).numpy(), expected, atol=1e-5)
    image = torch.rand(1, 3, 20, 24)
    assert torch.allclose(low_pass(image, 100), image, atol=1e-5)
    assert torch.allclose(low_pass(torch.full_like(image, 0.3), 2), torch.tensor(0.3), atol=1e-5)


def test_pixmim_predicts_the_filtered_image_in_the_scale_of_the_view():
    algorithm = build("pixmim")
    images = batch_of(algorithm).views["image"][0]
    view = algorithm.config.view
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (view.mean, view.std))
    assert torch.allclose(algorithm.target(images) * std + mean, low_pass(images * std + mean, 40.0), atol=1e-5)


# ---- MaskFeat


def test_strokes_lie_along_edges():
    """A vertical edge has a horizontal gradient: gx alone, atan2(gx, 0) = pi / 2, the middle bin."""
    histograms = torch.zeros(1, 1, 3, 9, 2, 2)
    histograms[0, 0, :, 4] = 1
    picture = hog_picture(histograms.flatten(2), (1, 1))
    assert picture.shape == (1, 3, 16, 16) and picture.max() == 1
    columns = picture[0, 0, :8, :8].mean(0)
    assert columns[3:5].min() > 0.4 and columns[[0, 7]].max() < 0.01
    assert torch.allclose(picture[0, 0, 0], picture[0, 0, 5])


def test_maskfeat_is_the_mean_squared_error_of_hidden_histograms():
    from headrace.kernels.hog import hog

    algorithm = build("maskfeat")
    batch = batch_of(algorithm)
    images, hidden = batch.views["image"][0], batch.mask.hidden
    prediction, _ = algorithm.predict(images, hidden)
    expected = F.mse_loss(prediction[hidden], hog(images)[hidden])
    assert algorithm(batch, START).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert hidden.sum(1).tolist() == [6] * 4


# ---- BEiT, BEiT v2, CAE


def test_hidden_places_are_the_hidden_patches_in_raster_order():
    batch = batch_of(build("beit"))
    for hidden, places in zip(batch.mask.hidden, hidden_places(batch.mask), strict=True):
        assert places.tolist() == hidden.nonzero()[:, 0].tolist()


def test_beit_is_the_cross_entropy_of_hidden_words():
    algorithm = build("beit").eval()
    batch = batch_of(algorithm)
    hidden = batch.mask.hidden
    tokens = algorithm.vit.tokens(batch.views["image"][0], hidden=hidden, mask_token=algorithm.mask_token)[:, 1:]
    words = algorithm.tokenizer.words(batch.views["target"][0])
    logits = algorithm.head(tokens[hidden]).double()
    expected = -(logits.softmax(1).gather(1, words[hidden][:, None])).log().mean()
    assert algorithm(batch, START).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(expected.item() - np.log(8192)) < 0.5


def test_beitv2_sums_two_predictions_the_second_through_the_class_token():
    algorithm = build("beitv2").eval()
    batch = batch_of(algorithm)
    images, hidden = batch.views["image"][0], batch.mask.hidden
    early, final = algorithm.vit.outputs(images, (1, 2), hidden=hidden, mask_token=algorithm.mask_token)
    x = torch.cat([final[:, :1], early[:, 1:]], dim=1)
    for block in algorithm.neck:
        x = block(x, algorithm.vit.relative_bias())
    words = algorithm.tokenizer.words(batch.views["target"][0])[hidden]
    losses = [F.cross_entropy(algorithm.head(algorithm.vit.norm(t)[:, 1:][hidden]), words) for t in (final, x)]
    assert algorithm(batch, START).loss.item() == pytest.approx(sum(losses).item(), rel=1e-5)


def test_cae_written_out():
    algorithm = build("cae").eval()
    with torch.no_grad():  # a teacher of its own, so that mixing the two up shows
        for parameter in algorithm.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = batch_of(algorithm)
    images, keep, places = batch.views["image"][0], batch.mask.keep, hidden_places(batch.mask)
    tokens = algorithm.vit.tokens(images, keep)
    latent = algorithm.teacher.vit.tokens(images, places)[:, 1:]
    at_hidden = torch.stack([algorithm.vit.positions[0, p] for p in places])
    at_visible = torch.stack([algorithm.vit.positions[0, p] for p in keep])
    guess = algorithm.mask_token.expand(4, places.shape[1], -1)
    block = algorithm.regressor[0]
    context = torch.cat([tokens[:, 1:], guess], dim=1)
    q = block.q(block.norm_q(guess + at_hidden))
    k = block.k(block.norm_k(context + torch.cat([at_visible, at_hidden], dim=1)))
    v = block.v(block.norm_v(context))
    heads = [t.unflatten(-1, (block.heads, -1)).transpose(1, 2) for t in (q, k, v)]
    weights = (heads[0] @ heads[1].transpose(-1, -2) * heads[0].shape[-1] ** -0.5).softmax(-1)
    n = block.norm2(guess + block.scale1 * block.proj((weights @ heads[2]).transpose(1, 2).flatten(2)))
    guess = algorithm.regressor_norm(n + block.scale2 * block.fc2(F.gelu(block.fc1(n))))
    decoded = algorithm.decoder_norm(algorithm.decoder[0](guess + at_hidden))
    words = torch.stack([w[p] for w, p in zip(algorithm.tokenizer.words(batch.views["target"][0]), places)])
    expected = F.cross_entropy(algorithm.head(decoded).flatten(0, 1), words.flatten())
    expected = expected + 2 * (guess - latent).square().mean()
    assert algorithm(batch, START).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_cae_teacher_sees_hidden_patches_alone_and_is_one_step_behind():
    algorithm = build("cae")
    batch = batch_of(algorithm)
    optimizer = torch.optim.SGD([p for p in algorithm.parameters() if p.requires_grad], lr=0.1)
    before = copy.deepcopy(algorithm.vit.state_dict())
    algorithm(batch, START).loss.backward()
    algorithm.after_backward(START)
    optimizer.step()
    teacher = algorithm.teacher.vit.state_dict()
    assert all(torch.equal(teacher[name], before[name]) for name in before)
    assert any(not torch.equal(algorithm.vit.state_dict()[name], before[name]) for name in before)
    images, places = batch.views["image"][0], hidden_places(batch.mask)
    latent = algorithm.teacher.vit.tokens(images, places)
    hidden = batch.mask.hidden.unflatten(1, algorithm.config.mask.grid)[:, None].float()
    hidden = F.interpolate(hidden, size=images.shape[-2:]) > 0
    assert torch.equal(algorithm.teacher.vit.tokens(torch.where(hidden, images, 9.0), places), latent)


# ---- CLIP: MILAN and EVA


def test_eva_is_masked_cosine_distance_and_milan_that_of_all_tokens():
    for name in ("eva", "milan"):
        algorithm = build(name).eval()
        batch = batch_of(algorithm)
        images = batch.views["image"][0]
        features, attention = algorithm.clip(images)
        if name == "eva":
            prediction, _ = algorithm.predict(images, batch.mask)
            pairs = zip(prediction[batch.mask.hidden], features[:, 1:][batch.mask.hidden], strict=True)
        else:
            # the choice: the patches with the largest log(noise) / importance, a race without replacement
            keys = batch.mask.noise.double().log() / attention.double()
            keep = keys.topk(algorithm.config.mask.patches - algorithm.config.mask.hidden, dim=1).indices.sort(1).values
            hidden = torch.ones_like(batch.mask.hidden).scatter_(1, keep, False)
            order = torch.cat([keep, torch.stack([h.nonzero()[:, 0] for h in hidden])], dim=1)
            mask = type(batch.mask)(hidden, keep, order.argsort(1))
            prediction, _ = algorithm.predict(images, mask)
            pairs = zip(prediction.flatten(0, 1), features.flatten(0, 1), strict=True)
        distances = [2 - 2 * (a @ b / a.norm() / b.norm()).item() for a, b in pairs]
        assert algorithm(batch, START).loss.item() == pytest.approx(sum(distances) / len(distances), rel=1e-4)


def test_milan_decoder_leaves_visible_tokens_alone():
    algorithm = build("milan").eval()
    batch = batch_of(algorithm)
    decoder = algorithm.decoder
    tokens = algorithm.vit.tokens(batch.views["image"][0], batch.mask.keep)
    decoder.norm = decoder.predict = torch.nn.Identity()
    out = decoder(tokens, batch.mask.restore)
    embedded = decoder.embed(tokens)
    assert torch.allclose(out[:, 0], embedded[:, 0], atol=1e-6)
    for b, keep in enumerate(batch.mask.keep):
        assert torch.allclose(out[b, 1 + keep], embedded[b, 1:] + decoder.positions[0, keep], atol=1e-6)


# ---- all


@pytest.mark.parametrize("name", NAMES)
def test_losses_fall_and_bf16_is_finite(name):
    algorithm = build(name)
    batch = batch_of(algorithm, n=8)
    optimizer = torch.optim.Adam([p for p in algorithm.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(20):
        progress = Progress(step, 20, 20)
        loss = algorithm(batch, progress).loss
        optimizer.zero_grad()
        loss.backward()
        algorithm.after_backward(progress)
        optimizer.step()
        algorithm.after_step(progress)
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = algorithm(batch, Progress(20, 21, 21)).loss
    optimizer.zero_grad()
    loss.backward()
    assert loss.isfinite()
    without = [n for n, p in algorithm.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in algorithm.parameters() if p.grad is not None)


TRAINABLE = {  # OpenMMLab's tables, without fixed position tables and teachers
    "pixmim": 111_907_840 - 197 * (768 + 512),
    "maskfeat": 85_882_476 - 768,  # a row of positions for the class token, which is part of it here
    "beit": 91_965_776,
    "beitv2": 106_143_056,
    "milan": 111_776_512 - 197 * (768 + 512),
    "eva": 111_776_512 - 197 * (768 + 512),
}


@pytest.mark.parametrize("name", TRAINABLE)
def test_parameters_are_the_published_ones(name):
    kind = find_algorithm(name)
    config = kind.Config()
    if hasattr(config, "weights"):
        config = type(config)(weights=RANDOM)
    with torch.device("meta"):
        algorithm = kind(config)
    assert sum(p.numel() for p in algorithm.parameters() if p.requires_grad) == TRAINABLE[name]
