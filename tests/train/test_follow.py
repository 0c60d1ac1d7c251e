"""Sets that follow the ledger of their own run: frozen at each epoch, exact over stops, kills and processes."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import headrace
from headrace.errors import UserError
from headrace.pipelines import MixedOrder, Part, open_plan, order_of
from headrace.pipelines.plan.follow import Frozen, columns_of, follow, unseen
from headrace.pipelines.plan.where import Where
from headrace.train.engine import checkpoint
from headrace.train.engine.step import Stepper
from headrace.train.ledger import read_ledger

STEADY = {"schedule": "constant", "warmup": 0.0}
OPTIONS = {"log_every": 2, "save_every": 100, "ledger": True}


@pytest.fixture
def sets(photo_folder):
    hard = {"source": str(photo_folder), "weight": "ledger_rank", "share": 0.6, "where": "label < 2 or ledger_rank < 1"}
    hard["where"] += " or ledger_visits == 0"
    return {"hard": hard, "all": {"source": str(photo_folder), "weight": 0.4}}


def run(out, sets, steps, **train):
    data = {"train": sets, "mix": {"pure": 0.2, "epoch": 32}}  # 4 steps
    options = {"smoke": True, "optim": STEADY, "train": {**OPTIONS, "max_steps": steps, "out": out, **train}}
    return headrace.pretrain("mae_vit-tiny", data, **options)


@pytest.fixture
def read(monkeypatch):
    """Every step's (ids, passes, origin) as they come to the step, by step."""
    seen, true_step = {}, Stepper.__call__

    def step(self, batch, progress):
        seen[progress.step] = (batch.ids.tolist(), batch.passes.tolist(), batch.origin.tolist())
        return true_step(self, batch, progress)

    monkeypatch.setattr(Stepper, "__call__", step)
    return seen


def test_what_is_read_follows_from_what_was_frozen(sets, tmp_path, read):
    """The ledger at each epoch's start, replayed from the losses of steps, gives the samples by hand."""
    out = run(tmp_path / "run", sets, 12)
    source = open_plan(sets, {"pure": 0.2, "epoch": 32})
    options = {"seed": 0, "frozen": unseen(len(source))}
    order = order_of(source, 8, **options)
    for epoch in range(3):
        if epoch:
            (tmp_path / str(epoch)).mkdir()
            run(tmp_path / str(epoch) / "run", sets, 4 * epoch)
            columns = read_ledger(tmp_path / str(epoch) / "run")
            columns = {name: np.array(columns[name], columns[name].dtype.newbyteorder("=")) for name in columns}
            order = follow(order, source, Frozen(4 * epoch, columns))
            average, visits = columns["average"][:24], columns["visits"][:24]
            seen = np.flatnonzero(np.isfinite(average))
            worst = seen[np.argmax(average[seen])]
            kept = [i for i in range(24) if source.label(i) < 2 or i != worst or visits[i] == 0]
            assert (order.parts[0].kept is None and len(kept) == 24) or order.parts[0].kept.tolist() == kept
        for step in range(4 * epoch, 4 * epoch + 4):
            assert order.ids(step).tolist() == read[step][0] and order.passes(step).tolist() == read[step][1]
    pairs = [pair for step in read.values() for pair in zip(step[0], step[1])]
    assert len(set(pairs)) == len(pairs) == 96  # no crop is drawn twice
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["sets"]["hard"]["images"] for row in rows) == sum(o == 0 for s in read.values() for o in s[2])


def test_stopped_and_resumed_it_is_the_undisturbed_run(sets, tmp_path, read):
    """In the middle of epochs and between them; with a ledger that has gone on since the order was frozen."""
    whole = run(tmp_path / "whole", sets, 12)
    undisturbed = dict(read)
    read.clear()
    for steps in (2, 4, 9, 12):
        parts = run(tmp_path / "parts", sets, steps)
    assert read == undisturbed
    ours, theirs = (load_file(out / "encoder.safetensors") for out in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("loss", "average", "visits", "step"):
        own, other = ((out / "ledger" / f"{name}.npy").read_bytes() for out in (whole, parts))
        assert own == other
    saved = checkpoint.newest(parts)[1]["plan"]["frozen"]
    assert saved["step"] == 8 and saved["columns"].keys() == {"average", "visits"}


def test_a_filter_that_leaves_nothing_ends_the_run_and_another_goes_on(photo_folder, tmp_path):
    """What was learnt until then is saved, and the ledger with it."""
    sets = {"a": {"source": str(photo_folder), "where": "ledger_step < 1"}}
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"data.train.a.where: 'ledger_step < 1' leaves none of 24 images at step 3"):
        headrace.pretrain(
            "mae_vit-tiny", {"train": sets}, smoke=True, optim=STEADY, train={**OPTIONS, "max_steps": 9, "out": out}
        )
    assert [path.name for path in out.glob("step-*.pt")] == ["step-00000003.pt"]
    sets["a"]["where"] = "ledger_step < 4"
    with pytest.raises(UserError, match="data.train.a.where: ledger_step < 1 -> ledger_step < 4.*train.replan=true"):
        headrace.pretrain(
            "mae_vit-tiny", {"train": sets}, smoke=True, optim=STEADY, train={**OPTIONS, "max_steps": 4, "out": out}
        )
    train = {**OPTIONS, "max_steps": 4, "out": out, "replan": True}
    headrace.pretrain("mae_vit-tiny", {"train": sets}, smoke=True, optim=STEADY, train=train)
    assert (out / "encoder.safetensors").exists()


@pytest.mark.parametrize(
    "spec, problem",
    [
        ({"where": "ledger_averge < 2"}, "no column 'ledger_averge' of a ledger; did you mean 'ledger_average'"),
        ({"where": "ledger_average < 2"}, "leaves none of 24 images at step 0; nothing is known .* ledger_visits == 0"),
        ({"weight": "ledger_visits"}, "ledger_visits: all weights are 0, so there is nothing to read at step 0"),
    ],
)
def test_what_cannot_be_followed_is_one_line(photo_folder, tmp_path, spec, problem):
    with pytest.raises(UserError, match=problem) as caught:
        run(tmp_path / "run", {"a": {"source": str(photo_folder), **spec}}, 4)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("run/step-*"))


def test_only_a_run_has_a_ledger(sets, tmp_path):
    with pytest.raises(UserError, match=r"data.train.hard: ledger_rank: only a run that keeps a ledger .*ledger=true"):
        run(tmp_path / "run", sets, 4, ledger=False)
    with pytest.raises(UserError, match="only a run that keeps a ledger"):
        headrace.loader(sets, views="moco_cifar", batch_size=4)


def test_weights_of_samples_that_were_never_seen(photo_folder):
    """They have the mean of the others'; negative losses are no weights, and the line says what is one."""
    source = open_plan({"a": {"source": str(photo_folder), "weight": "ledger_average"}})
    assert columns_of(source) == ["average"]
    order = order_of(source, 24, frozen=unseen(24))
    assert torch.equal(order.parts[0].favour.edges, torch.arange(1.0, 25.0).double())
    average = np.full(24, np.nan, np.float32)
    average[:3] = 1, 2, 6
    edges = follow(order, source, Frozen(5, {"average": average})).parts[0].favour.edges
    assert np.allclose(np.diff(edges, prepend=0), [1 / 3, 2 / 3, 2] + [1] * 21)
    average[1] = -2
    with pytest.raises(UserError, match="weight: ledger_average: .* negative .* at step 5; ledger_rank is never"):
        follow(order, source, Frozen(5, {"average": average}))


def test_sets_that_are_chosen_anew_are_read_exactly_once_in_each_pass():
    """Whatever is chosen when: passes have numbers of their own, and ranks read parts of one list."""
    rng = np.random.default_rng(0)
    order = MixedOrder((Part("a", 60, ((0, 0.7),)), Part("b", 50, ((0, 0.3),))), 24, seed=4, pure=0.1)
    seen, sizes = defaultdict(Counter), {}
    for step in range(60):
        if step % 7 == 3:
            kept = torch.from_numpy(np.sort(rng.permutation(60)[: rng.integers(1, 60)]))
            order = order.choose(step, {"a": (kept, None)})
        ids, passes = order.ids(step), order.passes(step)
        parts = [order.ids(step, rank, 3) for rank in range(3)]
        assert torch.equal(torch.cat(parts), ids)
        for sample, number, origin in zip(ids.tolist(), passes.tolist(), order.origin(ids).tolist()):
            if origin == 0 and order.parts[0].kept is not None:
                assert sample in order.parts[0].kept
            seen[origin, number][sample] += 1
            sizes[origin, number] = order.parts[origin].size
    assert all(set(counter.values()) == {1} and len(counter) <= sizes[key] for key, counter in seen.items())
    full = [key for key, counter in seen.items() if len(counter) == sizes[key]]
    assert len(full) > 10


def test_ranks_of_a_ledger_are_those_of_its_own_set(photo_folder):
    sets = {name: {"source": str(photo_folder), "where": "ledger_rank >= 0.5"} for name in "ab"}
    source = open_plan(sets)
    average = np.concatenate([np.arange(24.0), 100 - np.arange(24.0)]).astype(np.float32)
    average[:4] = np.nan
    order = MixedOrder(tuple(Part(name, 24, ((0, 1.0),)) for name in "ab"), 8)
    parts = follow(order, source, Frozen(0, {"average": average})).parts
    assert parts[0].kept.tolist() == list(range(14, 24)) and parts[1].kept.tolist() == list(range(12))
    assert Where("ledger_rank < 1", "w").columns == ["ledger_rank"]
