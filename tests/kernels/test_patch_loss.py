"""patch_loss: the reference against a formula written out here, Triton against the reference."""

import pytest
import torch

from headrace.errors import UserError
from headrace.kernels import operator, use
from headrace.kernels.check import check
from headrace.kernels.patch_loss import patch_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = operator("patch_loss").cases


def written_out(images, prediction, hidden, patch_size, normalize, absolute, eps):
    """Loss and gradient in float64, one number at a time."""
    images, prediction = images.double(), prediction.double()
    loss, gradient, count = 0.0, torch.zeros_like(prediction), max(1, int(hidden.sum()))
    columns = images.shape[3] // patch_size
    for b, i in hidden.nonzero().tolist():
        top, left = i // columns * patch_size, i % columns * patch_size
        patch = [
            images[b, c, top + y, left + x].item()
            for y in range(patch_size)
            for x in range(patch_size)
            for c in range(images.shape[1])
        ]
        n = len(patch)
        if normalize:
            mean = sum(patch) / n
            deviation = (sum((value - mean) ** 2 for value in patch) / (n - 1) + eps) ** 0.5
            patch = [(value - mean) / deviation for value in patch]
        difference = prediction[b, i] - torch.tensor(patch, dtype=torch.float64)
        loss += float((difference.abs() if absolute else difference**2).sum()) / n / count
        gradient[b, i] = (difference.sign() if absolute else 2 * difference) / n / count
    return loss, gradient


def test_reference_is_the_formula():
    for case in CASES:
        (images, prediction, hidden), options = case.arguments()
        prediction = prediction.double().requires_grad_()
        loss = patch_loss(images.double(), prediction, hidden, impl="reference", **options)
        (gradient,) = torch.autograd.grad(loss, prediction)
        expected_loss, expected_gradient = written_out(images, prediction.detach(), hidden, **options)
        assert loss.dtype == torch.float64 and loss.item() == pytest.approx(expected_loss, rel=1e-12), case.id
        assert torch.allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-14), case.id


def test_reference_gradient_by_finite_differences():
    (images, prediction, hidden), options = CASES[-2].arguments()
    assert CASES[-2].id == "p8-none-hidden"
    hidden = torch.zeros_like(hidden)
    hidden[0, 1] = hidden[1, 0] = True
    loss = lambda p: patch_loss(images.double(), p, hidden, impl="reference", **options)  # noqa: E731
    assert torch.autograd.gradcheck(loss, prediction.double().requires_grad_(), fast_mode=True)


def test_triton_passes_the_checker_on_every_case():
    pytest.importorskip("triton")
    results = check("patch_loss", "triton", DEVICE)
    assert [result for result in results if result.passed is False] == []
    left_out = {result.case for result in results if result.passed is None}
    assert left_out == ({case.id for case in CASES if "bf16" in case.id} if DEVICE == "cpu" else set())


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_nothing_hidden_is_a_loss_of_zero_with_zero_gradient(impl):
    (images, prediction, hidden), options = CASES[1].arguments()
    prediction = prediction.to(DEVICE).requires_grad_()
    loss = patch_loss(images.to(DEVICE), prediction, torch.zeros_like(hidden).to(DEVICE), impl=impl, **options)
    loss.backward()
    assert loss.item() == 0 and torch.equal(prediction.grad, torch.zeros_like(prediction))


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_visible_patches_are_not_looked_at(impl):
    (images, prediction, hidden), options = CASES[1].arguments()
    images, prediction, hidden = images.to(DEVICE), prediction.to(DEVICE), hidden.to(DEVICE)
    assert 0 < hidden.sum() < hidden.numel()
    spoiled = torch.where(hidden[..., None], prediction, torch.inf).requires_grad_()
    loss = patch_loss(images, spoiled, hidden, impl=impl, **options)
    loss.backward()
    assert torch.equal(loss, patch_loss(images, prediction, hidden, impl=impl, **options))
    assert spoiled.grad.isfinite().all() and (spoiled.grad[~hidden] == 0).all()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_flat_patch_has_a_zero_target(impl):
    images = torch.full((1, 3, 8, 8), 0.7, device=DEVICE)
    prediction = torch.full((1, 1, 192), 2.0, device=DEVICE)
    loss = patch_loss(images, prediction, torch.ones(1, 1, dtype=torch.bool, device=DEVICE), patch_size=8, impl=impl)
    assert loss.item() == pytest.approx(4.0, rel=1e-4)


def test_a_large_batch_keeps_its_gradient_in_float16():
    """2/(n*p*p*C) alone is below float16's smallest number from n = 50 000 on; a loss scale must still reach it."""
    pytest.importorskip("triton")
    hidden = torch.ones(1, 4, dtype=torch.bool, device=DEVICE)
    error = torch.full((1, 4, 12), 0.5, dtype=torch.float16, device=DEVICE)
    import headrace.kernels.patch_loss.triton_impl  # noqa: F401  registers the operators

    factor = torch.tensor(2.0**-26 * 2**16, device=DEVICE)
    assert (torch.ops.headrace.patch_loss_backward(error, hidden, factor) == 2.0**-11).all()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_compiles_to_one_graph_with_the_same_result(impl):
    (images, prediction, hidden), options = CASES[1].arguments()
    images, hidden = images.to(DEVICE), hidden.to(DEVICE)
    compiled = torch.compile(patch_loss, backend="aot_eager", fullgraph=True)
    results = []
    for function in (patch_loss, compiled):
        leaf = prediction.to(DEVICE).requires_grad_()
        with use("patch_loss", impl):
            loss = function(images, leaf, hidden, **options)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_one_compiled_function_serves_several_patch_sizes():
    compiled = torch.compile(patch_loss, backend="aot_eager", fullgraph=True)
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    for patch_size in (4, 8, 6, 12):
        patches = (24 // patch_size) ** 2
        prediction = torch.ones(2, patches, patch_size**2 * 3, device=DEVICE)
        hidden = torch.arange(2 * patches, device=DEVICE).reshape(2, patches) % 3 > 0
        expected = patch_loss(images, prediction, hidden, patch_size=patch_size)
        assert torch.equal(compiled(images, prediction, hidden, patch_size=patch_size), expected)


def test_opcheck():
    pytest.importorskip("triton")
    from headrace.kernels.patch_loss import triton_impl

    (images, prediction, hidden), options = CASES[5].arguments()
    assert CASES[5].id == "p16-class-token" and not prediction.is_contiguous()
    # All hidden: opcheck compares all outputs of two runs, and nobody writes the visible rows of the saved error.
    images, hidden = images.to(DEVICE), torch.ones_like(hidden).to(DEVICE)
    leaf = prediction.to(DEVICE).requires_grad_()
    torch.library.opcheck(triton_impl._forward.op, (images, leaf, hidden, options["patch_size"], True, False, 1e-6))
    error = torch.randn(prediction.shape, device=DEVICE)
    torch.library.opcheck(triton_impl._backward.op, (error, hidden, torch.tensor(0.5, device=DEVICE)))


@pytest.mark.skipif(DEVICE == "cpu", reason="synchronisation is a matter of GPUs")
def test_no_synchronisation():
    (images, prediction, hidden), options = CASES[0].arguments()
    images, leaf, hidden = images.to(DEVICE), prediction.to(DEVICE).requires_grad_(), hidden.to(DEVICE)
    patch_loss(images, leaf, hidden, **options).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        patch_loss(images, leaf, hidden, **options).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch_size": 5}, "patch_size 5 does not divide images of 8x12"),
        ({"prediction": torch.zeros(2, 6, 47)}, "prediction is (2, 6, 47)"),
        ({"hidden": torch.zeros(2, 5, dtype=torch.bool)}, "hidden is torch.bool (2, 5)"),
        ({"hidden": torch.zeros(2, 6)}, "must be torch.bool (2, 6)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    arguments = {
        "images": torch.zeros(2, 3, 8, 12),
        "prediction": torch.zeros(2, 6, 48),
        "hidden": torch.zeros(2, 6, dtype=torch.bool),
        "patch_size": 4,
    }
    with pytest.raises(UserError) as error:
        patch_loss(**{**arguments, **change})
    assert words in str(error.value)


def test_cost_counts_each_byte_once():
    (images, prediction, hidden), options = CASES[0].arguments()
    cost = operator("patch_loss").cost(images, prediction, hidden, **options)
    values = int(hidden.sum()) * 768
    assert cost.bytes == values * 4 + values * 2 + hidden.numel() + prediction.numel() * 2
    assert cost.flops == 12 * values
