"""Weighted k-NN classification on frozen features: the quickest answer to "how good is the encoder"."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
    options_of,
    positive,
    record,
    require_finite,
    right,
    say_left_out,
    table,
)
from .labels import labelled_sets, remarks, same_images

_GIB = 2**30
_EQUAL = 1e-6  # similarities that differ by less are equal: equal features differ by some 1e-7 in a matrix product
_AT_ONCE = 8192  # queries whose votes are held at a time
_SPARE = 16  # neighbours beyond the last one that counts, to see how many are as near as that


@torch.inference_mode()
def nearest(
    bank: torch.Tensor, queries: torch.Tensor, k: int, *, memory: float = 1.0, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine similarities (Q, k) and rows of the bank (Q, k), nearest first: exact, on the CPU.

    Bank (N, D) and queries (Q, D) may be memory-mapped: a block of the bank is read and normalised once and meets the
    queries in chunks. Beside the queries and the result that takes at most about `memory` GiB.
    """
    k = min(k, len(bank))
    best = torch.full((len(queries), k), -torch.inf)
    where = torch.zeros((len(queries), k), dtype=torch.int64)
    for start, own, similarity in _blocks(bank, queries, k, memory, device):
        found, at = similarity.topk(min(k, similarity.shape[1]), dim=1)
        found, at = torch.cat([best[own], found.cpu()], 1), torch.cat([where[own], at.cpu() + start], 1)
        best[own], order = found.topk(k, dim=1)
        where[own] = at.gather(1, order)
    return best, where


def _blocks(
    bank: torch.Tensor, queries: torch.Tensor, kept: int, memory: float, device: torch.device | str
) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """(first row, which queries, their similarities to a block of the bank from that row on); `kept` of them are."""
    device, width = torch.device(device), bank.shape[1]
    budget = memory * _GIB / 4  # figures of 4 bytes
    rows = max(kept, min(len(bank), int(budget / 4 / width)))  # a block as read and as normalised: half of the budget
    chunk = max(1, min(len(queries), int(budget / 4 / (rows + 4 * kept))))  # similarities, the best of them
    units = F.normalize(queries.float(), dim=1)
    for start in range(0, len(bank), rows):
        block = F.normalize(bank[start : start + rows].to(device).float(), dim=1)
        for first in range(0, len(queries), chunk):
            own = slice(first, first + chunk)
            yield start, own, units[own].to(device) @ block.T


def vote(
    similarity: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    temperature: float,
    counted: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """(Q, classes): sums of exp(s / temperature) over the neighbours (Q, k) of a class (arXiv 1805.01978, section 3.4).

    Every row is divided by the term of its nearest neighbour, which keeps low temperatures finite. `counted`: how much
    of each neighbour counts.
    """
    weights = ((similarity - similarity[:, :1]) / temperature).exp() * counted
    return torch.zeros(len(similarity), classes).scatter_add_(1, labels, weights)


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of a bank to each query, and the classes that they vote for.

    What is as near as the k-th neighbour shares the places that are left for it: each such row has an equal part of a
    vote. So no figure depends on the order of the bank, and of an encoder to which all images are the same every class
    gets votes by its number of images.
    """

    bank: torch.Tensor  # (N, D)
    labels: torch.Tensor  # (N,) int64
    queries: torch.Tensor  # (Q, D)
    own: torch.Tensor | None  # (Q,) the row of the bank that is the query itself and does not count
    options: dict  # of `nearest`
    similarity: torch.Tensor  # (Q, k and some more), nearest first
    rows: torch.Tensor

    @classmethod
    def of(
        cls, bank: Features, queries: torch.Tensor, k: int, own: torch.Tensor | None = None, **options
    ) -> Neighbours:
        similarity, rows = nearest(bank.vectors, queries, k + _SPARE + (own is not None), **options)
        if own is not None:  # a query itself goes to the end; the end is cut off
            order = (rows == own[:, None]).int().argsort(dim=1, stable=True)[:, :-1]
            similarity, rows = similarity.gather(1, order), rows.gather(1, order)
        return cls(bank.vectors, bank.labels, queries, own, options, similarity, rows)

    def some(self, part: slice) -> Neighbours:
        """Those of a part of the queries."""
        own = None if self.own is None else self.own[part]
        cut = {name: getattr(self, name)[part] for name in ("queries", "similarity", "rows")}
        return replace(self, own=own, **cut)

    def votes(self, k: int, temperatures: Sequence[float], classes: int) -> Iterator[torch.Tensor]:
        """(Q, classes) for each temperature: logarithms of what `vote` says of the k nearest, -inf for no vote."""
        there = len(self.bank) - (self.own is not None)
        near, edge, labels = self.similarity, self.similarity[:, k - 1 : k], self.labels[self.rows]
        above, tied = near > edge + _EQUAL, (near - edge).abs() <= _EQUAL
        equals = torch.zeros(len(labels), classes).scatter_add_(1, labels, tied.float())
        if near.shape[1] < there and tied[:, -1].any():  # there may be more of them
            equals[tied[:, -1]] = self._equals(tied[:, -1], edge, classes)
        part = (k - above.sum(1, keepdim=True)) / equals.sum(1, keepdim=True)
        nobody = equals.scatter_add(1, labels, above.float()) == 0
        for temperature in temperatures:
            votes = vote(near, labels, classes, temperature, above)
            votes += equals * part * ((edge - near[:, :1]) / temperature).exp()
            yield votes.log_().masked_fill_(nobody, -torch.inf)

    def _equals(self, which: torch.Tensor, edge: torch.Tensor, classes: int) -> torch.Tensor:
        """(Q', classes): how many rows of the whole bank are as near to some queries as their `edge` (Q, 1) says."""
        edge, own = edge[which], None if self.own is None else self.own[which]
        counts = torch.zeros(len(edge), classes)
        for start, part, similarity in _blocks(self.bank, self.queries[which], 1, **self.options):
            tied = ((similarity.cpu() - edge[part]).abs() <= _EQUAL).float()
            if own is not None:
                tied[torch.arange(start, start + tied.shape[1]) == own[part, None]] = 0
            counts[part] = counts[part].index_add(1, self.labels[start : start + tied.shape[1]], tied)
        return counts


def knn_table(
    bank: Features,
    queries: Features,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    memory: float = 1.0,
    process: Launch = ALONE,
    leave_one_out: bool = False,
) -> list[dict[str, float]]:
    """A row ``{k, temperature, top1, top5}`` for each pair, of one search; accuracies lie in [0, 1].

    A k beyond the number of neighbours is that number. Rows without a label count nowhere. With `leave_one_out`, bank
    and queries are the same rows, and none is a neighbour of itself; raises `UserError` where they are not. Several
    processes take every so many-th query each, and all get the figures of all queries.
    """
    bank, queries = bank.labelled(), queries.labelled()
    there = len(bank.labels) - leave_one_out
    if leave_one_out and not (there and torch.equal(bank.labels, queries.labels)):
        raise UserError("--leave-one-out: needs two or more images with labels, the same in both sets")
    mine = slice(process.rank, None, process.world)
    own = torch.arange(len(queries.labels))[mine] if leave_one_out else None
    ks = sorted({min(k, there) for k in ks})
    options = {"memory": memory, "device": process.device}
    found = Neighbours.of(bank, queries.vectors[mine], ks[-1], own, **options)
    answers, classes = queries.labels[mine], int(max(bank.labels.max(), queries.labels.max())) + 1
    hits = torch.zeros(len(ks), len(temperatures), 2, dtype=torch.float64)
    for start in range(0, len(answers), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        for row, k in zip(hits, ks):
            for cell, temperature, votes in zip(row, temperatures, found.some(part).votes(k, temperatures, classes)):
                cell += right(votes, answers[part], _EQUAL / temperature).sum(0)
    shares = torch.stack(process.gather(hits)).sum(0) / len(queries.labels)
    return [
        {"k": k, "temperature": temperature, "top1": top1, "top5": top5}
        for k, row in zip(ks, shares.tolist())
        for temperature, (top1, top5) in zip(temperatures, row)
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
    parser.add_argument(
        "--leave-one-out", action="store_true", help="--val holds the images of --train: none is its own neighbour"
    )
    arguments = parser.parse_args(argv)
    if min(arguments.temperature) <= 0 or arguments.memory <= 0:
        raise UserError("--temperature, --memory: must be positive")

    watch, encoder = Stopwatch(), encoder_of(arguments)
    sources = labelled_sets(arguments.train, arguments.val)
    alone = arguments.leave_one_out
    if alone and not same_images(*sources):
        raise UserError("--leave-one-out: --train and --val hold different images; name the same set twice")
    with launch(pick_device(arguments.device)) as process:
        options = options_of(arguments, process)
        bank, queries = (stored_features(encoder, source, arguments.features, **options) for source in sources)
        for flag, features in (("--train", bank), ("--val", queries)):
            require_finite(features, flag, encoder)
        figures = knn_table(
            bank,
            queries,
            ks=arguments.k,
            temperatures=sorted(set(arguments.temperature)),
            memory=arguments.memory,
            process=process,
            leave_one_out=alone,
        )
    if not process.is_main:
        return 0
    there, asked = (int((features.labels >= 0).sum()) for features in (bank, queries))
    data = {"train": sources[0].name, "val": sources[1].name, "neighbours": there, "queries": asked}
    data["unlabelled"] = [len(bank.labels) - there, len(queries.labels) - asked]
    settings = {"leave_one_out": True} if alone else {}
    record(arguments.results, "knn", encoder, data, settings, figures, watch)
    how = ", each without itself" if alone else ""
    table(f"k-NN, {there:,} neighbours, {asked:,} queries{how}, {encoder.name}", figures)
    if beyond := [k for k in arguments.k if k > there - alone]:
        print(f"--k {' '.join(map(str, beyond))}: there are only {there - alone:,} neighbours, which all vote")
    for line in remarks(*sources, alone):
        print(line)
    say_left_out(bank.left_out + queries.left_out)
    return 0
