"""Pickles of plain data, as research data sets are often published.

A pickle can name any function and have it run. Here it gets dicts, lists, numbers, text and arrays of bytes, and
nothing else; not even NumPy's own code runs on its word.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...errors import UserError


class ByteArray:
    """Stands in for NumPy's array while a pickle is read, and keeps what the pickle says of it."""

    shape: object = None
    dtype: object = None
    data: object = None

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, _, self.data = state

    def rows(self, width: int) -> np.ndarray | None:
        """(rows, width) uint8, or None where it is no such array."""
        if not isinstance(self.dtype, _Dtype) or self.dtype.code not in ("u1", b"u1", "|u1", b"|u1"):
            return None
        if not isinstance(self.data, bytes) or self.shape != (len(self.data) // width, width):
            return None
        return np.frombuffer(self.data, np.uint8).reshape(-1, width) if len(self.data) % width == 0 else None


class _Dtype:
    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment: bytes have neither."""


class _Unpickler(pickle._Unpickler):
    """The standard library's in Python: the one in C fills gigabytes with zeros for five bytes of a damaged pickle."""

    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]}

    def find_class(self, module: str, name: str) -> Callable:
        known = {
            ("numpy", "ndarray"): ByteArray,
            ("numpy", "dtype"): _Dtype,
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: ByteArray(),
            ("numpy._core.multiarray", "_reconstruct"): lambda *_: ByteArray(),
            ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),  # Python 3's bytes in old protocols
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]


def load_pickle(file: Path) -> dict[str, object]:
    """The dict in a pickle of plain data; its keys become `str`, other strings that Python 2 wrote `bytes`.

    Raises `UserError` for any other pickle; nothing that it names is imported or called.
    """
    try:
        content = _Unpickler(io.BytesIO(file.read_bytes()), encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError("no dict in it")
        return {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in content.items()}
    except FileNotFoundError:
        raise UserError(f"{file}: does not exist; give the folder unpacked from the published archive") from None
    except Exception as fault:  # damaged pickles raise almost anything
        raise UserError(f"{file}: no pickle of plain data ({fault!r}); unpack the published archive again") from None
