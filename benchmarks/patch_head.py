"""Memory of DINOv2's and DINOv3's loss of masked patches: ``python -m headrace.benchmarks.patch_head``.

What its forward and backward take at the most, beside weights and the vectors that prototypes meet, by the allocator's
own account on a CPU: with all logits there at once, as plain PyTorch writes it, and as `patch_loss` does it, some rows
at a time. The teacher's logits are centred, or assigned by Sinkhorn's algorithm, for which they must all be there.
All of it in float32.

A row for each goes to the ledger ``patch_head.jsonl``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from headrace.errors import run_command
from headrace.kernels.prototype_ce import reference
from headrace.kernels.sinkhorn import sinkhorn
from headrace.models.algorithms.dinov2 import DINOv2
from headrace.models.self_distillation.patch_loss import PatchTargets, patch_loss
from headrace.pipelines.views.masks import crop_counts
from headrace.train.evaluation.evaluate import positive

from .record import add_out, append


def peak_mb(function: Callable[[], object]) -> float:
    """Most memory that was allocated at a time during a call, beyond what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / 1e6


def by_formula(vectors: Tensor, prototypes: Tensor, known: Tensor, taught: Tensor, weights: Tensor, assigned: bool):
    """All logits, then their targets, then the cross-entropy."""
    with torch.no_grad():
        logits = F.linear(known, taught)
        told = sinkhorn(logits, epsilon=0.07, impl="reference") if assigned else (logits / 0.07).softmax(1)
    options = {"student_temperature": 0.1, "teacher_temperature": None, "pairs": "same"}
    student = F.linear(vectors, prototypes)
    return reference.prototype_ce(student[None], told[None], None, weights, **options)


def in_tiles(vectors: Tensor, prototypes: Tensor, known: Tensor, taught: Tensor, weights: Tensor, assigned: bool):
    options = {"student_temperature": 0.1}
    if assigned:
        told = sinkhorn(F.linear(known, taught), epsilon=0.07, impl="reference")
        return patch_loss(vectors, prototypes, PatchTargets(told, None, options), weights)
    return patch_loss(
        vectors, prototypes, PatchTargets(known, taught, options | {"teacher_temperature": 0.07}), weights
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.patch_head", description=__doc__[:52])
    parser.add_argument("--images", type=positive, default=64, help="of a step (%(default)s)")
    parser.add_argument("--prototypes", type=positive, default=65536, help="(%(default)s)")
    parser.add_argument("--bottleneck", type=positive, default=256, help="numbers of a vector (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    add_out(parser)
    args = parser.parse_args(argv)
    spec = DINOv2.Config().mask  # of crops of 224 px
    rows = int(crop_counts(spec, args.seed, 0, args.images).sum())
    torch.manual_seed(args.seed)
    vectors, known = (F.normalize(torch.randn(rows, args.bottleneck), dim=1) for _ in range(2))
    prototypes, taught = (F.normalize(torch.randn(args.prototypes, args.bottleneck), dim=1) for _ in range(2))
    inputs = vectors.requires_grad_(), prototypes.requires_grad_(), known, taught, torch.full((rows,), 1 / rows)
    for targets, assigned in (("centred", False), ("assigned", True)):
        found = []
        for contender, loss in (("by the formula", by_formula), ("in tiles", in_tiles)):
            values = []

            def step(loss=loss, assigned=assigned, values=values) -> None:
                vectors.grad = prototypes.grad = None
                value = loss(*inputs, assigned)
                value.backward()
                values.append((value.item(), prototypes.grad.norm().item()))

            most = peak_mb(step)
            found.append(most)
            row = {"peak_mb": round(most), "peak_share": round(most / found[0], 3)}
            row |= {"loss": float(f"{values[-1][0]:.6g}"), "gradient": float(f"{values[-1][1]:.6g}")}
            print(f"{targets}, {contender}: {row}", flush=True)
            config = {"rows": rows, "prototypes": args.prototypes, "bottleneck": args.bottleneck, "seed": args.seed}
            append("patch_head", {"job": targets, "contender": contender, **row, "config": config}, folder=args.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
