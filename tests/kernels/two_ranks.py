"""What two gloo processes make of one global batch, for the operators that communicate or are fed by a gather."""

import functools
import os
import tempfile

import torch
import torch.distributed as dist
import torch.nn.functional as F

WORLD = 2


def global_batch():
    """Scores for sinkhorn, two standardised views (6 samples, 20 dimensions), and 8 unit vectors for info_nce."""
    generator = torch.Generator().manual_seed(7)
    scores = torch.randn(10, 14, generator=generator) / 3
    a, b = torch.randn(2, 6, 20, generator=generator).double()
    a, b = ((x - x.mean(0)) / x.std(0, correction=0) for x in (a, (a + b) / 2))
    return scores, a, b, F.normalize(torch.randn(8, 16, generator=generator), dim=1)


def partners(rows, first):
    """In each rank's rows, the first and second half are views of the same images."""
    own = torch.arange(rows)
    return first + (own + rows // 2) % rows, first + own


def correlate(a, b, impl):
    from headrace.kernels.cross_correlation import cross_correlation

    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    loss = cross_correlation(a, b, weight=0.3, impl=impl)
    return [loss.detach(), *torch.autograd.grad(loss, (a, b))]


def normality(views, impl):
    from headrace.kernels.sigreg import sigreg

    views = views.float().requires_grad_()
    loss = sigreg(views, impl=impl)
    return [loss.detach(), *torch.autograd.grad(loss, views)]


def work(rank, folder):
    from headrace.kernels import operator
    from headrace.kernels.info_nce import info_nce
    from headrace.kernels.sinkhorn import sinkhorn
    from headrace.models.distributed import gather_with_gradient

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    scores, a, b, z = (x.chunk(WORLD)[rank].contiguous() for x in global_batch())
    found = {f"sinkhorn {impl}": sinkhorn(scores, epsilon=0.05, impl=impl) for impl in ("reference", "triton")}
    found |= {f"cross_correlation {impl}": correlate(a, b, impl) for impl in ("reference", "gram")}
    found |= {f"sigreg {impl}": normality(torch.stack([a, b]), impl) for impl in ("reference", "triton")}
    for impl in ("reference", "triton"):
        rows = z.clone().requires_grad_()
        positive, exclude = partners(len(rows), rank * len(rows))
        everything = gather_with_gradient(rows).flatten(0, 1)
        loss = info_nce(rows, everything, positive, exclude, temperature=0.2, impl=impl)
        found[f"info_nce {impl}"] = [loss.detach(), *torch.autograd.grad(loss, rows)]
    for name in ("sinkhorn", "cross_correlation", "sigreg"):  # as functions of a user's, first calls and later ones
        theirs = functools.partial(operator(name).reference)
        theirs.__module__, theirs.__qualname__ = "theirs", name
        run = {
            "sinkhorn": lambda impl: sinkhorn(scores, epsilon=0.05, impl=impl),
            "cross_correlation": lambda impl: correlate(a, b, impl),
            "sigreg": lambda impl: normality(torch.stack([a, b]), impl),
        }[name]
        found[f"{name} theirs"], found[f"{name} theirs again"] = run(theirs), run(theirs)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of gloo and autograd may abort an interpreter that is ending (seen once)


@functools.cache
def results():
    """Of each rank: name -> what it found. Two processes for the whole test session."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (folder,), nprocs=WORLD)
        return [torch.load(f"{folder}/{rank}.pt") for rank in range(WORLD)]
