"""The loader on the webdataset library, for shards behind an address: they are read in their own order, once.

What a stream cannot give is the exact order of the other loaders. Each epoch permutes the shards by (seed, epoch), pads
their list by wrapping round to a multiple of the number of ranks, and deals them out; a rank reads its shards one after
another through a shuffle buffer, and begins anew with its first one when it runs out. Every rank makes the same number
of steps, and some samples appear twice or not at all in an epoch. Order therefore depends on the number of ranks; views
do not: they are drawn by (seed, epoch, id) as everywhere, and a sample's id is a hash of its shard's name and its own.
"""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import webdataset as wds
from webdataset.gopen import Pipe
from webdataset.tariterators import group_by_keys, tar_file_expander

from ...errors import UserError
from ..images.decode import DecodeError, image_size
from ..images.formats import IMAGE_SUFFIXES
from ..order import permute
from ..rng import stream_key
from ..views.cut import decode_fast
from .base import Plan
from .cpu import CpuLoader

_BUFFER = 1 << 20  # bytes of a pipe
_SHUFFLE = 1000  # encoded samples among which the next one is picked
_CURL = ("curl", "-fsL", "--connect-timeout", "30", "--retry", "5", "--speed-limit", "1", "--speed-time", "60")


class Sample(NamedTuple):
    id: int
    key: str  # shard/member
    encoded: np.ndarray
    label: int


class StreamLoader(CpuLoader):
    """See `CpuLoader` and `sources.stream.StreamSource`. One connection per process.

    An undecodable image is replaced by the next good one of its batch; a shard that cannot be opened or breaks off is
    counted as one bad sample, and the next one follows. A resumed run reads its epoch from the start, undecoded.
    """

    exact = False

    def __init__(self, source, inputs, order, **rest) -> None:
        super().__init__(source, inputs, order, **rest)
        self._samples: Iterator[Sample] = iter(())
        self._position: int | None = None  # the step whose samples `_samples` gives next
        self._held: dict[int, list[Sample]] = {}  # samples of the steps in preparation
        self._stream, self._closing = None, False
        self._fault = ""  # of the current shard

    def _cut(self) -> tuple[Plan, dict[str, torch.Tensor]]:
        plan, crops = super()._cut()
        del self._held[plan.step]
        return plan, crops

    def _gather(self, step: int) -> list[tuple[int, Sample, tuple[int, int]]]:
        if step not in self._held:
            self._held[step] = self._take(step)
        samples = self._held[step]
        sizes = [None if s.id in self._bad else self._attempt("header", s.id, self._size, s) for s in samples]
        good = [b for b, size in enumerate(sizes) if size is not None]
        if not good:
            raise UserError(f"{self.source.name}: not one of {len(samples)} images in a row can be decoded; check it")
        chosen = (next((g for g in good if g >= b), good[0]) for b in range(len(samples)))
        return [(samples[b].id, samples[b], sizes[b]) for b in chosen]

    def _size(self, sample: Sample) -> tuple[int, int]:
        return self._named(image_size, sample)

    def _decode(self, sample: Sample) -> np.ndarray:
        return self._named(decode_fast, sample)

    def _named(self, work, sample: Sample):
        try:
            return work(sample.encoded)
        except DecodeError:
            self.source.names[sample.id] = sample.key
            raise

    def _labels(self, plan: Plan) -> list[int]:
        return [sample.label for sample in plan.encoded]

    # ---- reading, in the thread that plans

    def _take(self, step: int) -> list[Sample]:
        epoch, done = divmod(step, self.steps_per_epoch)
        if step != self._position or not done:
            self._samples = islice(self._read(epoch), done * self.batch_size, None)
        self._position = None  # unknown, should reading fail
        samples = list(islice(self._samples, self.batch_size))
        self._position = step + 1
        return samples

    def _read(self, epoch: int) -> Iterator[Sample]:
        """This rank's samples of an epoch, without end."""
        shards, rng = torch.arange(len(self.source.urls)), None
        if self.order.shuffle:
            shards = permute(shards, len(shards), stream_key(self.order.seed, "shards", epoch))
            rng = random.Random(stream_key(self.order.seed, f"stream/{self.rank}", epoch))
        padded = -(-len(shards) // self.world) * self.world
        urls = [self.source.urls[shards[i % len(shards)]] for i in range(self.rank, padded, self.world)]
        found = True
        while found:
            found = False
            members = tar_file_expander(self._open_all(urls), handler=self._note)
            samples = filter(None, map(self._sample, group_by_keys(members, handler=self._note)))
            if rng is not None:  # emptied before the first shard comes again: no sample twice before all have come once
                samples = wds.shuffle(_SHUFFLE, rng=rng)(samples)
            for sample in samples:
                found = True
                yield sample
        reasons = "; ".join(self._bad.lines(3)) or "no member ends as an image does"
        raise UserError(f"{self.source.name}: not one image in {len(urls)} shards ({reasons}); check the address")

    def _sample(self, raw: dict) -> Sample | None:
        """The first member with an image suffix, and the class index in the member `.cls`."""
        suffix = next((s for s in raw if f".{s.rpartition('.')[2]}" in IMAGE_SUFFIXES), None)
        if suffix is None:
            return None
        key = f"{_shard_name(raw['__url__'])}/{raw['__key__']}.{suffix}"
        label = raw.get("cls", b"-1").strip()
        encoded = np.frombuffer(raw[suffix], np.uint8)
        return Sample(_hash(key), key, encoded, int(label) if label.lstrip(b"-").isdigit() else -1)

    def _open_all(self, urls: list[str]) -> Iterator[dict]:
        for url in urls:
            self._fault = ""
            try:
                self._stream = _open(url)
                if self._closing:  # `close` may have come before there was a stream to end
                    break
                yield {"url": url, "stream": self._stream}
                if not self._stream.read(_BUFFER):  # at its end: the exit status says whether everything came
                    self._stream.close()
            except OSError as fault:
                self._note(fault)
            finally:
                if self._stream is not None:
                    _end(self._stream)
            if self._fault and not self._closing:
                self.source.names[_hash(url)] = url
                self._bad.add(_hash(url), f"shard breaks off: {self._fault}")

    def _note(self, fault: Exception) -> bool:
        """Keeps what is wrong with the current shard; the command behind it has the last word. True: go on."""
        self._fault = next((part for part in fault.args if isinstance(part, str)), repr(fault))
        if status := re.search(r"exit -?\d+", self._fault):  # webdataset quotes the whole command
            self._fault = f"its command ends with {status[0]}"
        return not self._closing

    # ---- ending

    def load_state_dict(self, state: dict[str, int]) -> None:
        super().load_state_dict(state)
        self._held.clear()

    def close(self) -> None:
        self._closing = True
        if self._stream is not None:
            _kill(self._stream)  # a read from a silent server would last for ever
        super().close()
        self._samples = iter(())  # ends the stream


def _shard_name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


def _hash(text: str) -> int:
    """63 bits: an int64 that is not negative."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1


def _open(url: str):
    """A binary stream. Commands run in a process group of their own, so that all of a pipeline can be ended."""
    options = {"mode": "rb", "bufsize": _BUFFER, "start_new_session": True}
    if url.startswith("pipe:"):
        return Pipe(url[5:], shell=True, **options)
    if url.startswith(("http://", "https://")):
        return Pipe([*_CURL, url], **options)
    return open(url.removeprefix("file:"), "rb")


def _kill(stream) -> None:
    if isinstance(stream, Pipe) and stream.proc.poll() is None:
        try:
            os.killpg(stream.proc.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended by itself meanwhile


def _end(stream) -> None:
    _kill(stream)
    if isinstance(stream, Pipe):
        stream.stream.close()
        stream.proc.wait()
    else:
        stream.close()
