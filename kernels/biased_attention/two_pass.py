"""The backward of `tiled.py`'s attention in two passes, for rows of more than 256 tokens: one pass makes the gradients
of queries and bias, one that of keys and values."""

from __future__ import annotations

import triton
import triton.language as tl

from .tiled import LOG2E, attention_program, bias_tile, end_of, entries


@triton.jit(do_not_specialize=["batch", "shares"])
def queries_kernel(
    qkv,
    tiles,
    segments,
    out,
    logsum,
    grad,
    grad_qkv,
    delta,
    partial,
    batch,
    shares,
    segments_count,
    scale,
    MAP: tl.constexpr,
    TOKENS: tl.constexpr,
    GROUPS: tl.constexpr,
    WINDOW: tl.constexpr,
    PITCH: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Gradients of queries and bias; per token and head also the product of output and gradient, for the other pass."""
    BLOCKS: tl.constexpr = (TOKENS + QUERIES - 1) // QUERIES
    COLUMNS: tl.constexpr = (TOKENS + KEYS - 1) // KEYS
    program = tl.program_id(0)
    head = program % HEADS
    block = program // HEADS % BLOCKS
    column = program // (HEADS * BLOCKS) % COLUMNS
    segment = program // (HEADS * BLOCKS * COLUMNS) % segments_count
    share = program // (HEADS * BLOCKS * COLUMNS) // segments_count
    last_key = end_of(segments, segment, TOKENS, WINDOW, KEYS)
    first = column * KEYS
    some = entries(segments, segment, block * QUERIES, TOKENS, WINDOW)[0] >= 0
    if some & (first < last_key):
        end = tl.where(column == 0, last_key, tl.minimum(first + KEYS, last_key))
        channel = tl.arange(0, D)[None, :]
        at = block * QUERIES + tl.arange(0, QUERIES)
        query, query_place = entries(segments, segment, at, TOKENS, WINDOW)
        real = (query >= 0)[:, None]
        grad_bias = tl.zeros((QUERIES, KEYS), tl.float32)
        for index in range(share, batch, shares):
            # A sum because the interpreter counts in Python's integers, which cannot be cast.
            image = tl.zeros((), tl.int64) + index
            source = qkv + image * (MAP * 3 * HEADS * D) + head * D
            row = image * (MAP * HEADS * D) + head * D + query[:, None] * (HEADS * D) + channel
            number = (image * HEADS + head) * MAP + query
            q = tl.load(source + query[:, None] * (3 * HEADS * D) + channel, mask=real, other=0.0)
            g = tl.load(grad + row, mask=real, other=0.0)
            o = tl.load(out + row, mask=real, other=0.0)
            # Rows of padding get probabilities of 0, not of a number that may overflow.
            norm = tl.load(logsum + number, mask=query >= 0, other=float("inf"))
            product = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
            grad_q = tl.zeros((QUERIES, D), tl.float32)
            for start in range(first, end, KEYS):
                key = entries(segments, segment, start + tl.arange(0, KEYS), TOKENS, WINDOW)[0]
                offset = key[:, None] * (3 * HEADS * D) + channel
                k = tl.load(source + HEADS * D + offset, mask=(key >= 0)[:, None], other=0.0)
                v = tl.load(source + 2 * HEADS * D + offset, mask=(key >= 0)[:, None], other=0.0)
                scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E) + bias_tile(
                    tiles, segment, head, at, start + tl.arange(0, KEYS), HEADS, PITCH
                )
                p = tl.exp2(scores - norm[:, None])
                grad_s = p * (tl.dot(g, tl.trans(v), input_precision="ieee") - product[:, None])
                grad_bias += tl.where(start == first, grad_s, 0.0)
                grad_q += tl.dot(grad_s.to(k.dtype), k, input_precision="ieee")
            # In the first column alone: no token is MAP or more. Under an `if` Triton 3.6 fails to compile for sm_100.
            owned = query >= column * MAP
            target = grad_qkv + image * (MAP * 3 * HEADS * D) + head * D + query[:, None] * (3 * HEADS * D) + channel
            tl.store(target, (grad_q * scale).to(q.dtype), mask=owned[:, None])
            tl.store(delta + number, product, mask=owned)
        key, key_place = entries(segments, segment, first + tl.arange(0, KEYS), TOKENS, WINDOW)
        slab = (share * (segments_count // GROUPS) + segment // GROUPS) * HEADS + head
        own = partial + slab.to(tl.int64) * (TOKENS * TOKENS)
        pair = query_place[:, None] * TOKENS + key_place[None, :]
        tl.store(own + pair, grad_bias, mask=real & (key >= 0)[None, :])


@triton.jit(do_not_specialize=["batch"])
def keys_kernel(
    qkv,
    tiles,
    segments,
    logsum,
    delta,
    grad,
    grad_qkv,
    batch,
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
    """Gradients of keys and values. Its tiles have a row per key: no probabilities are transposed."""
    BLOCKS: tl.constexpr = (TOKENS + KEYS - 1) // KEYS
    head, block, segment, image = attention_program(batch, segments_count, BLOCKS, HEADS, WINDOW)
    if entries(segments, segment, block * KEYS, TOKENS, WINDOW)[0] >= 0:
        end = end_of(segments, segment, TOKENS, WINDOW, QUERIES)
        channel = tl.arange(0, D)[None, :]
        source = qkv + image * (MAP * 3 * HEADS * D) + head * D
        above = grad + image * (MAP * HEADS * D) + head * D
        row = block * KEYS + tl.arange(0, KEYS)
        key = entries(segments, segment, row, TOKENS, WINDOW)[0]
        real = (key >= 0)[:, None]
        offset = key[:, None] * (3 * HEADS * D) + channel
        k = tl.load(source + HEADS * D + offset, mask=real, other=0.0)
        v = tl.load(source + 2 * HEADS * D + offset, mask=real, other=0.0)
        grad_k = tl.zeros((KEYS, D), tl.float32)
        grad_v = tl.zeros((KEYS, D), tl.float32)
        for start in range(0, end, QUERIES):
            query = entries(segments, segment, start + tl.arange(0, QUERIES), TOKENS, WINDOW)[0]
            exists = (query >= 0)[:, None]
            q = tl.load(source + query[:, None] * (3 * HEADS * D) + channel, mask=exists, other=0.0)
            g = tl.load(above + query[:, None] * (HEADS * D) + channel, mask=exists, other=0.0)
            number = (image * HEADS + head) * MAP + query
            norm = tl.load(logsum + number, mask=query >= 0, other=float("inf"))
            product = tl.load(delta + number, mask=query >= 0, other=0.0)
            scores = tl.dot(k, tl.trans(q), input_precision="ieee") * (scale * LOG2E) + bias_tile(
                tiles, segment, head, row, start + tl.arange(0, QUERIES), HEADS, PITCH
            )
            p = tl.exp2(scores - norm[None, :])
            grad_v += tl.dot(p.to(g.dtype), g, input_precision="ieee")
            grad_s = p * (tl.dot(v, tl.trans(g), input_precision="ieee") - product[None, :])
            grad_k += tl.dot(grad_s.to(q.dtype), q, input_precision="ieee")
        target = grad_qkv + image * (MAP * 3 * HEADS * D) + head * D + offset
        tl.store(target + HEADS * D, (grad_k * scale).to(k.dtype), mask=real)
        tl.store(target + 2 * HEADS * D, grad_v.to(v.dtype), mask=real)
