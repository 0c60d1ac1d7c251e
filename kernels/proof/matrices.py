"""Tensor cores: which thread has which value of a matrix, and products of them."""

from __future__ import annotations

import numpy as np

from .memory import Shared
from .numbers import F32, F64, I64, U16, U32, bits, f32, from_bf16, from_f16, from_tf32, high, low, packed, summed
from .ptx import Fault

LANE = np.arange(32)
ROW, COLUMN = LANE >> 2, LANE & 3  # of a thread in a tile of 8 rows
SWIZZLE = {0: (0, 0), 1: (128, 7), 2: (64, 3), 3: (32, 1)}  # a descriptor's mode -> bytes of a row, mask
FROM_16 = {"bf16": from_bf16, "f16": from_f16}


def _pairs(register: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The two 16-bit values of a register, each (warps, 32)."""
    register = register.reshape(-1, 32)
    return FROM_16[kind](low(register)), FROM_16[kind](high(register))


def fragment_a(registers: list[np.ndarray], kind: str) -> np.ndarray:
    """The left factor: 4 registers -> (warps, 16, 16), of tf32 (warps, 16, 8)."""
    warps = registers[0].size // 32
    matrix = np.zeros((warps, 16, 8 if kind == "tf32" else 16), F32)
    for i, register in enumerate(registers):
        row = ROW + 8 * (i & 1)
        if kind == "tf32":
            matrix[:, row, COLUMN + 4 * (i >> 1)] = from_tf32(register.reshape(warps, 32))
        else:
            column = 2 * COLUMN + 8 * (i >> 1)
            matrix[:, row, column], matrix[:, row, column + 1] = _pairs(register, kind)
    return matrix


def fragment_b(registers: list[np.ndarray], kind: str) -> np.ndarray:
    """The right factor: 2 registers -> (warps, 16, 8), of tf32 (warps, 8, 8)."""
    warps = registers[0].size // 32
    matrix = np.zeros((warps, 8 if kind == "tf32" else 16, 8), F32)
    for i, register in enumerate(registers):
        if kind == "tf32":
            matrix[:, COLUMN + 4 * i, ROW] = from_tf32(register.reshape(warps, 32))
        else:
            k = 2 * COLUMN + 8 * i
            matrix[:, k, ROW], matrix[:, k + 1, ROW] = _pairs(register, kind)
    return matrix


def mma(a: list[np.ndarray], b: list[np.ndarray], c: list[np.ndarray], kind: str) -> list[np.ndarray]:
    """mma.sync of 16 x 8 results."""
    product = np.matmul(fragment_a(a, kind).astype(F64), fragment_b(b, kind).astype(F64))
    found = []
    for i, register in enumerate(c):
        before = f32(register).reshape(-1, 32).astype(F64)
        row, column = ROW + 8 * (i >> 1), 2 * COLUMN + (i & 1)
        found.append(bits(summed(before + product[:, row, column]).reshape(-1)))
    return found


def _descriptor_offsets(descriptor: int, rows: int, width: int, transposed: bool) -> np.ndarray:
    """Of a matrix of `rows` x 32 bytes in shared memory, the byte of each value; `width` is that of a value."""
    start, leading, stride = (((descriptor >> shift) & 0x3FFF) << 4 for shift in (0, 16, 32))
    line, mask = SWIZZLE[(descriptor >> 62) & 3]
    values = 32 // width
    row, k = np.arange(rows)[:, None], np.arange(values)[None, :]
    if not transposed:  # the sum's index is contiguous
        if line:
            offset = row // 8 * stride + row % 8 * line + width * k
        else:
            chunk = 16 // width
            offset = row // 8 * stride + row % 8 * 16 + k // chunk * leading + width * (k % chunk)
    else:
        per = (line or 16) // width
        offset = row // per * leading + width * (row % per) + k // 8 * stride + k % 8 * (line or 16)
    address = start + offset
    return (address ^ (((address >> 7) & mask) << 4)).astype(I64)


def shared_matrix(
    shared: Shared, descriptors: np.ndarray, blocks: np.ndarray, stamps: np.ndarray, rows: int, kind: str,
    transposed: bool, where: str,
) -> np.ndarray:  # fmt: skip
    """(groups, rows, k): the matrix that each group's descriptor names. Each of a group's four warps reads it."""
    width = 4 if kind == "tf32" else 2
    offsets = np.stack([_descriptor_offsets(int(one), rows, width, transposed) for one in descriptors])
    if (offsets + width > shared.size).any():
        raise Fault(f"access out of bounds: wgmma beyond shared memory, {where}")
    offsets = offsets + blocks[:, None, None] * shared.size
    flat = offsets.reshape(len(descriptors), -1)
    for warp in range(4):
        shared.begin_read(flat.reshape(-1), np.repeat(stamps[:, warp], flat.shape[1]), where)
    raw = shared.views[width][offsets // width]
    return (from_tf32(raw) if kind == "tf32" else FROM_16[kind](raw)).astype(F64)


def wgmma_factor_a(registers: list[np.ndarray], kind: str) -> np.ndarray:
    """(groups, 64, k) of a left factor in registers: 16 rows a warp."""
    parts = fragment_a(registers, kind).astype(F64)
    return parts.reshape(-1, 64, parts.shape[2])


def wgmma(product: np.ndarray, before: list[np.ndarray], keep: np.ndarray) -> list[np.ndarray]:
    """The registers of (groups, 64, n) products, added to what they had where `keep`."""
    groups, _, columns = product.shape
    by_warp = product.reshape(groups * 4, 16, columns)
    found = []
    for number, register in enumerate(before):
        row = ROW + 8 * (number % 4 >> 1)
        column = 8 * (number // 4) + 2 * COLUMN + (number & 1)
        value = by_warp[:, row, column].reshape(-1)
        found.append(bits(summed(value + np.where(keep, f32(register), F32(0)).astype(F64))))
    return found


def _rows_of_matrix(address: np.ndarray, matrix: int) -> np.ndarray:
    """ldmatrix and stmatrix: threads 8m to 8m+7 of a warp have the addresses of matrix m's rows."""
    return address.reshape(-1, 32)[:, 8 * matrix : 8 * matrix + 8].reshape(-1)


def load_matrix(shared: Shared, address, matrix: int, transposed: bool, block, stamps, where: str) -> np.ndarray:
    """One register of ldmatrix: two 16-bit values of a matrix of 8 x 8."""
    rows = (_rows_of_matrix(array, matrix) for array in (address, block, stamps))
    at, block, stamps = rows
    tile = np.stack(shared.load(at, 2, 8, block, stamps, where), 1).reshape(-1, 8, 8)
    tile = tile.transpose(0, 2, 1) if transposed else tile
    return packed(tile[:, ROW, 2 * COLUMN], tile[:, ROW, 2 * COLUMN + 1]).reshape(-1)


def store_matrix(shared: Shared, address, register, matrix: int, transposed: bool, block, stamps, where: str) -> None:
    at, block, stamps = (_rows_of_matrix(array, matrix) for array in (address, block, stamps))
    register = register.reshape(-1, 32)
    tile = np.zeros((len(register), 8, 8), U16)
    tile[:, ROW, 2 * COLUMN], tile[:, ROW, 2 * COLUMN + 1] = low(register), high(register)
    tile = (tile.transpose(0, 2, 1) if transposed else tile).reshape(-1, 8)
    shared.store(at, 2, [tile[:, k] for k in range(8)], block, stamps, where)


__all__ = ["U32", "load_matrix", "mma", "shared_matrix", "store_matrix", "wgmma", "wgmma_factor_a"]
