"""Random numbers and reading order: pure functions with the properties they promise."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headrace.errors import UserError
from headrace.pipelines.order import WINDOW, Order, permute, shard_sizes
from headrace.pipelines.rng import mix, random_words, stream_key, uniform
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.arrays import ArraySource


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


@pytest.mark.parametrize("epoch", [2, torch.arange(50) % 3], ids=["one epoch", "an epoch each"])
def test_several_streams_are_each_what_it_is_alone(epoch):
    names = ["view/0", "view/1", "other"]
    alone = torch.stack([random_words(3, name, epoch, torch.arange(50), 6) for name in names])
    assert torch.equal(random_words(3, names, epoch, torch.arange(50), 6), alone)


@pytest.mark.parametrize("samples, batch, last", [(5000, 96, "drop"), (5000, 96, "pad"), (30, 96, "pad")])
@pytest.mark.parametrize("blocks", [None, 25])
def test_batches_across_what_is_looked_up_together_are_those_of_their_positions(samples, batch, last, blocks):
    order = Order(samples, batch, seed=4, last=last, blocks=blocks)
    for step in range(2 * order.steps_per_epoch):
        epoch, at = divmod(step, order.steps_per_epoch)
        positions = torch.arange(at * batch, (at + 1) * batch) % samples
        halves = torch.cat([order.ids(step, rank, 2) for rank in range(2)])
        assert torch.equal(order.ids(step), order.at(positions, epoch)) and torch.equal(halves, order.ids(step))


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


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=60),
    equal=st.integers(1, 40) | st.none(),
    batch=st.sampled_from([1, 2, 6, 12]),
    epoch=st.integers(0, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_blocks_read_every_sample_once(sizes, equal, batch, epoch, seed):
    """Whether blocks are equal or given one by one; and windows keep to their blocks."""
    samples = sum(sizes)
    order = Order(samples, batch, seed=seed, last="pad", blocks=equal or tuple(sizes))
    first = epoch * order.steps_per_epoch
    read = torch.cat([order.ids(first + step) for step in range(order.steps_per_epoch)])[:samples]
    assert sorted(read.tolist()) == list(range(samples))
    ends = np.minimum(np.arange(equal, samples + equal, equal), samples) if equal else np.cumsum(sizes)
    block = np.searchsorted(ends, read.numpy(), side="right")
    lengths = np.diff(ends, prepend=0)
    left = block.tolist()
    while left:  # each window holds whole blocks, the last one maybe fewer of them
        window = list(dict.fromkeys(left))
        size, inside = 0, set()
        for position, number in enumerate(left):
            inside.add(number)
            if len(inside) == min(WINDOW, len(window)) and position + 1 == sum(lengths[list(inside)]):
                size = position + 1
                break
        assert size, "a window mixes with the next one"
        left = left[size:]


@given(step=st.integers(0, 400), world=st.sampled_from([1, 2, 3, 4, 6, 12]), asked=st.permutations(range(4)))
@settings(max_examples=60, deadline=None)
def test_blocks_do_not_depend_on_ranks_or_on_what_was_asked_before(step, world, asked):
    order = Order(1000, 12, seed=1, blocks=30)
    steps = {n: order.ids(step + 100 * n) for n in asked}
    for n, whole in steps.items():
        fresh = Order(1000, 12, seed=1, blocks=30)
        assert torch.equal(whole, torch.cat([fresh.ids(step + 100 * n, rank, world) for rank in range(world)]))


def test_blocks_are_local_and_still_shuffled():
    """A batch lies in few blocks, is no run of neighbours, and every epoch begins elsewhere."""
    order = Order(100_000, 100, blocks=100)
    firsts = []
    for epoch in range(5):
        ids = order.ids(epoch * order.steps_per_epoch)
        assert len((ids // 100).unique()) <= WINDOW < len((Order(100_000, 100).ids(0) // 100).unique())
        assert (ids.diff().abs() > 1).float().mean() > 0.9
        firsts.append(int(ids[0]))
    assert len(set(firsts)) == 5


def test_a_window_is_shuffled_uniformly():
    """Where the first sample of a small set goes, over many epochs."""
    places = [int((Order(12, 12, blocks=2).ids(epoch) == 0).nonzero()) for epoch in range(1500)]
    assert stats.chisquare(np.bincount(places, minlength=12)).pvalue > 1e-3


@pytest.mark.parametrize("blocks", [0, -1, (5, 4), (5, 5, 0), (12, -2)])
def test_blocks_that_do_not_fit_are_refused(blocks):
    with pytest.raises(UserError, match="order: blocks of"):
        Order(10, 2, blocks=blocks)


@pytest.mark.parametrize("blocks", [None, 10_000])
def test_a_billion_samples_and_a_thousand_ranks_allocate_nothing_per_sample(blocks):
    """In a process of its own: what the order adds to the peak, in MB. A byte a sample would be a thousand."""
    script = (
        "import resource, torch\n"
        "from headrace.pipelines.order import Order\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "Order(100, 10, blocks=5).ids(3)\n"
        "before = peak()\n"
        f"order = Order(10**9, 65536, seed=3, blocks={blocks})\n"
        "parts = [order.ids(order.steps_per_epoch + 7, rank, 1024) for rank in range(1024)]\n"
        "ids = torch.cat(parts)\n"
        "assert len(ids.unique()) == 65536 and 0 <= ids.min() and ids.max() < 10**9\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60


def test_shards_are_blocks(tmp_path, encode, tar_bytes):
    for shard, count in enumerate((3, 1, 5)):
        (tmp_path / f"{shard}.tar").write_bytes(tar_bytes({f"{shard}{n}.jpg": encode(n) for n in range(count)}))
    assert shard_sizes(open_source(tmp_path)) == (3, 1, 5)
    with pytest.raises(UserError, match="data.block: .* has no shards; give the number of samples"):
        shard_sizes(ArraySource(np.zeros((4, 1, 1, 3), np.uint8), name="arrays"))
