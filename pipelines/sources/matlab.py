"""MATLAB files of version 5 to 7, as far as ImageNet's devkit needs them: structs of numbers and text.

The layout is that of MathWorks' "MAT-File Format": elements of a type, a size and a payload, padded to 8 bytes.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

_NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR = 1, 2, 4


class MatlabError(ValueError):
    """Not such a file, or damaged."""


def read_matlab(data: bytes) -> dict[str, object]:
    """Variable name -> value: text as `str`, numbers as flat arrays, structs as a list of dicts, cells as a list.

    Arrays come in MATLAB's order, columns first, without their shape. Raises `MatlabError`.
    """
    if data[126:128] != b"IM":
        raise MatlabError("no MATLAB file of version 5 to 7")
    variables = {}
    try:
        for kind, payload in _elements(data[128:]):
            if kind == _COMPRESSED:
                ((kind, payload),) = _elements(zlib.decompress(payload))
            if kind == _MATRIX:
                name, value = _matrix(payload)
                variables[name] = value
    except (ValueError, KeyError, struct.error, zlib.error) as fault:
        raise MatlabError(f"damaged MATLAB file ({fault})") from None
    return variables


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """(type, payload) of every element; up to four bytes of payload fit into the tag itself."""
    found, at = [], 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind >> 16:
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            start = at + 8
            end = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data):
            raise MatlabError("cut short")
        found.append((kind, data[start : start + size]))
        at = end
    return found


def _matrix(data: bytes) -> tuple[str, object]:
    """(name, value) of an array; an empty element stands for an empty array."""
    if not data:
        return "", np.empty(0)
    (_, flags), _, (_, name), *rest = _elements(data)
    return name.decode("latin-1"), _value(flags[0], rest)


def _value(kind: int, rest: list[tuple[int, bytes]]) -> object:
    if kind == _STRUCT:
        (_, width), (_, names), *members = rest
        width = int.from_bytes(width, "little")
        fields = [names[at : at + width].split(b"\0")[0].decode("latin-1") for at in range(0, len(names), width)]
        values = [_matrix(payload)[1] for _, payload in members]
        starts = range(0, len(values), len(fields))
        return [dict(zip(fields, values[at : at + len(fields)], strict=True)) for at in starts]
    if kind == _CELL:
        return [_matrix(payload)[1] for _, payload in rest]
    if not rest:
        return np.empty(0)
    stored, payload = rest[0]
    if kind == _CHAR:
        return payload.decode(_ENCODINGS[stored])
    return np.frombuffer(payload, _NUMBERS[stored])
