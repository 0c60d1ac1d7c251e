"""One tar against itself, its `.idx`, and what manifest and index say of it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from .images.decode import DecodeError, decode
from .sources import tar
from .sources.samples import SampleReader, label_of
from .sources.shards import INDEX_FILE

_CHUNK = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True)
class Problem:
    # missing, truncated, checksum, header, name, order, duplicate, label, idx, index, manifest, extra, image, member,
    # pixels
    kind: str
    shard: str  # file name, empty where none is meant
    key: str  # member or image, empty for the shard as a whole
    detail: str


class TarCheck:
    """One tar: `entry` and `rows` are what manifest and index say of it, None for tars of others, in which `image` is
    the suffix of the member that is read. `reader` has counted what is passed over.
    """

    def __init__(self, path: Path, entry: dict | None = None, rows: np.ndarray | None = None, image: str = "") -> None:
        self.path, self.entry, self.rows = path, entry, rows
        self.reader = SampleReader(image)
        self.samples = self.bytes = 0
        self.keys: list[str] = []
        self.problems: list[Problem] = []

    def _add(self, kind: str, key: str, detail: str) -> None:
        self.problems.append(Problem(kind, self.path.name, key, detail))

    def check(self, decode: bool) -> TarCheck:
        try:
            with open(self.path, "rb", buffering=0) as file:
                self.bytes = os.fstat(file.fileno()).st_size
                self._check_bytes(file)
                members = self._members(file.fileno())
                found, read = self.reader.samples(members), self.reader.image
                samples = [_Sample(*one, read(one), label_of(one)) for one in found]
                self._check_samples(file.fileno(), samples)
                self._check_idx(samples)
                if self.rows is not None:
                    self._check_rows(samples)
                if decode:
                    self._check_pixels(file.fileno(), samples)
        except FileNotFoundError:
            self._add("missing", "", "no such file")
        except OSError as fault:
            self._add("missing", "", f"cannot be read ({fault.strerror})")
        return self

    def _check_bytes(self, file) -> None:
        if self.entry is None:
            return
        if self.bytes != self.entry["bytes"]:
            kind = "truncated" if self.bytes < self.entry["bytes"] else "checksum"
            self._add(kind, "", f"{self.bytes:,} bytes instead of {self.entry['bytes']:,}")
            return
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
        if digest.hexdigest() != self.entry["sha256"]:
            self._add("checksum", "", "its SHA-256 is not the one in the manifest")

    def _members(self, descriptor: int) -> list[tuple[str, int, int]]:
        """All that can be read, and whether the archive ends where it should."""
        members = []
        try:
            for member in tar.members(descriptor):
                members.append(member)  # what was read before a fault stays
        except ValueError as fault:  # `TarError`, or nonsense in a pax record
            self._add("truncated" if "cut short" in str(fault) else "header", "", str(fault))
            return members
        end = 0
        if members:
            _, start, size = members[-1]
            end = start + size + tar.padding(size)
        tail = self.bytes - end
        if tail < len(tar.END) or any(os.pread(descriptor, len(tar.END), self.bytes - len(tar.END))):
            self._add("truncated", "", "no end-of-archive mark")
        elif not any(os.pread(descriptor, tar.BLOCK, end)):  # anything else there is a folder or a link
            for offset in range(end, self.bytes, _CHUNK):
                if any(os.pread(descriptor, _CHUNK, offset)):
                    self._add("header", "", f"the archive ends at byte {end:,}, but data follow")
                    break
        return members

    def _check_samples(self, descriptor: int, samples: list[_Sample]) -> None:
        self.samples, self.keys = self.reader.images, [one.key for one in samples]
        labelled = sum(one.label is not None for one in samples)
        seen: dict[str, set[str]] = {}
        for one in samples:
            if one.key.startswith("/") or ".." in PurePosixPath(one.key).parts:
                self._add("name", one.key, "points outside the folder it is unpacked in")
            twice = [suffix for suffix, count in Counter(suffix for suffix, _, _ in one.parts).items() if count > 1]
            if one.key in seen and not twice:
                twice = [suffix for suffix, _, _ in one.parts if suffix in seen[one.key]]
                if not twice:
                    self._add("order", one.key, "its members do not lie together")
            if twice:
                self._add("duplicate", one.key, f".{twice[0]} is there twice")
            seen.setdefault(one.key, set()).update(suffix for suffix, _, _ in one.parts)
            if one.image is None and one.label is not None and not twice:
                self._add("order", one.key, "a label without its image")
            elif one.image is not None and one.label is None and labelled and self.entry is None:  # of ours: -1
                self._add("label", one.key, "no .cls, though others have one")
            elif self.entry is not None and one.label is not None and one.parts[0][0] == "cls":
                self._add("order", one.key, "the label comes before its image")
            if one.label is not None:
                _, start, size = one.label
                text = os.pread(descriptor, min(size, 32), start)
                if not text.strip().removeprefix(b"-").isdigit():
                    self._add("label", one.key, f"its class is {text!r}")
                else:
                    one.number = int(text)
        if self.entry is not None:
            if self.samples != self.entry["samples"]:
                self._add("index", "", f"{self.samples:,} images, the manifest has {self.entry['samples']:,}")
            for before, after in zip(self.keys, self.keys[1:], strict=False):
                if after <= before and len(seen) == len(self.keys):
                    self._add("order", after, f"comes after {before}")

    def _check_idx(self, samples: list[_Sample]) -> None:
        file = self.path.with_suffix(".idx")
        if not file.exists():
            if self.entry is not None:
                self._add("idx", "", f"no {file.name}")
            return
        lines = file.read_bytes().decode("utf-8", "replace").splitlines()
        expected = [one.idx_line for one in samples]
        for line, (found, wanted) in enumerate(zip(lines, [f"v1.2 {len(expected)}", *expected], strict=False), 1):
            if found != wanted:
                self._add("idx", "", f"line {line} of {file.name} is {found[:60]!r}, the tar has {wanted[:60]!r}")
                return
        if len(lines) != len(expected) + 1:
            self._add("idx", "", f"{file.name} has {len(lines) - 1:,} samples, the tar {len(expected):,}")

    def _check_rows(self, samples: list[_Sample]) -> None:
        images = [one for one in samples if one.image is not None]
        for row, one in zip(self.rows, images, strict=False):
            wanted = (*one.image[1:], -1 if one.number is None else one.number)
            found = row[["offset", "size", "label"]].item()
            if found != wanted:
                words = "offset {:,}, size {:,}, class {}"
                detail = f"{INDEX_FILE} has {words.format(*found)}; the tar {words.format(*wanted)}"
                self._add("index", one.key, detail)
                return
        if len(self.rows) != len(images):
            self._add("index", "", f"{INDEX_FILE} has {len(self.rows):,} rows, the tar {len(images):,} images")

    def _check_pixels(self, descriptor: int, samples: list[_Sample]) -> None:
        images = [one for one in samples if one.image is not None]
        for number, one in enumerate(images):
            suffix, start, size = one.image
            try:
                shape = decode(os.pread(descriptor, size, start)).shape[:2]
            except DecodeError as fault:
                self._add("image", f"{one.key}.{suffix}", str(fault))
                continue
            if self.rows is not None and number < len(self.rows):
                known = self.rows[number][["height", "width"]].item()
                if known not in ((0, 0), shape):
                    self._add("index", one.key, f"{INDEX_FILE} says {known} pixels, the image has {shape}")


@dataclass
class _Sample:
    """A sample with what is read of it: `image` and `label` are (suffix, offset, size)."""

    key: str
    parts: list[tuple[str, int, int]]
    image: tuple[str, int, int] | None
    label: tuple[str, int, int] | None
    number: int | None = None  # what the label says

    @property
    def idx_line(self) -> str:
        """As DALI writes it."""
        return " ".join(f"{suffix} {start} {size} {self.key}.{suffix}" for suffix, start, size in self.parts)
