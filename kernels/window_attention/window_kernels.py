"""Window attention's kernels in Triton: one program takes one head through many windows, and a window's rows stay in
registers.

A program finds its tokens where the linear layer left them, so rolling and cutting cost nothing. Because whole rows of
the scores are at hand, the backward needs neither the output nor the row sums: it reads qkv and the gradient and writes
a gradient, the least there is. The bias's gradient is summed over a program's windows in registers and stored once.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def window_tokens(
    index, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr
):
    """Of a window: its image, the places of its tokens in the map, which of the tiles of `bias_kernel` it takes."""
    COLUMNS: tl.constexpr = WIDTH // WINDOW
    WINDOWS: tl.constexpr = HEIGHT // WINDOW * COLUMNS
    place = tl.arange(0, BLOCK)
    # What depends on the place alone, divisions first, is the same for all windows: the compiler moves it out of the
    # loop, but not out of sums with what depends on the window.
    row, column = place // WINDOW, place % WINDOW
    window = index % WINDOWS
    wy, wx = window // COLUMNS, window % COLUMNS
    token = (row + SHIFT) * WIDTH + column + SHIFT + (wy * (WINDOW * WIDTH) + wx * WINDOW)
    kind = 0
    if SHIFT > 0:
        # Windows of the last row and the last column of windows reach around the map.
        low, right = (row >= WINDOW - SHIFT).to(tl.int32), (column >= WINDOW - SHIFT).to(tl.int32)
        last_row, last_column = (wy == HEIGHT // WINDOW - 1).to(tl.int32), (wx == COLUMNS - 1).to(tl.int32)
        token -= last_row * low * (HEIGHT * WIDTH) + last_column * right * WIDTH
        kind = 2 * last_row + last_column
    # 64 bit: 2048 images of 56x56 tokens with 3*128 values each are more than an int32 can count; inside of an image 32
    # bit do, in half the registers. A sum because the interpreter counts in Python's integers, which cannot be cast.
    image = tl.zeros((), tl.int64) + index // WINDOWS
    return image, token, kind


@triton.jit
def _scores(
    q,
    k,
    bias,
    groups,
    group_b,
    image,
    token,
    scale,
    N: tl.constexpr,
    GROUPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scores in units of log2(e), which makes exp2 of exp; -inf for keys that do not exist."""
    place = tl.arange(0, BLOCK)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E) + bias
    if GROUPED:
        group = tl.load(groups + image * group_b + token, mask=place < N, other=0)
        # A row of padding is in no group: with -inf everywhere it would become NaN, and NaN times 0 is not 0.
        seen = (group[:, None] == group[None, :]) | (place >= N)[:, None]
        scores = tl.where(seen, scores, float("-inf"))
    return scores


@triton.jit
def bias_kernel(
    table, table_r, table_h, bias_tiles, WINDOW: tl.constexpr, SHIFT: tl.constexpr, KINDS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per head and kind: the bias of each pair of places, in units of log2(e); -inf for keys that do not
    exist. Kinds of windows are, where there is a shift: inner ones, those of the last column, of the last row, of both;
    they hold one to four regions, and -100 is between them."""
    N: tl.constexpr = WINDOW * WINDOW
    head, kind = tl.program_id(0) // KINDS, tl.program_id(0) % KINDS
    place = tl.arange(0, BLOCK)
    # The row of a pair is a difference of two numbers plus that of no offset.
    corner = place // WINDOW * (2 * WINDOW - 1) + place % WINDOW
    row = corner[:, None] - corner[None, :] + (WINDOW - 1) * 2 * WINDOW
    real = (place < N)[:, None] & (place < N)[None, :]
    bias = tl.load(table + row * table_r + head * table_h, mask=real, other=0.0).to(tl.float32) * LOG2E
    low = (place // WINDOW >= WINDOW - SHIFT).to(tl.int32) * (kind // 2)
    right = (place % WINDOW >= WINDOW - SHIFT).to(tl.int32) * (kind % 2)
    region = 2 * low + right
    bias = tl.where(region[:, None] == region[None, :], bias, bias - 100.0 * LOG2E)
    bias = tl.where((place < N)[None, :], bias, float("-inf"))
    tl.store(bias_tiles + (tl.program_id(0) * BLOCK + place[:, None]) * BLOCK + place[None, :], bias)


@triton.jit
def _load_bias(bias_tiles, head, kind, KINDS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    return tl.load(bias_tiles + ((head * KINDS + kind) * BLOCK + place[:, None]) * BLOCK + place[None, :])


@triton.jit(do_not_specialize=["windows"])
def forward_kernel(
    qkv,
    bias_tiles,
    groups,
    group_b,
    out,
    windows,
    scale,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    GROUPED: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Heads are neighbours in the grid as they are in memory; all of it is on the first axis, the others end at 65535.
    head = tl.program_id(0) % HEADS
    KINDS: tl.constexpr = 4 if SHIFT > 0 else 1
    bias = _load_bias(bias_tiles, head, 0, KINDS, BLOCK)
    N: tl.constexpr = WINDOW * WINDOW
    inside = (tl.arange(0, BLOCK) < N)[:, None]
    channel = head * D + tl.arange(0, D)[None, :]
    for index in range(tl.program_id(0) // HEADS, windows, tl.num_programs(0) // HEADS):
        image, token, kind = window_tokens(index, HEIGHT, WIDTH, WINDOW, SHIFT, BLOCK)
        source = qkv + image * (HEIGHT * WIDTH * 3 * HEADS * D)
        offset = token[:, None] * (3 * HEADS * D) + channel
        q = tl.load(source + offset, mask=inside, other=0.0)
        k = tl.load(source + HEADS * D + offset, mask=inside, other=0.0)
        v = tl.load(source + 2 * HEADS * D + offset, mask=inside, other=0.0)
        if SHIFT > 0:
            bias = _load_bias(bias_tiles, head, kind, KINDS, BLOCK)
        scores = _scores(q, k, bias, groups, group_b, image, token, scale, N, GROUPED, BLOCK)
        p = tl.exp2(scores - tl.max(scores, 1)[:, None])
        result = tl.dot(p.to(v.dtype), v, input_precision="ieee") / tl.sum(p, 1)[:, None]
        target = out + image * (HEIGHT * WIDTH * HEADS * D)
        tl.store(target + token[:, None] * (HEADS * D) + channel, result.to(v.dtype), mask=inside)


@triton.jit(do_not_specialize=["windows"])
def backward_kernel(
    qkv,
    bias_tiles,
    groups,
    group_b,
    grad,
    grad_qkv,
    partial,
    windows,
    scale,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    GROUPED: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    head = tl.program_id(0) % HEADS
    N: tl.constexpr = WINDOW * WINDOW
    KINDS: tl.constexpr = 4 if SHIFT > 0 else 1
    place = tl.arange(0, BLOCK)
    inside = (place < N)[:, None]
    channel = head * D + tl.arange(0, D)[None, :]
    grad_bias = tl.zeros((BLOCK, BLOCK), tl.float32)
    for index in range(tl.program_id(0) // HEADS, windows, tl.num_programs(0) // HEADS):
        image, token, kind = window_tokens(index, HEIGHT, WIDTH, WINDOW, SHIFT, BLOCK)
        source = qkv + image * (HEIGHT * WIDTH * 3 * HEADS * D)
        offset = token[:, None] * (3 * HEADS * D) + channel
        q = tl.load(source + offset, mask=inside, other=0.0)
        k = tl.load(source + HEADS * D + offset, mask=inside, other=0.0)
        v = tl.load(source + 2 * HEADS * D + offset, mask=inside, other=0.0)
        above = grad + image * (HEIGHT * WIDTH * HEADS * D)
        g = tl.load(above + token[:, None] * (HEADS * D) + channel, mask=inside, other=0.0)
        # Read anew for each window: beside its own gradient the registers cannot hold it, nor what computes it.
        bias = _load_bias(bias_tiles, head, kind, KINDS, BLOCK)
        scores = _scores(q, k, bias, groups, group_b, image, token, scale, N, GROUPED, BLOCK)
        p = tl.exp2(scores - tl.max(scores, 1)[:, None])
        p = p / tl.sum(p, 1)[:, None]
        grad_v = tl.dot(tl.trans(p.to(v.dtype)), g, input_precision="ieee")
        grad_p = tl.dot(g, tl.trans(v), input_precision="ieee")
        grad_s = p * (grad_p - tl.sum(grad_p * p, 1)[:, None])
        grad_bias += grad_s
        low = grad_s.to(q.dtype)
        grad_q = tl.dot(low, k, input_precision="ieee") * scale
        grad_k = tl.dot(tl.trans(low), q, input_precision="ieee") * scale
        target = grad_qkv + image * (HEIGHT * WIDTH * 3 * HEADS * D)
        tl.store(target + offset, grad_q.to(q.dtype), mask=inside)
        tl.store(target + HEADS * D + offset, grad_k.to(q.dtype), mask=inside)
        tl.store(target + 2 * HEADS * D + offset, grad_v.to(q.dtype), mask=inside)
    pair = place[:, None] * N + place[None, :]
    own = partial + tl.program_id(0) * (N * N) + pair
    tl.store(own, grad_bias, mask=inside & (place < N)[None, :])


@triton.jit
def table_kernel(
    grad_bias, grad_table, WINDOW: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """One program per head and ROWS rows of the table: each is the sum over all pairs of places at that offset."""
    N: tl.constexpr = WINDOW * WINDOW
    SIDE: tl.constexpr = 2 * WINDOW - 1
    head = tl.program_id(0) % HEADS
    row = (tl.program_id(0) // HEADS * ROWS + tl.arange(0, ROWS))[:, None]
    key = tl.arange(0, BLOCK)[None, :]
    y = key // WINDOW + row // SIDE - (WINDOW - 1)
    x = key % WINDOW + row % SIDE - (WINDOW - 1)
    found = (key < N) & (y >= 0) & (y < WINDOW) & (x >= 0) & (x < WINDOW)
    value = tl.load(grad_bias + (head * N + y * WINDOW + x) * N + key, mask=found, other=0.0)
    inside = row < SIDE * SIDE
    tl.store(grad_table + row * HEADS + head, tl.sum(value, 1, keep_dims=True), mask=inside)
