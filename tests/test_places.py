"""Files that appear whole or not at all, and what a full disk does to them."""

import errno
import json
import os
import stat

import matplotlib.pyplot as plt
import pytest

from headrace import places
from headrace.cli import dispatch
from headrace.errors import UserError
from headrace.places import write_file
from headrace.tools.exchange.export import export, part_of
from headrace.tools.look.figures import save_figure


@pytest.fixture
def full(monkeypatch):
    """Synchronising, the last thing before a file gets its name, finds no space."""

    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(places.os, "fsync", fsync)


def test_on_a_full_disk_what_was_there_stays(full, tmp_path):
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "a", b"after")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"before")]


def test_nothing_takes_the_place_of_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(os.open(tmp_path / "pipe", os.O_RDWR), "rb", buffering=0) as end:
        write_file(tmp_path / "pipe", b"through")
        assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode) and os.read(end.fileno(), 100) == b"through"


def test_no_half_of_a_picture(full, tmp_path):
    (tmp_path / "a.png").write_bytes(b"before")
    with pytest.raises(UserError, match="a.png: cannot be written .No space left on device.; give another file"):
        save_figure(plt.figure(figsize=(1, 1)), tmp_path / "a.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize("library", ["safetensors", "openmmlab"])
def test_an_export_to_a_full_disk_is_one_line(library, tmp_path, monkeypatch):
    assert dispatch(["pretrain", "mae_vit-tiny", "--smoke", "train.max_steps=1", f"train.out={tmp_path}/run"]) == 0
    part, write = part_of(tmp_path / "run"), places.Path.write_bytes

    def short(self, data):
        write(self, bytes(data)[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(places.Path, "write_bytes", short)
    with pytest.raises(UserError, match="out: cannot be written .No space left on device.; choose another --out"):
        export(part, library, tmp_path / "out", "mine")
    assert not list((tmp_path / "out").iterdir())


def test_rows_say_how_images_were_decoded(photo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = ["pixels:8", "--train", str(photo_folder), "--val", str(photo_folder), "--threads", "1", "--k", "3"]
    assert dispatch(["knn", *sets]) == 0
    assert dispatch(["knn", *sets, "--range", "0,4095"]) == 0
    plain, given = map(json.loads, (tmp_path / "evaluation.jsonl").read_text().splitlines())
    assert "rules" not in plain and given["rules"] == {"range": [0, 4095]}
