"""Counter-based random numbers: every draw is a pure function of (seed, stream, epoch, sample id, index).

SplitMix64's finaliser (Steele, Lea, Flood 2014) in wrapping int64 arithmetic, which torch computes alike on every
device; no generator, no state, nothing to save.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence

import torch

_BITS = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 with the same 64 bits: torch has no unsigned arithmetic."""
    value &= _BITS
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: torch.Tensor) -> torch.Tensor:
    """A bijection of int64 whose output bits each depend on all input bits."""
    x = (x ^ _shift_right(x, 30)) * _signed(_M1)
    x = (x ^ _shift_right(x, 27)) * _signed(_M2)
    return x ^ _shift_right(x, 31)


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * _M1) & _BITS
    x = ((x ^ (x >> 27)) * _M2) & _BITS
    return x ^ (x >> 31)


def stream_root(seed: int, stream: str) -> int:
    """What the keys of all epochs of a stream are made of."""
    key = _mix_int((seed & _BITS) ^ _GOLDEN)
    return _signed(_mix_int((key + zlib.crc32(stream.encode()) * _GOLDEN) & _BITS))


def stream_key(seed: int, stream: str, epoch: int | torch.Tensor) -> int | torch.Tensor:
    """One 64-bit key (signed) for everything drawn under this name in this epoch; of epochs (B,), one for each."""
    return epoch_key(stream_root(seed, stream), epoch)


def epoch_key(root: int | torch.Tensor, epoch: int | torch.Tensor) -> int | torch.Tensor:
    """The key of an epoch of the stream with that `stream_root`."""
    if isinstance(epoch, torch.Tensor):
        return mix((epoch + 1) * _signed(_GOLDEN) + root)
    return _signed(_mix_int((root + (epoch + 1) * _GOLDEN) & _BITS))


def random_words(
    seed: int, stream: str | Sequence[str], epoch: int | torch.Tensor, ids: torch.Tensor, count: int
) -> torch.Tensor:
    """(B, count) int64, uniform over all 64 bits, for sample ids (B,) int64; on the device of `ids`. Of several streams
    (streams, B, count), at the price of one.

    `epoch`: of all samples, or (B,) int64 of each.
    """
    epoch = epoch.to(ids.device) if isinstance(epoch, torch.Tensor) else epoch
    if isinstance(stream, str):
        key = stream_key(seed, stream, epoch)
    elif isinstance(epoch, torch.Tensor):
        key = torch.stack([stream_key(seed, one, epoch) for one in stream])
    else:
        key = torch.tensor([[stream_key(seed, one, epoch)] for one in stream], device=ids.device)
    state = mix(ids * _signed(_GOLDEN) + key)
    steps = torch.arange(1, count + 1, device=ids.device) * _signed(_GOLDEN)
    return mix(state[..., None] + steps)


def uniform(
    seed: int, stream: str | Sequence[str], epoch: int | torch.Tensor, ids: torch.Tensor, count: int
) -> torch.Tensor:
    """(B, count) float64 in [0, 1) with 53 random bits; of several streams (streams, B, count)."""
    return _shift_right(random_words(seed, stream, epoch, ids, count), 11).double() * 2.0**-53


def of_rows(epoch: int | torch.Tensor, rows) -> int | torch.Tensor:
    """The epochs of some rows of the samples: `epoch` of all, or (B,) of each."""
    return epoch[rows] if isinstance(epoch, torch.Tensor) else epoch


def drawer(
    seed: int, streams: Sequence[str], epoch: int | torch.Tensor, ids: torch.Tensor
) -> Callable[[int], torch.Tensor]:
    """``draw(count)`` for code from outside: (len(streams) * B, count), stream by stream, new ones at every call."""
    calls = itertools.count()

    def draw(count: int) -> torch.Tensor:
        call = next(calls)
        return torch.cat([uniform(seed, f"{stream}/{call}", epoch, ids, count) for stream in streams])

    return draw
