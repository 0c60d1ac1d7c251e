"""Commands as a person types them: what goes wrong ends in one line and exit code 2, with nothing half-written."""

import importlib
import subprocess
import sys

import pytest

from headrace.cli import COMMANDS

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
