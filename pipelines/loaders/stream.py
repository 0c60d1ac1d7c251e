"""The loader on the webdataset library, for shards behind an address: they are read in their own order, once.

What a stream cannot give is the exact order of the other loaders. Each epoch permutes the shards by (seed, epoch), pads
their list by wrapping round to a multiple of the number of ranks, and deals them out; a rank reads its shards one after
another through a shuffle buffer, and begins anew with its first one when it runs out. Every rank makes the same number
of steps, and some samples appear twice or not at all in an epoch. Order therefore depends on the number of ranks; views
do not: they are drawn by (seed, epoch, id) as everywhere, and a sample's id is a hash of its shard's name and its own.
"""

from __future__ import annotations

import io
import lzma
import os
import random
import select
import signal
import subprocess
import tarfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, wait
from hashlib import blake2b
from itertools import chain, cycle, islice
from typing import NamedTuple

import numpy as np
import torch
import webdataset as wds
from webdataset.gopen import Pipe

from ...errors import ProcessError, UserError, notice
from ..images.decode import DecodeError, image_size
from ..order import permute
from ..rng import stream_key
from ..sources.samples import Sample as MemberGroup
from ..sources.samples import SampleReader, label_of
from ..views.cut import decode_fast
from .base import Plan
from .cpu import CpuLoader

_BUFFER = 1 << 20  # bytes of a pipe
_SHUFFLE = 1000  # encoded samples among which the next one is picked
_TICK = 0.2  # seconds between two looks at whether the run was asked to stop
_PATIENCE = 5  # seconds that a batch may take after that
_STALL = 60  # seconds without a byte after which a server is given up
_GRACE = 2  # seconds for a command to end whose data make no sense
_CURL_SAYS = {
    6: "unknown host",
    7: "no connection",
    18: "the transfer breaks off",
    22: "the server refuses it",
    28: "no answer",
}
_CURL = ("curl", "-fsL", "--connect-timeout", "30", "--retry", "5")  # a retry is only safe before the first byte


class Sample(NamedTuple):
    id: int
    key: str  # shard/member
    encoded: np.ndarray
    label: int


class StreamLoader(CpuLoader):
    """See `CpuLoader` and `sources.stream.StreamSource`. One connection per process.

    An undecodable image is replaced by the next good one of its batch. Of a shard that cannot be opened or breaks off,
    every image that did not come counts as bad, and the next shard follows. A resumed run reads its epoch from the
    start, undecoded.
    """

    exact = False

    def __init__(self, source, inputs, order, **rest) -> None:
        super().__init__(source, inputs, order, **rest)
        self._samples: Iterator[Sample] = iter(())
        self._position: int | None = None  # the step whose samples `_samples` gives next
        self._held: dict[int, list[Sample]] = {}  # samples of the steps in preparation
        self._latest: list[Sample] = []  # the last batch that was read
        self._stream, self._closing = None, False
        self._hurried = 0.0  # when the run was asked to stop
        self._given_up = False
        self._tried = self._came = 0  # shards, and images of them
        self._told = False  # what shards hold that nobody reads

    def _cut(self) -> tuple[Plan, dict[str, torch.Tensor]]:
        plan, crops = super()._cut()
        del self._held[plan.step]
        return plan, crops

    def hurry(self) -> None:
        """The run was asked to stop, and takes a step or two to do so: from a silent server nothing more is expected.

        Then the last batch comes again. Safe to call in a signal handler.
        """
        self._hurried = time.monotonic()

    def _await(self, future: Future):
        began = time.monotonic()
        while not wait([future], _TICK).done:
            if self._hurried and time.monotonic() - max(began, self._hurried) > _PATIENCE and not self._given_up:
                self._given_up = True
                if self._stream is not None:
                    _kill(self._stream)
        return future.result()

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
        if len(samples) < self.batch_size:  # given up
            if not (samples or self._latest):
                raise ProcessError(f"{self.source.name}: no image came before the run was asked to stop")
            samples = list(islice(cycle(samples or self._latest), self.batch_size))
        self._position, self._latest = step + 1, samples
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
        while found and not self._given_up:
            found = False
            samples = chain.from_iterable(map(self._shard, urls))
            if rng is not None:  # emptied before the first shard comes again: no sample twice before all have come once
                samples = wds.shuffle(_SHUFFLE, rng=rng)(samples)
            for sample in samples:
                found = True
                yield sample
        if not self._given_up:
            raise self._nothing(str(len(urls)))

    def _shard(self, url: str) -> Iterator[Sample]:
        """The samples of a shard, as far as they come. What does not come is counted at once."""
        if self._given_up:
            return
        reader, fault = SampleReader(self.source.image), ""
        self._tried, self._stream = self._tried + 1, None
        try:
            self._stream = _open(url)
            if self._closing or self._given_up:  # which may have come before there was a stream to end
                return
            for members in reader.samples(_members(self._stream)):
                sample = self._sample(url, members, reader)
                if problem := reader.turned():
                    raise UserError(f"{self.source.name}: {_shard_name(url)}: {problem.replace('?image', '#image')}")
                if sample is not None:
                    yield sample
            while rest := self._stream.read(_BUFFER):
                if any(rest):
                    raise tarfile.ReadError("data behind the end of the archive")
            self._stream.close()  # the exit status says whether everything came
        except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as problem:
            fault = _reason(url, self._stream, problem)
        finally:
            if self._stream is not None:
                _end(self._stream)
            self._came += reader.images
            self._tell(url, reader)
        if not (self._closing or self._given_up):
            self._count_missing(url, reader.images, fault)

    def _tell(self, url: str, reader: SampleReader) -> None:
        """Once, what the first shard in which anything is passed over holds of it."""
        if not self._told and (notes := reader.notes()):
            self._told = True
            told = "; ".join(notes).replace("?image", "#image")
            notice(f"{self.source.name}: {_shard_name(url)}, and perhaps others: {told}")

    def _count_missing(self, url: str, came: int, fault: str) -> None:
        """Sets aside what a shard should have held, which `Quarantine` holds against `data.max_bad`."""
        known = self.source.counts.get(url)
        expected = -(-len(self.source) // len(self.source.urls)) if known is None else known
        missing = max(expected - came, 0)
        if not fault and (known is None or not missing):
            return
        if known is None:
            told = f"about {missing:,} images missing, the average of a shard less the {came:,} that came"
        else:
            told = f"{missing:,} of its {known:,} images missing"
        self.source.names[_hash(url)] = url
        try:
            self._bad.add(_hash(url), f"shard breaks off: {fault or 'it ends early'}; {told}", max(missing, 1))
        except ProcessError as fault:
            if self._came:
                raise
            raise self._nothing(f"{self._tried} of {len(self.source.urls)}") from fault

    def _nothing(self, shards: str) -> ProcessError:
        reasons = "; ".join(self._bad.lines(3)) or "no member ends as an image does"
        return ProcessError(f"{self.source.name}: not one image in {shards} shards ({reasons}); check the address")

    def _sample(self, url: str, sample: MemberGroup, reader: SampleReader) -> Sample | None:
        """Its image, as in tars on disks, and the class index in the member `.cls`."""
        image, label = reader.image(sample), label_of(sample)
        if image is None:
            return None
        suffix, data = image
        key = f"{_shard_name(url)}/{sample.key}.{suffix}"
        label = b"-1" if label is None else label[1].strip()
        encoded = np.frombuffer(data, np.uint8)
        return Sample(_hash(key), key, encoded, int(label) if label.lstrip(b"-").isdigit() else -1)

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


class _Header(tarfile.TarInfo):
    """Python's own reader takes a header that is none, or is cut off, for the end of the archive."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as fault:
            raise tarfile.ReadError(f"no tar header where one should be ({fault})") from None


def _members(stream) -> Iterator[tuple[str, bytes]]:
    """(name, data) of every file in a tar that is read once, compressed or not."""
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as archive:
        for member in archive:
            if member.isreg():
                yield member.name, archive.extractfile(member).read()
            archive.members = []  # it would keep them all


class _Patient(io.RawIOBase):
    """A pipe of which a read fails when nothing comes for `_STALL` seconds.

    curl's own limits would begin the transfer anew, and write what has come already a second time.
    """

    def __init__(self, pipe: io.RawIOBase) -> None:
        self._pipe = pipe

    def readable(self) -> bool:
        return True

    def readinto(self, room) -> int | None:
        if not select.select([self._pipe], [], [], _STALL)[0]:
            raise TimeoutError(f"no byte in {_STALL} seconds")
        return self._pipe.readinto(room)

    def close(self) -> None:
        self._pipe.close()
        super().close()


def _open(url: str):
    """A binary stream. Commands run in a process group of their own, so that all of a pipeline can be ended."""
    options = {"mode": "rb", "bufsize": _BUFFER, "start_new_session": True}
    if url.startswith("pipe:"):
        return Pipe(url[5:], shell=True, **options)
    if url.startswith(("http://", "https://")):
        stream = Pipe([*_CURL, url], **options)
        stream.stream = io.BufferedReader(_Patient(stream.stream.detach()), _BUFFER)
        return stream
    return open(url.removeprefix("file:"), "rb")


def _reason(url: str, stream, problem: Exception) -> str:
    """What is wrong with a shard, in a few words. The command behind it has the last word, if it says anything."""
    status = 0
    if isinstance(stream, Pipe) and not isinstance(problem, TimeoutError):
        try:
            status = stream.proc.wait(_GRACE)
        except subprocess.TimeoutExpired:
            pass
    if status and not url.startswith("pipe:"):
        return f"{_CURL_SAYS.get(status, 'the transfer fails')} (curl ends with exit {status})"
    if status:
        return f"its command ends with exit {status}"
    if getattr(problem, "filename", None) == _CURL[0]:
        return "curl is not installed"
    return getattr(problem, "strerror", None) or str(problem) or repr(problem)


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
