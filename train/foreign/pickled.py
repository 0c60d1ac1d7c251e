"""What `torch.save` wrote, as tensors and plain values: every other object is a stand-in, and nothing is ever called.

Pickles are programs: their instructions name functions and say what to call them with. `torch.load` runs them, or
refuses a file for one object that it does not know. Here a name stands for one of a few functions below, which put
tensors and their dicts together, for a type of numbers, or for an inert stand-in; a call of anything but those
functions gives another stand-in.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

_MAGIC = 0x1950A86A20F9469CFC6C  # how files begin that are older than PyTorch 1.6, or written as such
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class Unknown(dict):
    """Stands where an object was. It holds what was put into that object, and does nothing."""

    state: Any = None  # what the object would have been given to restore itself with
    name: str = ""  # of the class, with its module

    def append(self, value: Any) -> None: ...

    extend = add = append
    __hash__, __eq__ = object.__hash__, object.__eq__


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any) -> Any:
    if isinstance(storage, Unknown):  # of quantised numbers
        return Unknown()
    return storage.as_strided(size, stride, offset)  # which raises where the storage is too small


def _retyped(storage: Any, offset: int, size: tuple, stride: tuple, _: Any, __: Any, dtype: Any, *rest: Any) -> Any:
    return _tensor(storage.view(dtype), offset, size, stride)


def _parameter(data: torch.Tensor, *rest: Any) -> torch.Tensor:
    return data


def _subclass(function: Any, kind: Any, arguments: tuple, state: Any) -> Any:
    made = _made(function, arguments)
    return made if isinstance(made, torch.Tensor) else _made(kind, ())


def _size(numbers: Any = ()) -> tuple:
    return tuple(numbers)


def _ordered(items: Any = ()) -> OrderedDict:
    return OrderedDict((key, value) for key, value in items)


_CALLED = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _retyped,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type": _subclass,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered,
}
_FUNCTIONS = set(_CALLED.values())


def _made(what: Any, arguments: Any) -> Any:
    """The result of a call in a pickle: the only place where one is made."""
    if type(what) is type(_made) and what in _FUNCTIONS:
        return what(*arguments)
    return what() if isinstance(what, type) and issubclass(what, Unknown) else Unknown()


class _Unpickler(pickle._Unpickler):  # the one in Python, whose instructions can be replaced; the one in C calls things
    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any, storage: Any = None) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self._storage, self._kinds = storage, {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _CALLED:
            return _CALLED[full]
        if module.split(".")[0] == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and isinstance(found := vars(torch).get(name), torch.dtype):
            return found
        return self._kinds.setdefault(full, type("Unknown", (Unknown,), {"name": full}))

    def persistent_load(self, given: Any) -> Any:
        kind = given[0].decode() if isinstance(given[0], bytes) else given[0]
        if kind != "storage":  # of files before 1.6: ("module", class, its source)
            return given[1]
        if self._storage is None or not isinstance(given[1], torch.dtype):
            return Unknown()
        return self._storage(given[1], *given[2:])

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("names a class by a number")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def load_obj(self) -> None:
        kind, *arguments = self.pop_mark()
        self.append(_made(kind, arguments))

    def load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("utf-8") for _ in range(2))
        self.append(_made(self.find_class(module, name), self.pop_mark()))

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Unknown):
            self.stack[-1].state = state

    for _code, _replacement in (
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_reduce),
        (pickle.NEWOBJ_EX, load_newobj_ex),
        (pickle.OBJ, load_obj),
        (pickle.INST, load_inst),
        (pickle.BUILD, load_build),
    ):
        dispatch[_code[0]] = _replacement


class _Bytes:
    """Hands out storages, of no more bytes together than the file has."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.left, self.storages = content, len(content), {}

    def new(self, dtype: torch.dtype, numbers: int) -> torch.Tensor:
        self.left -= numbers * dtype.itemsize
        if numbers < 0 or self.left < 0:
            raise ValueError("says that it holds more than it does")
        return torch.empty(numbers, dtype=dtype)

    def fill(self, storage: torch.Tensor, start: int) -> int:
        """Reads what lies at `start`; where it ends."""
        size = storage.numel() * storage.dtype.itemsize
        if start + size > len(self.content):
            raise ValueError("ends before its last tensor")
        if size:
            data = bytearray(memoryview(self.content)[start : start + size])
            storage.view(torch.uint8).copy_(torch.frombuffer(data, dtype=torch.uint8))
        return start + size


def unpickle(path: Path) -> Any:
    """The content of a file of `torch.save`, in its format of today (an archive) or before 1.6.

    Tensors are on the CPU, parameters are tensors, all other objects `Unknown`. Raises `ValueError` for what is no such
    file, and whatever an unpickler raises for a damaged one.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _Bytes(content)
            return _archive(path, found) if zipfile.is_zipfile(path) else _sequence(found)


def _archive(path: Path, found: _Bytes) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    (root,) = [name.removesuffix("data.pkl") for name in entries if name.endswith("data.pkl")] or [None]
    if root is None:
        raise ValueError("an archive without data.pkl, which torch.save did not write")

    def place(name: str) -> tuple[int, int]:
        """Where an entry's bytes start, and how many they are; checksums may be left out by who wrote it."""
        start = entries[root + name].header_offset
        lengths = struct.unpack("<HH", found.content[start + 26 : start + 30])
        return start + 30 + sum(lengths), entries[root + name].file_size

    def content(name: str) -> bytes:
        start, size = place(name)
        return found.content[start : start + size]

    def storage(dtype: torch.dtype, key: str, *_: Any) -> torch.Tensor:
        if key not in found.storages:
            start, size = place(f"data/{key}")
            found.storages[key] = found.new(dtype, size // dtype.itemsize)
            found.fill(found.storages[key], start)
        return found.storages[key]

    if f"{root}byteorder" in entries and content("byteorder") != b"little":
        raise ValueError("was written by a machine of the other byte order; save it anew there, as .safetensors")
    return _Unpickler(io.BytesIO(content("data.pkl")), storage).load()


def _sequence(found: _Bytes) -> Any:
    """Pickles one after another: a number, a version, the writer's system, the content, the keys of storages; these."""
    content = found.content

    def storage(dtype: torch.dtype, key: str, _: Any, numbers: int, view: Any = None) -> torch.Tensor:
        if key not in found.storages:
            found.storages[key] = found.new(dtype, numbers)
        whole = found.storages[key]
        return whole if view is None else whole[view[1] : view[1] + view[2]]

    first = _Unpickler(content).load()
    if first != _MAGIC:
        return first  # a pickle by itself: plain values, no tensors
    _, system = _Unpickler(content).load(), _Unpickler(content).load()
    if not system.get("little_endian", True):
        raise ValueError("was written by a machine of the other byte order; save it anew there, as .safetensors")
    whole = _Unpickler(content, storage).load()
    keys, place = _Unpickler(content).load(), content.tell()
    for key in keys:  # each after its length, which is known
        place = found.fill(found.storages[key], place + 8)
    return whole
