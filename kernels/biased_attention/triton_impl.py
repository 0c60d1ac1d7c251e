"""Biased attention in Triton, in tiles; these kernels also do `headrace.kernels.segment_attention`.

A tile is a block of queries times a block of keys. The two operators differ in where the tokens of a block lie and
where the bias of a pair does: in the order of memory and in a dense matrix, or as a table of segments says and in a
table of relative positions (WINDOW > 0).

Three passes. The forward goes over the keys of a block of queries with a running softmax. In the backward one pass
makes the gradients of queries and bias, one that of keys and values. A program of the first takes a share of the images
and adds up the gradient of one tile of the bias over them in registers, so that it is stored once per share; shares are
then added in a fixed order. The program of a row's first tile goes over all keys and completes the row's gradient; the
others do their own tile alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import UserError
from ..aot import GATE, Build
from ..tiles import tile

LOG2E = tl.constexpr(1.4426950408889634)
PROGRAMS = 2  # a multiprocessor, of the backward's first pass


def _tiles(queries: int, keys: int, warps: int, stages: int = 1) -> dict[str, int]:
    return {"QUERIES": queries, "KEYS": keys, "num_warps": warps, "num_stages": stages}


# Chosen for the absence of spilled registers; what is left of them is in resources.json. Tiles of 128 keys spill on
# every GPU but sm_100; in 32 bit, tiles of 64x64 need up to 11 KiB of stack.
DEFAULTS = {
    "forward 16bit": _tiles(64, 64, 4),
    "queries 16bit": _tiles(64, 64, 8),
    "keys 16bit": _tiles(64, 64, 4),
    "forward 32bit": _tiles(32, 32, 4),
    "queries 32bit": _tiles(32, 32, 4),
    "keys 32bit": _tiles(32, 32, 4),
}
_NVIDIA = {
    "forward 16bit d32": _tiles(64, 64, 4, 2),
    "forward 16bit d64": _tiles(64, 64, 4, 2),
    "queries 32bit d64": _tiles(32, 64, 8),
}
_SM_80 = {
    "queries 16bit d32": _tiles(64, 32, 4),
    "queries 16bit d64": _tiles(32, 64, 4),
    "keys 16bit d64": _tiles(32, 64, 4),
}
TILES = {"sm_80": {**_NVIDIA, **_SM_80}, "sm_90": _NVIDIA, "sm_100": _NVIDIA}
CANDIDATES = {
    kernel: [
        _tiles(queries, keys, warps, stages)
        for queries, keys in ((32, 64), (64, 32), (64, 64), (64, 128), (128, 64))
        for warps in (4, 8)
        for stages in (1, 2)
    ]
    for kernel in ("forward", "queries", "keys")
}


@triton.jit
def _entries(segments, segment, at, TOKENS: tl.constexpr, WINDOW: tl.constexpr):
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
def _length(segments, segment, TOKENS: tl.constexpr, SPAN: tl.constexpr, WINDOW: tl.constexpr):
    """How many tokens a segment has."""
    if WINDOW > 0:
        at = tl.arange(0, SPAN)
        token = tl.load(segments + segment * (2 * TOKENS) + at, mask=at < TOKENS, other=-1)
        length = tl.sum((token >= 0).to(tl.int32), 0)
    else:
        length = TOKENS
    return length


@triton.jit
def _bias_tile(bias, head, query_place, key, key_place, TOKENS: tl.constexpr, WINDOW: tl.constexpr):
    """The bias of queries and keys that broadcast to a tile, in units of log2(e); -inf for keys that do not exist."""
    if WINDOW > 0:
        SIDE: tl.constexpr = 2 * WINDOW - 1
        # The row of a pair is a difference of two numbers plus that of no offset.
        to = query_place // WINDOW * SIDE + query_place % WINDOW + (WINDOW - 1) * 2 * WINDOW
        start = key_place // WINDOW * SIDE + key_place % WINDOW
        value = tl.load(bias + head * (SIDE * SIDE) + (to - start))
    else:
        value = tl.load(bias + head * (TOKENS * TOKENS) + (query_place * TOKENS + key_place))
    return tl.where(key >= 0, value.to(tl.float32) * LOG2E, float("-inf"))


@triton.jit
def _program(batch, segments_count, BLOCKS: tl.constexpr, HEADS: tl.constexpr, WINDOW: tl.constexpr):
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
def _forward_kernel(
    qkv,
    bias,
    segments,
    out,
    logsum,
    batch,
    segments_count,
    scale,
    MAP: tl.constexpr,
    TOKENS: tl.constexpr,
    SPAN: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    BLOCKS: tl.constexpr = (TOKENS + QUERIES - 1) // QUERIES
    head, block, segment, image = _program(batch, segments_count, BLOCKS, HEADS, WINDOW)
    length = _length(segments, segment, TOKENS, SPAN, WINDOW)
    if block * QUERIES < length:
        channel = tl.arange(0, D)[None, :]
        source = qkv + image * (MAP * 3 * HEADS * D) + head * D
        query, query_place = _entries(segments, segment, block * QUERIES + tl.arange(0, QUERIES), TOKENS, WINDOW)
        real = (query >= 0)[:, None]
        q = tl.load(source + query[:, None] * (3 * HEADS * D) + channel, mask=real, other=0.0)
        # Not -inf, from which the first tile of a row that a bias of -inf hides would make NaN.
        top = tl.full((QUERIES,), -1e30, tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        result = tl.zeros((QUERIES, D), tl.float32)
        for start in range(0, length, KEYS):
            key, key_place = _entries(segments, segment, start + tl.arange(0, KEYS), TOKENS, WINDOW)
            offset = key[:, None] * (3 * HEADS * D) + channel
            k = tl.load(source + HEADS * D + offset, mask=(key >= 0)[:, None], other=0.0)
            v = tl.load(source + 2 * HEADS * D + offset, mask=(key >= 0)[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E) + _bias_tile(
                bias, head, query_place[:, None], key[None, :], key_place[None, :], TOKENS, WINDOW
            )
            higher = tl.maximum(top, tl.max(scores, 1))
            shrink = tl.exp2(top - higher)
            p = tl.exp2(scores - higher[:, None])
            total = total * shrink + tl.sum(p, 1)
            result = result * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
            top = higher
        target = out + image * (MAP * HEADS * D) + head * D
        tl.store(target + query[:, None] * (HEADS * D) + channel, (result / total[:, None]).to(q.dtype), mask=real)
        tl.store(logsum + (image * HEADS + head) * MAP + query, top + tl.log2(total), mask=query >= 0)


@triton.jit(do_not_specialize=["batch", "shares"])
def _queries_kernel(
    qkv,
    bias,
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
    SPAN: tl.constexpr,
    GROUPS: tl.constexpr,
    WINDOW: tl.constexpr,
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
    length = _length(segments, segment, TOKENS, SPAN, WINDOW)
    first = column * KEYS
    if (block * QUERIES < length) & (first < length):
        end = tl.where(column == 0, length, tl.minimum(first + KEYS, length))
        channel = tl.arange(0, D)[None, :]
        query, query_place = _entries(segments, segment, block * QUERIES + tl.arange(0, QUERIES), TOKENS, WINDOW)
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
                key, key_place = _entries(segments, segment, start + tl.arange(0, KEYS), TOKENS, WINDOW)
                offset = key[:, None] * (3 * HEADS * D) + channel
                k = tl.load(source + HEADS * D + offset, mask=(key >= 0)[:, None], other=0.0)
                v = tl.load(source + 2 * HEADS * D + offset, mask=(key >= 0)[:, None], other=0.0)
                scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2E) + _bias_tile(
                    bias, head, query_place[:, None], key[None, :], key_place[None, :], TOKENS, WINDOW
                )
                p = tl.exp2(scores - norm[:, None])
                grad_s = p * (tl.dot(g, tl.trans(v), input_precision="ieee") - product[:, None])
                grad_bias += tl.where(start == first, grad_s, 0.0)
                grad_q += tl.dot(grad_s.to(k.dtype), k, input_precision="ieee")
            if column == 0:
                target = grad_qkv + image * (MAP * 3 * HEADS * D) + head * D
                tl.store(target + query[:, None] * (3 * HEADS * D) + channel, (grad_q * scale).to(q.dtype), mask=real)
                tl.store(delta + number, product, mask=query >= 0)
        key, key_place = _entries(segments, segment, first + tl.arange(0, KEYS), TOKENS, WINDOW)
        slab = (share * (segments_count // GROUPS) + segment // GROUPS) * HEADS + head
        own = partial + slab.to(tl.int64) * (TOKENS * TOKENS)
        pair = query_place[:, None] * TOKENS + key_place[None, :]
        tl.store(own + pair, grad_bias, mask=real & (key >= 0)[None, :])


@triton.jit(do_not_specialize=["batch"])
def _keys_kernel(
    qkv,
    bias,
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
    SPAN: tl.constexpr,
    WINDOW: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Gradients of keys and values. Its tiles have a row per key: no probabilities are transposed."""
    BLOCKS: tl.constexpr = (TOKENS + KEYS - 1) // KEYS
    head, block, segment, image = _program(batch, segments_count, BLOCKS, HEADS, WINDOW)
    length = _length(segments, segment, TOKENS, SPAN, WINDOW)
    if block * KEYS < length:
        channel = tl.arange(0, D)[None, :]
        source = qkv + image * (MAP * 3 * HEADS * D) + head * D
        above = grad + image * (MAP * HEADS * D) + head * D
        key, key_place = _entries(segments, segment, block * KEYS + tl.arange(0, KEYS), TOKENS, WINDOW)
        real = (key >= 0)[:, None]
        offset = key[:, None] * (3 * HEADS * D) + channel
        k = tl.load(source + HEADS * D + offset, mask=real, other=0.0)
        v = tl.load(source + 2 * HEADS * D + offset, mask=real, other=0.0)
        grad_k = tl.zeros((KEYS, D), tl.float32)
        grad_v = tl.zeros((KEYS, D), tl.float32)
        for start in range(0, length, QUERIES):
            query, query_place = _entries(segments, segment, start + tl.arange(0, QUERIES), TOKENS, WINDOW)
            exists = (query >= 0)[:, None]
            q = tl.load(source + query[:, None] * (3 * HEADS * D) + channel, mask=exists, other=0.0)
            g = tl.load(above + query[:, None] * (HEADS * D) + channel, mask=exists, other=0.0)
            number = (image * HEADS + head) * MAP + query
            norm = tl.load(logsum + number, mask=query >= 0, other=float("inf"))
            product = tl.load(delta + number, mask=query >= 0, other=0.0)
            scores = tl.dot(k, tl.trans(q), input_precision="ieee") * (scale * LOG2E) + _bias_tile(
                bias, head, query_place[None, :], key[:, None], key_place[:, None], TOKENS, WINDOW
            )
            p = tl.exp2(scores - norm[None, :])
            grad_v += tl.dot(p.to(g.dtype), g, input_precision="ieee")
            grad_s = p * (tl.dot(v, tl.trans(g), input_precision="ieee") - product[None, :])
            grad_k += tl.dot(grad_s.to(q.dtype), q, input_precision="ieee")
        target = grad_qkv + image * (MAP * 3 * HEADS * D) + head * D + offset
        tl.store(target + HEADS * D, (grad_k * scale).to(k.dtype), mask=real)
        tl.store(target + 2 * HEADS * D, grad_v.to(v.dtype), mask=real)


def _tile(op: str, kernel: str, qkv: Tensor) -> dict[str, int]:
    precision = f"{kernel} {8 * qkv.itemsize}bit"
    return tile(op, f"{precision} d{qkv.shape[4]}", DEFAULTS[precision])


def run_forward(
    op: str, qkv: Tensor, bias: Tensor, scale: float, segments: Tensor | None = None, window: int = 0
) -> tuple[Tensor, Tensor]:
    """qkv (B, L, 3, heads, D) -> output (B, L, heads, D), logarithm to base 2 of the softmax's sums (B, heads, L).

    `bias` is (heads, L, L), or with segments (windows, G, 2, N) that by relative position (heads, (2w-1)^2).
    """
    batch, length, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(batch, length, heads, head_dim)
    logsum = torch.empty(batch, heads, length, dtype=torch.float32, device=qkv.device)
    count, tokens = (1, length) if segments is None else (segments.shape[0] * segments.shape[1], segments.shape[3])
    if out.numel():
        options = _tile(op, "forward", qkv)
        grid = (batch * count * triton.cdiv(tokens, options["QUERIES"]) * heads,)
        with torch.cuda.device_of(qkv):
            _forward_kernel[grid](
                qkv,
                bias,
                qkv if segments is None else segments,
                out,
                logsum,
                batch,
                count,
                scale,
                **shape_constants(length, tokens, window, heads, head_dim),
                **options,
                enable_fp_fusion=True,
            )
    return out, logsum


def run_backward(
    op: str,
    grad: Tensor,
    qkv: Tensor,
    bias: Tensor,
    out: Tensor,
    logsum: Tensor,
    scale: float,
    segments: Tensor | None = None,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """-> the gradient of qkv; that of the bias of each pair of places, (heads, N, N) float32."""
    batch, length, _, heads, head_dim = qkv.shape
    windows, groups, _, tokens = (1, 1, 0, length) if segments is None else segments.shape
    grad_qkv = torch.empty_like(qkv)
    if not qkv.numel():
        return grad_qkv, torch.zeros(heads, tokens, tokens, dtype=torch.float32, device=qkv.device)
    delta = torch.empty_like(logsum)
    options = _tile(op, "queries", qkv)
    constants = shape_constants(length, tokens, window, heads, head_dim)
    blocks, columns = triton.cdiv(tokens, options["QUERIES"]), triton.cdiv(tokens, options["KEYS"])
    # Segments fill about as many blocks as the tokens they share; the programs of other blocks end at once. The
    # interpreter gets few programs, that each of them has several images.
    programs = PROGRAMS * torch.cuda.get_device_properties(qkv.device).multi_processor_count if qkv.is_cuda else 2
    shares = min(batch, max(1, programs // (windows * blocks * heads)))
    # Pairs of different segments are nobody's to write.
    allocate = torch.empty if segments is None else torch.zeros
    partial = allocate(shares, windows, heads, tokens, tokens, dtype=torch.float32, device=qkv.device)
    first = (qkv, bias, qkv if segments is None else segments)
    with torch.cuda.device_of(qkv):
        _queries_kernel[(shares * windows * groups * columns * blocks * heads,)](
            *first,
            out,
            logsum,
            grad,
            grad_qkv,
            delta,
            partial,
            batch,
            shares,
            windows * groups,
            scale,
            GROUPS=groups,
            **constants,
            **options,
            enable_fp_fusion=True,
        )
        options = _tile(op, "keys", qkv)
        _keys_kernel[(batch * windows * groups * triton.cdiv(tokens, options["KEYS"]) * heads,)](
            *first,
            logsum,
            delta,
            grad,
            grad_qkv,
            batch,
            windows * groups,
            scale,
            **constants,
            **options,
            enable_fp_fusion=True,
        )
    return grad_qkv, partial.sum((0, 1))


def shape_constants(length: int, tokens: int, window: int, heads: int, head_dim: int) -> dict[str, int]:
    span = triton.next_power_of_2(tokens)
    return {"MAP": length, "TOKENS": tokens, "SPAN": span, "WINDOW": window, "HEADS": heads, "D": head_dim}


# Custom operators and no autograd.Function: torch.compile and the checks of torch.library then work without a GPU too.
@torch.library.custom_op("headrace::biased_attention", mutates_args=())
def forward(qkv: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """-> (B, N, heads, D); logarithm of the softmax's sums (B, heads, N)."""
    return run_forward("biased_attention", qkv, bias, scale)


@forward.register_fake
def _(qkv, bias, scale):
    batch, tokens, _, heads, head_dim = qkv.shape
    return qkv.new_empty(batch, tokens, heads, head_dim), qkv.new_empty(batch, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("headrace::biased_attention_backward", mutates_args=())
def backward(
    grad: Tensor, qkv: Tensor, bias: Tensor, out: Tensor, logsum: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """-> gradients of qkv and bias; `grad` is contiguous."""
    grad_qkv, grad_bias = run_backward("biased_attention", grad, qkv, bias, out, logsum, scale)
    return grad_qkv, grad_bias.to(bias.dtype)


@backward.register_fake
def _(grad, qkv, bias, out, logsum, scale):
    return torch.empty_like(qkv), torch.empty_like(bias)


def _save(ctx, inputs, output):
    qkv, bias, ctx.scale = inputs
    ctx.save_for_backward(qkv, bias, *output)
    ctx.set_materialize_grads(False)  # the sums get none


def _differentiate(ctx, grad, grad_logsum):
    # A linear layer hands back a contiguous gradient; only one that was expanded, as that of a sum is, gets copied.
    return *backward(grad.contiguous(), *ctx.saved_tensors, ctx.scale), None


forward.register_autograd(_differentiate, setup_context=_save)


def biased_attention(qkv: Tensor, bias: Tensor, *, scale: float | None = None) -> Tensor:
    """Arguments and result of `headrace.kernels.biased_attention.biased_attention`, without float64."""
    if not (qkv.is_contiguous() and bias.is_contiguous()):
        raise UserError(
            "biased_attention: qkv or bias is strided and the triton implementation reads contiguous memory; a bias "
            "gathered from a table needs .contiguous() once"
        )
    return forward(qkv, bias, qkv.shape[4] ** -0.5 if scale is None else scale)[0]


def tiled_builds(name: str, dtype: str, constants: dict[str, Any], groups: int) -> Iterator[Build]:
    """The builds of the three kernels for one shape."""
    data = f"*{dtype}"
    first = {"qkv": data, "bias": "*fp32", "segments": "*i32" if constants["WINDOW"] else data}
    own = {
        "forward": {"out": data, "logsum": "*fp32"},
        "queries": {
            "out": data,
            "logsum": "*fp32",
            "grad": data,
            "grad_qkv": data,
            "delta": "*fp32",
            "partial": "*fp32",
        },
        "keys": {"logsum": "*fp32", "delta": "*fp32", "grad": data, "grad_qkv": data},
    }
    kernels = {"forward": _forward_kernel, "queries": _queries_kernel, "keys": _keys_kernel}
    for arch in GATE:
        for kernel, function in kernels.items():
            precision = f"{kernel} {32 if dtype == 'fp32' else 16}bit"
            options = TILES.get(arch, {}).get(f"{precision} d{constants['D']}", DEFAULTS[precision])
            fixed = {"GROUPS": groups} if kernel == "queries" else {}
            if not constants["WINDOW"]:
                fixed["segments_count"] = 1
            yield Build(
                name=f"{kernel} {name} {dtype}",
                kernel=function,
                types={**first, **own[kernel], "scale": "fp32"},
                constants={**constants, **fixed, "QUERIES": options["QUERIES"], "KEYS": options["KEYS"]},
                aligned=(*first, *own[kernel]),
                warps=options["num_warps"],
                stages=options["num_stages"],
                targets=(arch,),
            )


def builds() -> Iterator[Build]:
    """What the ahead-of-time gate compiles: BEiT's and HiViT's blocks at 224 pixels."""
    for name, tokens, dtype, head_dim in (
        ("n197 d64", 197, "bf16", 64),
        ("n196 d32", 196, "fp16", 32),
        ("n197 d64", 197, "fp32", 64),
    ):
        yield from tiled_builds(name, dtype, shape_constants(tokens, tokens, 0, 12, head_dim), groups=1)
