"""The ledger of a run: its arithmetic, exactness over kills and processes, and that it finds what is odd in a set."""

import math
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import headrace
from headrace.benchmarks import processes
from headrace.errors import UserError
from headrace.models.algorithms import algorithm_names, find_algorithm
from headrace.models.algorithms.mae import MAE
from headrace.pipelines.plan.columns import Columns
from headrace.train import pretrain
from headrace.train.engine import checkpoint
from headrace.train.engine.distributed import ALONE
from headrace.train.engine.step import Stepper
from headrace.train.ledger import COLUMNS, MOVING, Ledger, read_ledger
from headrace.train.recipe.recipe import smoke_images

SMALL = ["mae_vit-tiny", "--smoke", "train.ledger=true", "train.log_every=3", "train.save_every=4"]  # 20 steps of 8


def run(out, *overrides):
    assert pretrain.main([*SMALL, f"train.out={out}", *overrides]) == 0


def files(out):
    return {name: (out / "ledger" / f"{name}.npy").read_bytes() for name in COLUMNS}


def own_steps(monkeypatch, step_of):
    """Every step as `step_of(true step, self, batch, progress)` takes it."""
    true_step = Stepper.__call__
    monkeypatch.setattr(Stepper, "__call__", lambda *given: step_of(true_step, *given))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("ledger") / "whole"
    run(out)
    return out


def test_a_column_is_what_the_steps_gave(tmp_path, monkeypatch):
    """In parts of a batch; replayed sample by sample in plain numbers."""
    seen = []

    def step(true_step, self, batch, progress):
        losses, of_samples = [], self._of_samples
        self._of_samples = lambda output: losses.append(of_samples(output)) or losses[-1]
        output = true_step(self, batch, progress)
        self._of_samples = of_samples
        values = torch.cat(losses)
        assert values.mean().item() == pytest.approx(output.loss.item(), rel=1e-5)
        seen.append((batch.ids.tolist(), values.tolist()))
        return output

    own_steps(monkeypatch, step)
    run(tmp_path, "train.accumulate=2")
    columns = read_ledger(tmp_path)
    histories = {}
    for number, (ids, losses) in enumerate(seen, 1):
        for sample, loss in zip(ids, losses):
            histories.setdefault(sample, []).append((number, loss))
    assert len(seen) == 20 and len(columns["loss"]) > max(histories)
    for sample in range(len(columns["loss"])):
        history = histories.get(sample, [])
        assert columns["visits"][sample] == len(history)
        if not history:
            assert math.isnan(columns["loss"][sample]) and columns["step"][sample] == 0
            continue
        average = history[0][1]
        for visit, (_, loss) in enumerate(history[1:], 2):
            average += max(MOVING, 1 / visit) * (loss - average)
        assert (columns["step"][sample], columns["loss"][sample]) == (history[-1][0], np.float32(history[-1][1]))
        assert columns["average"][sample] == pytest.approx(average, rel=1e-6)
    assert sum(column.dtype.itemsize for column in columns.values()) == 16


def test_the_average_is_a_mean_that_begins_to_move(tmp_path):
    ledger, losses = Ledger(tmp_path / "ledger", 3, ALONE), [float(n) for n in range(1, 31)]
    for step, loss in enumerate(losses):  # sample 2 twice in each batch
        ledger.add(step, torch.tensor([2, 0, 2]), torch.tensor([loss, loss, loss + 0.5]), torch.zeros(()))
        if step == 9:
            ledger.flush()
            assert read_ledger(tmp_path)["average"][0] == pytest.approx(5.5)
    ledger.flush()
    found, average = read_ledger(tmp_path), 5.5
    for loss in losses[10:]:
        average += 0.1 * (loss - average)
    assert found["average"][0] == pytest.approx(average)
    assert found["visits"].tolist() == [30, 0, 60] and found["loss"].tolist()[::2] == [30.0, 30.5]
    assert math.isnan(found["average"][1])


def test_a_run_is_the_same_with_and_without(whole, tmp_path):
    run(tmp_path, "train.ledger=false")
    own, other = (checkpoint.newest(out)[1] for out in (whole, tmp_path))
    assert all(torch.equal(own["model"][key], other["model"][key]) for key in own["model"])
    assert not (tmp_path / "ledger").exists() and "ledger" not in other


@pytest.mark.parametrize("last", [2, 9, 14])
def test_killed_and_resumed_it_is_the_same_bit_for_bit(last, whole, tmp_path, monkeypatch):
    """Whatever had been written: nothing yet, rows beyond the checkpoint, or a file torn in the middle of a write."""

    class Killed(BaseException):
        pass

    def step(true_step, self, batch, progress):
        if progress.step == last:
            raise Killed
        return true_step(self, batch, progress)

    with monkeypatch.context() as patched:
        own_steps(patched, step)
        with pytest.raises(Killed):
            run(tmp_path, "train.log_every=1")
    assert read_ledger(tmp_path)["step"].max() == last
    (tmp_path / "ledger" / "loss.npy").write_bytes(b"torn")
    run(tmp_path, "train.log_every=5")
    assert files(tmp_path) == files(whole)


def test_what_lies_behind_the_checkpoint_is_taken_back(whole, tmp_path):
    """A run that is told to end where it has been already."""
    run(tmp_path, "train.max_steps=8", "optim.schedule=constant")
    eight = files(tmp_path)
    (tmp_path / "ledger" / "visits.npy").unlink()
    run(tmp_path, "train.max_steps=8", "optim.schedule=constant")
    assert files(tmp_path) == eight != files(whole)


def test_it_may_begin_later(tmp_path, capfd):
    run(tmp_path, "train.max_steps=8", "train.ledger=false", "optim.schedule=constant")
    run(tmp_path, "train.max_steps=11", "optim.schedule=constant")
    assert "the ledger begins after step 8" in capfd.readouterr().err
    columns = read_ledger(tmp_path)
    assert columns["visits"].sum() == 3 * 8 and columns["step"][columns["step"] > 0].min() == 9


def test_steps_that_are_left_out_leave_no_trace(tmp_path, monkeypatch):
    true_forward = MAE.forward

    def forward(self, batch, progress):
        output = true_forward(self, batch, progress)
        output.loss = output.loss * (float("inf") if progress.step == 4 else 1.0)
        return output

    monkeypatch.setattr(MAE, "forward", forward)
    run(tmp_path, "train.max_steps=8")
    columns = read_ledger(tmp_path)
    assert columns["visits"].sum() == 7 * 8 and np.isfinite(columns["loss"]).sum() == (columns["visits"] > 0).sum()
    assert 5 not in columns["step"] and 4 in columns["step"]


def test_two_processes_write_what_one_does(tmp_path):
    options = ["optim.lr=1e-4", "train.max_steps=12"]
    for world in (1, 2):
        out = tmp_path / str(world)
        arguments = [*SMALL, f"train.out={out}", *options]
        assert processes.run(arguments, tmp_path / f"{world}.log", world=world) == [0] * world
    one, two = (read_ledger(tmp_path / str(world)) for world in (1, 2))
    assert np.array_equal(one["visits"], two["visits"]) and np.array_equal(one["step"], two["step"])
    assert np.allclose(one["loss"], two["loss"], rtol=1e-4, equal_nan=True)


def test_a_method_without_is_named(tmp_path, capsys):
    arguments = ["faster-rcnn-c4_8xb2-24k_voc0712", f"train.out={tmp_path / 'run'}", "train.ledger=true"]
    arguments[0] = f"detect/{arguments[0]}"
    with pytest.raises(
        UserError, match="train.ledger: detector has no loss of single samples .*leave train.ledger out"
    ):
        pretrain.main([*arguments, f"data.train={tmp_path}"])
    assert not (tmp_path / "run").exists()


def test_a_method_that_promises_and_does_not_give(tmp_path, monkeypatch):
    true_forward = MAE.forward

    def forward(self, batch, progress):
        output = true_forward(self, batch, progress)
        output.per_sample = None
        return output

    monkeypatch.setattr(MAE, "forward", forward)
    with pytest.raises(UserError, match="mae has a sample_loss, but its StepOutput comes without per_sample"):
        run(tmp_path)


def test_files_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "ledger").write_text("in the way")
    with pytest.raises(UserError, match=r"ledger: cannot be written \(File exists\); choose another train.out"):
        Ledger(tmp_path / "ledger", 3, ALONE)


def test_a_disk_that_is_full_at_the_start(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        with pytest.raises(UserError, match=r"loss.npy: cannot be written \(File too large\); free some space"):
            Ledger(tmp_path / "ledger", 3, ALONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_its_columns_are_a_table_for_plans(whole):
    columns = Columns(smoke_images(), str(whole / "ledger"), "sets.a")
    assert np.array_equal(columns("visits"), read_ledger(whole)["visits"]) and columns("average").dtype == np.float32


def test_the_page_says_what_each_method_gives():
    """The table of docs/ledger.md."""
    text = (Path(headrace.__file__).parent / "docs" / "ledger.md").read_text()
    rows = dict(line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `"))
    said = {name.strip("` "): phrase.strip() for names, phrase in rows.items() for name in names.split(", ")}
    own = {name: find_algorithm(name).sample_loss for name in algorithm_names()}
    columns = {name: said.pop(name) for name in COLUMNS}
    assert all(columns.values())
    assert said == {name: phrase for name, phrase in own.items() if phrase is not None}


def smooth(rng, size=32):
    """A picture of soft colours that pass into each other."""
    coarse = Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8))
    return coarse.resize((size, size), Image.Resampling.BICUBIC)


def odd(kind, rng, size=32):
    if kind == "noise":
        return Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))
    picture = Image.new(
        "RGB", (size, size), "white" if kind == "text" else tuple(int(v) for v in rng.integers(0, 256, 3))
    )
    if kind == "text":
        for line in range(0, size, 9):
            letters = "".join(chr(int(c)) for c in rng.integers(97, 123, 8))
            ImageDraw.Draw(picture).text((0, line - 1), letters, "black")
    return picture


def test_it_finds_noise_blank_and_text_among_photos(tmp_path):
    """After a short MAE of 400 pictures: the hardest 1 % are noise and text, all blanks are among the easiest 1 %."""
    rng = np.random.default_rng(0)
    planted = {f"{kind}{n}": odd(kind, rng) for kind in ("noise", "blank", "text") for n in range(2)}
    names = [f"photo{n:03d}" for n in range(394)] + list(planted)
    names = [names[i] for i in rng.permutation(400)]
    (tmp_path / "images").mkdir()
    for number, name in enumerate(names):
        picture = planted[name] if name in planted else smooth(rng)
        picture.save(tmp_path / "images" / f"{number:03d}_{name}.png")
    recipe = ["mae_vit-tiny", "train.ledger=true", "train.device=cpu", "train.batch_size=25", "train.epochs=20"]
    recipe += [f"data.train={tmp_path / 'images'}", f"train.out={tmp_path / 'run'}", "train.log_every=50"]
    recipe += ["algorithm.view={size: 32, scale: [0.8, 1.0]}", "optim={lr: 3.0e-3, lr_batch: null, warmup: 0.1}"]
    recipe += ["algorithm.backbone={patch_size: 8, width: 48, depth: 2, heads: 2}"]
    recipe += ["algorithm.decoder={width: 48, depth: 1, heads: 2}", "algorithm.mask_ratio=0.5"]
    assert pretrain.main(recipe) == 0
    order = [names[i] for i in np.argsort(read_ledger(tmp_path / "run")["average"])]  # names of files are in that order
    kinds = [name.rstrip("0123456789") for name in order]
    assert kinds[:4].count("blank") == 2
    assert sorted(kinds[-4:]) == 2 * ["noise"] + 2 * ["text"]
