"""Runs over several sets: stopped and resumed they are undisturbed ones; another plan is an error, or begins there."""

import contextlib
import json
import shutil
import time
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import headrace
from headrace.cli import dispatch
from headrace.errors import UserError
from headrace.pipelines import RandomMask, ViewSpec, make_loader, open_plan, order_of
from headrace.pipelines.spec import InputSpec
from headrace.tools.plan import plan
from headrace.tools.runs.report import report
from headrace.train.engine.step import Stepper

QUICK = {"log_every": 1, "save_every": 100}
STEADY = {"schedule": "constant", "warmup": 0.0}


@pytest.fixture
def sets(photo_folder):
    few = {"source": str(photo_folder), "weight": {0: 0.6, "5 steps": 0.2}, "where": "label < 2"}
    return {"few": few, "all": {"source": str(photo_folder), "weight": 0.4}}


def run(out, sets, steps, **train):
    data = {"train": sets, "mix": {"pure": 0.2}}
    options = {"smoke": True, "optim": STEADY, "train": {**QUICK, "max_steps": steps, "out": out, **train}}
    return headrace.pretrain("mae_vit-tiny", data, **options)


def weights(out):
    return load_file(out / "encoder.safetensors")


def test_a_run_that_ends_five_times_is_the_undisturbed_one(sets, tmp_path):
    run(tmp_path / "whole", sets, 12)
    for steps in (2, 3, 7, 8, 11, 12):
        run(tmp_path / "parts", sets, steps)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("kind", ["cpu", "dali", "memory"])
def test_batches_do_not_depend_on_stops_or_processes(sets, kind):
    """Images, crops, masks and passes of an undisturbed run, with stops on 1, 2, 4 and 8 processes."""
    source = open_plan(sets, {"pure": 0.2})
    inputs = InputSpec((ViewSpec(size=16, jitter=0.8, brightness=0.4),), RandomMask((2, 2), 0.5))
    order = order_of(source, 8, seed=3)

    def steps(first, last, world):
        loaders = [make_loader(source, inputs, order, kind=kind, seed=3, rank=r, world=world) for r in range(world)]
        try:
            for loader in loaders:
                loader.load_state_dict({"step": first})
            return [[next(loader) for loader in loaders] for _ in range(first, last)]
        finally:
            for loader in loaders:
                loader.close()

    whole = steps(0, 10, 1)
    stops = [(0, 1, 2), (1, 3, 4), (3, 4, 1), (4, 7, 8), (7, 8, 2), (8, 10, 4)]
    parts = [step for first, last, world in stops for step in steps(first, last, world)]
    for (one,), several in zip(whole, parts, strict=True):
        for name in ("ids", "origin", "passes", "labels"):
            assert torch.equal(getattr(one, name), torch.cat([getattr(part, name) for part in several])), name
        assert torch.equal(one.views["image"], torch.cat([part.views["image"] for part in several], 1))
        assert torch.equal(one.mask.hidden, torch.cat([part.mask.hidden for part in several]))


def test_another_plan_is_an_error_or_begins_there(sets, photo_folder, tmp_path, capsys):
    out = tmp_path / "run"
    run(out, sets, 4)
    other = {**sets, "all": {"source": str(photo_folder), "weight": 0.1}}
    with pytest.raises(UserError) as caught:
        run(out, other, 8)
    message = str(caught.value)
    assert "data.train.all.weight: 0.4 -> 0.1" in message and "train.replan=true" in message and "\n" not in message
    with pytest.raises(UserError, match=r"optim.lr: .* train.accept_changes=true"):
        headrace.pretrain(
            "mae_vit-tiny",
            {"train": other, "mix": {"pure": 0.2}},
            smoke=True,
            optim={**STEADY, "lr": 0.3},
            train={**QUICK, "max_steps": 8, "out": out, "replan": True},
        )
    run(out, other, 6, replan=True)
    run(out, other, 8)  # the plan of now is the run's: nothing more has to be accepted
    newest = sorted(out.glob("step-*.pt"))[-1]
    saved = torch.load(newest, weights_only=True)["plan"]
    old, source = order_of(open_plan(sets, {"pure": 0.2}), 8), open_plan(other, {"pure": 0.2})
    assert saved["begin"] == (4, old.given(4))
    assert saved["given"] == order_of(source, 8, begin=saved["begin"]).given(8)


def test_a_changed_table_is_another_plan(photo_folder, tmp_path):
    table, out = tmp_path / "t.csv", tmp_path / "run"
    names = sorted(path.name for path in photo_folder.rglob("*.jpg"))

    def write(last):
        table.write_text("key,good\n" + "".join(f"{name},{i + 1}\n" for i, name in enumerate(names[:-1])) + last)

    sets = {"a": {"source": str(photo_folder), "table": str(table), "weight": "good"}}
    write(f"{names[-1]},5\n")
    run(out, sets, 2)
    write(f"{names[-1]},50\n")
    with pytest.raises(UserError, match="other plan"):
        run(out, sets, 4)


def test_the_run_ends_with_its_sets(photo_folder, tmp_path):
    sets = {"a": {"source": str(photo_folder), "samples": 32}, "b": {"source": str(photo_folder), "repeat": 2}}
    data = {"train": sets, "mix": {"exhausted": "stop"}}
    out = headrace.pretrain("mae_vit-tiny", data, smoke=True, train={**QUICK, "max_steps": 20, "out": tmp_path / "r"})
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 10  # 32 + 48 images in batches of 8


def test_plan_says_what_a_run_reads(sets, photo_folder, tmp_path, capsys):
    words = [
        f"data.train.few.{key}={json.dumps(value) if key == 'weight' else value}" for key, value in sets["few"].items()
    ]
    words += [f"data.train.all.source={photo_folder}", "data.train.all.weight=0.4", "data.mix.pure=0.2"]
    words += ["train.batch_size=8", "train.max_steps=10"]
    assert dispatch(["plan", "mae_vit-tiny", *words, "--json", str(tmp_path / "plan.json")]) == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    order = order_of(open_plan(sets, {"pure": 0.2}), 8)
    counts = Counter(int(o) for step in range(10) for o in order.origin(order.ids(step)))
    few, every = found["sets"]
    assert (few["draws"], every["draws"]) == (counts[0], counts[1]) and found["draws"] == 80
    assert few["images"] == 16 and few["of"] == 24 and few["visits"] == pytest.approx(counts[0] / 16)
    files = [path.stat().st_size for path in photo_folder.rglob("*.jpg")]
    assert every["bytes"] == sum(files) and found["hash"] == plan("mae_vit-tiny", words)["hash"]
    printed = capsys.readouterr().out
    assert "16 of 24 images where label < 2" in printed and f"plan {found['hash']}" in printed
    changed = [word.replace("=0.4", "=0.5") for word in words]
    assert plan("mae_vit-tiny", changed)["hash"] != found["hash"]


def test_a_plan_of_many_samples_takes_no_time(tmp_path, monkeypatch):
    """Ten million samples: counts and columns as arrays, nothing done for each."""

    class Many:
        name, classes, index = "many", None, np.ones(10_000_000, [("size", "<u4"), ("label", "<i4"), ("width", "<u4")])

        def __len__(self):
            return 10_000_000

    monkeypatch.setattr("headrace.pipelines.plan.sets.open_source", lambda name: Many())
    source = open_plan({"a": {"source": "x", "where": "width == 1", "weight": 1}, "b": {"source": "y", "weight": 2}})
    order = order_of(source, 256)
    from headrace.pipelines.plan.facts import plan_hash, sets_of

    rows = sets_of(source, order, 10_000)
    assert [row["images"] for row in rows] == [10_000_000] * 2 and len(plan_hash(source, order)) == 16
    assert rows[0]["share"] == pytest.approx(1 / 3, abs=1e-4)


def test_figures_of_each_set(sets, photo_folder, tmp_path, monkeypatch):
    """Loss, images and bad images of a row are those of the steps since the last one, counted by hand."""
    shutil.copytree(photo_folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "class_0" / "photo_00.jpg").write_bytes(b"\xff\xd8\xff nothing")
    sets["all"]["source"] = str(tmp_path / "damaged")
    seen, true_step = [], Stepper.__call__

    def step(self, batch, progress):
        losses, of_samples = [], self._of_samples
        monkeypatch.setattr(self, "_of_samples", lambda output: losses.append(of_samples(output)) or losses[-1])
        output = true_step(self, batch, progress)
        monkeypatch.setattr(self, "_of_samples", of_samples)
        seen.append((batch.origin.numpy(), torch.cat(losses).double().numpy()))
        return output

    monkeypatch.setattr(Stepper, "__call__", step)
    out = tmp_path / "run"
    run(out, sets, 8, log_every=4)
    rows = [json.loads(line)["sets"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and len(seen) == 8
    for number, row in enumerate(rows):
        origin, losses = (np.concatenate(parts) for parts in zip(*seen[4 * number : 4 * number + 4]))
        for index, name in enumerate(("few", "all")):
            assert row[name]["images"] == (origin == index).sum()
            assert row[name]["loss"] == pytest.approx(losses[origin == index].mean(), rel=1e-5)
    assert rows[1]["few"]["bad"] == 0 and rows[1]["all"]["bad"] == 1
    report(out, tmp_path / "report.html", samples=0)
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Sets</h2>" in page and f"{rows[0]['all']['images'] + rows[1]['all']['images']}</td>" in page


def test_waiting_is_for_the_set_that_is_slow(photo_folder):
    """One of two sets takes 20 ms an image to read: nearly all the waiting is for it."""
    source = open_plan({"fast": str(photo_folder), "slow": str(photo_folder)})
    slow, read = source.sources[1], source.sources[1].read
    slow.read = lambda index: time.sleep(0.02) or read(index)
    order = order_of(source, 8, seed=3)
    for kind in ("cpu", "memory"):
        with contextlib.closing(
            make_loader(source, InputSpec((ViewSpec(size=16),)), order, kind=kind, threads=1)
        ) as loader:
            for _ in range(4):
                next(loader)
            stats = loader.stats()
            assert sum(stats.set_waits) == pytest.approx(stats.wait_seconds)
            assert stats.set_waits[1] > 3 * stats.set_waits[0]
