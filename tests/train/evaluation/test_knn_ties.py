"""Who votes, written out image by image: places shared among equals, classes without votes, collapsed encoders."""

import numpy as np
import pytest
import torch

from headrace.errors import UserError
from headrace.train.evaluation.embed import Features
from headrace.train.evaluation.evaluate import accuracies, right
from headrace.train.evaluation.knn import knn_table
from headrace.train.evaluation.svm import average_precision


def by_hand(bank, queries, k, temperature, alone=False):
    """(top1, top5) in float64, one query at a time, by the rule of docs/evaluation.md."""
    unit = lambda x: x.double() / x.double().norm(dim=1, keepdim=True).clamp(min=1e-12)
    rows, known = unit(bank.vectors), bank.labels.tolist()
    hits = []
    for number, (query, answer) in enumerate(zip(unit(queries.vectors), queries.labels.tolist())):
        near = [(float(s), label) for i, (s, label) in enumerate(zip(rows @ query, known)) if not alone or i != number]
        places = min(k, len(near))
        edge = sorted((s for s, _ in near), reverse=True)[places - 1]
        above = [(s, label) for s, label in near if s > edge + 1e-6]
        equal = [label for s, label in near if abs(s - edge) <= 1e-6]
        votes = {}
        for s, label in above:
            votes[label] = votes.get(label, 0) + np.exp(s / temperature)
        for label in equal:
            votes[label] = votes.get(label, 0) + np.exp(edge / temperature) * (places - len(above)) / len(equal)
        own = votes.get(answer, 0)
        ratio = {label: np.log(v / own) if own else 0 for label, v in votes.items()}
        better = sum(r > 1e-6 / temperature for r in ratio.values())
        same = sum(abs(r) <= 1e-6 / temperature for r in ratio.values())
        hits.append([min(1, max(0, (n - better) / same)) if own else 0 for n in (1, 5)])
    return np.mean(hits, axis=0)


def sets(kind):
    generator = torch.Generator().manual_seed(5)
    labels, asked = torch.arange(90) // 9, torch.arange(40) % 10  # in the order of a folder per class
    bank, queries = (torch.randn(n, 3, generator=generator) for n in (90, 40))
    if kind == "many equals":  # every image lies at one of six places
        places = torch.randn(6, 3, generator=generator)
        bank, queries = (places[torch.randint(6, (n,), generator=generator)] for n in (90, 40))
    if kind == "collapsed":
        bank, queries = torch.full((90, 3), 0.7), torch.full((40, 3), 0.7)
    if kind == "zero":
        bank, queries = torch.zeros(90, 3), torch.zeros(40, 3)
    return Features(bank, labels, []), Features(queries, asked, [])


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("kind", ["apart", "many equals", "collapsed", "zero"])
def test_votes_are_those_counted_by_hand(kind, alone):
    bank, queries = sets(kind)
    queries = bank if alone else queries
    ks = [1, 2, 5, 20, 60, 500]
    rows = knn_table(bank, queries, ks=ks, temperatures=[0.07, 1.0], memory=1e-5, leave_one_out=alone)
    assert [row["k"] for row in rows[::2]] == [*ks[:-1], 89 if alone else 90]  # there are no more neighbours
    for row in rows:
        expected = by_hand(bank, queries, row["k"], row["temperature"], alone)
        assert [row["top1"], row["top5"]] == pytest.approx(expected.tolist(), abs=1e-9), row


def test_a_collapsed_encoder_scores_chance():
    for kind in ("collapsed", "zero"):
        for row in knn_table(*sets(kind), ks=[1, 7, 20, 90], temperatures=[0.07]):
            assert (row["top1"], row["top5"]) == pytest.approx((0.1, 0.5), abs=1e-12)
    rng = np.random.default_rng(0)  # noise of the last bit is no knowledge
    bank, queries = sets("collapsed")
    for features in (bank, queries):
        features.vectors += torch.from_numpy(1e-8 * rng.normal(size=features.vectors.shape)).float()
    assert knn_table(bank, queries, ks=[5], temperatures=[0.07])[0]["top1"] == pytest.approx(0.1, abs=1e-12)


def test_the_order_of_the_bank_is_worth_nothing():
    bank, queries = sets("many equals")
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    shuffled = Features(bank.vectors[order], bank.labels[order], [])
    options = {"ks": [1, 4, 30], "temperatures": [0.1]}
    for one, two in zip(knn_table(bank, queries, **options), knn_table(shuffled, queries, **options)):
        assert one == pytest.approx(two, abs=1e-9)


def test_five_highest_of_one_neighbour_are_one():
    bank, queries = sets("apart")
    (row,) = knn_table(bank, queries, ks=[1], temperatures=[0.07])
    assert row["top5"] == row["top1"] < 0.5


def test_equal_scores_share_their_places_and_numbers_that_are_none_are_wrong():
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[0.0] * 8, [3, 2, 2, 2, 1, 1, 1, 0], [nan] * 8, [1, nan, 0, 0, 0, 0, 0, 0], [-inf] * 8])
    first = right(scores, torch.tensor([0, 0, 0, 0, 0]))
    assert first.tolist() == [[0.125, 0.625], [1, 1], [0, 0], [0, 0], [0, 0]]
    assert right(scores[1:2].repeat(3, 1), torch.tensor([2, 5, 7])).tolist() == [
        [0, 1],
        [0, pytest.approx(1 / 3)],
        [0, 0],
    ]
    known = torch.tensor([0, -1])  # a row without a label is not one that is wrong
    assert accuracies(torch.eye(2, 8), known) == {"top1": 1.0, "top5": 1.0}


def test_equal_scores_have_the_share_of_positives_as_average_precision():
    targets = np.array([1, 1, 0, 0, 0, 0, 0, 1])
    assert average_precision(targets, np.zeros(8)) == average_precision(targets[::-1], np.zeros(8)) == 3 / 8
    scores = np.array([2.0, 1, 2, 1, 1, 0, 0, 0])  # 1 of 2, then 2 of 5, then 3 of 8
    assert average_precision(targets, scores) == pytest.approx((1 / 2 + 2 / 5 + 3 / 8) / 3)


def test_leaving_one_out_needs_the_same_rows():
    bank, queries = sets("apart")
    with pytest.raises(UserError, match="--leave-one-out: needs two or more"):
        knn_table(bank, queries, ks=[1], temperatures=[0.07], leave_one_out=True)
