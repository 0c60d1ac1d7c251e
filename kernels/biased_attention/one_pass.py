"""The backward of `tiled.py`'s attention in one pass: a program takes a head, and a segment, through its share of the
images.

Scores and their gradients are computed once, which leaves the five products that a backward has. Tiles have a row per
key. Gradients of keys and values are summed in registers over the queries of a block of keys; those of queries, over
blocks of keys, and that of the bias, over images, in memory of the program's own, which its thread block reads where it
has written. So no sum depends on the order of programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiled import LOG2E, end_of, entries


@triton.jit(do_not_specialize=["batch", "shares"])
def backward_kernel(
    qkv,
    tiles,
    segments,
    out,
    logsum,
    grad,
    grad_qkv,
    unfinished,
    partial,
    batch,
    shares,
    segments_count,
    scale,
    MAP: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    PITCH: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """`unfinished`: (programs, PITCH, D) float32, for gradients of queries; `partial`: (shares, segments, heads, PITCH,
    PITCH) float32, the gradient of the bias, laid out as `tiles` is."""
    program = tl.program_id(0)
    head = program % HEADS
    segment = program // HEADS % segments_count
    share = program // HEADS // segments_count
    last_key = end_of(segments, segment, TOKENS, WINDOW, KEYS)
    last_query = end_of(segments, segment, TOKENS, WINDOW, QUERIES)
    channel = tl.arange(0, D)[None, :]
    bias = tiles + (program % (HEADS * segments_count)).to(tl.int64) * (PITCH * PITCH)
    sums = partial + program.to(tl.int64) * (PITCH * PITCH)
    below = unfinished + program.to(tl.int64) * (PITCH * D)
    for index in range(share, batch, shares):
        # A sum because the interpreter counts in Python's integers, which cannot be cast.
        image = tl.zeros((), tl.int64) + index
        source = qkv + image * (MAP * 3 * HEADS * D) + head * D
        target = grad_qkv + image * (MAP * 3 * HEADS * D) + head * D
        rows = image * (MAP * HEADS * D) + head * D
        numbers = logsum + (image * HEADS + head) * MAP
        for first in range(0, last_key, KEYS):
            row = first + tl.arange(0, KEYS)
            key = entries(segments, segment, row, TOKENS, WINDOW)[0]
            exists = (key >= 0)[:, None]
            offset = key[:, None] * (3 * HEADS * D) + channel
            k = tl.load(source + HEADS * D + offset, mask=exists, other=0.0)
            v = tl.load(source + 2 * HEADS * D + offset, mask=exists, other=0.0)
            seen = exists & (index != share)
            grad_k = tl.zeros((KEYS, D), tl.float32)
            grad_v = tl.zeros((KEYS, D), tl.float32)
            for start in range(0, last_query, QUERIES):
                column = start + tl.arange(0, QUERIES)
                query = entries(segments, segment, column, TOKENS, WINDOW)[0]
                real = (query >= 0)[:, None]
                at = query[:, None] * (3 * HEADS * D) + channel
                q = tl.load(source + at, mask=real, other=0.0)
                at_result = rows + query[:, None] * (HEADS * D) + channel
                g = tl.load(grad + at_result, mask=real, other=0.0)
                o = tl.load(out + at_result, mask=real, other=0.0)
                # Rows of padding get probabilities of 0, not of a number that may overflow.
                norm = tl.load(numbers + query, mask=query >= 0, other=float("inf"))
                product = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
                pair = row[:, None] * PITCH + column[None, :]
                scores = tl.dot(k, tl.trans(q), input_precision="ieee") * (scale * LOG2E) + tl.load(bias + pair)
                p = tl.exp2(scores - norm[None, :])
                grad_v += tl.dot(p.to(g.dtype), g, input_precision="ieee")
                grad_s = p * (tl.dot(v, tl.trans(g), input_precision="ieee") - product[None, :])
                low = grad_s.to(q.dtype)
                grad_k += tl.dot(low, q, input_precision="ieee")
                grad_q = tl.dot(tl.trans(low), k, input_precision="ieee")
                place = below + column[:, None] * D + channel
                grad_q += tl.load(place, mask=real & (first > 0), other=0.0)
                more = first + KEYS < last_key
                tl.store(place, grad_q, mask=real & more)
                tl.store(target + at, (grad_q * scale).to(q.dtype), mask=real & (first + KEYS >= last_key))
                before = tl.load(sums + pair, mask=seen, other=0.0)
                tl.store(sums + pair, before + grad_s, mask=exists)
            tl.store(target + HEADS * D + offset, (grad_k * scale).to(k.dtype), mask=exists)
            tl.store(target + 2 * HEADS * D + offset, grad_v.to(v.dtype), mask=exists)


@triton.jit(do_not_specialize=["shares"])
def bias_gradient_kernel(
    partial,
    segments,
    grad_bias,
    shares,
    GROUPS: tl.constexpr,
    PITCH: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Adds up the shares; (windows, heads, N, N) by query and key, from segments to the places that they have."""
    program = tl.program_id(0)
    per_matrix: tl.constexpr = (PITCH // ROWS) * (PITCH // COLUMNS)
    row = program % (PITCH // ROWS) * ROWS + tl.arange(0, ROWS)
    column = program // (PITCH // ROWS) % (PITCH // COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    matrix = program // per_matrix
    head, segment = matrix % HEADS, matrix // HEADS
    key, key_place = entries(segments, segment, row, TOKENS, WINDOW)
    query, query_place = entries(segments, segment, column, TOKENS, WINDOW)
    own = partial + matrix.to(tl.int64) * (PITCH * PITCH) + row[:, None] * PITCH + column[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(shares):
        # Without a mask, in vectors: what no program has written is not stored below.
        total += tl.load(own)
        own += (tl.num_programs(0) // per_matrix).to(tl.int64) * (PITCH * PITCH)
    target = grad_bias + (segment // GROUPS * HEADS + head).to(tl.int64) * (TOKENS * TOKENS)
    pair = query_place[None, :] * TOKENS + key_place[:, None]
    tl.store(target + pair, total, mask=(key >= 0)[:, None] & (query >= 0)[None, :])
