"""What a run may continue from: the same recipe and the same images, or what is accepted to differ; and that whatever
lies between the last step and the last file is made up for."""

import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import headrace
from headrace.errors import UserError
from headrace.pipelines.order import Order
from headrace.train import pretrain, resume
from headrace.train.engine import checkpoint, run_directory
from headrace.train.engine.metrics import read_metrics
from headrace.train.engine.step import Stepper
from headrace.train.recipe.settings import DataSettings, TrainSettings

TINY = [
    "mae_vit-tiny",
    "algorithm.view.size=32",
    "algorithm.backbone={name: vit_tiny, patch_size: 8, width: 24, depth: 2, heads: 2}",
    "algorithm.decoder={width: 16, depth: 1, heads: 2}",
    "train.device=cpu",
    "train.log_every=1",
    "data.threads=1",
]


def run(data, out, *overrides, batch=8):
    arguments = [*TINY, f"data.train={data}", f"train.out={out}", f"train.batch_size={batch}", *overrides]
    return pretrain.main(arguments)


def refused(match, *arguments, **options):
    """The run is refused with these words and leaves every file as it was."""
    out = Path(arguments[1])
    before = {path: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}
    with pytest.raises(UserError, match=match) as caught:
        run(*arguments, **options)
    assert {path: path.read_bytes() for path in out.iterdir() if path.name != ".lock"} == before
    assert "\n" not in str(caught.value) and "train.out" in str(caught.value)
    return str(caught.value)


def weights(out):
    return checkpoint.newest(out)[1]["model"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def images(photo_folder, tmp_path):
    """A copy of the 24 photos that may be changed."""
    return shutil.copytree(photo_folder, tmp_path / "images")


# ---- between the last step and the last file


@pytest.mark.parametrize("killed_in", ["writer.finish", "the summary", "the encoder", "its last byte"])
def test_a_run_killed_behind_its_last_checkpoint_gets_its_encoder(killed_in, photo_folder, tmp_path, monkeypatch):
    assert run(photo_folder, tmp_path / "whole", "train.max_steps=3") == 0
    whole = load_file(tmp_path / "whole" / "encoder.safetensors")

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    def kill_half_way(self, target):
        self.write_bytes(Path(self).read_bytes()[:1000])
        raise Killed

    with monkeypatch.context() as patched:
        if killed_in == "writer.finish":
            true_finish = checkpoint.Writer.finish
            patched.setattr(checkpoint.Writer, "finish", lambda self: (true_finish(self), kill()))
        elif killed_in == "the summary":
            patched.setattr(pretrain, "summary", kill)
        elif killed_in == "the encoder":
            patched.setattr(pretrain, "finish", kill)
        else:
            patched.setattr(run_directory.os, "replace", lambda a, b: kill() if "encoder" in str(b) else a.rename(b))
        with pytest.raises(Killed):
            run(photo_folder, tmp_path / "parts", "train.max_steps=3")
    assert not (tmp_path / "parts" / "encoder.safetensors").exists()
    assert checkpoint.newest(tmp_path / "parts")[1]["step"] == 3
    before = (tmp_path / "parts" / "metrics.jsonl").read_bytes()
    assert run(photo_folder, tmp_path / "parts", "train.max_steps=3") == 0
    assert equal(load_file(tmp_path / "parts" / "encoder.safetensors"), whole)
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == before
    assert checkpoint.load_algorithm(tmp_path / "parts")[0].name == "step-00000003.pt"


def test_an_encoder_cut_short_is_written_again(photo_folder, tmp_path):
    assert run(photo_folder, tmp_path / "run", "train.max_steps=2") == 0
    file = tmp_path / "run" / "encoder.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert run(photo_folder, tmp_path / "run", "train.max_steps=2") == 0
    assert file.read_bytes() == whole


def test_a_finished_checkpoint_from_elsewhere_gives_an_encoder_once_and_again(photo_folder, tmp_path, capsys):
    assert run(photo_folder, tmp_path / "a", "train.max_steps=2") == 0
    start = tmp_path / "a" / "step-00000002.pt"
    for said in ("done: ", "done before: "):
        assert run(photo_folder, tmp_path / "b", "train.max_steps=2", f"train.resume={start}") == 0
        assert f"{said}{tmp_path}/b/encoder.safetensors" in capsys.readouterr().out
    files = [(tmp_path / name / "encoder.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_a_run_made_shorter_than_it_is_keeps_what_it_has(photo_folder, tmp_path, capsys):
    assert run(photo_folder, tmp_path / "run", "train.max_steps=3") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert run(photo_folder, tmp_path / "run", "train.max_steps=2") == 0
    assert "after 3 of 2 steps" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.name != ".lock"} == {
        path: data for path, data in before.items() if path.name != ".lock"
    }


def test_the_same_command_goes_on_that_began_with_a_checkpoint(photo_folder, tmp_path, monkeypatch):
    """Not from the start again: on a cluster it would never end."""
    assert run(photo_folder, tmp_path / "a", "train.max_steps=2") == 0
    command = ("train.max_steps=6", "train.save_every=1", f"train.resume={tmp_path / 'a' / 'step-00000002.pt'}")
    assert run(photo_folder, tmp_path / "whole", *command) == 0
    true_step, taken = Stepper.__call__, []

    def step(self, batch, progress):
        taken.append(progress.step)
        if taken == [2, 3, 4]:
            raise RuntimeError("killed")
        return true_step(self, batch, progress)

    monkeypatch.setattr(Stepper, "__call__", step)
    with pytest.raises(RuntimeError, match="killed"):
        run(photo_folder, tmp_path / "b", *command)
    assert run(photo_folder, tmp_path / "b", *command) == 0
    assert taken == [2, 3, 4, 4, 5] and equal(weights(tmp_path / "b"), weights(tmp_path / "whole"))
    refused("did not begin with", photo_folder, tmp_path / "b", "train.resume=elsewhere/step-00000001.pt")


def test_going_back_to_an_earlier_checkpoint_sets_the_later_ones_aside(photo_folder, tmp_path):
    lengths = ("train.max_steps=4", "train.save_every=1", "train.keep=9")
    assert run(photo_folder, tmp_path / "run", *lengths) == 0
    whole = weights(tmp_path / "run")
    back = f"train.resume={tmp_path / 'run' / 'step-00000002.pt'}"
    assert run(photo_folder, tmp_path / "run", *lengths, back) == 0
    names = sorted(path.name for path in (tmp_path / "run").glob("*.pt"))
    assert names[:2] == ["replaced-step-00000003.pt", "replaced-step-00000004.pt"] and names[-1] == "step-00000004.pt"
    assert equal(weights(tmp_path / "run"), whole)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]


# ---- another recipe, other images


def test_a_second_experiment_in_the_folder_of_the_first_is_refused(photo_folder, images, tmp_path):
    out = tmp_path / "run"
    assert run(photo_folder, out, "train.max_steps=2") == 0
    (images / "class_0" / "one_more.jpg").write_bytes((images / "class_0" / "photo_00.jpg").read_bytes())
    said = refused("another data set and another", images, out, "train.max_steps=2", "optim.lr=0.5", "train.seed=9")
    assert f"data.train: {photo_folder} (24 images, 3 classes) -> {images} (25 images, 3 classes)" in said
    assert "train.seed: 0 -> 9" in said and "optim.lr: " in said and "-> 0.5" in said
    assert "train.accept_changes=true" in said


CHANGES = {
    "images added": lambda root: shutil.copy(root / "class_0" / "photo_00.jpg", root / "class_0" / "x.jpg"),
    "images removed": lambda root: (root / "class_1" / "photo_01.jpg").unlink(),
    "renamed": lambda root: (root / "class_1" / "photo_01.jpg").rename(root / "class_1" / "renamed.jpg"),
    "of another class": lambda root: (root / "class_0" / "photo_03.jpg").rename(root / "class_1" / "photo_03.jpg"),
    "a class renamed": lambda root: (root / "class_2").rename(root / "class_3"),
    "encoded anew": lambda root: Image.open(root / "class_0" / "photo_00.jpg").save(
        root / "class_0" / "photo_00.jpg", quality=30
    ),
    "one in, one out": lambda root: (root / "class_0" / "photo_00.jpg").rename(root / "class_2" / "photo_00.jpg"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_images_between_stop_and_resume_are_refused_or_accepted(change, images, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(images, out, "train.max_steps=2") == 0
    CHANGES[change](images)
    refused("another data set", images, out, "train.max_steps=4")
    assert run(images, out, "train.max_steps=4", "train.accept_changes=true") == 0
    assert "with changes: data.train: " in capsys.readouterr().err
    assert run(images, out, "train.max_steps=5") == 0  # from now on it is a run of these images


REFUSED = {
    "train.seed=9": "train.seed: 0 -> 9",
    "optim.weight_decay=0.3": "optim.weight_decay: 0.05 -> 0.3",
    "optim={name: sgd, lr: 0.1}": "optim.name: adamw -> sgd",
    "optim.warmup=2 steps": "optim.warmup: ",
    "algorithm.mask_ratio=0.5": "algorithm.mask_ratio: 0.75 -> 0.5",
    "data.last_batch=pad": "data.last_batch: drop -> pad",
    "data.block=6": "data.block: null -> 6",
    "train.accumulate=2": "train.accumulate: 1 -> 2",
    "train.precision=bf16": "train.precision: fp32 -> bf16",
    "train.batch_size=16": "train.batch_size: 8 -> 16",
}
FREE = [
    *("train.epochs=2", "train.max_steps=3", "train.save_every=1", "train.keep=1", "train.keep_every=1"),
    *("train.log_every=2", "train.profile=2:3", "train.timeout=60", "train.max_skipped=3", "train.deterministic=true"),
    *("train.checkpointing=true", "data.loader=memory", "data.threads=2", "data.max_bad=0.5", "data.val=none"),
    *("kernels.patch_loss=reference", "train.unused_parameters=true"),
]


def test_what_may_change_and_what_may_not(photo_folder, tmp_path):
    """Without a step: a shorter run has nothing left to do, so what is refused is refused for its recipe alone."""
    out = tmp_path / "run"
    assert run(photo_folder, out, "train.max_steps=2") == 0
    for override, said in REFUSED.items():
        assert said in refused(
            r"step-00000002.pt: comes from another", photo_folder, out, "train.max_steps=2", override
        )
    for override in FREE:
        length = () if override.startswith("train.max_steps") else ("train.max_steps=2",)
        assert run(photo_folder, out, *length, override) == 0
    moved = shutil.move(out, tmp_path / "moved")
    assert run(shutil.copytree(photo_folder, tmp_path / "elsewhere"), moved, "train.max_steps=3") == 0


def test_the_list_is_of_keys_that_there_are_and_the_page_has_it():
    keys = {f"train.{field.name}" for field in fields(TrainSettings)}
    keys |= {f"data.{field.name}" for field in fields(DataSettings)}
    assert set(resume.MAY_CHANGE) <= keys
    page = (Path(headrace.__file__).parent / "docs" / "reliability.md").read_text()
    table = page.partition("| may change |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert {name for row in rows for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", row)} == set(resume.MAY_CHANGE)


def test_an_older_checkpoint_without_a_note_of_its_data_goes_on_with_a_line(photo_folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(photo_folder, out, "train.max_steps=2") == 0
    (path,) = checkpoint.checkpoints(out)
    state = checkpoint.load(path)
    for key in ("data", "parameters"):
        del state[key]
    del state["config"]["train"]["accept_changes"]  # a key that there was not, either
    torch.save(state, path)
    assert run(photo_folder, out, "train.max_steps=4") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("headrace: ")]
    assert "an older checkpoint, which does not say which images it saw" in line
    assert run(photo_folder, tmp_path / "whole", "train.max_steps=4") == 0
    assert "data" in checkpoint.newest(out)[1]
    assert run(photo_folder, out, "train.max_steps=5") == 0 and "older" not in capsys.readouterr().err


def test_weights_alone_are_nothing_to_continue_from(photo_folder, tmp_path):
    assert run(photo_folder, tmp_path / "a", "train.max_steps=1") == 0
    state = checkpoint.newest(tmp_path / "a")[1]
    bare = {
        "model": state["model"],
        "config": {"algorithm": state["config"]["algorithm"]},
    }  # as `headrace import` leaves
    checkpoint.save(tmp_path / "b", 0, bare, keep=1)
    refused("holds weights alone", photo_folder, tmp_path / "b", "train.max_steps=2")


# ---- changes that are accepted


def test_half_a_run_at_another_batch_size_goes_on_at_its_half(photo_folder, tmp_path, capsys):
    """24 images, 4 epochs, two of them at batch 8: six steps, which are four at batch 12 and eight at batch 6."""
    for batch, steps in ((12, 2), (6, 4)):
        out = tmp_path / f"to-{batch}"
        assert run(photo_folder, out, "train.epochs=2", "train.keep=9", "train.save_every=2") == 0
        refused("train.batch_size: 8 -> ", photo_folder, out, "train.epochs=4", batch=batch)
        assert run(photo_folder, out, "train.epochs=4", "train.accept_changes=true", batch=batch) == 0
        assert f"step 6 counts as {2 * steps}" in capsys.readouterr().err
        state = checkpoint.newest(out)[1]
        assert state["step"] == 4 * steps and state["config"]["train"]["batch_size"] == batch
        rows = read_metrics(out)
        assert [row["epoch"] for row in rows[-2 * steps :]] == sorted([2, 3] * steps)
        assert [row["step"] for row in rows[-2 * steps :]] == list(range(2 * steps + 1, 4 * steps + 1))
        assert len(rows) == 6 + 2 * steps and [r["step"] for r in rows] == sorted(r["step"] for r in rows)
        # the schedule goes on where it was: at half of its cosine
        whole = tmp_path / f"whole-{batch}"
        assert run(photo_folder, whole, "train.epochs=4", batch=batch) == 0
        assert [row["lr"] for row in rows[-2 * steps :]] == [row["lr"] for row in read_metrics(whole)[2 * steps :]]
        # and it is now a run of this batch size: nothing is left to be accepted, or to go back to
        assert run(photo_folder, out, "train.epochs=5", batch=batch) == 0
        assert checkpoint.newest(out)[1]["step"] == 5 * steps


def test_in_the_middle_of_an_epoch_no_image_is_passed_over(photo_folder, tmp_path, monkeypatch):
    """Five steps of 4 are 20 of 24 images; at batch 8 the epoch goes on behind its second batch."""
    assert run(photo_folder, tmp_path / "run", "train.max_steps=5", batch=4) == 0
    true_step, seen = Stepper.__call__, []
    monkeypatch.setattr(
        Stepper, "__call__", lambda self, b, p: (seen.append((p.step, b.ids)), true_step(self, b, p))[1]
    )
    assert run(photo_folder, tmp_path / "run", "train.epochs=2", "train.accept_changes=true") == 0
    assert [step for step, _ in seen] == [2, 3, 4, 5]
    before = Order(24, 4)
    first = torch.cat([before.ids(step) for step in range(5)]).tolist() + seen[0][1].tolist()
    assert set(first) == set(range(24)) and len(first) == 28


def test_a_kill_while_steps_are_counted_anew_loses_nothing(photo_folder, tmp_path, monkeypatch):
    assert run(photo_folder, tmp_path / "run", "train.epochs=4") == 0
    again = ("train.epochs=8", "train.accept_changes=true")
    with monkeypatch.context() as patched:
        patched.setattr(resume, "renumber", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(photo_folder, tmp_path / "run", *again, batch=12)
    assert run(photo_folder, tmp_path / "run", *again, batch=12) == 0
    assert checkpoint.newest(tmp_path / "run")[1]["step"] == 16
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run")] == ["step-00000008.pt", "step-00000016.pt"]


def test_other_groups_of_parameters_keep_what_the_optimizer_knows_of_each(photo_folder, tmp_path):
    """Not by number: with other exemptions the parameters stand in another order."""
    assert run(photo_folder, tmp_path / "run", "train.max_steps=3", "optim.exempt=vectors") == 0
    old = checkpoint.newest(tmp_path / "run")[1]
    more = ("train.max_steps=4", "optim.exempt=none", "train.accept_changes=true", "optim.lr=1e-30")
    assert run(photo_folder, tmp_path / "run", *more) == 0
    new = checkpoint.newest(tmp_path / "run")[1]
    assert old["parameters"] != new["parameters"] and sorted(old["parameters"]) == sorted(new["parameters"])
    moments = [dict(zip(state["parameters"], state["optimizer"]["state"].values())) for state in (old, new)]
    for name, value in moments[0].items():
        # AdamW: m' = 0.9 m + 0.1 g, and v' = 0.95 v + 0.05 g^2, for one g
        gradient = (moments[1][name]["exp_avg"] - 0.9 * value["exp_avg"]) / 0.1
        expected = 0.95 * value["exp_avg_sq"] + 0.05 * gradient.square()
        assert torch.allclose(moments[1][name]["exp_avg_sq"], expected, rtol=1e-3, atol=1e-12), name
        assert moments[1][name]["step"] == 4


def test_another_optimizer_begins_without_a_memory(photo_folder, tmp_path, capsys):
    assert run(photo_folder, tmp_path / "run", "train.max_steps=2") == 0
    sgd = ("optim={name: sgd, lr: 0.1, momentum: 0.9}", "train.accept_changes=true")
    assert run(photo_folder, tmp_path / "run", "train.max_steps=3", *sgd) == 0
    assert "begins without a memory of earlier steps" in capsys.readouterr().err
    state = checkpoint.newest(tmp_path / "run")[1]["optimizer"]["state"]
    assert {key for one in state.values() for key in one} == {"momentum_buffer"}


def test_weights_of_another_shape_cannot_be_accepted(photo_folder, tmp_path):
    assert run(photo_folder, tmp_path / "run", "train.max_steps=1") == 0
    wider = ["algorithm.backbone={name: vit_tiny, patch_size: 8, width: 32, depth: 2, heads: 2}"]
    wider += ["train.max_steps=2", "train.accept_changes=true"]
    refused("its tensors are not this recipe's", photo_folder, tmp_path / "run", *wider)


@pytest.mark.parametrize("pair", [("fp32", "fp16"), ("fp16", "fp32")])
def test_the_scaler_of_another_precision_is_left_alone(pair, photo_folder, tmp_path):
    for steps, precision in zip((1, 2), pair):
        options = (f"train.max_steps={steps}", f"train.precision={precision}", "train.accept_changes=true")
        assert run(photo_folder, tmp_path / "run", *options) == 0
