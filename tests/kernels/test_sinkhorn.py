"""sinkhorn: the reference against the papers' loop, Triton against the reference, two ranks against one."""

import pytest
import torch
from two_ranks import global_batch, results

from headrace.errors import UserError
from headrace.kernels import operator, use
from headrace.kernels.check import check
from headrace.kernels.sinkhorn import sinkhorn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = {case.id: case for case in operator("sinkhorn").cases}


def as_published(scores, epsilon, iterations):
    """SwAV's loop with all its factors, in float64, one number at a time."""
    q = [[torch.exp(s / epsilon).item() for s in row] for row in scores.double()]
    samples, prototypes = scores.shape
    total = sum(map(sum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(iterations):
        sums = [sum(row[k] for row in q) for k in range(prototypes)]
        q = [[row[k] / sums[k] / prototypes for k in range(prototypes)] for row in q]
        q = [[value / sum(row) / samples for value in row] for row in q]
    return torch.tensor(q, dtype=torch.float64) * samples


@pytest.mark.parametrize("name", ["cosines", "more-samples-than-prototypes", "one-iteration", "one-sample", "warm"])
def test_reference_is_the_papers(name):
    (scores,), options = CASES[name].arguments()
    assert torch.allclose(sinkhorn(scores.double(), impl="reference", **options), as_published(scores, **options))


def test_triton_passes_the_checker_on_every_case():
    pytest.importorskip("triton")
    found = check("sinkhorn", "triton", DEVICE)
    assert [result for result in found if result.passed is not True] == []


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_the_fixed_point_has_the_right_marginals(impl):
    """Every sample one, every prototype the same share of all samples."""
    scores = torch.randn(12, 8, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    assignment = sinkhorn(scores, epsilon=1.0, iterations=30, impl=impl).cpu()
    assert torch.allclose(assignment.sum(1), torch.ones(12), atol=1e-5)
    assert torch.allclose(assignment.sum(0), torch.full((8,), 12 / 8), atol=1e-4)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_the_fixed_point_keeps_the_cross_ratios_of_the_kernel(impl):
    """diag(v) exp(s / epsilon) diag(u): q_ij q_kl / (q_il q_kj) depends on the scores alone."""
    scores = torch.randn(5, 6, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    log_q = sinkhorn(scores, epsilon=0.5, impl=impl).log()
    ratios = [x[:-1, :-1] + x[1:, 1:] - x[:-1, 1:] - x[1:, :-1] for x in (log_q, scores / 0.5)]
    assert torch.allclose(*ratios, atol=1e-4)


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("offset", [3.0, 1000.0])
def test_large_scores_do_not_overflow(impl, offset):
    """exp(20 * (1 + offset)) is infinite in float32; without the largest subtracted the result is NaN."""
    scores = (torch.randint(-64, 64, (6, 9), generator=torch.Generator().manual_seed(6)) / 64).to(DEVICE)
    moved = sinkhorn(scores + offset, epsilon=0.05, impl=impl)
    assert torch.allclose(moved, sinkhorn(scores, epsilon=0.05, impl=impl), atol=1e-6) and moved.isfinite().all()


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_a_prototype_out_of_reach_gets_nothing(impl):
    scores = torch.zeros(4, 3, device=DEVICE)
    scores[:, 1] = -100.0
    assignment = sinkhorn(scores, epsilon=0.05, impl=impl).cpu()
    assert torch.allclose(assignment, torch.tensor([0.5, 0.0, 0.5]).expand(4, 3))


def test_two_ranks_find_what_one_does():
    """Normalising prototypes over each rank's own samples, which some implementations do, gives something else."""
    scores = global_batch()[0]
    whole = as_published(scores, 0.05, 3)
    for impl in ("reference", "triton"):
        parts = torch.cat([found[f"sinkhorn {impl}"] for found in results()])
        assert torch.allclose(parts.double(), whole, atol=1e-5)
    alone = torch.cat([as_published(part, 0.05, 3) for part in scores.chunk(2)])
    assert (alone - whole).abs().max() > 0.01


def test_no_gradient():
    scores = torch.randn(3, 4, requires_grad=True)
    assert not sinkhorn(scores, epsilon=0.5, impl="reference").requires_grad
    assert not sinkhorn(scores, epsilon=0.5, impl="triton").requires_grad


def test_compiles_to_one_graph_with_the_same_result():
    pytest.importorskip("triton")
    scores = torch.randn(5, 6, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    with use("sinkhorn", "triton"):
        compiled = torch.compile(sinkhorn, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(scores, epsilon=0.1), sinkhorn(scores, epsilon=0.1))


def test_arguments_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match=r"scores are torch.int64 \(2, 3\)"):
        sinkhorn(torch.zeros(2, 3, dtype=torch.int64), epsilon=0.1)
    for options in ({"epsilon": 0.0}, {"epsilon": 0.1, "iterations": 0}):
        with pytest.raises(UserError, match="epsilon must be positive and iterations at least 1"):
            sinkhorn(torch.zeros(2, 3), **options)
