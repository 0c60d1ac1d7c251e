"""Red, green and blue beside one another in memory, and as tensors of their own, in Triton.

A thread that owns N neighbouring pixels owns 3 N values in a row, which it reads and writes N at a time: as three
tensors (G, N) of which the first has the values 0 to N - 1 of each group of pixels, the second those from N on. To take
them apart and put them together costs nothing but the names of registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def four_columns(x):
    """(G, 4) -> its columns, each (G,)."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], 2, 2)))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def _eight(x):
    even, odd = tl.split(tl.reshape(x, (x.shape[0], 4, 2)))
    a, c, e, g = four_columns(even)
    b, d, f, h = four_columns(odd)
    return a, b, c, d, e, f, g, h


@triton.jit
def _of_four(a, b, c, d):
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (a.shape[0], 4))


@triton.jit
def _of_eight(a, b, c, d, e, f, g, h):
    return tl.reshape(tl.join(_of_four(a, c, e, g), _of_four(b, d, f, h)), (a.shape[0], 8))


@triton.jit
def interleaved(r, g, b, N: tl.constexpr):
    """Three channels (G, N) -> r0 g0 b0 r1 ... of each group, in three parts (G, N); N is 4 or 8."""
    if N == 4:
        r0, r1, r2, r3 = four_columns(r)
        g0, g1, g2, g3 = four_columns(g)
        b0, b1, b2, b3 = four_columns(b)
        return _of_four(r0, g0, b0, r1), _of_four(g1, b1, r2, g2), _of_four(b2, r3, g3, b3)
    else:
        r0, r1, r2, r3, r4, r5, r6, r7 = _eight(r)
        g0, g1, g2, g3, g4, g5, g6, g7 = _eight(g)
        b0, b1, b2, b3, b4, b5, b6, b7 = _eight(b)
        return (
            _of_eight(r0, g0, b0, r1, g1, b1, r2, g2),
            _of_eight(b2, r3, g3, b3, r4, g4, b4, r5),
            _of_eight(g5, b5, r6, g6, b6, r7, g7, b7),
        )


@triton.jit
def separated(first, second, third, N: tl.constexpr):
    """The inverse of `interleaved`."""
    if N == 4:
        r0, g0, b0, r1 = four_columns(first)
        g1, b1, r2, g2 = four_columns(second)
        b2, r3, g3, b3 = four_columns(third)
        return _of_four(r0, r1, r2, r3), _of_four(g0, g1, g2, g3), _of_four(b0, b1, b2, b3)
    else:
        r0, g0, b0, r1, g1, b1, r2, g2 = _eight(first)
        b2, r3, g3, b3, r4, g4, b4, r5 = _eight(second)
        g5, b5, r6, g6, b6, r7, g7, b7 = _eight(third)
        return (
            _of_eight(r0, r1, r2, r3, r4, r5, r6, r7),
            _of_eight(g0, g1, g2, g3, g4, g5, g6, g7),
            _of_eight(b0, b1, b2, b3, b4, b5, b6, b7),
        )


@triton.jit
def mirrored(x, N: tl.constexpr):
    """(G, N) with its columns from last to first."""
    if N == 1:
        return x
    elif N == 4:
        a, b, c, d = four_columns(x)
        return _of_four(d, c, b, a)
    else:
        a, b, c, d, e, f, g, h = _eight(x)
        return _of_eight(h, g, f, e, d, c, b, a)
