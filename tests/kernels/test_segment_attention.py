"""segment_attention: segments against their definition, the reference against torch's attention on each of them, Triton
against the reference."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from headrace.errors import UserError
from headrace.kernels import operator, use
from headrace.kernels.check import check
from headrace.kernels.segment_attention import segment_attention, segments_of
from headrace.kernels.window_attention import window_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = {case.id: case for case in operator("segment_attention").cases}


def arguments(id, double=False):
    tensors, options = CASES[id].arguments()
    tensors = [t.to(DEVICE).double() if double and t.is_floating_point() else t.to(DEVICE) for t in tensors]
    return tensors, options


def with_torch(qkv, table, segments, *, window, scale):
    """torch's attention for the tokens of each segment, with the bias of their positions in the map."""
    _, height, width, _, heads, dim = qkv.shape
    flat = qkv.flatten(1, 2)
    out = torch.full((len(qkv), height * width, heads, dim), torch.nan, dtype=qkv.dtype)
    for listed in segments[:, :, 0].flatten(0, 1).long():
        tokens = listed[listed >= 0]
        if len(tokens):
            y, x = tokens // width, tokens % width
            row = (y[:, None] - y + window - 1) * (2 * window - 1) + x[:, None] - x + window - 1
            q, k, v = flat[:, tokens].permute(2, 0, 3, 1, 4)
            result = scaled_dot_product_attention(q, k, v, attn_mask=table[row].permute(2, 0, 1), scale=scale)
            out[:, tokens] = result.transpose(1, 2)
    return out.reshape(-1, height, width, heads, dim)


def mixing_mask(seed):
    """MixMIM's: 24 of 49 cells of 32x32 pixels, as groups of the tokens of a stage with maps of 7*n x 7*n tokens."""
    mask = torch.zeros(49, dtype=torch.int8)
    mask[torch.randperm(49, generator=torch.Generator().manual_seed(seed))[:24]] = 1
    return lambda n: mask.reshape(1, 7, 7).repeat_interleave(n, 1).repeat_interleave(n, 2)


@pytest.mark.parametrize(("side", "window", "shift"), [(14, 7, 0), (14, 7, 3), (12, 4, 1), (6, 6, 0)])
def test_segments_are_what_a_window_and_a_group_have_in_common(side, window, shift):
    groups = torch.randint(0, 3, (1, side, side), generator=torch.Generator().manual_seed(side), dtype=torch.int8)
    segments = segments_of(groups, window=window, shift=shift, count=3)
    windows = (side // window) ** 2
    assert segments.shape == (windows, 12 if shift else 3, 2, window**2) and segments.dtype == torch.int32

    def key(token):
        """Window and group of a token; after a shift also whether it came from the other end of the map."""
        y, x = token // side, token % side
        rolled = (y - shift) % side, (x - shift) % side
        return *(r // window for r in rolled), int(groups[0, y, x]), y < shift, x < shift

    expected = {}
    for token in range(side**2):
        expected.setdefault(key(token), set()).add(token)
    found = []
    for number, row in enumerate(segments.flatten(0, 1)):
        tokens, places = row.tolist()
        length = sum(token >= 0 for token in tokens)
        assert tokens[length:] == [-1] * (window**2 - length)
        for token, place in zip(tokens[:length], places[:length], strict=True):
            y, x = (token // side - shift) % side, (token % side - shift) % side
            assert place == y % window * window + x % window
            assert y // window * (side // window) + x // window == number // segments.shape[1]
        if length:
            found.append(set(tokens[:length]))
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected.values()))


def test_the_third_stage_of_mixmim_is_half_of_the_work():
    segments = segments_of(mixing_mask(0)(2), window=14)
    assert sorted((segments[:, :, 0] >= 0).sum(-1).flatten().tolist()) == [96, 100]
    qkv, table = torch.zeros(1, 14, 14, 3, 1, 32), torch.zeros(27**2, 1)
    mixed = operator("segment_attention").cost(qkv, table, segments, window=14)
    whole = operator("segment_attention").cost(
        qkv, table, segments_of(torch.zeros(1, 14, 14, dtype=torch.int8), window=14, count=1), window=14
    )
    assert mixed.flops / whole.flops == (96**2 + 100**2) / 196**2


def test_segments_are_found_without_waiting_for_the_device():
    """Whatever needs a value on the host, such as nonzero or item, cannot be done on tensors without values."""
    with FakeTensorMode():
        groups = torch.empty(1, 28, 28, dtype=torch.int8, device="cuda")
        segments = segments_of(groups, window=14, shift=7)
    assert segments.shape == (4, 8, 2, 196) and segments.device.type == "cuda"


@pytest.mark.parametrize("id", CASES)
def test_reference_is_torch_attention_on_each_segment(id):
    (qkv, table, segments), options = arguments(id, double=True)
    found = segment_attention(qkv, table, segments, impl="reference", **options)
    expected = with_torch(qkv.cpu(), table.cpu(), segments.cpu(), **options)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shift", [0, 2])
def test_it_is_window_attention_with_the_same_groups(shift):
    """For shifted windows up to e^-100 = 4e-44, which even float64 does not see."""
    generator = torch.Generator().manual_seed(5)
    qkv = torch.randn(2, 8, 4, 3, 2, 8, generator=generator, dtype=torch.float64)
    table = torch.randn(49, 2, generator=generator, dtype=torch.float64)
    groups = torch.randint(0, 2, (1, 8, 4), generator=generator, dtype=torch.int8)
    segments = segments_of(groups, window=4, shift=shift)
    found = segment_attention(qkv, table, segments, window=4, impl="reference")
    expected = window_attention(qkv, table, groups, window=4, shift=shift, impl="reference")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_reference_are_those_of_finite_differences():
    """A segment without tokens among them, all of whose scores would be -inf."""
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(1, 4, 2, 3, 1, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(9, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    segments = segments_of(torch.tensor([[[0, 1]] + [[0, 0]] * 3], dtype=torch.int8), window=2)
    assert (segments[:, :, 0] < 0).all(-1).any()
    function = lambda qkv, table: segment_attention(qkv, table, segments, window=2, impl="reference")
    assert torch.autograd.gradcheck(function, (qkv, table), fast_mode=True)


def test_triton_passes_the_checker_on_every_case():
    pytest.importorskip("triton")
    results = check("segment_attention", "triton", DEVICE)
    assert [result for result in results if result.passed is False] == []
    left_out = {result.case for result in results if result.passed is None}
    assert left_out == ({id for id in CASES if "bf16" in id} if DEVICE == "cpu" else set())


def test_the_cases_have_segments_of_several_blocks_and_more_than_128_tokens():
    (_, _, segments), _ = arguments("w12-long-fp16")
    assert (segments[:, :, 0] >= 0).sum(-1).max() > 128


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_the_two_images_of_a_mixture_never_see_each_other(impl):
    """MixMIM: whatever happens to one image's tokens leaves the other's output bit-equal."""
    generator = torch.Generator().manual_seed(6)
    groups = mixing_mask(1)(1)
    qkv, table = torch.randn(2, 7, 7, 3, 1, 32, generator=generator), torch.randn(169, 1, generator=generator)
    spoiled = torch.where((groups == 1)[..., None, None, None], 100 * qkv.flip(-1), qkv)
    segments = segments_of(groups, window=7).to(DEVICE)
    first, second = (
        segment_attention(x.to(DEVICE), table.to(DEVICE), segments, window=7, impl=impl).cpu() for x in (qkv, spoiled)
    )
    kept = (groups == 0)[0]
    assert torch.equal(first[:, kept], second[:, kept]) and not (first[:, ~kept] == second[:, ~kept]).all(-1).any()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_rows_of_padding_do_not_overflow(impl):
    """Without a sum of its own a row of padding has the probability exp(bias): infinite, and NaN times 0 after that."""
    (qkv, table, segments), options = arguments("w4-two-heads")
    results = []
    for constant in (0.0, 200.0):
        leaves = qkv.clone().requires_grad_(), torch.full_like(table, constant).requires_grad_()
        out = segment_attention(*leaves, segments, impl=impl, **options)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for plain, large in zip(*results, strict=True):
        assert large.isfinite().all()
        torch.testing.assert_close(large, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_compiles_to_one_graph_with_the_same_result(impl):
    (qkv, table, _), options = arguments("w4-two-heads")
    groups = torch.tensor([[0, 1, 1, 0]] * 4, dtype=torch.int8, device=DEVICE)[None]

    def function(qkv, table):
        return segment_attention(qkv, table, segments_of(groups, window=4), **options)

    results = []
    for called in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        leaves = qkv.clone().requires_grad_(), table.clone().requires_grad_()
        with use("segment_attention", impl):
            out = called(*leaves)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaves)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-6)


def test_opcheck():
    pytest.importorskip("triton")
    from headrace.kernels.segment_attention import triton_impl

    qkv, table = torch.randn(1, 2, 2, 3, 1, 32, device=DEVICE), torch.randn(9, 1, device=DEVICE)
    segments = segments_of(torch.tensor([[[0, 1], [1, 1]]], dtype=torch.int8, device=DEVICE), window=2)
    leaves = qkv.requires_grad_(), table.requires_grad_()
    torch.library.opcheck(triton_impl.forward.op, (*leaves, segments, 2, 0.5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": torch.zeros(2, 8, 8, dtype=torch.int8)}, "the same for the whole batch"),
        ({"groups": torch.zeros(1, 8, 8)}, "groups is torch.float32"),
        ({"window": 3}, "windows of 3x3 do not divide a map of 8x8"),
        ({"shift": -1}, "shift is -1, it must be 0 to 3"),
        ({"groups": torch.full((1, 8, 8), 2, dtype=torch.int8)}, "values outside of 0 to 1"),
    ],
)
def test_groups_that_do_not_fit_are_refused(change, words):
    given = {"groups": torch.zeros(1, 8, 8, dtype=torch.int8), "window": 4}
    with pytest.raises(UserError) as error:
        segments_of(**{**given, **change})
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qkv": torch.zeros(1, 8, 8, 2, 1, 32)}, "must be (B, H, W, 3, heads, D)"),
        ({"window": 5}, "windows of 5x5 do not divide a map of 8x8"),
        ({"table": torch.zeros(48, 1)}, "need floating point (49, 1)"),
        ({"segments": torch.zeros(1, 2, 2, 16, dtype=torch.int32)}, "needs torch.int32 (4, G, 2, 16) from segments_of"),
        ({"segments": torch.zeros(4, 2, 2, 16)}, "segments is torch.float32"),
        ({"qkv": torch.zeros(1, 8, 8, 3, 1, 64)[..., ::2], "impl": "triton"}, "strided"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    segments = segments_of(torch.zeros(1, 8, 8, dtype=torch.int8), window=4)
    given = {"qkv": torch.zeros(1, 8, 8, 3, 1, 32), "table": torch.zeros(49, 1), "segments": segments, "window": 4}
    with pytest.raises(UserError) as error:
        segment_attention(**{**given, **change})
    assert words in str(error.value) and "\n" not in str(error.value)
