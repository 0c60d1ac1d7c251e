"""Which source a name opens, and what is said where it opens none."""

import importlib.util
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from headrace.errors import run_command
from headrace.pipelines.shard import main as shard_main
from headrace.pipelines.sources import KINDS, open_source
from headrace.pipelines.sources.folder import FolderSource
from headrace.pipelines.sources.shards import ShardSource

Image.new("RGB", (8, 8)).save(TINY := io.BytesIO(), "PNG")


@pytest.fixture
def images(tmp_path, write_files, encode):
    return write_files(tmp_path / "images", {"a/1.jpg": encode(1), "b/2.jpg": encode(2)})


def test_kind_and_plain_path_are_the_same_source(images, contents):
    plain, named = open_source(images), open_source(f"folder:{images}")
    assert contents(plain) == contents(named) and isinstance(named, FolderSource)
    assert plain.name == str(images) and named.name == f"folder:{images}"
    assert pickle.loads(pickle.dumps(named)).name == named.name


def test_options_reach_the_source(images, write_files, encode):
    write_files(images, {"list.txt": "1.jpg\n", "names.txt": "x\ny\n"})
    source = open_source(f"list:{images}/list.txt?root={images}/a")
    assert source.read(0).tobytes() == encode(1)


@pytest.mark.parametrize("name", ["folder:photos", "C:photos", "a?b", "list:x?root=y"])
def test_a_path_that_exists_wins(tmp_path, monkeypatch, write_files, encode, name):
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path, {f"{name}/1.jpg": encode(1), "photos/2.jpg": encode(2), "photos/3.jpg": encode(3)})
    assert len(open_source(name)) == 1 and len(open_source("folder:./photos")) == 2
    assert len(open_source(f"folder:{name}")) == 1


def test_a_folder_with_images_and_tars_is_read_as_told(images, write_files, tar_bytes, encode, refused):
    write_files(images, {"s.tar": tar_bytes({"x.png": encode(3, "PNG")})})
    refused(images, "tars", "images")
    assert isinstance(open_source(f"shards:{images}"), ShardSource) and len(open_source(f"folder:{images}")) == 2


def test_nearest_names_are_offered(images, refused):
    refused(f"imagnet:{images}", "imagnet", "did you mean imagenet?")
    refused(f"webdataset_over_ftp:{images}", "webdataset_over_ftp", "choose from folder, shards, list")
    refused(f"list:{images}?rot=x", "'rot'", "did you mean root?")
    refused(f"folder:{images}?root=x", "'root'", "takes none")
    refused(f"imagenet:{images}?split=trian", "'trian'", "did you mean train?")
    refused(f"folder:{images}x", f"did you mean {images}?")
    refused(f"{images}?split=val", "kind in front")
    refused("C:\\photos", "does not exist")
    for option in ("root", "root=", f"root={images}&root={images}"):
        refused(f"list:{images}?{option}", "'root' needs one value")


def _module(entry):
    return importlib.util.resolve_name(f".{entry.module}", "headrace.pipelines.sources")


def test_every_kind_can_be_imported():
    for entry in KINDS.values():
        assert callable(getattr(importlib.import_module(_module(entry)), entry.opener))


def test_two_marks_are_a_question(tmp_path, write_files, refused):
    write_files(tmp_path, {"meta/train.txt": "", "data_batch_1": ""})
    refused(tmp_path, "imagenet or cifar10", "kind in front")


class Own:
    """A source of one's own that means other things by the names that ours have beside the contract."""

    classes = None

    def __init__(self, place, *, notes="x"):
        self.notes = {"list": ["two lines", "of mine"], "text": "a text", "none": None}.get(notes, self.__len__)
        self.root = 7

    def __len__(self):
        return 2

    def read(self, index):
        return np.frombuffer(TINY.getvalue(), np.uint8)

    def label(self, index):
        return -1

    def key(self, index):
        return f"{index}.png"

    def size(self, index):
        return None


def test_a_source_of_ones_own_may_say_what_it_leaves_out(tmp_path, capsys):
    for kind, said in (("list", ["two lines", "of mine"]), ("text", []), ("none", []), ("x", [])):
        told = []
        name = f"{__name__}.Own:here?notes={kind}"
        assert len(open_source(name, told.append)) == 2 and told == [f"{name}: {line}" for line in said]
    assert run_command(lambda: shard_main([f"{__name__}.Own:here", str(tmp_path / "out"), "--workers", "1"])) == 0


def test_no_kind_imports_torch():
    modules = ", ".join(map(_module, KINDS.values()))
    code = f"import sys; sys.modules['torch'] = None; import {modules}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
