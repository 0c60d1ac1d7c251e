"""What an encoder's features say of a set: images that mean the same, images far from all others, doubtful labels.

Cosines are of features without their mean over the set: those of networks often share one direction, along which all
images are alike. Every image is held against all others, in blocks, and its nearest are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ...errors import UserError
from ...pipelines.measure.groups import preferred
from ...pipelines.sources.subset import Subset
from ...pipelines.spec import ByteSource
from ...train.engine.distributed import Launch, pick_device
from ...train.evaluation.embed_encoder import Encoder
from ...train.evaluation.embed_store import stored_features
from ...train.evaluation.evaluate import require_finite
from ...train.evaluation.knn import nearest, vote
from ...train.evaluation.labels import labels_of
from .curate import rows_of
from .rules import Rule

NEIGHBOURS, COSINE = 20, 0.95
OWN, OTHER = 0.1, 0.6  # a label is doubtful if less of the votes are for it, and as much or more for one other
TEMPERATURE = 0.07  # of the votes, as in `headrace knn`
FENCE = 1.5  # ranges between the quartiles, beyond the upper one: Tukey's fence
_BLOCK = 1 << 14  # images whose features are made, and kept on disk, at a time
_AT_ONCE = 1 << 13  # images whose votes are held at a time

COLUMNS = {
    "neighbour_distance": "1 - mean cosine to its nearest images, by the encoder",
    "label_agreement": "share of the votes of its nearest images that are for its label",
}


@dataclass(frozen=True)
class ByEncoder:
    """What to ask an encoder's features."""

    encoder: Encoder
    neighbours: int = NEIGHBOURS
    cosine: float = COSINE  # from which on two images are near duplicates
    features: Path = Path("features")  # folder of caches
    device: str = "auto"


@dataclass(frozen=True)
class Doubt:
    """An image whose neighbours have another label."""

    image: int
    label: int  # theirs
    share: float  # of the votes, that are for it
    nearest: list[int]  # images


@dataclass
class Vectors:
    """Features of those images of a set that can be decoded."""

    blocks: list[torch.Tensor]  # each (n, D) float32, memory-mapped
    ids: np.ndarray  # (N,) int64, ascending: the image of each row

    def unit(self, mean: torch.Tensor) -> Iterator[torch.Tensor]:
        """Each block at unit length, less that mean."""
        return (F.normalize(block.float(), dim=1) - mean for block in self.blocks)

    def mean(self) -> torch.Tensor:
        """(D,) of the features at unit length."""
        total = sum(F.normalize(block.float(), dim=1).double().sum(0) for block in self.blocks)
        return (total / max(1, len(self.ids))).float()


@dataclass
class Meaning:
    """What follows, by numbers of images."""

    asked: ByEncoder
    columns: dict[str, np.ndarray]
    groups: list[np.ndarray]  # near duplicates
    rule: Rule  # for images far from all others
    doubts: list[Doubt] = field(default_factory=list)  # the most doubtful first
    about: dict[str, str] = field(default_factory=lambda: COLUMNS)  # what the columns are that hold figures
    pairs: list[np.ndarray] = field(default_factory=list)  # for each other set, (P, 2): image of ours, image of theirs


def vectors_of(asked: ByEncoder, source: ByteSource, readable: np.ndarray) -> Vectors:
    """Features of the images for which `readable` (N,) holds, made in blocks, each of which is kept when it is done.

    Raises `UserError` where there are none, or some are not finite.
    """
    ids, blocks, rows = np.flatnonzero(readable), [], []
    process = Launch(device=pick_device(asked.device))
    for at in range(0, len(ids), _BLOCK):
        own = ids[at : at + _BLOCK]
        part = Subset(source, own.tolist())
        found = stored_features(asked.encoder, part, asked.features, process=process, max_bad=1.0)
        require_finite(found, "data", asked.encoder)
        blocks.append(found.vectors)
        rows.append(own[rows_of(part, found.place)])
    if not blocks:
        raise UserError(f"{source.name}: --encoder: not one image can be decoded")
    return Vectors(blocks, np.concatenate(rows))


def meaning(
    asked: ByEncoder, source: ByteSource, rows: np.ndarray, own: Vectors, others: Sequence[Vectors] = ()
) -> Meaning:
    """What an encoder's features `own` say of `source`, whose measurements `rows` are; `others` are those of the sets
    that it is held against."""
    mean, ids = own.mean(), own.ids
    cosines, near = nearest_rows(own, own, asked.neighbours, mean)
    distance = np.full(len(source), np.nan, np.float32)
    if cosines.shape[1]:
        distance[ids] = 1 - cosines.mean(1).numpy()
    rank = np.argsort(preferred(rows))
    kept = around_kept(len(source), ids, ids[near.numpy()], cosines.numpy() >= asked.cosine, rank)
    groups, numbers = groups_of(kept), np.full(len(source), -1)
    for number, group in enumerate(groups):
        numbers[group] = number
    columns = {"neighbour_distance": distance, "embedding_group": numbers}
    columns["embedding_duplicate"] = (kept >= 0) & (kept != np.arange(len(source)))
    found = Meaning(asked, columns, groups, far_rule(distance))
    if source.classes is not None:
        _look_at_labels(found, labels_of(source), len(source.classes), ids, near, cosines)
    if others:
        columns["embedding_leaked"] = np.zeros(len(source), bool)
    for theirs in others:
        cosines, near = nearest_rows(own, theirs, asked.neighbours, mean)
        query, place = np.nonzero(cosines.numpy() >= asked.cosine)
        pairs = np.stack([ids[near.numpy()[query, place]], theirs.ids[query]], 1)
        found.pairs.append(pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))])
        columns["embedding_leaked"][pairs[:, 0]] = True
    return found


def nearest_rows(bank: Vectors, queries: Vectors, k: int, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines (Q, k) and rows of the bank (Q, k), nearest first: exact. No row is a neighbour of itself where bank and
    queries are one. Fewer than `k` where the bank has no more."""
    same = bank is queries
    k = min(k, len(bank.ids) - same)
    asked, first, found = k + same, 0, []
    for query in queries.unit(mean):
        best, where, start = torch.empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.int64), 0
        for block in bank.unit(mean):
            cosines, rows = nearest(block, query, asked)
            both, order = torch.cat([best, cosines], 1).topk(min(asked, best.shape[1] + cosines.shape[1]), dim=1)
            best, where = both, torch.cat([where, rows + start], 1).gather(1, order)
            start += len(block)
        if same:  # itself goes to the end, which is cut off
            itself = where == torch.arange(first, first + len(query))[:, None]
            order = itself.int().argsort(dim=1, stable=True)[:, :k]
            best, where = best.gather(1, order), where.gather(1, order)
        found.append((best, where))
        first += len(query)
    return tuple(map(torch.cat, zip(*found)))


def around_kept(images: int, ids: np.ndarray, near: np.ndarray, close: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """(images,) int64: the image that is kept in place of each one, itself where it is alone or kept; -1 for those that
    are none of `ids` (N,). Of their neighbours `near` (N, k) those count that are `close` (N, k).

    Images are gone through by `rank` (images,). Each one that nothing is kept for yet is kept, and so in place of all
    that are close to it, or it to them, and nothing is kept for. So what is left out is close to what is kept, however
    long a chain of images there is from one kind of thing to another.
    """
    row, column = np.nonzero(close)
    pairs = np.stack([ids[row], near[row, column]])
    pairs = np.unique(np.concatenate([pairs, pairs[::-1]], 1), axis=1)
    first = np.searchsorted(pairs[0], np.arange(images + 1))
    kept = np.full(images, -1)
    linked = np.unique(pairs[0])
    for image in linked[np.argsort(rank[linked], kind="stable")].tolist():
        if kept[image] < 0:
            others = pairs[1, first[image] : first[image + 1]]
            kept[others[kept[others] < 0]] = image
            kept[image] = image
    alone = ids[kept[ids] < 0]
    kept[alone] = alone
    return kept


def groups_of(kept: np.ndarray) -> list[np.ndarray]:
    """The images of each group, ascending, in the order of their first ones."""
    order = np.argsort(kept, kind="stable")
    order = order[kept[order] >= 0]
    found = np.split(order, np.flatnonzero(np.diff(kept[order])) + 1)
    return sorted((group for group in found if len(group) > 1), key=lambda group: group[0])


def far_rule(distance: np.ndarray) -> Rule:
    """For images that are much farther from their neighbours than is usual in the set."""
    known = distance[np.isfinite(distance)].astype(np.float64)
    low, high = np.quantile(known, [0.25, 0.75]) if len(known) else (2.0, 2.0)
    fence = np.ceil(1e4 * (high + FENCE * (high - low))) / 1e4
    why = f"farther from its nearest images than three quarters are, by {FENCE:g} times the range of the middle half"
    return Rule("far from all others", f"neighbour_distance > {fence:.4f}", "neighbour_distance", True, why)


def _look_at_labels(found: Meaning, labels, classes: int, ids: np.ndarray, near, cosines) -> None:
    agreement, doubtful = np.full(len(labels), np.nan, np.float32), np.zeros(len(labels), bool)
    of_rows, doubts = torch.from_numpy(labels[ids]), []
    for at in range(0, len(ids) if near.shape[1] else 0, _AT_ONCE):
        part = slice(at, at + _AT_ONCE)
        theirs, own = of_rows[near[part]], of_rows[part]
        votes = vote(cosines[part], theirs.clamp(min=0), classes, TEMPERATURE, (theirs >= 0).float())
        shares = votes / votes.sum(1, keepdim=True)  # NaN where no neighbour has a label
        mine = shares.gather(1, own.clamp(min=0)[:, None])[:, 0].masked_fill(own < 0, torch.nan)
        agreement[ids[part]] = mine.numpy()
        share, label = shares.max(1)
        for row in torch.nonzero((mine < OWN) & (share >= OTHER))[:, 0].tolist():
            image = int(ids[at + row])
            doubtful[image] = True
            doubts.append(Doubt(image, int(label[row]), float(share[row]), ids[near[at + row].numpy()].tolist()))
    found.columns |= {"label_agreement": agreement, "label_doubtful": doubtful}
    found.doubts = sorted(doubts, key=lambda doubt: (float(agreement[doubt.image]) - doubt.share, doubt.image))
