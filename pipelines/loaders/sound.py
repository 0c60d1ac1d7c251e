"""Which bytes our own decoder has found sound: what other decoders, which damage may end, are given and nothing else.

A sample's mark is the SHA-256 of the bytes that were decoded, so it holds for these bytes alone, whatever becomes of
the file. It is kept for the process and, beside a run's quarantine, in a file that all processes of the run share.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from ..spec import ByteSource
from ..views.cut import decode_plain

SOUND_FILE = "sound.bin"  # in the run directory: 16 bytes a sample, zeros until it is known
_MARK = 16  # bytes of a digest that are kept
_known: dict[tuple[str, int], SoundBytes] = {}  # of sources that are read without a run directory


class SoundBytes:
    """Marks of `samples` samples, with `path` shared through that file. Safe to use from several threads."""

    def __init__(self, samples: int, path: Path | None = None) -> None:
        self._marks, self._file = np.zeros((samples, _MARK), np.uint8), None
        if path is not None:
            with contextlib.suppress(OSError):  # what cannot be shared is found out again by each process
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)

    def proven(self, index: int, encoded: np.ndarray) -> bool:
        """Whether these bytes, which nobody else may change, are a plain JPEG without a flaw; decodes them to find out,
        unless they are known. Raises `DecodeError` as `decode_plain` does."""
        mark = np.frombuffer(hashlib.sha256(encoded).digest()[:_MARK], np.uint8)
        if np.array_equal(self._marks[index], mark):
            return True
        if not self._shared(index, mark):
            if decode_plain(encoded) is None:
                return False
            self._share(index, mark)
        self._marks[index] = mark
        return True

    def _shared(self, index: int, mark: np.ndarray) -> bool:
        if self._file is None:
            return False
        with contextlib.suppress(OSError):
            return os.pread(self._file.fileno(), _MARK, _MARK * index) == mark.tobytes()
        return False

    def _share(self, index: int, mark: np.ndarray) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._file.fileno(), mark.tobytes(), _MARK * index)


def sound_bytes(source: ByteSource, path: Path | None = None) -> SoundBytes:
    """The marks of a source: in `path`, or those that this process has made for a source of that name and length."""
    if path is not None:
        return SoundBytes(len(source), path)
    return _known.setdefault((source.name, len(source)), SoundBytes(len(source)))
