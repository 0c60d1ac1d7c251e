"""Commands as a person types them: what goes wrong ends in one line and exit code 2, with nothing half-written."""

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import headrace as package
from headrace.cli import COMMANDS, dispatch
from headrace.errors import UserError, run_command
from headrace.places import new_file, new_folder, place

BAD = {
    "no command": (["pretrian"], "headrace: pretrian: no such command; did you mean pretrain?"),
    "missing folder": (
        ["pretrain", "mae_vit-tiny", "data.train={tmp}/photoz", "train.max_steps=1", "train.out={tmp}/run"],
        "photoz",
    ),
    "no data": (
        ["pretrain", "mae_vit-tiny", "train.max_steps=1", "train.out={tmp}/run"],
        "headrace: data.train: missing",
    ),
    "unknown recipe": (["pretrain", "mae_vit-tinny", "data.train={photos}"], "did you mean mae_vit-tiny?"),
    "unknown key": (
        ["pretrain", "mae_vit-tiny", "train.bath_size=3"],
        "train.bath_size: unknown key; did you mean batch_size?",
    ),
    "wrong type": (
        ["pretrain", "mae_vit-tiny", "train.batch_size=many"],
        "train.batch_size: needs an integer, got 'many'",
    ),
    "unknown algorithm": (
        ["pretrain", "mae_vit-tiny", "algorithm.name=mea"],
        "no algorithm 'mea'; did you mean mae?",
    ),
    "unknown kernel": (
        [
            "pretrain",
            "mae_vit-tiny",
            "kernels.patch_los=triton",
            "data.train={photos}",
            "train.batch_size=8",
            "train.out={tmp}/run",
        ],
        "patch_loss",
    ),
    "batch larger than the set": (
        ["pretrain", "mae_vit-tiny", "data.train={photos}", "train.batch_size=640", "train.out={tmp}/run"],
        "24 images do not fill one global batch of 640",
    ),
    "empty folder": (["shard", "{tmp}/empty", "{tmp}/out"], "empty"),
    "folder without images": (["shard", "{tmp}/text", "{tmp}/out"], "text"),
    "shard of a truncated image": (["shard", "{tmp}/broken", "{tmp}/out"], "bad.jpg"),
    "knn without a checkpoint": (
        ["knn", "{tmp}/none.pt", "--train", "{photos}", "--val", "{photos}"],
        "none.pt: no such checkpoint",
    ),
    "knn on an empty run": (
        ["knn", "{tmp}/empty", "--train", "{photos}", "--val", "{photos}"],
        "holds no readable checkpoint",
    ),
}


def headrace(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "headrace.cli", *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def messy(tmp_path, photo_folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no picture")
    (tmp_path / "broken").mkdir()
    data = (photo_folder / "class_0" / "photo_00.jpg").read_bytes()
    (tmp_path / "broken" / "good.jpg").write_bytes(data)
    (tmp_path / "broken" / "bad.jpg").write_bytes(data[: len(data) // 2])
    return tmp_path


@pytest.mark.parametrize("case", BAD)
def test_one_line_and_exit_code_two(case, messy, photo_folder):
    arguments, expected = BAD[case]
    before = sorted(messy.rglob("*"))
    result = headrace(*(a.format(tmp=messy, photos=photo_folder) for a in arguments), cwd=messy)
    assert result.returncode == 2, result.stderr
    assert expected in result.stderr and "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert all(line.startswith("headrace: ") for line in lines), lines
    assert sorted(messy.rglob("*")) == before


def test_show_prints_the_recipe_with_origins(tmp_path):
    result = headrace("pretrain", "mae_vit-tiny", "train.max_steps=7", "--show", cwd=tmp_path)
    assert result.returncode == 0
    line = next(line for line in result.stdout.splitlines() if "max_steps" in line)
    assert "7" in line and "# command line" in line


def test_usage_lists_every_command(tmp_path):
    result = headrace(cwd=tmp_path)
    assert result.returncode == 0 and all(f"  {name} " in result.stdout for name in COMMANDS)


def test_every_command_is_where_the_table_says():
    modules = {name: importlib.import_module(f"headrace.{module}") for name, (module, _) in COMMANDS.items()}
    assert [name for name, module in modules.items() if not callable(getattr(module, "main", None))] == []


OUTPUTS = {
    "check": ["x", "--json"],
    "embed": ["x", "y", "--out"],
    "knn": ["x", "--train", "y", "--val", "z", "--features"],
    "linear": ["x", "--train", "y", "--val", "z", "--results"],
    "svm": ["x", "y", "--results"],
    "finetune": ["x", "y", "--results"],
    "detect": ["x", "y", "--picture"],
    "segment": ["x", "y", "--picture"],
    "tsne": ["x", "y", "--out"],
    "shape-bias": ["x", "y", "--out"],
    "browse": ["x", "y", "--out"],
    "reconstruct": ["x", "y", "--out"],
    "attention": ["x", "y", "--out"],
    "pca": ["x", "y", "--out"],
    "report": ["x", "--out"],
    "compare": ["x", "y", "--html"],
    "curves": ["x", "--out"],
    "import": ["x", "--to"],
    "import-config": ["x", "--out"],
    "export": ["x", "--to", "timm", "--out"],
    "doctor": ["x", "y", "--json"],
    "parity": ["--out"],
    "plan": ["x", "--json"],
    "demo": ["--out"],
}


@pytest.mark.parametrize("command", OUTPUTS)
def test_an_output_that_cannot_be_written_is_refused_before_anything_else(command, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/inside: cannot be written in .* \(Not a directory\)"):
        dispatch([command, *OUTPUTS[command], f"{tmp_path}/file/inside"])


def test_every_path_of_an_option_is_one_of_places():
    root = Path(package.__file__).parent
    files = [
        path for name in ("schema", "pipelines", "kernels", "train", "tools") for path in (root / name).rglob("*.py")
    ]
    left = [str(path.relative_to(root)) for path in files if "type=Path" in path.read_text("utf-8")]
    assert left == ["tools/demo_images.py"]  # a script


def test_places(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert place("~/x") == new_file("~/x") == new_folder("~/x") == tmp_path / "x"
    assert new_file("x.png") == Path("x.png") and new_folder("a/b/c") == Path("a/b/c")
    with pytest.raises(UserError, match="is a folder"):
        new_file(".")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"a/b: cannot be written in .* \(Permission denied\); give another place"):
        new_folder("a/b")


@pytest.mark.parametrize(
    "fault, code",
    [(OSError(errno.EROFS, "Read-only file system", "x.png"), 2), (OSError(errno.EINVAL, "?", "x"), None)],
)
def test_what_a_file_system_says_of_a_path_is_one_line(fault, code, capsys):
    def main():
        raise fault

    if code is None:
        with pytest.raises(OSError):
            run_command(main)
    else:
        assert run_command(main) == code
        assert capsys.readouterr().err == "headrace: x.png: Read-only file system\n"


def test_a_run_directory_that_cannot_be_made(tmp_path, monkeypatch):
    from headrace.train.engine.run_directory import locked

    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another train.out"), locked(tmp_path / "file" / "run"):
        pass


def test_a_tilde_in_train_out(tmp_path, monkeypatch):
    from headrace.train.recipe.recipe import load_recipe

    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_recipe("mae_vit-tiny", ["train.out=~/x", "train.max_steps=1"]).out == tmp_path / "x"
