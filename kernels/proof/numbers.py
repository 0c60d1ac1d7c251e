"""PTX's arithmetic on numpy arrays of raw bits, where numpy's own differs.

With `pessimistic()` approximate instructions are wrong by up to two units in the last place, each result always by the
same, and tensor cores round their sums toward zero: what a GPU may do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
I8, I16, I32, I64 = np.int8, np.int16, np.int32, np.int64
F16, F32, F64 = np.float16, np.float32, np.float64

ULPS = 2
_worst = False


@contextmanager
def pessimistic(on: bool = True) -> Iterator[None]:
    global _worst
    before, _worst = _worst, on
    try:
        yield
    finally:
        _worst = before


def approx(x: np.ndarray) -> np.ndarray:
    """What an approximate instruction gives for an exact result."""
    x = x.astype(F32)
    if not _worst:
        return x
    raw = x.view(U32)
    scattered = raw * U32(0x9E3779B1) >> U32(16)  # by the bits of the result: every thread is wrong alike, every time
    off = (raw.astype(I64) + scattered % U32(2 * ULPS + 1) - ULPS).astype(U32)
    return np.where(np.isfinite(x) & (np.abs(x) > 1e-36), off, raw).view(F32)


def summed(x: np.ndarray) -> np.ndarray:
    """A sum of products in float64 -> float32, as a tensor core keeps it."""
    rounded = x.astype(F32)
    if not _worst:
        return rounded
    return np.where(np.abs(rounded.astype(F64)) > np.abs(x), np.nextafter(rounded, F32(0)), rounded)


def f32(x: np.ndarray) -> np.ndarray:
    return x.view(F32)


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, dtype=F32).view(U32)


def f64(x: np.ndarray) -> np.ndarray:
    return x.view(F64)


def bits64(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, dtype=F64).view(U64)


def from_bf16(h: np.ndarray) -> np.ndarray:
    return (h.astype(U32) << U32(16)).view(F32)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """To nearest, ties to even."""
    raw = np.ascontiguousarray(x, F32).view(U32)
    rounded = (raw.astype(U64) + U64(0x7FFF) + ((raw >> U32(16)) & U32(1)).astype(U64)) >> U64(16)
    return np.where(np.isnan(x), U16(0x7FFF), rounded.astype(U16))


def from_f16(h: np.ndarray) -> np.ndarray:
    return h.view(F16).astype(F32)


def to_f16(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x, F32).astype(F16).view(U16)


def from_tf32(x: np.ndarray) -> np.ndarray:
    """A tensor core ignores the last 13 bits."""
    return (x & U32(0xFFFFE000)).view(F32)


def to_tf32(x: np.ndarray) -> np.ndarray:
    """To nearest, ties away from zero."""
    return (x.view(U32) + U32(0x1000)) & U32(0xFFFFE000)


def packed(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (high.astype(U32) << U32(16)) | low.astype(U32)


def low(x: np.ndarray) -> np.ndarray:
    return (x & U32(0xFFFF)).astype(U16)


def high(x: np.ndarray) -> np.ndarray:
    return (x >> U32(16)).astype(U16)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (a.astype(F64) * b.astype(F64) + c.astype(F64)).astype(a.dtype)


def ftz(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < F32(1.1754944e-38), np.copysign(F32(0), x), x)


def shl(a: np.ndarray, by: np.ndarray) -> np.ndarray:
    size = 8 * a.itemsize
    return np.where(by >= size, 0, a << (by % by.dtype.type(size)).astype(a.dtype)).astype(a.dtype)


def shr(a: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Of unsigned numbers; of signed ones the sign moves in."""
    size = 8 * a.itemsize
    if a.dtype.kind == "i":
        return a >> np.minimum(by, by.dtype.type(size - 1)).astype(a.dtype)
    return np.where(by >= size, 0, a >> (by % by.dtype.type(size)).astype(a.dtype)).astype(a.dtype)


def bfe(a: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """A field of bits, at the same place for all."""
    size = 8 * a.itemsize
    kind = U64 if size == 64 else U32
    start, count = int(position[0]) & 255, min(int(length[0]) & 255, size)
    mask = kind((1 << count) - 1)
    field = shr(a.view(kind), np.full(a.shape, start, U32)) & mask
    if a.dtype.kind == "i" and count:
        field = np.where(field & kind(1 << (count - 1)), field | ~mask, field).astype(kind)
    return field.view(a.dtype)


def bfi(field: np.ndarray, into: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """`into` with the low bits of `field` as a field of its own, at the same place for all."""
    size = 8 * into.itemsize
    start, count = int(position[0]) & 255, min(int(length[0]) & 255, size)
    mask = into.dtype.type(((1 << count) - 1) << start & (1 << size) - 1)
    moved = shl(field, np.full(field.shape, start, U32))
    return (into & ~mask) | (moved & mask)


def prmt(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    source = (b.astype(U64) << U64(32)) | a.astype(U64)
    result = np.zeros_like(a)
    for k in range(4):
        choice = (selector >> U32(4 * k)) & U32(15)
        byte = (source >> (U64(8) * (choice & U32(7)).astype(U64))) & U64(255)
        sign = np.where(byte & U64(128), U64(255), U64(0))
        result |= np.where(choice & U32(8), sign, byte).astype(U32) << U32(8 * k)
    return result


def popc(x: np.ndarray) -> np.ndarray:
    count = np.zeros(x.shape, U32)
    for k in range(8 * x.itemsize):
        count += ((x >> x.dtype.type(k)) & x.dtype.type(1)).astype(U32)
    return count


def to_integer(x: np.ndarray, kind: type) -> np.ndarray:
    """A rounded float -> integer; out of range it stops at the ends, and NaN is 0."""
    ends = np.iinfo(kind)
    return np.where(np.isnan(x), 0, np.clip(x.astype(F64), ends.min, ends.max)).astype(kind)


def divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Toward zero; by zero anything."""
    safe = np.where(b == 0, 1, b).astype(b.dtype)
    if a.dtype.kind == "u":
        return a // safe
    remainder = np.fmod(a, safe)
    return (a - remainder) // safe


def remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.fmod(a, np.where(b == 0, 1, b).astype(b.dtype))
