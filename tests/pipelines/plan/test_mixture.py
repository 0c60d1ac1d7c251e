"""The order of several sets, held to what a person would count by hand, step after step from the beginning."""

import math
import tracemalloc
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headrace.errors import UserError
from headrace.pipelines.order import permute
from headrace.pipelines.plan.bijections import permute_each
from headrace.pipelines.plan.deal import PERIOD, Deal, Marks, below, reverse, whole_numbers
from headrace.pipelines.plan.favour import Favour
from headrace.pipelines.plan.mixture import MixedOrder, Part

COUNTS = st.lists(st.integers(1, 60), min_size=1, max_size=4)
WEIGHTS = st.floats(0.05, 1.0)


def parts(sizes, weights, limits=None):
    limits = limits or [None] * len(sizes)
    return tuple(
        Part(f"set{i}", size, weight if isinstance(weight, tuple) else ((0, weight),), limit)
        for i, (size, weight, limit) in enumerate(zip(sizes, weights, limits))
    )


def history(order, steps):
    """[(set, sample of the set, pass)] of every step, in the order of the batch."""
    starts = np.cumsum([0, *(part.samples for part in order.parts)])
    rows = []
    for step in range(order.begin[0], order.begin[0] + steps):
        ids, passes = order.ids(step), order.passes(step)
        origin = order.origin(ids).tolist()
        rows.append([(o, i - starts[o], p) for o, i, p in zip(origin, ids.tolist(), passes.tolist())])
    return rows


# ---- dealing


@given(st.integers(0, PERIOD - 1), st.integers(0, PERIOD), st.lists(st.integers(0, 3000), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_below_counts(key, bound, counters):
    marks = [reverse(r) ^ key < bound for r in range(max(counters))]
    assert below(np.array(counters), bound, key).tolist() == [sum(marks[:n]) for n in counters]


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=5), st.integers(1, 300), st.integers(0, PERIOD - 1))
@settings(max_examples=40, deadline=None)
def test_every_block_has_every_share_to_within_one(shares, size, key):
    shares = np.array(shares)
    deal = Deal(shares, size, key)
    counts = np.array([deal.counts(block) for block in range(60)])
    exact = shares / shares.sum() * size
    assert (counts.sum(1) == size).all() and (np.abs(counts - exact) < 1 + 1e-3).all()
    assert (np.cumsum(counts, 0) == np.array([deal.before(block + 1) for block in range(60)])).all()
    far = 3 * PERIOD + 17
    assert (deal.before(far + 1) - deal.before(far) == deal.counts(far)).all()


def test_whole_numbers_add_up():
    assert whole_numbers(np.array([1.0, 1.0, 1.0]), 10).tolist() == [4, 3, 3]
    assert whole_numbers(np.array([0.0, 2.0]), 7).tolist() == [0, 7]


@pytest.mark.parametrize("share", [0.0, 0.013, 0.5, 1.0])
def test_marks_are_a_share_of_the_steps(share):
    marks = Marks(share, 12345)
    found = [step in marks for step in range(2000)]
    assert [marks.before(step) for step in range(2001)] == np.cumsum([0, *found]).tolist()
    assert abs(sum(found) - 2000 * share) <= 3


def test_several_bijections_at_once_are_each_of_them():
    sizes, keys = torch.tensor([1, 2, 17, 4096, 4097, 10**9]), torch.arange(6) * 77 - 200
    rows = torch.randint(6, (500,))
    positions = torch.randint(10**9, (500,)) % sizes[rows]
    found = torch.from_numpy(permute_each(positions.numpy(), sizes.numpy(), keys.numpy(), rows.numpy()))
    for row, (size, key) in enumerate(zip(sizes.tolist(), keys.tolist())):
        mine = rows == row
        assert torch.equal(found[mine], permute(positions[mine], size, key))


# ---- what is read


@given(COUNTS, st.data(), st.integers(1, 24), st.integers(0, 2**40), st.sampled_from([0.0, 0.2]))
@settings(max_examples=40, deadline=None)
def test_each_set_exactly_once_in_each_of_its_passes(sizes, data, batch, seed, pure):
    weights = data.draw(st.lists(WEIGHTS, min_size=len(sizes), max_size=len(sizes)))
    order = MixedOrder(parts(sizes, weights), batch, seed=seed, pure=pure)
    seen = defaultdict(Counter)
    latest = Counter()
    for row in history(order, 50):
        for origin, sample, number in row:
            seen[origin, number][sample] += 1
        for origin in {o for o, _, _ in row}:  # passes follow one another
            numbers = [p for o, _, p in row if o == origin]
            assert min(numbers) in (latest[origin], latest[origin] + 1)
            latest[origin] = max(numbers)
    for (origin, number), counter in seen.items():
        assert set(counter.values()) == {1}
        assert len(counter) == sizes[origin] or number == latest[origin]


@given(COUNTS, st.data(), st.integers(0, 2**30))
@settings(max_examples=15, deadline=None)
def test_shares_hold_in_every_window(sizes, data, seed):
    weights = np.array(data.draw(st.lists(WEIGHTS, min_size=len(sizes), max_size=len(sizes))))
    order = MixedOrder(parts(sizes, weights.tolist()), 32, seed=seed, pure=0.1)
    rows = [Counter(o for o, _, _ in row) for row in history(order, 150)]
    for width in (20, 75, 150):
        for start in range(0, 150 - width + 1, 25):
            total = sum(rows[start : start + width], Counter())
            for origin, share in enumerate(weights / weights.sum()):
                sigma = math.sqrt(32 * width * share * (1 - share)) + 32 * math.sqrt(0.1 * width * share * (1 - share))
                assert abs(total[origin] - 32 * width * share) <= 3 * sigma + 2


@pytest.mark.parametrize("world", [1, 2, 3, 8, 1000])
def test_ranks_read_the_parts_of_one_list(world):
    favour = Favour(np.linspace(0, 1, 50), "stratified", "w")
    sets = (*parts([30, 1000], [0.2, 0.7]), Part("f", 50, ((0, 0.1),), None, favour))
    order, alone = (MixedOrder(sets, 24 * world, seed=5, pure=0.3) for _ in range(2))
    for step in (0, 1, 7, 123_456_789):
        whole, passes = alone.ids(step), alone.passes(step)
        ranks = range(world) if world < 100 else (0, 499, 999)
        for rank in ranks:
            mine = slice(rank * 24, rank * 24 + 24)
            assert torch.equal(order.ids(step, rank, world), whole[mine])
            assert torch.equal(order.passes(step, rank, world), passes[mine])
    with pytest.raises(UserError, match="do not divide among 7"):
        MixedOrder(sets, 24, seed=5).ids(0, 0, 7)


def test_any_step_can_be_asked_for_first():
    make = lambda: MixedOrder(parts([50, 70], [((0, 0.5), (10, 0.1)), 0.5]), 16, seed=1, pure=0.2)
    straight, random = make(), make()
    rows = [straight.ids(step) for step in range(40)]
    for step in np.random.default_rng(0).permutation(40).tolist():
        assert torch.equal(random.ids(step), rows[step])


def test_a_batch_is_of_one_set_for_a_share_of_batches():
    order = MixedOrder(parts([500, 700, 90], [0.5, 0.3, 0.2]), 40, seed=2, pure=0.25)
    kinds = [Counter(o for o, _, _ in row) for row in history(order, 400)]
    pure = [next(iter(counter)) for counter in kinds if len(counter) == 1]
    assert abs(len(pure) - 100) <= 3
    assert [round(Counter(pure)[o] / len(pure), 1) for o in range(3)] == [0.5, 0.3, 0.2]
    mixed = [counter for counter in kinds if len(counter) > 1]
    assert all(abs(counter[o] - 40 * s) < 1.01 for counter in mixed for o, s in enumerate((0.5, 0.3, 0.2)))


def test_weights_change_at_a_step_and_passes_go_on():
    order = MixedOrder(parts([97, 31], [((0, 0.75), (40, 0.0), (60, 0.25)), ((0, 0.25), (60, 0.75))]), 20, seed=3)
    rows = history(order, 100)
    shares = [Counter(o for row in rows[a:b] for o, _, _ in row) for a, b in ((0, 40), (40, 60), (60, 100))]
    assert shares == [Counter({0: 600, 1: 200}), Counter({1: 400}), Counter({1: 600, 0: 200})]
    own = [(p, s) for row in rows for o, s, p in row if o == 0]
    assert Counter(p for p, _ in own) == Counter({**{p: 97 for p in range(8)}, 8: 800 - 8 * 97})


@pytest.mark.parametrize("exhausted", ["drop", "stop", "again"])
def test_what_happens_at_the_end_of_a_set(exhausted):
    order = MixedOrder(
        parts([50, 40, 1000], [0.25, 0.25, 0.5], [100, 40, None]), 20, seed=4, exhausted=exhausted, epoch_samples=1090
    )
    steps = order.ends or 60
    counts = [Counter(o for o, _, _ in row) for row in history(order, steps)]
    given = lambda o: sum(counter[o] for counter in counts)
    last = lambda o: max(i for i, counter in enumerate(counts) if counter[o])
    if exhausted == "again":
        assert order.ends is None and abs(given(1) - 300) <= 2
        return
    assert 40 <= given(1) < 46 and last(1) == 7  # 5 a step
    if exhausted == "stop":
        assert order.ends == 8
        with pytest.raises(UserError, match="exhausted after 8 steps"):
            order.ids(8)
        return
    assert 100 <= given(0) < 107 and order.ends is None
    after = counts[last(0) + 1 :]
    assert after and all(counter == Counter({2: 20}) for counter in after)
    between = counts[8 : last(0)]
    assert all(abs(counter[0] - 20 / 3) < 1.01 and counter[1] == 0 for counter in between)  # of 0.25 and 0.5


def test_all_sets_end():
    order = MixedOrder(parts([30, 20], [0.5, 0.5], [30, 20]), 10, exhausted="drop")
    assert order.ends == 5
    read = Counter((o, s) for row in history(order, 5) for o, s, _ in row)
    assert len(read) == 50 and set(read.values()) == {1}


def test_a_new_plan_goes_on_where_the_old_one_was():
    old = MixedOrder(parts([60, 45], [0.5, 0.5]), 20, seed=6)
    counts = old.given(7)
    sets = (*parts([60, 45], [0.2, 0.2]), Part("new", 30, ((0, 0.6),)))
    new = MixedOrder(sets, 20, seed=6, begin=(7, counts))
    assert new.given(7) == {**counts, "new": 0} == {"set0": 70, "set1": 70, "new": 0}
    seen = defaultdict(Counter)
    for row in history(old, 7) + history(new, 30):
        for origin, sample, number in row:
            seen[origin, number][sample] += 1
    assert all(set(counter.values()) == {1} for counter in seen.values())
    with pytest.raises(UserError, match="step 6 was read by the plan that held until step 7"):
        new.ids(6)


def test_a_billion_samples_and_a_thousand_sets_take_no_memory():
    tracemalloc.start()
    order = MixedOrder(parts([10**9] * 1000, [1.0] * 1000), 256, pure=0.1)
    ids = torch.cat([order.ids(step) for step in (0, 1, 10**7)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ids.unique()) == len(ids) and int(ids.max()) < 10**12 and peak < 8 * 2**20


def test_what_leaves_nothing_is_refused():
    with pytest.raises(UserError, match="no set has a weight at the first step"):
        MixedOrder(parts([5, 5], [0.0, 0.0]), 4)
    with pytest.raises(UserError, match="set1: weight: its share of 1.0e-09 is less than one image in"):
        MixedOrder(parts([5, 5], [1.0, 1e-9]), 4)


# ---- samples that are given more often


@pytest.mark.parametrize("size", [1, 7, 100])
def test_stratified_samples_come_as_often_as_their_weight_says(size):
    weights = np.random.default_rng(size).exponential(size=size) * (np.arange(size) % 5 > 0) + 1e-300
    expected = weights / weights.sum() * size
    favour = Favour(weights, "stratified", "w")
    for number in range(20):
        given = torch.arange(number * size, (number + 1) * size)
        found = np.bincount(favour.at(given, 1, "a").numpy(), minlength=size)
        assert (found >= np.floor(expected - 1e-9)).all() and (found <= np.ceil(expected + 1e-9)).all()
    shuffled = favour.at(torch.arange(size), 1, "a")
    assert size < 7 or not torch.equal(shuffled, shuffled.sort().values)


def test_drawn_anew_samples_follow_their_weights():
    weights = np.array([0.0, 1.0, 2.0, 5.0])
    favour = Favour(weights, "replacement", "w")
    found = np.bincount(favour.at(torch.arange(8000), 3, "a").numpy(), minlength=4)
    assert found[0] == 0 and stats.chisquare(found[1:], 8000 * weights[1:] / 8).pvalue > 1e-3


def test_a_favoured_sample_is_drawn_anew_each_time():
    """It may come twice in one pass: its crops must differ, so it counts by the images of its set."""
    order = MixedOrder((Part("f", 4, ((0, 1.0),), None, Favour(np.array([9, 1, 1, 1.0]), "stratified", "w")),), 8)
    ids, passes = (torch.cat([f(step) for step in range(5)]) for f in (order.ids, order.passes))
    pairs = list(zip(ids.tolist(), passes.tolist()))
    assert len(set(pairs)) == 40 and Counter(ids.tolist())[0] > 20


@pytest.mark.parametrize("weights", [[1.0, -1.0], [np.nan, 1.0], [0.0, 0.0]])
def test_weights_that_are_none(weights):
    with pytest.raises(UserError, match="^w: "):
        Favour(np.array(weights), "stratified", "w")
