"""window_attention: the reference against torch's attention on rolled and cut maps, Triton against the reference."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

import headrace.kernels  # noqa: E402
from headrace.errors import UserError  # noqa: E402
from headrace.kernels import operator, use  # noqa: E402
from headrace.kernels.check import check  # noqa: E402
from headrace.kernels.window_attention import reference, triton_impl, window_attention  # noqa: E402
from headrace.kernels.window_attention.window_kernels import window_tokens  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = {case.id: case for case in operator("window_attention").cases}


def arguments(id, double=False):
    """Tensors on the device, groups or None among them, and options of a case."""
    tensors, options = CASES[id].arguments()
    tensors = [t.to(DEVICE).double() if double and t.is_floating_point() else t.to(DEVICE) for t in tensors]
    return (*tensors, None)[:3], options


def swin_mask(height, width, window, shift):
    """Swin's own construction: number nine slices of the map, cut it, compare the numbers. (windows, N, N)"""
    numbers, number = torch.zeros(height, width), 0
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for rows, columns in itertools.product(slices, slices):
        numbers[rows, columns] = number
        number += 1
    cut = numbers.unfold(0, window, window).unfold(1, window, window).reshape(-1, window**2)
    return -100.0 * (cut[:, :, None] != cut[:, None, :])


def with_torch(qkv, table, groups, *, window, shift, scale):
    """torch's attention for each window, the mask and the bias written out pair by pair."""
    batch, height, width, _, heads, dim = qkv.shape
    rolled = torch.roll(qkv, (-shift, -shift), (1, 2))
    pairs = list(itertools.product(range(window), repeat=2))
    rows = [[(yi - yj + window - 1) * (2 * window - 1) + xi - xj + window - 1 for yj, xj in pairs] for yi, xi in pairs]
    bias = table[torch.tensor(rows)].permute(2, 0, 1).double()
    shifted_mask = swin_mask(height, width, window, shift) if shift else None
    out = torch.empty(batch, height, width, heads, dim, dtype=qkv.dtype)
    for b in range(batch):
        for number, (top, left) in enumerate(itertools.product(range(0, height, window), range(0, width, window))):
            tile = rolled[b, top : top + window, left : left + window].reshape(window**2, 3, heads, dim)
            mask = bias.clone()
            if shift:
                mask = mask + shifted_mask[number]
            if groups is not None:
                group = torch.roll(groups[b % len(groups)], (-shift, -shift), (0, 1))
                group = group[top : top + window, left : left + window].flatten()
                mask = mask.masked_fill(group[:, None] != group, -torch.inf)
            q, k, v = tile.permute(1, 2, 0, 3)
            result = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
            out[b, top : top + window, left : left + window] = result.transpose(0, 1).reshape(
                window, window, heads, dim
            )
    return torch.roll(out, (shift, shift), (1, 2))


@pytest.mark.parametrize("id", CASES)
def test_reference_is_torch_attention_with_a_written_out_mask(id):
    (qkv, table, groups), options = arguments(id, double=True)
    found = window_attention(qkv, table, groups, impl="reference", **options)
    expected = with_torch(qkv.cpu(), table.cpu(), groups if groups is None else groups.cpu(), **options)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "window", "shift"), [((14, 14), 7, 3), ((12, 18), 6, 3), ((8, 4), 4, 1), ((4, 4), 4, 2)]
)
def test_regions_are_those_of_swin(size, window, shift):
    region = reference.partition(reference.regions(*size, window, shift)[None], window)[0]
    assert torch.equal(-100.0 * (region[:, :, None] != region[:, None, :]), swin_mask(*size, window, shift))


def test_gradients_of_the_reference_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(1, 4, 4, 3, 1, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(9, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([[0, 1, 1, 0]] * 4, dtype=torch.int8)[None]
    function = lambda qkv, table: window_attention(qkv, table, groups, window=2, shift=1, impl="reference")
    assert torch.autograd.gradcheck(function, (qkv, table), fast_mode=True)


def test_triton_passes_the_checker_on_every_case():
    results = check("window_attention", "triton", DEVICE)
    assert [result for result in results if result.passed is False] == []
    left_out = {result.case for result in results if result.passed is None}
    assert left_out == ({id for id in CASES if "bf16" in id} if DEVICE == "cpu" else set())


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_groups_never_see_each_other(impl):
    """MixMIM: whatever happens to one image's tokens, infinities included, leaves the other's output bit-equal."""
    (qkv, table, groups), options = arguments("w4-groups-of-each")
    spoiled = qkv.clone()
    spoiled[groups == 1] = torch.randn(spoiled[groups == 1].shape).to(DEVICE) * 100
    first, second = (window_attention(x, table, groups, impl=impl, **options) for x in (qkv, spoiled))
    assert torch.equal(first[groups == 2], second[groups == 2])
    assert not torch.isclose(first[groups == 1], second[groups == 1]).any(-1).all()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_padding_is_no_group_of_its_own(impl):
    """Rows of padding whose mask is -inf everywhere become NaN, and reach the gradients as NaN times 0."""
    (qkv, table, _), options = arguments("w7-groups-fp16")
    qkv, table = qkv[:1, :, :, :, :1].contiguous().requires_grad_(), table[:, :1].contiguous().requires_grad_()
    groups = torch.ones(1, 7, 7, dtype=torch.int8, device=DEVICE)
    window_attention(qkv, table, groups, impl=impl, **options).sum().backward()
    plain = window_attention(qkv, table, impl=impl, **options)
    assert torch.equal(window_attention(qkv, table, groups, impl=impl, **options), plain)
    assert qkv.grad.isfinite().all() and table.grad.isfinite().all()


def test_no_sum_depends_on_the_order_of_programs():
    """Two runs that agree prove little where programs run one after the other; additions to shared memory are what
    makes their order matter."""
    parts = (f"biased_attention/{part}.py" for part in ("tiled", "one_pass", "two_pass"))
    for name in ("window_attention/window_kernels.py", *parts):
        assert "atomic" not in (Path(headrace.kernels.__file__).parent / name).read_text()


@triton.jit
def store_tokens(found, index, last, SIZE: tl.constexpr):
    for i in range(index, last):
        image, token, _ = window_tokens(i, 56, 56, 7, 3, 64)
        tl.store(found, image * SIZE)
        tl.store(found + 1 + tl.arange(0, 64), token)


def test_offsets_of_a_large_batch_are_64_bit():
    """The last of 2048 images of 56x56 tokens with 3 * 128 values starts beyond what an int32 can count."""
    found = torch.zeros(65, dtype=torch.int64, device=DEVICE)
    windows = 2048 * 64
    store_tokens[(1,)](found, windows - 1, windows, SIZE=56 * 56 * 3 * 128)
    assert found[0] == 2047 * 56 * 56 * 3 * 128 > 2**31
    place = torch.arange(49)
    expected = (49 + place // 7 + 3) % 56 * 56 + (49 + place % 7 + 3) % 56
    assert torch.equal(found[1:50].cpu(), expected)


def test_more_than_65535_windows_are_on_the_first_axis_of_the_grid(monkeypatch):
    """The other axes end there."""
    launched = []

    class Recorder:
        def __getitem__(self, grid):
            launched.append(grid)
            return lambda *args, **constants: launched.append(args)

    monkeypatch.setattr(triton_impl, "forward_kernel", Recorder())
    triton_impl.forward(
        torch.zeros(70000, 1, 1, 3, 1, 32, device=DEVICE), torch.zeros(1, 1, device=DEVICE), None, 1, 0, 1.0
    )
    grid, args = launched
    assert len(grid) == 1 and 70000 in [arg for arg in args if isinstance(arg, int)]


def test_an_expanded_gradient_is_right():
    """The gradient of a sum has strides of 0, which a kernel that assumes contiguous memory reads as garbage."""
    results = []
    for impl in ("reference", "triton"):
        (qkv, table, groups), options = arguments("w4-groups-and-shift")
        leaves = qkv.requires_grad_(), table.requires_grad_()
        results.append(torch.autograd.grad(window_attention(*leaves, groups, impl=impl, **options).sum(), leaves))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_a_strided_table_and_expanded_groups_are_read_where_they_lie():
    (qkv, table, groups), options = arguments("w4-groups-of-each")
    table = table.t().contiguous().t()
    same = groups[:1].expand(2, -1, -1)
    expected = window_attention(qkv, table, groups[:1].clone().repeat(2, 1, 1), impl="reference", **options)
    found = window_attention(qkv, table, same, impl="triton", **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_compiles_to_one_graph_with_the_same_result(impl):
    (qkv, table, _), options = arguments("w2-three-heads")
    compiled = torch.compile(window_attention, backend="aot_eager", fullgraph=True)
    results = []
    for function in (window_attention, compiled):
        leaves = qkv.clone().requires_grad_(), table.clone().requires_grad_()
        with use("window_attention", impl):
            out = function(*leaves, **options)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaves)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-6)


def test_opcheck():
    (qkv, table, groups), _ = arguments("w4-groups-of-each")
    qkv, table = qkv[..., :1, :].contiguous(), table[:, :1].contiguous()
    leaves = qkv.requires_grad_(), table.requires_grad_()
    torch.library.opcheck(triton_impl.forward.op, (*leaves, groups, 4, 0, 0.5))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (("cuda", torch.bfloat16, 7, 32), None),
        (("cuda", torch.float64, 7, 32), "it computes in float32"),
        (("cuda", torch.float16, 12, 32), "use segment_attention"),
        (("cuda", torch.float32, 7, 48), "32 or 64 channels, not 48"),
        (("cpu", torch.bfloat16, 7, 32), "interpreter"),
    ],
)
def test_what_triton_supports(shape, words, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reason = operator("window_attention").fast[0].supports(*shape)
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qkv": torch.zeros(1, 8, 8, 2, 1, 32)}, "must be (B, H, W, 3, heads, D)"),
        ({"window": 3}, "windows of 3x3 do not divide a map of 8x8; pad the map"),
        ({"shift": 4}, "shift is 4, it must be 0 to 3"),
        ({"table": torch.zeros(48, 1)}, "need floating point (49, 1)"),
        ({"groups": torch.zeros(2, 8, 8, dtype=torch.int8)}, "torch.int8 (1 or 1, 8, 8)"),
        ({"groups": torch.zeros(1, 8, 8)}, "groups is torch.float32"),
        ({"qkv": torch.zeros(1, 8, 8, 3, 1, 64)[..., ::2], "impl": "triton"}, "strided"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    given = {"qkv": torch.zeros(1, 8, 8, 3, 1, 32), "table": torch.zeros(49, 1), "window": 4}
    with pytest.raises(UserError) as error:
        window_attention(**{**given, **change})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_cost_counts_each_byte_once():
    (qkv, table, groups), options = CASES["w7-groups-fp16"].arguments()
    cost = operator("window_attention").cost(qkv, table, groups, **options)
    tokens, channels = 2 * 49, 64
    assert cost.forward_bytes == 4 * tokens * channels * 2 + table.numel() * 4 + 49
    assert cost.bytes == cost.forward_bytes + 7 * tokens * channels * 2 + 2 * table.numel() * 4 + 49
    assert (cost.forward_flops, cost.flops) == (4 * 49 * tokens * channels, 14 * 49 * tokens * channels)
