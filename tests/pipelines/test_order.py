"""Random numbers and reading order: pure functions with the properties they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headrace.errors import UserError
from headrace.pipelines.order import Order, permute
from headrace.pipelines.rng import mix, random_words, stream_key, uniform


def test_mix_is_splitmix64():
    """The published first outputs of SplitMix64 from state 1234567 (Vigna's reference implementation)."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + golden * k) % 2**64 for k in (1, 2, 3, 4, 5)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [int(x) % 2**64 for x in mix(signed)] == expected


def test_uniform_is_uniform_and_uncorrelated():
    u = uniform(0, "test", 0, torch.arange(4000), 8)
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(u.T.numpy()) - np.eye(8)).max() < 0.06
    neighbours = np.corrcoef(u[:-1, 0].numpy(), u[1:, 0].numpy())[0, 1]
    assert abs(neighbours) < 0.05


@pytest.mark.parametrize("change", [dict(seed=1), dict(stream="b"), dict(epoch=1)])
def test_streams_differ(change):
    base = dict(seed=0, stream="a", epoch=0)
    ids = torch.arange(100)
    same = random_words(**base, ids=ids, count=4) == random_words(**{**base, **change}, ids=ids, count=4)
    assert not same.any()


def test_draws_do_not_depend_on_the_batch():
    whole = random_words(3, "view", 2, torch.arange(50), 6)
    part = random_words(3, "view", 2, torch.tensor([49, 7]), 6)
    assert torch.equal(part, whole[[49, 7]])


@given(size=st.integers(1, 3000), key=st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_permute_is_a_bijection(size, key):
    assert sorted(permute(torch.arange(size), size, key).tolist()) == list(range(size))


def test_permute_is_evaluated_on_demand():
    """A few positions out of 10^12: distinct, in range, and spread over it."""
    size = 10**12
    image = permute(torch.arange(5000), size, 42)
    assert image.min() >= 0 and image.max() < size and len(set(image.tolist())) == 5000
    assert stats.kstest(image.double().numpy() / size, "uniform").pvalue > 1e-3


def test_every_place_is_equally_likely():
    """Where sample 0 goes, over many epochs: uniform over the ten places."""
    places = [int((permute(torch.arange(10), 10, stream_key(0, "order", e)) == 0).nonzero()) for e in range(3000)]
    counts = np.bincount(places, minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-3


@given(
    samples=st.integers(1, 200),
    share=st.integers(1, 9),
    world=st.integers(1, 6),
    epoch=st.integers(0, 5),
    last=st.sampled_from(["drop", "pad"]),
    shuffle=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_an_epoch_reads_every_sample_once(samples, share, world, epoch, last, shuffle):
    batch = share * world
    if last == "drop" and samples < batch:
        with pytest.raises(UserError, match="do not fill one global batch"):
            Order(samples, batch, last=last)
        return
    order = Order(samples, batch, seed=5, last=last, shuffle=shuffle)
    first = epoch * order.steps_per_epoch
    read = torch.cat(
        [order.ids(first + s, r, world) for s in range(order.steps_per_epoch) for r in range(world)]
    ).tolist()
    if last == "drop":
        assert len(set(read)) == len(read) == samples // batch * batch
    else:
        assert set(read) == set(range(samples)) and len(read) == -(-samples // batch) * batch
        assert sorted(read[:samples]) == list(range(samples))


@given(step=st.integers(0, 500), world=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(step, world):
    order = Order(1000, 12, seed=1)
    assert torch.equal(order.ids(step), torch.cat([order.ids(step, rank, world) for rank in range(world)]))


def test_epochs_are_shuffled_differently():
    order = Order(64, 64)
    assert order.ids(0).tolist() != order.ids(1).tolist()
    assert Order(64, 64, seed=1).ids(0).tolist() != order.ids(0).tolist()


def test_a_world_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(UserError, match="train.batch_size: 10 images do not divide among 4 processes"):
        Order(100, 10).ids(0, 0, 4)
