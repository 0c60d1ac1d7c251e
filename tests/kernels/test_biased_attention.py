"""biased_attention: the reference against a formula written out here, Triton against the reference."""

import pytest
import torch

from headrace.errors import UserError
from headrace.kernels import operator, use
from headrace.kernels.biased_attention import biased_attention
from headrace.kernels.check import check

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from headrace.kernels.biased_attention import launches, triton_impl  # noqa: E402
from headrace.kernels.biased_attention.tiled import attention_program  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = {case.id: case for case in operator("biased_attention").cases}


def arguments(id, double=False):
    tensors, options = CASES[id].arguments()
    return [t.to(DEVICE).double() if double else t.to(DEVICE) for t in tensors], options


def written_out(qkv, bias, scale):
    """One query at a time."""
    batch, tokens, _, heads, dim = qkv.shape
    out = torch.empty(batch, tokens, heads, dim, dtype=qkv.dtype)
    for b in range(batch):
        for h in range(heads):
            q, k, v = qkv[b, :, :, h].unbind(1)
            for i in range(tokens):
                weights = torch.exp((scale or dim**-0.5) * (k * q[i]).sum(1) + bias[h, i])
                out[b, i, h] = (weights[:, None] * v).sum(0) / weights.sum()
    return out


@pytest.mark.parametrize("id", CASES)
def test_reference_is_the_formula(id):
    (qkv, bias), options = arguments(id, double=True)
    found = biased_attention(qkv, bias, impl="reference", **options)
    torch.testing.assert_close(found.cpu(), written_out(qkv.cpu(), bias.cpu(), **options), rtol=1e-10, atol=1e-10)


def test_gradients_of_the_reference_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(2, 5, 3, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: biased_attention(*x, impl="reference"), (qkv, bias), fast_mode=True)


def test_triton_passes_the_checker_on_every_case():
    results = check("biased_attention", "triton", DEVICE)
    assert [result for result in results if result.passed is False] == []
    left_out = {result.case for result in results if result.passed is None}
    assert left_out == ({id for id in CASES if "bf16" in id} if DEVICE == "cpu" else set())


def test_a_bias_shared_by_blocks_gathers_the_gradients_of_all():
    """BEiT's: one table for all blocks, made a matrix once."""
    generator = torch.Generator().manual_seed(2)
    index = torch.randint(0, 7, (17, 17), generator=generator)
    qkv = torch.randn(2, 17, 3, 1, 32, generator=generator)
    gradients = []
    for impl, dtype in (("reference", torch.float64), ("triton", torch.float32)):
        table = torch.linspace(-1, 1, 7, dtype=dtype, device=DEVICE)[:, None].requires_grad_()
        bias = table[index.to(DEVICE)].permute(2, 0, 1).contiguous()
        x = qkv.to(DEVICE, dtype)
        for _ in range(2):
            out = biased_attention(x, bias, impl=impl)
            x = torch.stack((out, -out, out), 2)
        gradients.append(torch.autograd.grad(x.square().sum(), table)[0].double())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_keys_hidden_by_the_first_tiles_leave_no_trace(impl):
    """A running maximum that starts at -inf makes NaN of a tile that is -inf throughout."""
    (qkv, bias), options = arguments("n66-hidden")
    spoiled = qkv.clone()
    spoiled[:, :64] *= 50
    first, second = (biased_attention(x, bias, impl=impl, **options)[:, 64:] for x in (qkv, spoiled))
    assert torch.equal(first, second) and first.isfinite().all()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_rows_of_padding_do_not_overflow(impl):
    """Without a sum of its own a row of padding has the probability exp(bias): infinite, and NaN times 0 after that."""
    (qkv, bias), options = arguments("n17")
    results = []
    for constant in (0.0, 200.0):
        leaves = qkv.clone().requires_grad_(), torch.full_like(bias, constant).requires_grad_()
        out = biased_attention(*leaves, impl=impl, **options)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for plain, large in zip(*results, strict=True):
        assert large.isfinite().all()
        torch.testing.assert_close(large, plain, rtol=1e-3, atol=1e-3)


@triton.jit
def store_offset(found, batch, SIZE: tl.constexpr):
    _, _, _, image = attention_program(batch, 1, 1, 1, 0)
    tl.store(found + image, image * SIZE)


def test_offsets_of_a_large_batch_are_64_bit():
    found = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    store_offset[(3,)](found, 3, SIZE=2**31)
    assert found.tolist() == [0, 2**31, 2**32]


@pytest.mark.parametrize("kernels", [("backward_kernel",), ("queries_kernel", "keys_kernel")])
def test_more_than_65535_images_are_on_the_first_axis_of_the_grid(monkeypatch, kernels):
    """The other axes end there."""
    launched = []

    class Recorder:
        def __getitem__(self, grid):
            launched.append(grid)
            return lambda *args, **constants: None

    for kernel in ("forward_kernel", *kernels):
        monkeypatch.setattr(launches, kernel, Recorder())
    monkeypatch.setattr(launches, "ONE_PASS", 2 - len(kernels))
    qkv, bias = torch.zeros(70000, 1, 3, 1, 32, device=DEVICE), torch.zeros(1, 1, 1, device=DEVICE)
    out, logsum = triton_impl.forward(qkv, bias, 1.0)
    triton_impl.backward(out, qkv, bias, out, logsum, 1.0)
    assert len(launched) == 1 + len(kernels) and {len(grid) for grid in launched} == {1}
    assert launched[0] == launched[-1 if len(kernels) > 1 else 0] == (70000,)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_compiles_to_one_graph_with_the_same_result(impl):
    (qkv, bias), options = arguments("n2")
    compiled = torch.compile(biased_attention, backend="aot_eager", fullgraph=True)
    results = []
    for function in (biased_attention, compiled):
        leaves = qkv.clone().requires_grad_(), bias.clone().requires_grad_()
        with use("biased_attention", impl):
            out = function(*leaves, **options)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaves)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-6)


def test_opcheck():
    qkv, bias = torch.randn(1, 3, 3, 1, 32, device=DEVICE), torch.randn(1, 3, 3, device=DEVICE)
    torch.library.opcheck(triton_impl.forward.op, (qkv.requires_grad_(), bias.requires_grad_(), 0.5))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (("cuda", torch.bfloat16, 197, 64), None),
        (("cuda", torch.float64, 197, 64), "it computes in float32"),
        (("cuda", torch.float16, 2000, 64), "more than 1024"),
        (("cuda", torch.float16, 197, 80), "32 or 64 channels, not 80"),
    ],
)
def test_what_triton_supports(shape, words):
    reason = operator("biased_attention").fast[0].supports(*shape)
    assert reason is None if words is None else words in reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qkv": torch.zeros(1, 5, 2, 1, 32)}, "must be (B, N, 3, heads, D)"),
        ({"bias": torch.zeros(1, 5, 4)}, "need floating point (1, 5, 5)"),
        ({"bias": torch.zeros(1, 5, 5, dtype=torch.int32)}, "bias is torch.int32"),
        ({"bias": torch.zeros(5, 5, 2)[..., :1].permute(2, 0, 1), "impl": "triton"}, "needs .contiguous() once"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    given = {"qkv": torch.zeros(1, 5, 3, 1, 32), "bias": torch.zeros(1, 5, 5)}
    with pytest.raises(UserError) as error:
        biased_attention(**{**given, **change})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_cost_counts_each_byte_once():
    (qkv, bias), options = CASES["n144-fp16"].arguments()
    cost = operator("biased_attention").cost(qkv, bias, **options)
    values = 144 * 2 * 32
    assert cost.forward_bytes == 4 * values * 2 + bias.numel() * 4
    assert cost.bytes == cost.forward_bytes + 7 * values * 2 + 2 * bias.numel() * 4
    assert (cost.forward_flops, cost.flops) == (4 * 144 * values, 14 * 144 * values)
