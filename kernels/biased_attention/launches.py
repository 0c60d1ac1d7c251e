"""Launches the kernels of `tiled.py`, `one_pass.py` and `two_pass.py`, for `headrace.kernels.biased_attention` and
`headrace.kernels.segment_attention`; and their tiles."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..tiles import processors, tile
from .one_pass import backward_kernel, bias_gradient_kernel
from .tiled import bias_kernel, forward_kernel
from .two_pass import keys_kernel, queries_kernel

# Tokens from which on the backward takes two passes. One pass keeps a gradient of the bias of its own in each program,
# N^2 values, of which the second cache of an H200 holds all programs' for 200 tokens and few for 512.
ONE_PASS = 256
PROGRAMS = 2  # a multiprocessor, where programs share out the images
EXPANDED = {"ROWS": 32, "COLUMNS": 64}  # of the dense bias and its gradient, what a program takes


def _tiles(queries: int, keys: int, warps: int, stages: int = 1) -> dict[str, int]:
    return {"QUERIES": queries, "KEYS": keys, "num_warps": warps, "num_stages": stages}


# Chosen for the absence of spilled registers; what is left of them is in resources.json. In 32 bit, tiles of 64x64 need
# up to 11 KiB of stack.
DEFAULTS = {
    "forward 16bit": _tiles(64, 64, 4),
    "backward 16bit": _tiles(32, 64, 8),
    "queries 16bit": _tiles(64, 64, 8),
    "keys 16bit": _tiles(64, 64, 4),
    "forward 32bit": _tiles(32, 32, 4),
    "backward 32bit": _tiles(32, 32, 4),
    "queries 32bit": _tiles(32, 32, 4),
    "keys 32bit": _tiles(32, 32, 4),
}
_NVIDIA = {
    "forward 16bit d32": _tiles(128, 32, 4, 2),
    "forward 16bit d64": _tiles(128, 64, 8, 2),
    "backward 16bit d32": _tiles(64, 128, 8),
    "backward 16bit d64": _tiles(32, 128, 8),
    "backward 32bit d64": _tiles(16, 32, 4),
    "queries 32bit d64": _tiles(32, 64, 8),
}
_SM_80 = {
    "backward 16bit d32": _tiles(32, 64, 4),
    "backward 16bit d64": _tiles(32, 32, 4),
    "queries 16bit d32": _tiles(64, 32, 4),
    "queries 16bit d64": _tiles(32, 64, 4),
    "keys 16bit d64": _tiles(32, 64, 4),
}
TILES = {"sm_80": {**_NVIDIA, **_SM_80}, "sm_90": _NVIDIA, "sm_100": _NVIDIA}
CANDIDATES = {
    kernel: [
        _tiles(queries, keys, warps, stages)
        for queries, keys in ((32, 64), (32, 128), (64, 32), (64, 64), (64, 128), (128, 32), (128, 64))
        for warps in (4, 8)
        for stages in (1, 2)
    ]
    for kernel in ("forward", "backward", "queries", "keys")
}


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
        shape = shape_constants(length, tokens, window, heads, head_dim, options)
        grid = (batch * count * triton.cdiv(tokens, options["QUERIES"]) * heads,)
        with torch.cuda.device_of(qkv):
            forward_kernel[grid](
                qkv,
                _dense(bias, segments, count, shape),
                qkv if segments is None else segments,
                out,
                logsum,
                batch,
                count,
                scale,
                **shape,
                **options,
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
    listed = qkv if segments is None else segments
    with torch.cuda.device_of(qkv):
        if tokens <= ONE_PASS:
            options = _tile(op, "backward", qkv)
            shape = shape_constants(length, tokens, window, heads, head_dim, options)
            tiles = _dense(bias, segments, windows * groups, shape, transposed=True)
            given = (qkv, tiles, listed, out, logsum, grad, grad_qkv)
            parts = _one_pass(given, scale, windows, groups, shape, options)
        else:
            options, others = _tile(op, "queries", qkv), _tile(op, "keys", qkv)
            shape = shape_constants(length, tokens, window, heads, head_dim, options, others)
            dense = [_dense(bias, segments, windows * groups, shape, transposed=turned) for turned in (False, True)]
            parts = _two_passes(dense, listed, out, logsum, grad, qkv, grad_qkv, scale, windows, groups, shape,
                                options, others)  # fmt: skip
    return grad_qkv, parts.sum(0)


def _shares(qkv: Tensor, programs: int) -> int:
    """Among how many programs images are shared out, each of which takes one of `programs` parts of every image. The
    interpreter gets few, that each of them has several images."""
    return min(qkv.shape[0], max(1, PROGRAMS * processors(qkv.device, 1) // programs))


def _one_pass(
    given: tuple[Tensor, ...], scale: float, windows: int, groups: int, shape: dict[str, int], options: dict[str, int]
) -> Tensor:
    """-> the gradient of the bias of each window, (windows, heads, N, N)."""
    qkv, _, listed, *_ = given
    heads, pitch, tokens = shape["HEADS"], shape["PITCH"], shape["TOKENS"]
    count = windows * groups
    shares = _shares(qkv, count * heads)
    new = {"dtype": torch.float32, "device": qkv.device}
    unfinished = torch.empty(shares * count * heads, pitch, shape["D"], **new)
    partial = torch.empty(shares, count, heads, pitch, pitch, **new)
    backward_kernel[(shares * count * heads,)](
        *given, unfinished, partial, qkv.shape[0], shares, count, scale, **shape, **options
    )
    # Pairs of different segments are nobody's to write.
    grad_bias = (torch.empty if groups == 1 else torch.zeros)(windows, heads, tokens, tokens, **new)
    constants = {name: shape[name] for name in ("PITCH", "TOKENS", "WINDOW", "HEADS")}
    bias_gradient_kernel[(_blocks(count, shape),)](
        partial, listed, grad_bias, shares, GROUPS=groups, **constants, **EXPANDED
    )
    return grad_bias


def _two_passes(
    dense: list[Tensor],
    listed: Tensor,
    out: Tensor,
    logsum: Tensor,
    grad: Tensor,
    qkv: Tensor,
    grad_qkv: Tensor,
    scale: float,
    windows: int,
    groups: int,
    shape: dict[str, int],
    options: dict[str, int],
    others: dict[str, int],
) -> Tensor:
    """-> shares of the gradient of the bias of each window, (shares * windows, heads, N, N)."""
    batch, count, heads, tokens = len(qkv), windows * groups, shape["HEADS"], shape["TOKENS"]
    blocks, columns = triton.cdiv(tokens, options["QUERIES"]), triton.cdiv(tokens, options["KEYS"])
    # Segments fill about as many blocks as the tokens they share; the programs of other blocks end at once.
    shares = _shares(qkv, windows * blocks * heads)
    # Pairs of different segments are nobody's to write.
    allocate = torch.empty if groups == 1 else torch.zeros
    partial = allocate(shares, windows, heads, tokens, tokens, dtype=torch.float32, device=qkv.device)
    delta = torch.empty_like(logsum)
    by_query, by_key = dense
    queries_kernel[(shares * count * columns * blocks * heads,)](
        *(qkv, by_query, listed, out, logsum, grad, grad_qkv, delta, partial, batch, shares, count, scale),
        GROUPS=groups,
        **shape,
        **options,
    )
    keys_kernel[(batch * count * triton.cdiv(tokens, others["KEYS"]) * heads,)](
        *(qkv, by_key, listed, logsum, delta, grad, grad_qkv, batch, count, scale),
        **shape,
        **others,
    )
    return partial.flatten(0, 1)


def _dense(
    bias: Tensor, segments: Tensor | None, count: int, shape: dict[str, int], *, transposed: bool = False
) -> Tensor:
    """(segments, heads, PITCH, PITCH) float32: what `bias_kernel` says. Once per call, so that no tile gathers."""
    pitch, heads = shape["PITCH"], shape["HEADS"]
    tiles = torch.empty(count, heads, pitch, pitch, dtype=torch.float32, device=bias.device)
    constants = {name: shape[name] for name in ("PITCH", "TOKENS", "WINDOW", "HEADS")}
    bias_kernel[(_blocks(count, shape),)](
        bias,
        bias if segments is None else segments,
        tiles,
        **constants,
        **EXPANDED,
        TRANSPOSED=transposed,
    )
    return tiles


def _blocks(count: int, shape: dict[str, int]) -> int:
    """Programs for the bias of so many segments."""
    return count * shape["HEADS"] * (shape["PITCH"] // EXPANDED["ROWS"]) * (shape["PITCH"] // EXPANDED["COLUMNS"])


def shape_constants(
    length: int, tokens: int, window: int, heads: int, head_dim: int, *tiles: dict[str, int]
) -> dict[str, int]:
    """`tiles` are those of all kernels that read one layout of the bias."""
    step = max([64, *(tile[side] for tile in tiles for side in ("QUERIES", "KEYS"))])
    pitch = triton.cdiv(tokens, step) * step
    return {"MAP": length, "TOKENS": tokens, "PITCH": pitch, "WINDOW": window, "HEADS": heads, "D": head_dim}
