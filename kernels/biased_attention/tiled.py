"""The Triton kernels of `headrace.kernels.biased_attention` and `headrace.kernels.segment_attention`.

A tile is a block of queries times a block of keys. The two operators differ in where the tokens of a block lie and
where the bias of a pair does: in the order of memory and in a dense matrix, or as a table of segments says and in a
table of relative positions (WINDOW > 0). Both biases are first laid out alike, by `bias_kernel`. `launches.py`
launches them.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def entries(segments, segment, at, TOKENS: tl.constexpr, WINDOW: tl.constexpr):
    """Of the entries `at` of a segment: the token, -1 for none; its place among the rows of the bias, any for none."""
    if WINDOW > 0:
        entry = segments + segment * (2 * TOKENS) + at
        token = tl.load(entry, mask=at < TOKENS, other=-1)
        place = tl.load(entry + TOKENS, mask=at < TOKENS, other=0)
    else:
        token = tl.where(at < TOKENS, at, -1)
        place = tl.minimum(at, TOKENS - 1)
    return token, place


@triton.jit
def end_of(segments, segment, TOKENS: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr):
    """Where the last block of a segment's entries ends, or the entries do. There are at most 32 blocks."""
    if WINDOW > 0:
        BLOCKS: tl.constexpr = 4 if TOKENS <= 4 * BLOCK else 32
        at = tl.arange(0, BLOCKS) * BLOCK
        first = tl.load(segments + segment * (2 * TOKENS) + at, mask=at < TOKENS, other=-1)
        end = tl.sum((first >= 0).to(tl.int32), 0) * BLOCK
    else:
        end = TOKENS
    return end


@triton.jit
def bias_kernel(
    bias,
    segments,
    tiles,
    PITCH: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The bias as the other kernels read it, vectors at a time: for each segment and head a matrix of PITCH x PITCH in
    units of log2(e), -inf for keys that do not exist. A row per query; TRANSPOSED, a row per key."""
    program = tl.program_id(0)
    row = program % (PITCH // ROWS) * ROWS + tl.arange(0, ROWS)
    column = program // (PITCH // ROWS) % (PITCH // COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)
    matrix = program // ((PITCH // ROWS) * (PITCH // COLUMNS))
    head, segment = matrix % HEADS, matrix // HEADS
    token, place = entries(segments, segment, row, TOKENS, WINDOW)
    other, other_place = entries(segments, segment, column, TOKENS, WINDOW)
    if TRANSPOSED:
        query_place, key, key_place = other_place[None, :], token[:, None], place[:, None]
    else:
        query_place, key, key_place = place[:, None], other[None, :], other_place[None, :]
    if WINDOW > 0:
        SIDE: tl.constexpr = 2 * WINDOW - 1
        # The row of a pair is a difference of two numbers plus that of no offset.
        to = query_place // WINDOW * SIDE + query_place % WINDOW + (WINDOW - 1) * 2 * WINDOW
        start = key_place // WINDOW * SIDE + key_place % WINDOW
        value = tl.load(bias + head * (SIDE * SIDE) + (to - start))
    else:
        value = tl.load(bias + head * (TOKENS * TOKENS) + (query_place * TOKENS + key_place))
    value = tl.where(key >= 0, value.to(tl.float32) * LOG2E, float("-inf"))
    own = tiles + matrix.to(tl.int64) * (PITCH * PITCH)
    tl.store(own + row[:, None] * PITCH + column[None, :], value)


@triton.jit
def bias_tile(tiles, segment, head, row, column, HEADS: tl.constexpr, PITCH: tl.constexpr):
    own = tiles + tl.cast(segment * HEADS + head, tl.int64) * (PITCH * PITCH)
    return tl.load(own + row[:, None] * PITCH + column[None, :])


@triton.jit
def attention_program(batch, segments_count, BLOCKS: tl.constexpr, HEADS: tl.constexpr, WINDOW: tl.constexpr):
    """Head, block, segment and image of a program; all on the first axis of the grid, the others end at 65535."""
    program = tl.program_id(0)
    if WINDOW > 0:
        # Heads first: they are neighbours in memory, and a table of relative positions is small.
        head = program % HEADS
        block = program // HEADS % BLOCKS
        segment = program // (HEADS * BLOCKS) % segments_count
        image = program // (HEADS * BLOCKS) // segments_count
    else:
        # Images first: neighbours share rows of the bias, which is larger than what they read of qkv.
        image = program % batch
        segment = 0
        block = program // batch % BLOCKS
        head = program // batch // BLOCKS
    return head, block, segment, image.to(tl.int64)  # 64 bit: a large batch has more values than an int32 can count


@triton.jit(do_not_specialize=["batch"])
def forward_kernel(
    qkv,
    tiles,
    segments,
    out,
    logsum,
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
    BLOCKS: tl.constexpr = (TOKENS + QUERIES - 1) // QUERIES
    head, block, segment, image = attention_program(batch, segments_count, BLOCKS, HEADS, WINDOW)
    if entries(segments, segment, block * QUERIES, TOKENS, WINDOW)[0] >= 0:
        end = end_of(segments, segment, TOKENS, WINDOW, KEYS)
        channel = tl.arange(0, D)[None, :]
        source = qkv + image * (MAP * 3 * HEADS * D) + head * D
        row = block * QUERIES + tl.arange(0, QUERIES)
        query = entries(segments, segment, row, TOKENS, WINDOW)[0]
        real = (query >= 0)[:, None]
        q = tl.load(source + query[:, None] * (3 * HEADS * D) + channel, mask=real, other=0.0)
        # Not -inf, from which the first tile of a row that a bias of -inf hides would make NaN.
        top = tl.full((QUERIES,), -1e30, tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        result = tl.zeros((QUERIES, D), tl.float32)
        for start in range(0, end, KEYS):
            key = entries(segments, segment, start + tl.arange(0, KEYS), TOKENS, WINDOW)[0]
            offset = key[:, None] * (3 * HEADS * D) + channel
            k = tl.load(source + HEADS * D + offset, mask=(key >= 0)[:, None], other=0.0)
            v = tl.load(source + 2 * HEADS * D + offset, mask=(key >= 0)[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E) + bias_tile(
                tiles, segment, head, row, start + tl.arange(0, KEYS), HEADS, PITCH
            )
            higher = tl.maximum(top, tl.max(scores, 1))
            shrink = tl.exp2(top - higher)
            p = tl.exp2(scores - higher[:, None])
            total = total * shrink + tl.sum(p, 1)
            result = result * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            top = higher
        target = out + image * (MAP * HEADS * D) + head * D
        tl.store(
            target + query[:, None] * (HEADS * D) + channel, (result * (1 / total)[:, None]).to(q.dtype), mask=real
        )
        tl.store(logsum + (image * HEADS + head) * MAP + query, top + tl.log2(total), mask=query >= 0)
