"""Checkpoint files are read, whatever objects lie in them beside the weights, and nothing in them is ever run."""

import collections
import datetime
import enum
import functools
import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.errors import UserError, run_command
from headrace.tools.exchange.import_weights import main as import_main
from headrace.train.foreign.read import read_tensors


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def archive(compression, **entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as out:
        for name, content in entries.items():
            out.writestr(f"archive/{name}", content)
    return file.getvalue()


def itself():
    content = {}
    content["a"] = content
    return content


def doubling():
    content = {"a": torch.ones(1)}
    for _ in range(60):
        content = {"x": content, "y": content}
    return content


def claiming(numbers):
    """An archive whose pickle says that its one storage and tensor have so many numbers."""
    given = saved({"a": torch.ones(300, 300)})
    with zipfile.ZipFile(io.BytesIO(given)) as source:
        content = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    old, new = struct.pack("<BI", ord("J"), 90_000), b"\x8a\x06" + numbers.to_bytes(6, "little")
    assert old in content["data.pkl"]
    text = content["data.pkl"].replace(old, new).replace(struct.pack("<BH", ord("M"), 300), new)
    return archive(zipfile.ZIP_STORED, **content | {"data.pkl": text})


def tensors(header, length=None, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tar(payload):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as out:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            entry = tarfile.TarInfo(name)
            entry.size = len(pickle.dumps(payload))
            out.addfile(entry, io.BytesIO(pickle.dumps(payload)))
    return file.getvalue()


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
WEIGHTS = {"model": {"a": torch.ones(100, 100)}}
HOSTILE = {  # file -> its bytes, given a payload; and what is said
    "new.pth": (lambda bad: saved({"model": bad, "hook": bad}), "but objects of posix.mkdir"),
    "legacy.pth": (
        lambda bad: saved({"model": bad, "hook": bad}, _use_new_zipfile_serialization=False),
        "but objects of posix.mkdir",
    ),
    "bare.pkl": (lambda bad: pickle.dumps(bad), "but objects of posix.mkdir"),
    "detectron2.pkl": (
        lambda bad: pickle.dumps({"model": {"a": np.ones(2)}, "__author__": "x"}),
        "holds no tensors, but objects of numpy",
    ),
    "itself.pth": (lambda bad: saved(itself()), "nests more than"),
    "doubling.pth": (lambda bad: saved(doubling()), "nests more than"),
    "claims.pth": (lambda bad: claiming(2**40), "not a readable file"),
    "claims-legacy.pth": (
        lambda bad: saved(WEIGHTS, _use_new_zipfile_serialization=False).replace(b"M\x10'N", b"J\xff\xff\xff\x7fN"),
        "holds more than it does",
    ),
    "tar.pth": (tar, "legacy .tar"),
    "inner.pth": (
        lambda bad: archive(zipfile.ZIP_STORED, **{"data.pkl": pickle.dumps(bad), "version": b"3"}),
        "but objects of posix.mkdir",
    ),
    "bomb.pth": (lambda bad: archive(zipfile.ZIP_DEFLATED, **{"data.pkl": b"\x80\x02" + bytes(2**24)}), "compressed"),
    "script.pt": (lambda bad: archive(zipfile.ZIP_STORED, **{"code/__torch__.py": b"x"}), "TorchScript"),
    "shape.pth": (lambda bad: saved({"a": torch.ones(1).expand(2**40)}), "larger than the file"),
    "cut.pth": (lambda bad: saved(WEIGHTS)[:20_000], "not a readable file"),
    "cut-legacy.pth": (
        lambda bad: saved(WEIGHTS, _use_new_zipfile_serialization=False)[:20_000],
        "not a readable file",
    ),
    "memo.pkl": (lambda bad: b"\x80\x02r\xff\xff\xff\x7f.", "not a readable file"),
    "empty.pth": (lambda bad: b"", "not a readable file"),
    "text.pth": (lambda bad: b"hello world\n" * 9, "not a readable file"),
    "header.safetensors": (lambda bad: tensors({}, length=2**60), "header too large"),
    "claims.safetensors": (
        lambda bad: tensors({"a": ENTRY | {"shape": [2**40], "data_offsets": [0, 2**42]}}),
        "not fully",
    ),
    "overlap.safetensors": (
        lambda bad: tensors({"a": ENTRY, "b": ENTRY | {"data_offsets": [4, 12]}}, data=bytes(12)),
        "not a readable safetensors",
    ),
    "cut.safetensors": (lambda bad: tensors({"a": ENTRY}, data=bytes(4)), "not a readable safetensors"),
    "nested.safetensors": (lambda bad: struct.pack("<Q", 10**5) + b"[" * 10**5, "not a readable safetensors"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_damaged_file_is_refused_in_one_line(name, tmp_path, capsys):
    """Exit code 2, nothing run, nothing written."""
    write, said = HOSTILE[name]
    source = tmp_path / name
    source.write_bytes(write(Payload(tmp_path / "executed")))
    assert run_command(lambda: import_main([str(source), "--to", str(tmp_path / "out")])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(source) in line and said in line and list(tmp_path.iterdir()) == [source]


def test_files_are_read(tmp_path):
    plain = {"optimizer": {"b": torch.ones(2)}, "epoch": 3, "args": Namespace(lr=1.0), "best": np.float64(0.5)}
    torch.save({"model": {"a": torch.ones(2)}, **plain}, tmp_path / "a.pth")
    assert list(read_tensors(tmp_path / "a.pth")) == ["a"]
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert list(read_tensors(tmp_path / "old.pth")) == ["a"]
    torch.save({"student": {"a": torch.ones(2)}, "teacher": {"a": torch.ones(2)}}, tmp_path / "b.pth")
    assert sorted(read_tensors(tmp_path / "b.pth")) == ["student.a", "teacher.a"]
    for name, text in (("none.pth", "no such file"), (".", "a folder")):
        with pytest.raises(UserError, match=text):
            read_tensors(tmp_path / name)


class History:
    """What MMEngine keeps of a loss: arrays, and functions by name."""

    def __init__(self):
        self.values, self.functions = np.arange(3.0), {"mean": History.mean}

    def mean(self):
        return self.values.mean()


class Settings(dict):
    """As ConfigDict: a dict with a class of its own."""

    def __setstate__(self, state):
        raise RuntimeError("was run")


class Colour(enum.Enum):
    RED = 1


def beside(*more):
    """What people's checkpoints hold beside the weights."""
    settings = Settings(lr=1.0)
    settings.extra = 1
    return {
        "meta": {
            "cfg": Namespace(lr=1.0),
            "time": datetime.datetime(2026, 1, 1),
            "path": Path("/x"),
            "tags": {"a", "b"},
        },
        "message_hub": {"log_scalars": collections.OrderedDict(loss=History()), "runtime": {"epoch": np.int64(3)}},
        "hyper": [settings, collections.defaultdict(list, a=[1]), collections.Counter("aab"), Colour.RED],
        "keys": {Colour.RED: torch.float16, torch.device("cpu"): torch.Size([1])},
        "random": np.random.RandomState(0).get_state(),
        "partial": functools.partial(os.mkdir, "x"),
        "bound": History().mean,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "more": more,
    }


def weights():
    base = torch.arange(24.0).view(4, 6)
    return collections.OrderedDict(
        a=base,
        view=base[1:, ::2].T,
        shared=base,
        half=torch.randn(3).half(),
        bf16=torch.randn(2, 2).bfloat16(),
        f8=torch.randn(4).to(torch.float8_e4m3fn),
        parameter=torch.nn.Parameter(torch.randn(2)),
        number=torch.tensor(7),
        none=torch.empty(0, 3),
        flags=torch.tensor([True, False]),
    )


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
def test_objects_beside_the_weights_are_passed_over(archive, protocol, tmp_path):
    """Tensors are those that were saved, the objects' classes need not exist, and none of their code runs."""
    given = {"state_dict": weights(), **beside(Payload(tmp_path / "executed"))}
    path = tmp_path / "run.pth"
    path.write_bytes(saved(given, _use_new_zipfile_serialization=archive, pickle_protocol=protocol))
    found = read_tensors(path)
    assert list(found) == list(given["state_dict"]) and list(tmp_path.iterdir()) == [path]
    for name, tensor in given["state_dict"].items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist(), name


CALLS = {  # every instruction of pickles that can call something
    "REDUCE": b"\x80\x02cos\nmkdir\nX\x01\x00\x00\x00x\x85R.",
    "REDUCE by STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x01x\x85R.",
    "NEWOBJ": b"\x80\x02cos\nmkdir\nX\x01\x00\x00\x00x\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04cos\nmkdir\nX\x01\x00\x00\x00x\x85}\x92.",
    "OBJ": b"(cos\nmkdir\nX\x01\x00\x00\x00xo.",
    "INST": b"(X\x01\x00\x00\x00xios\nmkdir\n.",
    "a call of a call": (
        b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\nX\x04\x00\x00\x00call\x86RX\x07\x00\x00\x00mkdir x\x85R."
    ),
    "BUILD of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb.",
    "a class of torch": b"\x80\x02ctorch.hub\nload\nX\x01\x00\x00\x00x\x85R.",
    "through a tensor's subclass": (
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nmkdir\ncos\nmkdir\nX\x01\x00\x00\x00x\x85NtR."
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_instruction_of_a_pickle_calls_anything(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.pth").write_bytes(archive(zipfile.ZIP_STORED, **{"data.pkl": CALLS[name]}))
    Path("b.pkl").write_bytes(CALLS[name])
    for path in sorted(Path().iterdir()):
        with pytest.raises(UserError, match="holds no tensors|not a readable"):
            read_tensors(path)
    assert len(list(Path().iterdir())) == 2
    if "function" in name or "subclass" in name:
        return
    with pytest.raises(Exception):  # noqa: B017, PT011  what they are worth: Python's own runs them, or tries to
        pickle.loads(CALLS[name])
        assert not Path("x").exists()


def test_any_byte_may_be_wrong(tmp_path):
    """A checkpoint with any byte changed is read or refused, in one line."""
    given = saved(
        {"state_dict": {"a": torch.ones(2)}, "m": torch.nn.Linear(1, 1)}, _use_new_zipfile_serialization=False
    )
    chance, path = random.Random(0), tmp_path / "a.pth"
    read = 0
    for _ in range(300):
        changed = bytearray(given)
        changed[chance.randrange(len(changed))] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            read += bool(read_tensors(path))
        except UserError as fault:
            assert "\n" not in str(fault)
    assert 30 < read < 300


def test_a_whole_module_is_its_weights(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save({"model": model, "epoch": 1}, tmp_path / "a.pth")
    found = read_tensors(tmp_path / "a.pth")
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
