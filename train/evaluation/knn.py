"""Weighted k-NN classification on frozen features: the quickest answer to "how good is the encoder"."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...errors import UserError
from ..engine.distributed import ALONE, Launch, launch, pick_device
from .embed import Features
from .embed_store import stored_features
from .evaluate import (
    Stopwatch,
    add_arguments,
    add_sets,
    encoder_of,
    labelled_sets,
    options_of,
    positive,
    record,
    right,
    table,
)

_GIB = 2**30


@torch.inference_mode()
def nearest(
    bank: torch.Tensor, queries: torch.Tensor, k: int, *, memory: float = 1.0, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine similarities (Q, k) and rows of the bank (Q, k), nearest first: exact, on the CPU.

    Bank (N, D) and queries (Q, D) may be memory-mapped: a block of the bank is read and normalised once and meets the
    queries in chunks. Beside the queries and the result that takes at most about `memory` GiB.
    """
    device, width, k = torch.device(device), bank.shape[1], min(k, len(bank))
    budget = memory * _GIB / 4  # figures of 4 bytes
    rows = max(k, min(len(bank), int(budget / 4 / width)))  # a block as read and as normalised: half of the budget
    chunk = max(1, min(len(queries), int(budget / 4 / (rows + 4 * k))))  # similarities, the best of them
    units = F.normalize(queries.float(), dim=1)
    best = torch.full((len(queries), k), -torch.inf)
    where = torch.zeros((len(queries), k), dtype=torch.int64)
    for start in range(0, len(bank), rows):
        block = F.normalize(bank[start : start + rows].to(device).float(), dim=1)
        for first in range(0, len(queries), chunk):
            own = slice(first, first + chunk)
            found, at = (units[own].to(device) @ block.T).topk(min(k, len(block)), dim=1)
            found, at = torch.cat([best[own], found.cpu()], 1), torch.cat([where[own], at.cpu() + start], 1)
            best[own], order = found.topk(k, dim=1)
            where[own] = at.gather(1, order)
    return best, where


def vote(similarity: torch.Tensor, labels: torch.Tensor, classes: int, temperature: float) -> torch.Tensor:
    """(Q, classes): sums of exp(s / temperature) over the neighbours (Q, k) of a class (arXiv 1805.01978, section 3.4).

    Every row is divided by its largest term, which keeps low temperatures finite.
    """
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    return torch.zeros(len(similarity), classes).scatter_add_(1, labels, weights)


def knn_table(
    bank: Features,
    queries: Features,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    memory: float = 1.0,
    process: Launch = ALONE,
) -> list[dict[str, float]]:
    """A row ``{k, temperature, top1, top5}`` for each pair, of one search; accuracies lie in [0, 1].

    Several processes take every so many-th query each, and all get the figures of all queries.
    """
    mine = slice(process.rank, None, process.world)
    own, answers = queries.vectors[mine], queries.labels[mine]
    similarity, rows = nearest(bank.vectors, own, max(ks), memory=memory, device=process.device)
    labels, classes = bank.labels[rows], int(bank.labels.max()) + 1
    pairs = [(k, temperature) for k in ks for temperature in temperatures]
    votes = (vote(similarity[:, :k], labels[:, :k], classes, temperature) for k, temperature in pairs)
    hits = [right(scores, answers).sum(0) for scores in votes]
    shares = torch.stack(process.gather(torch.stack(hits))).sum(0) / len(queries.labels)
    return [
        {"k": k, "temperature": temperature, "top1": top1, "top5": top5}
        for (k, temperature), (top1, top5) in zip(pairs, shares.tolist())
    ]


def knn_accuracy(bank: Features, queries: Features, *, k: int = 20, temperature: float = 0.07) -> float:
    """Top-1 accuracy in [0, 1] of one pair: see `knn_table`."""
    return knn_table(bank, queries, ks=[k], temperatures=[temperature])[0]["top1"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace knn", description="k-NN accuracy of an encoder.")
    add_arguments(parser)
    add_sets(parser)
    parser.add_argument("--k", type=positive, nargs="+", default=[10, 20, 100, 200], help="neighbours (10 20 100 200)")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.07], help="of the votes (0.07)")
    parser.add_argument("--memory", type=float, default=1.0, help="GiB that the search may take (1)")
    arguments = parser.parse_args(argv)
    if min(arguments.temperature) <= 0 or arguments.memory <= 0:
        raise UserError("--temperature, --memory: must be positive")

    watch, encoder = Stopwatch(), encoder_of(arguments)
    sources = labelled_sets(arguments.train, arguments.val)
    with launch(pick_device(arguments.device)) as process:
        options = options_of(arguments, process)
        bank, queries = (stored_features(encoder, source, arguments.features, **options) for source in sources)
        figures = knn_table(
            bank,
            queries,
            ks=sorted(set(arguments.k)),
            temperatures=sorted(set(arguments.temperature)),
            memory=arguments.memory,
            process=process,
        )
    if not process.is_main:
        return 0
    data = {"train": sources[0].name, "val": sources[1].name, "neighbours": len(bank.labels)}
    record(arguments.results, "knn", encoder, data | {"queries": len(queries.labels)}, {}, figures, watch)
    table(f"k-NN, {len(bank.labels):,} neighbours, {len(queries.labels):,} queries, {encoder.name}", figures)
    for line in bank.left_out + queries.left_out:
        print(f"left out: {line}")
    return 0
