"""Encoders: published parameter counts, sizes, and what their structure promises."""

import cmath
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from headrace.models.backbones.hivit import HiViT
from headrace.models.backbones.mixmim import MixMIMTransformer
from headrace.models.backbones.swin import Swin
from headrace.models.backbones.transformer import (
    Block,
    RelativeBias,
    drop_path,
    relative_index,
    resize_positions,
    rotary_table,
    rotate,
)
from headrace.models.backbones.vit import ViT
from headrace.models.backbones.windows import PatchMerge, WindowBlock


def test_relative_index_by_hand():
    """A 2 x 3 grid with a class token: 3 x 5 offsets, then class to patch, patch to class, class to itself."""
    index = relative_index((2, 3), class_token=True)
    for i in range(6):
        for j in range(6):
            down, right = i // 3 - j // 3, i % 3 - j % 3
            assert index[1 + i, 1 + j] == (down + 1) * 5 + right + 2
    assert set(index[0, 1:].tolist()) == {15} and set(index[1:, 0].tolist()) == {16} and index[0, 0] == 17
    beit = relative_index((14, 14), class_token=True)
    assert beit.shape == (197, 197) and beit.min() == 0 and beit.max() == 731


def test_a_resized_bias_keeps_the_class_rows_and_constants():
    bias = RelativeBias((3, 3), heads=2, class_token=True)
    with torch.no_grad():
        bias.table[:25], bias.table[25:] = 0.5, torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    whole = bias((4, 5))
    assert whole.shape == (2, 21, 21) and torch.allclose(whole[:, 1:, 1:], torch.tensor(0.5))
    assert whole[0, 0, 3] == 1 and whole[1, 7, 0] == 4 and whole[1, 0, 0] == 6


def test_block_is_the_textbook_formula():
    """Against scaled_dot_product_attention with the bias as mask; BEiT's biases for queries and values alone."""
    torch.manual_seed(0)
    block = Block(24, 3, 40, qkv_bias="qv", layer_scale=0.3).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, bias = torch.randn(2, 7, 24).double(), torch.randn(3, 7, 7).double()
    h = F.layer_norm(x, (24,), block.norm1.weight, block.norm1.bias, 1e-6)
    q, k, v = (h @ block.qkv.weight.T).split(24, -1)
    q, v = q + block.q_bias, v + block.v_bias
    q, k, v = (t.unflatten(-1, (3, 8)).transpose(1, 2) for t in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
    y = x + block.scale1 * block.proj(attended)
    h = F.layer_norm(y, (24,), block.norm2.weight, block.norm2.bias, 1e-6)
    expected = y + block.scale2 * block.fc2(F.gelu(block.fc1(h)))
    assert torch.allclose(block(x, bias), expected, atol=1e-12)
    assert torch.allclose(block(x, bias.expand(2, -1, -1, -1)), expected, atol=1e-12)


def test_rotary_positions_by_hand():
    """Channels k and k + d / 2 of a head are a point of the plane, which is turned by 2 pi place / 100^(4 m / d):
    m < d / 4 counts the frequencies, first those of the row, then those of the column."""
    torch.manual_seed(0)
    d, rows, columns = 12, 2, 3
    x = torch.randn(1, 1, 2 + rows * columns, d).double()
    turned = rotate(x, rotary_table(d, rows, columns).double())
    assert torch.equal(turned[:, :, :2], x[:, :, :2])
    for i in range(rows * columns):
        place = ((i // columns + 0.5) / rows * 2 - 1, (i % columns + 0.5) / columns * 2 - 1)
        for k in range(d // 2):
            axis, m = divmod(k, d // 4)
            angle = 2 * math.pi * place[axis] / 100 ** (4 * m / d)
            point = complex(x[0, 0, 2 + i, k], x[0, 0, 2 + i, k + d // 2]) * cmath.exp(1j * angle)
            assert abs(point - complex(turned[0, 0, 2 + i, k], turned[0, 0, 2 + i, k + d // 2])) < 1e-6


def test_gated_and_quick_mlps_by_hand():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8).double()
    gated, quick = Block(8, 2, 5, mlp="swiglu").double(), Block(8, 2, 5, mlp="quick_gelu").double()
    a, b = (x @ gated.fc1.weight.T + gated.fc1.bias).split(5, -1)
    expected = (a / (1 + (-a).exp()) * b) @ gated.fc2.weight.T + gated.fc2.bias
    assert torch.allclose(gated.mlp(x), expected, atol=1e-12)
    a = x @ quick.fc1.weight.T + quick.fc1.bias
    expected = (a / (1 + (-1.702 * a).exp())) @ quick.fc2.weight.T + quick.fc2.bias
    assert torch.allclose(quick.mlp(x), expected, atol=1e-12)


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_registers_and_positions_of_visible_patches(positions, size):
    """Patches given in another order are the same tokens; registers are seen by them, and are not among the outputs."""
    torch.manual_seed(0)
    config = ViT.Config(patch_size=8, width=24, depth=2, heads=2, positions=positions, registers=3, mlp="swiglu")
    model = ViT(config, 32).eval()
    images, patches = torch.randn(2, 3, size, size), (size // 8) ** 2
    order = torch.stack([torch.randperm(patches) for _ in range(2)])
    whole, some = model.tokens(images), model.tokens(images, order)
    assert whole.shape == (2, 1 + patches, 24)
    assert torch.allclose(some[:, 1:], whole[:, 1:].gather(1, order[:, :, None].expand(-1, -1, 24)), atol=1e-5)
    with torch.no_grad():
        model.registers[0, 1].normal_()
    assert (model.tokens(images) - whole).abs().max() > 1e-3 and model.layer_of("registers") == 0


def cubic(old, new, *, a, antialias=False, offset=0.0):
    """(new, old) weights of cubic convolution (Keys 1981), place by place; taps outside repeat the last one, or with
    `antialias`, where they are as wide as a new place is, are left out."""
    step = old / (new + offset)
    width = max(step, 1.0) if antialias else 1.0
    weights = [[0.0] * old for _ in range(new)]
    for i in range(new):
        centre = (i + 0.5) * step - 0.5
        for j in range(math.floor(centre) - 9, math.floor(centre) + 10):
            x = abs(j - centre) / width
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            weight = near if x <= 1 else far if x < 2 else 0.0
            if antialias and not 0 <= j < old:
                continue
            weights[i][min(max(j, 0), old - 1)] += weight
    weights = torch.tensor(weights, dtype=torch.float64)
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("rule", "kernel"),
    [
        ({}, {"a": -0.75}),
        ({"antialias": True}, {"a": -0.5, "antialias": True}),  # timm, larger and smaller
        ({"offset": 0.1}, {"a": -0.75, "offset": 0.1}),  # DINO
    ],
)
@pytest.mark.parametrize("grid", [(9, 9), (4, 3), (14, 5)])
def test_tables_of_positions_are_resized_by_the_cubic_written_out(rule, kernel, grid):
    table = torch.randn(1, 49, 3, generator=torch.Generator().manual_seed(0))
    rows, columns = (cubic(7, new, **kernel) for new in grid)
    expected = torch.einsum("ih,jw,hwd->ijd", rows, columns, table[0].view(7, 7, 3).double()).flatten(0, 1)
    assert (resize_positions(table, (7, 7), grid, **rule)[0] - expected).abs().max() < 1e-5


def test_an_encoder_resizes_its_positions_as_its_configuration_says():
    """`antialias` and `resize_offset` reach the tokens, visible ones alone as well."""
    for rule in ({}, {"antialias": True}, {"resize_offset": 0.1}):
        torch.manual_seed(0)
        model = ViT(replace(SMALL_VIT, **rule), 64)
        kernel = {"a": -0.5 if "antialias" in rule else -0.75, "antialias": "antialias" in rule}
        weights = cubic(8, 5, **kernel, offset=rule.get("resize_offset", 0.0))
        table = model.positions.detach()[0].view(8, 8, -1).double()
        expected = torch.einsum("ih,jw,hwd->ijd", weights, weights, table).flatten(0, 1)
        blank, keep = torch.zeros(1, 3, 40, 40), torch.arange(24, -1, -1)[None]
        bias = model.patch_embed.bias.detach()
        assert (model.embed(blank)[0][0] - bias - expected).abs().max() < 1e-5
        assert (model.embed_visible(blank, keep)[0][0] - bias - expected.flip(0)).abs().max() < 1e-5


def test_relative_biases_go_with_neither_registers_nor_rotary_positions():
    for options in ({"registers": 1}, {"positions": "rotary"}):
        with pytest.raises(ValueError, match="relative_bias"):
            ViT.Config(relative_bias="block", **options)
    with pytest.raises(ValueError, match="multiple of 4 channels"):
        ViT.Config(width=36, heads=6, positions="rotary")


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(20_000, 2, 3)
    dropped = drop_path(x, 0.3, training=True)
    per_sample = dropped.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    assert per_sample[:, 0].unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert abs(dropped.mean() - 1) < 0.02 and drop_path(x, 0.3, training=False) is x


def test_patch_merge_joins_corners_column_by_column():
    merge = PatchMerge(2)
    x = torch.arange(4 * 4 * 2.0).view(1, 4, 4, 2)
    merge.norm = torch.nn.Identity()
    merge.reduce = torch.nn.Identity()
    corners = [x[0, 2, 0], x[0, 3, 0], x[0, 2, 1], x[0, 3, 1]]
    assert torch.equal(merge(x)[0, 1, 0], torch.cat(corners))
    assert merge(torch.randn(1, 3, 5, 2)).shape == (1, 2, 3, 8)


def test_a_window_block_is_attention_in_windows_written_out():
    """Unshifted, on a map that windows do not divide: the padding takes part, as zeros after the norm."""
    torch.manual_seed(0)
    block = WindowBlock(8, 2, window=3, shift=0, drop_path=0.0).double()
    x = torch.randn(1, 4, 3, 8).double()
    padded = F.pad(block.norm1(x), (0, 0, 0, 0, 0, 2))
    out = torch.zeros(1, 6, 3, 8).double()
    offsets = relative_index((3, 3), class_token=False)
    for top in (0, 3):
        tokens = padded[0, top : top + 3].reshape(9, 8)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(0, 1) for t in block.qkv(tokens).split(8, -1))
        bias = block.bias_table[offsets].permute(2, 0, 1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(0, 1).flatten(1)
        out[0, top : top + 3] = block.proj(attended).view(3, 3, 8)
    assert torch.allclose(block.attention(block.norm1(x)), out[:, :4], atol=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("shift", [0, 4])
def test_large_windows_by_segments_are_those_by_window_attention(shift, grouped):
    """81 tokens a window go through segment_attention; e^-100 is all that differs between shifted pieces."""
    torch.manual_seed(0)
    block = WindowBlock(8, 2, window=9, shift=shift, drop_path=0.0)
    x = torch.randn(2, 12, 18, 8)
    groups = torch.randint(0, 2, (1, 12, 18), dtype=torch.int8) if grouped else None
    segments = block.segments(x, groups)
    assert segments is not None
    expected = block.attention(x, groups)
    assert torch.allclose(block.attention(x, groups, segments), expected, atol=1e-5)
    own = None if groups is None else groups.expand(2, -1, -1).contiguous()
    assert own is None or (block.segments(x, own) is None and torch.equal(block.attention(x, own), expected))


SMALL_SWIN = Swin.Config(width=8, depths=(1, 2, 2, 1), heads=(1, 2, 2, 2), window=4)
SMALL_MIXMIM = MixMIMTransformer.Config(width=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 2))
SMALL_HIVIT = HiViT.Config(width=32, depths=(1, 1, 2), heads=2, patch_size=8, relative_bias=True)
SMALL_VIT = ViT.Config(width=24, depth=2, heads=2, patch_size=8, positions="learned")


@pytest.mark.parametrize(
    ("kind", "config"), [(Swin, SMALL_SWIN), (MixMIMTransformer, SMALL_MIXMIM), (HiViT, SMALL_HIVIT), (ViT, SMALL_VIT)]
)
def test_encoders_serve_dense_tasks_other_sizes_and_layer_decay(kind, config):
    torch.manual_seed(0)
    model = kind(config, 64).eval()
    images = torch.randn(2, 3, 64, 96)
    features = model(images)
    assert features.shape == (2, model.features)
    for x in model.feature_maps(images):
        stride = 64 // x.shape[2]
        assert x.shape[2:] == (64 // stride, 96 // stride)
    mirrored = model(images.flip(-1))
    assert not torch.allclose(features, mirrored)
    layers = [model.layer_of(name) for name, _ in model.named_parameters()]
    assert min(layers) == 0 and max(layers) == model.num_layers - 1
    assert set(layers) == set(range(model.num_layers))


@pytest.mark.parametrize(
    ("kind", "config"), [(Swin, SMALL_SWIN), (MixMIMTransformer, SMALL_MIXMIM), (HiViT, SMALL_HIVIT), (ViT, SMALL_VIT)]
)
def test_images_are_filled_up_to_whole_patches(kind, config):
    """With zeros at the bottom and right: 61 x 85 pixels have the features of 64 x 88."""
    torch.manual_seed(0)
    model = kind(config, 64).eval()
    images = torch.zeros(1, 3, 64, 88)
    images[:, :, :61, :85] = torch.randn(1, 3, 61, 85)
    pairs = zip(model.feature_maps(images[:, :, :61, :85]), model.feature_maps(images), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert torch.equal(model(images[:, :, :61, :85]), model(images))


def test_maps_of_chosen_vit_blocks_are_their_tokens_row_by_row():
    """On an image that is not square; the tokens from the blocks called one by one."""
    torch.manual_seed(0)
    model = ViT(replace(SMALL_VIT, depth=3), 64).eval()
    images = torch.randn(2, 3, 32, 48)
    x, grid = model.embed(images)
    x = torch.cat([model.cls_token.expand(2, -1, -1), x], dim=1)
    after = []
    for block in model.blocks:
        x = block(x)
        after.append(x)
    first, last = model.feature_maps(images, (0, 2))
    for found, tokens in ((first, after[0]), (last, after[2]), (model.feature_maps(images)[0], model.norm(after[2]))):
        assert found.shape == (2, 24, 4, 6)
        for row in range(4):
            for column in range(6):
                assert torch.equal(found[:, :, row, column], tokens[:, 1 + row * 6 + column])


def test_maps_of_hivit_lie_where_their_pixels_do():
    """A patch's pixels change its own cells of the two early maps alone, and of its inner grid the nearest ones."""
    torch.manual_seed(0)
    model = HiViT(SMALL_HIVIT, 64).eval()
    images = torch.randn(1, 3, 32, 48)
    other = images.clone()
    other[:, :, 16:24, 8:16] += 1  # the patch in row 2 and column 1
    other[:, :, 16:18, 8:10] += 1
    for one, two, side in zip(model.feature_maps(images), model.feature_maps(other), (4, 2, 1)):
        moved = (one - two).abs().amax(1)[0]
        assert moved.shape == (4 * side, 6 * side)
        cells = torch.zeros_like(moved, dtype=torch.bool)
        cells[2 * side : 3 * side, side : 2 * side] = True
        assert side == 1 or torch.equal(moved > 0, cells)
    main = model.stage_tokens(images).main
    assert torch.equal(model.feature_maps(images)[2].flatten(2).transpose(1, 2), main)


@pytest.mark.parametrize(("kind", "config"), [(Swin, SMALL_SWIN), (MixMIMTransformer, SMALL_MIXMIM)])
def test_maps_of_window_transformers_are_those_of_their_stages(kind, config):
    """What the encoder returns is the mean of the last one; each comes from the one before by a merging and blocks."""
    torch.manual_seed(0)
    model = kind(config, 64).eval()
    images = torch.randn(2, 3, 64, 96)
    maps = model.feature_maps(images)
    assert [x.shape[1:] for x in maps] == [(8 << i, 16 >> i, 24 >> i) for i in range(4)]
    assert torch.allclose(maps[-1].mean((2, 3)), model(images), atol=1e-6)
    x = model.body.merges[0](maps[0].permute(0, 2, 3, 1))
    for block in model.body.stages[1]:
        x = block(x, None, block.segments(x, None))
    assert torch.allclose(x.permute(0, 3, 1, 2), maps[1], atol=1e-5)


def test_swin_shifts_every_other_block_and_none_on_a_single_window():
    model = Swin(Swin.Config(width=8, depths=(2, 2, 2, 2), heads=(1, 2, 2, 2), window=4), 64)
    shifts = [[block.shift for block in stage] for stage in model.body.stages]
    assert shifts == [[0, 2], [0, 2], [0, 2], [0, 1]] and [s[0].window for s in model.body.stages] == [4, 4, 4, 2]
    # a change spreads to the windows shifted by two tokens, and the roll does not carry it to the other border
    images = torch.randn(1, 3, 64, 64)
    other = images.clone()
    other[:, :, :4, :4] += 1
    reached = (model.maps(images)[0] - model.maps(other)[0]).abs().amax(-1)[0] > 0
    assert reached[:4, :4].all() and reached[2:6, 2:6].all() and not reached[6:].any() and not reached[:, 6:].any()


def test_hivit_tokens_are_independent_before_the_main_stage():
    torch.manual_seed(0)
    model = HiViT(SMALL_HIVIT, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    keep = torch.tensor([[0, 9, 30, 63], [5, 6, 7, 40]])
    kept = model.stage_tokens(images, keep)
    whole = model.stage_tokens(images)
    for early in ("inner", "merged"):
        expected = torch.stack([getattr(whole, early)[b, rows] for b, rows in enumerate(keep)])
        assert torch.allclose(getattr(kept, early), expected, atol=1e-6)
    assert not torch.allclose(kept.main[0, 0], whole.main[0, 0], atol=1e-3)
    everything = torch.arange(64).expand(2, 64)
    assert torch.allclose(model.stage_tokens(images, everything).main, whole.main, atol=1e-5)
    # the relative bias of a kept pair is that of their places: a shuffled order gives shuffled tokens
    order = torch.randperm(64)
    shuffled = model.stage_tokens(images, order.expand(2, 64)).main
    assert torch.allclose(shuffled, whole.main[:, order], atol=1e-5)


def test_gradients_of_bias_tables_have_the_same_bits_on_several_threads():
    """Indexing adds up its gradient in whatever order threads come; `embedding` does not. Resuming relies on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        bias = RelativeBias((14, 14), heads=12, class_token=True)
        weights = torch.rand(12, 197, 197)
        block = WindowBlock(32, 4, window=14, shift=0, drop_path=0.0)
        x = torch.randn(2, 28, 28, 32)
        segments = block.segments(x, None)
        found = {bias.table: set(), block.bias_table: set()}
        for _ in range(10):
            loss = (bias() * weights).sum() + block.attention(x, None, segments).square().sum()
            for table, gradient in zip(found, torch.autograd.grad(loss, list(found)), strict=True):
                found[table].add(gradient.numpy().tobytes())
        assert [len(bits) for bits in found.values()] == [1, 1]
    finally:
        torch.set_num_threads(threads)
