"""Attention maps are the explicit softmax of a model's own weights, principal components those of numpy's singular
values, and both are drawn where they belong."""

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from tiny_encoders import BEIT, DINOV3, HIVIT, MIXMIM, PLAIN, RESNET, SIZE, SWIN, encoder

from headrace.errors import UserError
from headrace.models.dense.feature_map import feature_map
from headrace.tools.look import attention, pca
from headrace.tools.look.attention import attention_of, query_of
from headrace.tools.look.maps import overlay, some_images
from headrace.tools.look.pca import component_colors, foreground_of, principal_components

IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def modest(config, scale=0.3):
    """Random weights that are small enough for attention to fall on more than one token."""
    model = encoder(config).eval()
    for parameter in model.parameters():
        parameter.data *= scale
    return model


def relative(table, side, class_token):
    """The bias of BEiT (arXiv 2106.08254), entry by entry."""
    first, tokens = (2 * side - 1) ** 2, side * side
    bias = np.zeros((table.shape[1], tokens + class_token, tokens + class_token))
    for i in range(tokens):
        for j in range(tokens):
            offset = (i // side - j // side + side - 1) * (2 * side - 1) + i % side - j % side + side - 1
            bias[:, i + class_token, j + class_token] = table[offset]
    if class_token:
        bias[:, 0, 1:], bias[:, 1:, 0], bias[:, 0, 0] = (
            table[first, :, None],
            table[first + 1, :, None],
            table[first + 2],
        )
    return bias


def explicit(block, x, bias):
    """softmax(q k^T / sqrt(d) + bias) in float64, head by head."""
    array = lambda t: t.detach().double().numpy()
    x = array(x)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * array(block.norm1.weight) + array(block.norm1.bias)
    width, d = x.shape[-1], x.shape[-1] // block.heads
    qkv = x @ array(block.qkv.weight).T
    if block.qkv.bias is not None:
        qkv = qkv + array(block.qkv.bias)
    elif hasattr(block, "q_bias"):
        qkv[..., :width] += array(block.q_bias)
    found = []
    for head in range(block.heads):
        q, k = (qkv[..., part * width + head * d : part * width + (head + 1) * d] for part in (0, 1))
        logits = q @ k.transpose(0, 2, 1) / np.sqrt(d) + (0 if bias is None else bias[head])
        exponents = np.exp(logits - logits.max(-1, keepdims=True))
        found.append(exponents / exponents.sum(-1, keepdims=True))
    return np.stack(found, 1)


@pytest.mark.parametrize("block", [0, 1, -1])
@pytest.mark.parametrize("kind", ["plain", "beit shared", "beit block", "no bias"])
def test_attention_of_a_vit_is_the_explicit_formula(kind, block):
    configs = {"plain": PLAIN, "beit shared": BEIT, "beit block": replace(BEIT, relative_bias="block")}
    model = modest(configs.get(kind, replace(PLAIN, qkv_bias="none")))
    found = attention_of(model, IMAGES, block)
    assert (found.weights.sum(-1) - 1).abs().max() < 1e-5 and found.grid == (8, 8) and found.class_token
    with torch.no_grad():
        if block == 0:
            patches, _ = model.embed(IMAGES)
            x = torch.cat([model.cls_token.expand(2, -1, -1), patches], 1)
        else:
            (x,) = model.outputs(IMAGES, (0,))
    bias = None
    if kind.startswith("beit"):
        holder = model.relative_bias if kind == "beit shared" else model.block_biases[block]
        bias = relative(holder.table.detach().numpy(), 8, True)
    expected = explicit(model.blocks[block], x, bias)
    assert np.abs(found.weights.numpy() - expected).max() < 1e-5
    assert found.weights.std() > 1e-3  # not uniform
    for query, rows in (
        ("class", expected[:, :, 0, 1:]),
        ("mean", expected[:, :, 1:, 1:].mean(2)),
        ((2, 5), expected[:, :, 1 + 2 * 8 + 5, 1:]),
    ):
        assert np.abs(found.maps(query).numpy() - rows.reshape(2, 2, 8, 8)).max() < 1e-5
    # with what it weighs, it gives what the block's own attention gives
    chosen, normed = model.blocks[block], model.blocks[block].norm1(x)
    values = chosen.projected(normed)[:, :, 2].transpose(1, 2)
    attended = chosen.proj((found.weights @ values).transpose(1, 2).flatten(2))
    own = chosen.attention(normed, None if bias is None else torch.tensor(bias, dtype=torch.float32))
    assert torch.allclose(attended, own, atol=1e-4)


def test_registers_are_in_no_map_and_rotary_positions_are_in_all():
    model = modest(DINOV3)
    found = attention_of(model, IMAGES, 1)
    assert found.weights.shape == (2, 2, 68, 68) and found.registers == 3
    assert torch.equal(found.maps("class").flatten(2), found.weights[:, :, 0, 4:])
    assert torch.equal(found.maps((2, 5)).flatten(2), found.weights[:, :, 4 + 2 * 8 + 5, 4:])
    inner = []
    hook = model.blocks[1].proj.register_forward_pre_hook(lambda _, given: inner.append(given[0]))
    norm = model.blocks[1].norm1.register_forward_hook(lambda *given: inner.append(given[2]))
    with torch.no_grad():
        model(IMAGES)
    hook.remove(), norm.remove()
    values = model.blocks[1].projected(inner[0])[:, :, 2].transpose(1, 2)
    assert torch.allclose((found.weights @ values).transpose(1, 2).flatten(2), inner[1], atol=1e-4)


def test_attention_of_hivit_and_of_larger_images():
    model = modest(HIVIT)
    found, given = attention_of(model, IMAGES, 1), []
    hook = model.blocks[1].register_forward_pre_hook(lambda _, arguments: given.append(arguments))
    model(IMAGES)
    hook.remove()
    expected = explicit(model.blocks[1], given[0][0], relative(model.block_biases[1].table.detach().numpy(), 8, False))
    assert np.abs(found.weights.numpy() - expected).max() < 1e-5 and not found.class_token
    assert found.maps("mean").sum((2, 3)) == pytest.approx(1, abs=1e-5)  # there is no class token to go to
    wide = attention_of(modest(BEIT), torch.randn(1, 3, 48, 96))
    assert wide.grid == (6, 12) and wide.weights.shape == (1, 2, 73, 73) and wide.maps((5, 11)).shape == (1, 2, 6, 12)
    assert (wide.weights.sum(-1) - 1).abs().max() < 1e-5


def test_whose_attention_is_shown():
    cls, mean, hivit = encoder(replace(PLAIN, pool="cls")), encoder(PLAIN), encoder(HIVIT)
    grid = (8, 8)
    assert query_of("auto", cls, grid) == "class" and query_of("auto", mean, grid) == "mean"
    assert query_of("auto", hivit, grid) == "mean" and query_of("3,4", hivit, grid) == (3, 4)
    for text, model, words in (
        ("class", hivit, "no class token"),
        ("3,8", cls, "8 rows and 8 columns"),
        ("3", cls, "row,column"),
    ):
        with pytest.raises(UserError, match=words):
            query_of(text, model, grid)
    for config, words in ((SWIN, "inside windows only"), (MIXMIM, "inside windows only"), (RESNET, "is no ViT")):
        with pytest.raises(UserError, match=words):
            attention_of(encoder(config), IMAGES)
    with pytest.raises(UserError, match="--block: from 0 to 1"):
        attention_of(cls, IMAGES, 2)


def test_components_are_those_of_the_singular_values():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 12)) * np.linspace(3, 0.5, 12) + 4
    found = principal_components(vectors, 3)
    left, strengths, _ = np.linalg.svd(vectors - vectors.mean(0))
    for axis in range(3):
        expected = left[:, axis] * strengths[axis]
        assert min(np.abs(found[:, axis] - sign * expected).max() for sign in (1, -1)) < 1e-9
    assert np.allclose(principal_components(-vectors, 3) ** 2, found**2)
    assert np.allclose(principal_components(vectors[::-1], 3)[::-1], found)  # signs do not depend on the order


@pytest.mark.parametrize(
    ("config", "layer", "shape"),
    [(PLAIN, -1, (24, 8, 8)), (PLAIN, 0, (24, 8, 8)), (SWIN, -1, (64, 2, 2)), (SWIN, 0, (8, 16, 16))]
    + [(MIXMIM, -2, (32, 4, 4)), (HIVIT, -1, (32, 8, 8)), (HIVIT, 0, (8, 32, 32)), (RESNET, -1, (64, 2, 2))]
    + [(RESNET, 1, (8, 16, 16))],
)
def test_maps_of_every_encoder(config, layer, shape):
    model = encoder(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_()
    found = feature_map(model, IMAGES, layer)
    assert found.shape[1:] == shape
    if config is PLAIN:
        tokens = model.tokens(IMAGES) if layer == -1 else model.outputs(IMAGES, (0,))[0]
        assert torch.equal(found.flatten(2).transpose(1, 2), tokens[:, 1:])
    elif config in (SWIN, RESNET) and layer == -1:
        assert torch.allclose(found.mean((2, 3)), model(IMAGES), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="--layer: from 0 to"):
        feature_map(model, IMAGES, 9)


def test_colours_are_scaled_components_and_black_outside_the_foreground():
    """Two things in the middle of a ground: they stand out, and differ from each other in one component."""
    rng = np.random.default_rng(0)
    maps = 0.05 * rng.normal(size=(2, 10, 10, 6))
    thing = np.zeros((2, 10, 10), dtype=bool)
    thing[0, 3:7, 3:7] = thing[1, 2:6, 4:8] = True
    maps[thing] += [5, 0, 0, 0, 0, 0]
    maps[0][thing[0]] += [0, 1, 0, 0, 0, 0]
    for sign in (1, -1):
        assert np.array_equal(foreground_of(sign * maps), thing)
    colors = component_colors(maps, thing)
    assert (colors[~thing] == 0).all()
    first, second = colors[0][thing[0]][:, 0], colors[1][thing[1]][:, 0]
    assert abs(first.mean() - second.mean()) > 0.8 and max(first.std(), second.std()) < 0.1
    parts = principal_components(maps.reshape(-1, 6), 3)
    low, high = np.percentile(parts, (1, 99), axis=0)
    assert np.allclose(component_colors(maps).reshape(-1, 3), ((parts - low) / (high - low)).clip(0, 1))


def test_overlays_lie_where_the_map_is():
    maps = torch.zeros(1, 4, 4)
    maps[0, 1, 2] = 0.3
    pixels = torch.full((1, 32, 32, 3), 100, dtype=torch.uint8)
    shown = overlay(pixels, maps, share=0.5).float().sum(-1)[0]
    y, x = divmod(int(shown.argmax()), 32)
    assert 8 <= y < 16 and 16 <= x < 24 and shown[28, 4] == shown.min()
    brightest = np.array(matplotlib.colormaps["inferno"](1.0)[:3]) * 255
    flat = overlay(pixels, torch.full((1, 4, 4), 0.01), share=0.5)  # to its own maximum
    assert np.abs(flat[0, 0, 0].numpy() - (50 + brightest / 2)).max() <= 1


def test_images_are_files_or_a_source(photo_folder):
    files = sorted(str(path) for path in photo_folder.rglob("*.jpg"))[:3]
    source = some_images(files[::-1], 1)
    assert [bytes(source.read(i)) for i in range(3)] == [Path(file).read_bytes() for file in files[::-1]]
    spread = some_images([str(photo_folder)], 6)
    assert len(spread) == 6 and spread.ids == [0, 4, 8, 12, 16, 20]
    with pytest.raises(UserError, match="several image files, or one source"):
        some_images([files[0], str(photo_folder)], 2)
    with pytest.raises(UserError, match="nothere: no such file"):
        some_images([files[0], "nothere"], 2)


def test_commands(photo_folder, tmp_path, capsys):
    out, photos = tmp_path / "a.png", [str(path) for path in sorted(photo_folder.rglob("*.jpg"))[:2]]
    vit = "random:dino_vit-tiny_cifar10"
    assert attention.main([vit, *photos, "--out", str(out), "--query", "1,2", "--device", "cpu"]) == 0
    values = np.load(tmp_path / "a.npy")
    assert values.shape == (2, 3, 8, 8) and (values > 0).all() and (values.sum((2, 3)) < 1).all()
    assert matplotlib.image.imread(out).std() > 0.1 and "attention of patch 1,2" in capsys.readouterr().out
    out = tmp_path / "b.png"
    assert (
        pca.main([vit, str(photo_folder), "--samples", "3", "--size", "48", "--out", str(out), "--device", "cpu"]) == 0
    )
    assert np.load(tmp_path / "b.npy").shape == (3, 12, 12, 3) and matplotlib.image.imread(out).std() > 0.1
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    for arguments, words in (
        ([vit, *photos, "--size", "30"], "takes multiples of 4 px, not 30"),
        ([vit, *photos, "--out", "x.pdf"], "no .png"),
        ([vit, str(tmp_path / "bad.jpg")], "bad.jpg: not one of 1 images can be decoded"),
        ([vit, "nothere"], "nothere"),
        ([vit, str(photo_folder), "--samples", "0"], "--samples"),
        (["random:simclr_resnet18_cifar10", *photos], "ResNet is no ViT of headrace"),
        (["pixels:8", *photos], "Flatten is no ViT of headrace"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            attention.main(arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="gives no map of features"):
        pca.main(["pixels:8", *photos])


def test_a_patch_that_asks_is_framed():
    pixels = torch.full((1, 64, 64, 3), 50, dtype=torch.uint8)
    marked = attention._marked(pixels, (1, 2), (4, 4))[0].numpy()
    changed = (marked != 50).any(-1)
    inside = np.zeros((64, 64), dtype=bool)
    inside[16:32, 32:48] = True
    assert not changed[~inside].any() and changed[16, 32:48].all() and changed[16:32, 47].all() and not changed[24, 40]
