"""PixMIM, MaskFeat, BEiT, BEiT v2, CAE, MILAN, EVA and VQ-KD: losses from their papers' formulas, frozen targets."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headrace.errors import UserError
from headrace.models.algorithm import Progress
from headrace.models.algorithms import find_algorithm
from headrace.models.algorithms.beit import hidden_places
from headrace.models.targets.clip import CLIPShape, CLIPVision
from headrace.models.targets.dalle import DalleEncoder
from headrace.models.targets.frozen import Frozen, Weights
from headrace.models.targets.hog_picture import hog_picture
from headrace.models.targets.lowpass import low_pass
from headrace.models.targets.vqkd import Codebook, VQKDTokenizer
from headrace.pipelines.masks import draw_mask
from headrace.pipelines.spec import Batch
from headrace.train import checkpoint, pretrain
from headrace.train.config import RECIPES
from headrace.train.embed_encoder import load_encoder

START = Progress(0, 10, 10)
NAMES = ("pixmim", "maskfeat", "beit", "beitv2", "cae", "milan", "eva", "vqkd")
RANDOM = Weights("random")


def build(name):
    kind = find_algorithm(name)
    torch.manual_seed(0)
    return kind(kind.Config().smoke())


def batch_of(algorithm, n=4, seed=0):
    inputs, generator = algorithm.inputs(), torch.Generator().manual_seed(seed)
    views = {v.name: torch.randn(v.copies, n, 3, v.size, v.size, generator=generator) for v in inputs.views}
    mask = None if inputs.mask is None else draw_mask(inputs.mask, seed, 0, torch.arange(n))
    return Batch(views=views, ids=torch.arange(n), labels=None, mask=mask, step=0, epoch=0)


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


def test_clip_attention_is_that_of_the_class_token():
    torch.manual_seed(0)
    clip = CLIPVision(RANDOM, CLIPShape(32, 8, 32, 2, 4, 24))
    seen = {}
    clip.vit.blocks[-1].norm1.register_forward_hook(lambda module, inputs, output: seen.update(x=output))
    features, attention = clip(torch.randn(2, 3, 32, 32))
    q, k, _ = clip.vit.blocks[-1].qkv(seen["x"]).chunk(3, -1)
    total = torch.zeros(2, 17)
    for head in range(4):
        own = slice(8 * head, 8 * head + 8)
        total += (q[:, :1, own] @ k[..., own].transpose(1, 2) / 8**0.5).softmax(-1)[:, 0] / 4
    assert features.shape == (2, 17, 24) and torch.allclose(attention, total[:, 1:], atol=1e-6)


def test_clip_reads_openai_names(tmp_path):
    """A tower of torch's own layers under OpenAI's names gives the same features."""
    torch.manual_seed(0)
    width, heads = 32, 4
    layers = torch.nn.ModuleList(torch.nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(2))
    state = {
        "visual.conv1.weight": torch.randn(width, 3, 8, 8) * 0.1,
        "visual.class_embedding": torch.randn(width),
        "visual.positional_embedding": torch.randn(17, width),
        "visual.proj": torch.randn(width, 24),
        "text_projection": torch.randn(3, 3),
    }
    for name in ("ln_pre", "ln_post"):
        state |= {f"visual.{name}.weight": torch.rand(width) + 0.5, f"visual.{name}.bias": torch.randn(width)}
    for i, layer in enumerate(layers):
        inner = {f"attn.{key}": value for key, value in layer.state_dict().items()}
        for name in ("ln_1", "ln_2"):
            inner |= {f"{name}.weight": torch.rand(width) + 0.5, f"{name}.bias": torch.randn(width)}
        inner |= {"mlp.c_fc.weight": torch.randn(128, width) * 0.1, "mlp.c_fc.bias": torch.randn(128)}
        inner |= {"mlp.c_proj.weight": torch.randn(width, 128) * 0.1, "mlp.c_proj.bias": torch.randn(width)}
        state |= {f"visual.transformer.resblocks.{i}.{key}": value for key, value in inner.items()}
    torch.save(state, tmp_path / "clip.pt")
    clip = CLIPVision(Weights(str(tmp_path / "clip.pt")), CLIPShape(32, 8, width, 2, heads, 24))
    images = torch.randn(2, 3, 32, 32)

    def norm(x, name):
        return F.layer_norm(x, (width,), state[f"visual.{name}.weight"], state[f"visual.{name}.bias"])

    with torch.no_grad():
        x = F.conv2d(images, state["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
        x = torch.cat([state["visual.class_embedding"].expand(2, 1, -1), x], 1) + state["visual.positional_embedding"]
        x = norm(x, "ln_pre")
        for i, layer in enumerate(layers):
            block = f"transformer.resblocks.{i}"
            h = norm(x, f"{block}.ln_1")
            x = x + layer(h, h, h, need_weights=False)[0]
            h = norm(x, f"{block}.ln_2") @ state[f"visual.{block}.mlp.c_fc.weight"].T
            h = h + state[f"visual.{block}.mlp.c_fc.bias"]
            h = h * torch.sigmoid(1.702 * h)
            x = x + h @ state[f"visual.{block}.mlp.c_proj.weight"].T + state[f"visual.{block}.mlp.c_proj.bias"]
        expected = norm(x, "ln_post") @ state["visual.proj"]
    assert torch.allclose(clip(images)[0], expected, atol=1e-4)


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


# ---- VQ-KD


def test_codebook_moves_by_its_formula_and_leaves_unused_codes():
    torch.manual_seed(0)
    book = Codebook(codes=6, width=4)
    z = F.normalize(torch.randn(20, 4), dim=-1)
    before, codes = book.vectors.clone(), book(z)
    assert torch.equal(codes, torch.cdist(z, before).argmin(1))
    codes[codes == 2] = 3
    book.update(z, codes)
    for code in range(6):
        expected = before[code]
        if (codes == code).any():
            expected = F.normalize(0.99 * before[code] + 0.01 * F.normalize(z[codes == code].sum(0), dim=0), dim=0)
        assert torch.allclose(book.vectors[code], expected, atol=1e-6)
    assert torch.equal(book.vectors[2], before[2])


def test_vqkd_learns_codes_that_tell_clip_features():
    algorithm = build("vqkd")
    batch = batch_of(algorithm, n=8)
    optimizer = torch.optim.Adam([p for p in algorithm.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(25):
        progress = Progress(step, 25, 25)
        output = algorithm(batch, progress)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        algorithm.after_step(progress)
        losses.append(output.metrics["cosine_distance"].item())
    assert losses[-1] < 0.8 * losses[0]


# ---- frozen networks


def test_frozen_networks_stay_as_they_are_and_out_of_checkpoints(tmp_path):
    algorithm = build("beitv2").train()
    tokenizer = algorithm.tokenizer
    before = {name: value.clone() for name, value in tokenizer.named_parameters()}
    before |= {name: value.clone() for name, value in tokenizer.named_buffers()}
    assert not tokenizer.training and not any(p.requires_grad for p in tokenizer.parameters())
    algorithm(batch_of(algorithm), START).loss.backward()
    after = dict(tokenizer.named_parameters()) | dict(tokenizer.named_buffers())
    assert all(torch.equal(after[name], before[name]) for name in before)
    state = algorithm.state_dict()
    assert not any(name.startswith("tokenizer.") for name in state)
    other = build("beitv2")
    other.load_state_dict(state)  # strict
    assert torch.equal(other.head.weight, algorithm.head.weight)


def test_frozen_weights_are_checked(tmp_path):
    tiny = dict(weights=Weights(str(tmp_path / "w.pth")), width=8)
    with pytest.raises(UserError, match="no such file; .*openai/DALL-E"):
        DalleEncoder(**tiny)
    with pytest.raises(UserError, match="weights.path: missing; .*random"):
        DalleEncoder(Weights(), width=8)
    source = DalleEncoder(RANDOM, width=8)
    theirs = {}
    for name, value in source.named_parameters():
        *path, kind = name.split(".")
        kind = {"weight": "w", "bias": "b"}[kind]
        if path[0] == "blocks":
            inner = "id_path" if path[2] == "id" else f"res_path.conv_{int(path[3]) + 1}"
            name = f"blocks.group_{int(path[1]) // 2 + 1}.block_{int(path[1]) % 2 + 1}.{inner}.{kind}"
        else:
            name = f"blocks.{path[0]}{'.conv' if path[0] == 'output' else ''}.{kind}"
        theirs[name] = value
    torch.save({"state_dict": theirs}, tmp_path / "w.pth")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(DalleEncoder(**tiny).words(images), source.words(images))
    with pytest.raises(UserError, match="sha256"):
        DalleEncoder(Weights(str(tmp_path / "w.pth"), sha256="00ff"), width=8)
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="not the weights of DalleEncoder"):
        DalleEncoder(**tiny)
    torch.save(Frozen, tmp_path / "w.pth")  # a pickle of something else is not executed
    with pytest.raises(UserError, match="cannot be read"):
        DalleEncoder(**tiny)


@pytest.mark.parametrize("name", ["beit", "milan", "vqkd"])
def test_what_was_trained_is_evaluated_without_the_targets_file(name, tmp_path):
    """Its encoder comes with its weights from a checkpoint and an encoder.safetensors; whoever trains is told."""
    recipe = next(path.stem for path in sorted(RECIPES.glob(f"{name}_*.yaml")))
    assert pretrain.main([recipe, "--smoke", "train.max_steps=1", f"train.out={tmp_path}"]) == 0
    state = checkpoint.load(next(tmp_path.glob("step-*.pt")))
    state["config"]["algorithm"]["weights"]["path"] = "gone.pth"
    torch.save(state, tmp_path / "step-00000009.pt")
    _, algorithm = checkpoint.load_algorithm(tmp_path)
    assert algorithm.config.weights.path == "gone.pth"
    loaded = algorithm.state_dict()
    assert loaded.keys() == state["model"].keys() and all(torch.equal(loaded[k], v) for k, v in state["model"].items())
    images = torch.randn(2, 3, algorithm.inputs().views[0].size, algorithm.inputs().views[0].size)
    with torch.no_grad():
        found = load_encoder(str(tmp_path / "encoder.safetensors")).module(images)
        assert torch.equal(found, algorithm.encoder.eval()(images))
    with pytest.raises(UserError, match="gone.pth: no such file"):
        type(algorithm)(algorithm.config)


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


def test_target_networks_have_the_published_sizes():
    with torch.device("meta"):
        assert sum(p.numel() for p in DalleEncoder(RANDOM).parameters()) == 53_786_240
        tokenizer = VQKDTokenizer(RANDOM)
    tensors = (*tokenizer.parameters(), tokenizer.codebook.vectors)
    # published with a row of positions for the class token
    assert sum(t.numel() for t in tensors) == 86_666_784 - 768
