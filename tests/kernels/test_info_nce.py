"""info_nce: the reference against the formula written out, Triton against the reference, two ranks against one."""

import math

import pytest
import torch
import torch.nn.functional as F
from two_ranks import global_batch, partners, results

from headrace.errors import UserError
from headrace.kernels import operator, use
from headrace.kernels.check import check
from headrace.kernels.info_nce import info_nce, info_nce_queue

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
OPERATOR = operator("info_nce")
CASES = {case.id: case for case in OPERATOR.cases}


def written_out(rows, columns, positive, exclude, keys, temperature):
    """The loss in float64, one row at a time."""
    total = 0.0
    for i, row in enumerate(rows.double()):
        logits = [float(row @ column.double()) / temperature for column in columns]
        right = float(row @ keys[i].double()) / temperature if keys is not None else logits[positive[i]]
        others = [logit for j, logit in enumerate(logits) if exclude is None or j != exclude[i]]
        others += [right] if keys is not None else []
        total += math.log(sum(math.exp(logit) for logit in others)) - right
    return total / len(rows)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_reference_is_the_formula(case):
    args, options = case.arguments()
    doubled = [arg.double() if arg is not None and arg.is_floating_point() else arg for arg in args]
    loss = OPERATOR(*doubled, impl="reference", **options)
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(written_out(*args, **options), rel=1e-9)


@pytest.mark.parametrize("name", ["queue-odd-width", "batch-keeps-all", "batch-one-pair"])
def test_reference_gradient_by_finite_differences(name):
    (rows, columns, *others), options = CASES[name].arguments()
    others = [other.double() if other is not None and other.is_floating_point() else other for other in others]
    loss = lambda r, c: OPERATOR(r, c, *others, impl="reference", **options)  # noqa: E731
    leaves = rows.double().requires_grad_(), columns.double().requires_grad_()
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)


def test_triton_passes_the_checker_on_every_case():
    pytest.importorskip("triton")
    found = check("info_nce", "triton", DEVICE)
    assert [result for result in found if result.passed is False] == []
    left_out = {result.case for result in found if result.passed is None}
    assert left_out == ({name for name in CASES if "bf16" in name} if DEVICE == "cpu" else set())


def test_a_loss_near_zero_keeps_its_digits():
    """Negatives at right angles: log(1 + 10 exp(-20)). One minus a probability of nearly one would have no digit."""
    basis = torch.eye(16, device=DEVICE)
    rows = basis[:2].clone().requires_grad_()
    loss = info_nce_queue(rows, basis[:2], basis[2:12], temperature=0.05, impl="triton")
    assert loss.item() == pytest.approx(10 * math.exp(-20), rel=1e-5)
    loss.backward()
    miss = 10 * math.exp(-20) / 0.05 / 2
    expected = torch.zeros(2, 16)
    expected[:, 2:12] = miss / 10
    expected[0, 0] = expected[1, 1] = -miss
    assert torch.allclose(rows.grad.cpu(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_large_logits_neither_overflow_nor_vanish(impl):
    """At temperature 0.005 exp(logit) is infinite in float32; one negative is closer than the positive by 20."""
    rows = torch.tensor([[1.0] + [0.0] * 15], device=DEVICE)
    queue = torch.tensor([[1.0] + [0.0] * 15, [-1.0] + [0.0] * 15], device=DEVICE)
    keys = torch.tensor([[0.9] + [0.0] * 15], device=DEVICE)
    assert info_nce_queue(rows, keys, queue, temperature=0.005, impl=impl).item() == pytest.approx(20, abs=1e-3)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_the_excluded_column_does_not_exist(impl):
    (rows, columns, positive, exclude, _), options = CASES["batch-d32"].arguments()
    rows, columns, positive, exclude = (x.to(DEVICE) for x in (rows, columns, positive, exclude))
    row, column = rows[:1], columns.clone().requires_grad_()
    loss = info_nce(row, column, positive[:1], exclude[:1], impl=impl, **options)
    loss.backward()
    without = torch.cat([columns[:0], columns[1:]])
    assert exclude[0] == 0 and torch.all(column.grad[0] == 0)
    expected = F.cross_entropy(row @ without.T / options["temperature"], positive[:1] - 1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_one_batch_on_two_ranks_has_the_loss_and_gradient_of_one():
    *_, z = global_batch()
    loss, gradient = 0.0, torch.zeros_like(z, dtype=torch.float64)
    leaf = z.double().requires_grad_()
    for rank in range(2):
        positive, exclude = partners(4, 4 * rank)
        similarity = (leaf[4 * rank : 4 * rank + 4] @ leaf.T / 0.2).scatter(1, exclude[:, None], float("-inf"))
        loss = loss + F.cross_entropy(similarity, positive) / 2
    (gradient,) = torch.autograd.grad(loss, leaf)
    for impl in ("reference", "triton"):
        losses, gradients = zip(*(found[f"info_nce {impl}"] for found in results()), strict=True)
        assert sum(losses).item() / 2 == pytest.approx(loss.item(), rel=1e-6)
        assert torch.allclose(torch.cat(gradients).double() / 2, gradient, rtol=1e-5, atol=1e-7)


def test_compiles_to_one_graph_with_the_same_result():
    pytest.importorskip("triton")
    (rows, columns, positive, exclude, _), options = CASES["batch-d32"].arguments()
    compiled = torch.compile(info_nce, backend="aot_eager", fullgraph=True)
    results = []
    for function in (info_nce, compiled):
        leaves = [x.to(DEVICE).requires_grad_() for x in (rows, columns)]
        with use("info_nce", "triton"):
            loss = function(*leaves, positive.to(DEVICE), exclude.to(DEVICE), **options)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_opcheck():
    pytest.importorskip("triton")
    from headrace.kernels.info_nce import triton_impl

    for name in ("queue-odd-width", "batch-one-pair"):
        args, options = CASES[name].arguments()
        args = [x if x is None else x.to(DEVICE).requires_grad_(i < 2) for i, x in enumerate(args)]
        torch.library.opcheck(triton_impl._forward.op, (*args, options["temperature"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": torch.zeros(5, 9)}, "cannot be compared with torch.float32 (5, 9)"),
        ({"columns": torch.zeros(5, 8).half()}, "cannot be compared with torch.float16 (5, 8)"),
        ({"positive": torch.zeros(4, dtype=torch.int64)}, "positive is torch.int64 (4,)"),
        ({"exclude": torch.zeros(3)}, "exclude is torch.float32 (3,)"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    arguments = {
        "rows": torch.zeros(3, 8),
        "columns": torch.zeros(5, 8),
        "positive": torch.zeros(3, dtype=torch.int64),
        "temperature": 0.1,
    }
    with pytest.raises(UserError) as error:
        info_nce(**{**arguments, **change})
    assert words in str(error.value)


def test_keys_that_ask_for_a_gradient_are_refused():
    rows = torch.zeros(3, 8)
    with pytest.raises(UserError, match="keys get no gradient but require one"):
        info_nce_queue(rows, rows.clone().requires_grad_(), rows, temperature=0.1)
    with pytest.raises(UserError, match=r"keys are torch.float32 \(2, 8\)"):
        info_nce_queue(rows, rows[:2], rows, temperature=0.1)
