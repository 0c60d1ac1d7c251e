"""The quality that a JPEG was written with, told by its table for luma."""

from __future__ import annotations

import struct

from ..images.jpeg import MAGIC

_LUMA = (  # the standard's own table for luma (ITU-T T.81, K.1), which libjpeg calls quality 50
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip


def _sum(quality: int) -> int:
    """Of the table that libjpeg makes of it: times 50 / quality below 50, times 2 - quality / 50 above."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(min(max((value * percent + 50) // 100, 1), 255) for value in _LUMA)


_SUMS = [_sum(quality) for quality in range(1, 101)]


def jpeg_quality(data) -> float:
    """1..100 on libjpeg's scale; NaN for what is no JPEG. Of tables that other software made, the quality whose table
    has the nearest sum."""
    if bytes(data[:3]) != MAGIC:
        return float("nan")
    offset = 2
    while offset + 4 <= len(data):
        lead, marker, length = struct.unpack_from(">BBH", data, offset)
        if lead != 0xFF or marker == 0xDA or length < 2:
            break
        if marker == 0xDB:
            at, end = offset + 4, min(offset + 2 + length, len(data))
            while at < end:
                wide, number = divmod(int(data[at]), 16)
                size = 128 if wide else 64
                table = bytes(data[at + 1 : at + 1 + size])
                if number == 0 and len(table) == size:
                    return _quality(sum(struct.unpack(">64H", table) if wide else table))
                at += 1 + size
        offset += 2 + length
    return float("nan")


def _quality(total: int) -> float:
    return 1.0 + min(range(100), key=lambda place: abs(_SUMS[place] - total))
