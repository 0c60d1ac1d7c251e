"""The executor's arithmetic and tensor cores beside torch's and beside sums in float64."""

import numpy as np
import pytest
import torch

from headrace.kernels.proof import matrices, numbers
from headrace.kernels.proof.memory import Findings, Shared


@pytest.fixture
def floats():
    rng = np.random.default_rng(1)
    special = [0.0, -0.0, 1.0, np.inf, -np.inf, 65504.0, 65520.0, 1e-8, 2**-24, 1.00390625, 1.01171875, 3e38]
    return np.concatenate([rng.standard_normal(4000).astype(np.float32) * 10, np.array(special, np.float32)])


@pytest.mark.parametrize(("to", "dtype"), [(numbers.to_bf16, torch.bfloat16), (numbers.to_f16, torch.float16)])
def test_halves_are_rounded_as_torch_rounds(floats, to, dtype):
    expected = torch.from_numpy(floats).to(dtype).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(to(floats), expected)
    back = numbers.from_bf16 if dtype == torch.bfloat16 else numbers.from_f16
    assert np.array_equal(back(expected), torch.from_numpy(expected.view(np.int16)).view(dtype).float().numpy())


def test_fma_rounds_once():
    a = np.float32([1 + 2**-12])
    assert numbers.fma(a, a, np.float32([-1]))[0] == np.float32(2**-11 + 2**-24)
    assert a * a - np.float32(1) != np.float32(2**-11 + 2**-24)


@pytest.mark.parametrize("signed", [False, True])
def test_division_and_remainder_go_toward_zero(signed):
    values = [-7, -6, -1, 0, 1, 6, 7] if signed else [0, 1, 6, 7, 2**32 - 1]
    dtype = np.int32 if signed else np.uint32
    pairs = [(a, b) for a in values for b in values if b]
    a, b = (np.array(part, dtype) for part in zip(*pairs))
    quotient = [abs(int(x)) // abs(int(y)) * (1 if (x < 0) == (y < 0) else -1) for x, y in pairs]
    assert numbers.divided(a, b).tolist() == quotient
    assert numbers.remainder(a, b).tolist() == [int(x) - q * int(y) for (x, y), q in zip(pairs, quotient)]


def test_shifts_beyond_the_width_and_bit_fields():
    ones, by = np.full(4, 0x80000001, np.uint32), np.array([0, 1, 31, 40], np.uint32)
    assert numbers.shl(ones, by).tolist() == [0x80000001, 2, 0x80000000, 0]
    assert numbers.shr(ones, by).tolist() == [0x80000001, 0x40000000, 1, 0]
    assert numbers.shr(ones.view(np.int32), by)[3] == -1
    into = numbers.bfi(*(np.array([x], np.uint32) for x in (0x1FF, 0xAAAAAAAA, 8, 8)))
    assert into[0] == 0xAAAAFFAA
    field = numbers.bfe(np.array([0xABCD1234], np.uint32), np.array([8]), np.array([8]))
    assert field[0] == 0x12
    assert numbers.bfe(np.array([0xFF00], np.uint32).view(np.int32), np.array([8]), np.array([8]))[0] == -1


def test_pessimistic_is_wrong_by_no_more_than_it_says(floats):
    x = floats[np.abs(floats) > 1e-3][:4000]
    x = x[np.isfinite(x)]
    with numbers.pessimistic():
        off = numbers.approx(x)
        assert np.array_equal(numbers.approx(x[::-1]), off[::-1])  # by the value, not by when and where
        sums = numbers.summed(x.astype(np.float64) * (1 + 1e-9))
    steps = np.abs(off.view(np.int32).astype(int) - x.view(np.int32))
    assert steps.max() == numbers.ULPS and len(np.unique(steps)) == 3
    assert (np.abs(sums) <= np.abs(x.astype(np.float64) * (1 + 1e-9))).all()
    assert np.array_equal(numbers.approx(x), x)


def _pack(values, kind):
    raw = numbers.to_bf16(values) if kind == "bf16" else numbers.to_f16(values)
    return raw.astype(np.uint32)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_mma_multiplies(kind):
    """Thread t of a warp has row t // 4 and columns 2 (t % 4), 2 (t % 4) + 1 of each 8 x 8 part of a factor."""
    rng = np.random.default_rng(2)
    a, b = rng.integers(-8, 9, (2, 16, 16)).astype(np.float32), rng.integers(-8, 9, (2, 16, 8)).astype(np.float32)
    lane = np.arange(32)
    row, pair = lane // 4, lane % 4 * 2

    def registers(matrix, places):
        return [
            (_pack(matrix[:, r, c], kind) | (_pack(matrix[:, r2, c2], kind) << 16)).reshape(-1).astype(np.uint32)
            for (r, c), (r2, c2) in places
        ]

    left = registers(a, [((row + y, pair + x), (row + y, pair + x + 1)) for x in (0, 8) for y in (0, 8)])
    right = registers(b, [((pair + y, row), (pair + y + 1, row)) for y in (0, 8)])
    zeros = [np.zeros(64, np.uint32)] * 4
    found = [numbers.f32(part).reshape(2, 32) for part in matrices.mma(left, right, zeros, kind)]
    product = a @ b
    for k, part in enumerate(found):
        assert np.array_equal(part, product[:, row + 8 * (k // 2), pair + k % 2])


def test_ldmatrix_undoes_stmatrix():
    shared = Shared(512, 1, 2, Findings())
    warp = np.zeros(32, np.int64)
    address = (np.arange(32) * 16).astype(np.uint32)
    values = np.arange(32, dtype=np.uint32) * 65537 + 5
    stamps = np.full(32, 1 << 8)
    matrices.store_matrix(shared, address, values, 2, False, warp, stamps, "here")
    back = matrices.load_matrix(shared, address, 2, False, warp, stamps, "here")
    assert np.array_equal(back, values) and not shared.findings
    turned = matrices.load_matrix(shared, address, 2, True, warp, stamps, "here")
    square = np.stack([numbers.low(values), numbers.high(values)], 1).reshape(8, 8).T
    assert np.array_equal(np.stack([numbers.low(turned), numbers.high(turned)], 1).reshape(8, 8), square)
