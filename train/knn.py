"""Weighted k-NN classification on frozen features: the quickest answer to "how good is the encoder"."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..pipelines.sources import open_source
from .checkpoint import load_algorithm
from .distributed import pick_device
from .embed import Features, embed, evaluation_view


def knn_accuracy(
    bank: Features, queries: Features, *, k: int = 20, temperature: float = 0.07, chunk: int = 1024
) -> float:
    """Top-1 accuracy in [0, 1].

    Cosine similarity s; the k nearest bank rows vote for their class with weight exp(s / temperature)
    (arXiv 1805.01978, section 3.4). `chunk` queries at a time bound the memory to chunk x bank similarities.
    """
    k = min(k, len(bank.labels))
    rows = F.normalize(bank.vectors, dim=1)
    classes = int(bank.labels.max()) + 1
    correct = 0
    for start in range(0, len(queries.labels), chunk):
        similarity = F.normalize(queries.vectors[start : start + chunk], dim=1) @ rows.T
        nearest, neighbours = similarity.topk(k, dim=1)
        votes = torch.zeros(len(nearest), classes).scatter_add_(
            1, bank.labels[neighbours], (nearest / temperature).exp()
        )
        correct += (votes.argmax(1) == queries.labels[start : start + chunk]).sum().item()
    return correct / len(queries.labels)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace knn", description="k-NN accuracy of a pre-trained encoder.")
    parser.add_argument("--checkpoint", required=True, help="a .pt checkpoint or a run directory")
    parser.add_argument("--train", required=True, help="labelled shards or folder the neighbours come from")
    parser.add_argument("--val", required=True, help="labelled shards or folder to classify")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--temperature", type=float, default=0.07)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args(argv)
    if arguments.k < 1 or arguments.temperature <= 0 or arguments.batch_size < 1:
        raise UserError("--k and --batch-size must be at least 1, --temperature positive")

    path, algorithm = load_algorithm(arguments.checkpoint)
    bank_source, query_source = open_source(arguments.train), open_source(arguments.val)
    for flag, source in (("--train", bank_source), ("--val", query_source)):
        if source.classes is None:
            raise UserError(f"{flag}: {source.name} has no labels; k-NN needs a folder per class")
    if bank_source.classes != query_source.classes:
        raise UserError(
            f"--val: {query_source.name} has other classes than {bank_source.name}; use the same class folders"
        )
    view = evaluation_view(algorithm.inputs().views[0])
    options = {"batch_size": arguments.batch_size, "device": pick_device(arguments.device)}
    bank = embed(algorithm.encoder, bank_source, view, **options)
    queries = embed(algorithm.encoder, query_source, view, **options)
    accuracy = knn_accuracy(bank, queries, k=arguments.k, temperature=arguments.temperature)
    print(
        f"k-NN top-1 {accuracy:.2%}  (k {arguments.k}, temperature {arguments.temperature}, "
        f"{len(bank.labels):,} neighbours, {len(queries.labels):,} queries, {path})"
    )
    for line in bank.left_out + queries.left_out:
        print(f"left out: {line}")
    return 0
