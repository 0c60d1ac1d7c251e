"""token_mix: mixing and un-mixing token by token, Triton against the reference."""

import pytest
import torch

from headrace.errors import UserError
from headrace.kernels import operator, use
from headrace.kernels.check import check
from headrace.kernels.token_mix import mix, separate, unmix

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = {case.id: case for case in operator("token_mix").cases}


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def draw_mask(tokens):
    return (torch.rand(1, tokens, generator=torch.Generator().manual_seed(tokens)) < 0.5).to(DEVICE)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_mix_token_by_token(impl):
    x, mask, positions = draw(6, 9, 16), draw_mask(9), draw(9, 16)
    mixed = mix(x, mask, positions, impl=impl)
    for b in range(6):
        for i in range(9):
            origin = 5 - b if mask[0, i] else b
            assert torch.equal(mixed[b, i], x[origin, i] + positions[i])


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_unmix_token_by_token(impl):
    """Hidden places come from the image's own stream, visible ones from the partner's."""
    decoded, mask = draw(8, 9, 16), draw_mask(9)
    found = unmix(decoded, mask, impl=impl)
    first, second = decoded[:4], decoded[4:]
    for b in range(4):
        for i in range(9):
            assert torch.equal(found[b, i], first[b, i] if mask[0, i] else second[3 - b, i])


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_mixing_twice_is_nothing(impl):
    x, mask = draw(4, 7, 8), draw_mask(7)
    assert not torch.equal(mix(x, mask, impl=impl), x) and torch.equal(mix(mix(x, mask, impl=impl), mask, impl=impl), x)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_unmixed_places_are_those_that_were_not_seen(impl):
    """From the mixed tokens alone: in what `unmix` returns of `separate`, every place holds the mask token."""
    x, mask, mask_token = draw(4, 9, 8), draw_mask(9), draw(8)
    streams = separate(mix(x, mask, impl=impl), mask_token, mask, torch.zeros(9, 8, device=DEVICE))
    assert torch.equal(unmix(streams, mask, impl=impl), mask_token.expand(4, 9, 8))
    assert torch.equal(streams[1][~mask[0]], x[1][~mask[0]]) and torch.equal(streams[5][mask[0]], x[2][mask[0]])


def test_reference_gradient_by_finite_differences():
    x, mask, positions = draw(4, 5, 3).double(), draw_mask(5), draw(5, 3).double()
    leaves = x.requires_grad_(), positions.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: mix(x, mask, p, impl="reference"), leaves, fast_mode=True)
    assert torch.autograd.gradcheck(lambda x: unmix(x, mask, impl="reference"), leaves[:1], fast_mode=True)


def test_triton_passes_the_checker_on_every_case():
    pytest.importorskip("triton")
    found = check("token_mix", "triton", DEVICE)
    assert [result for result in found if result.passed is False] == []
    left_out = {result.case for result in found if result.passed is None}
    assert left_out == ({name for name in CASES if "bf16" in name} if DEVICE == "cpu" else set())


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_learned_positions_get_the_sum_over_images(impl):
    x, mask = draw(4, 5, 8), draw_mask(5)
    positions = torch.zeros(5, 8, device=DEVICE, requires_grad=True)
    mix(x, mask, positions, impl=impl).backward(gradient := draw(4, 5, 8))
    assert torch.allclose(positions.grad, gradient.sum(0))


@pytest.mark.parametrize("function", [mix, unmix])
def test_compiles_to_one_graph_with_the_same_result(function):
    pytest.importorskip("triton")
    x, mask = draw(4, 7, 8), draw_mask(7)
    results = []
    for call in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        leaf = x.clone().requires_grad_()
        with use("token_mix", "triton"):
            out = call(leaf, mask)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaf)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_opcheck():
    pytest.importorskip("triton")
    from headrace.kernels.token_mix import triton_impl

    leaves = draw(4, 7, 8).requires_grad_(), draw(7, 8).requires_grad_()
    torch.library.opcheck(triton_impl._move.op, (*leaves, draw_mask(7), 4, 2, torch.float32))


def test_arguments_that_do_not_fit_are_refused():
    x, mask = torch.zeros(4, 5, 8), torch.zeros(1, 5, dtype=torch.bool)
    with pytest.raises(UserError, match="a batch of 3 has no pairs; it must be even"):
        mix(x[:3], mask)
    with pytest.raises(UserError, match=r"mask is torch.bool \(4, 5\), it must be torch.bool \(1, 5\)"):
        unmix(x, mask.expand(4, 5))
    with pytest.raises(UserError, match="mask is torch.float32"):
        mix(x, mask.float())
    with pytest.raises(UserError, match=r"positions are \(1, 5, 8\)"):
        mix(x, mask, torch.zeros(1, 5, 8))
