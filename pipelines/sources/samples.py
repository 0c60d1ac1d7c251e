"""Members of a tar -> samples, by WebDataset's rule, and what nobody will read of them.

A sample is a run of members with one key: their path up to the first dot of the file's name. What follows that dot is a
member's suffix: ``a/0003.depth.png`` has the key ``a/0003`` and the suffix ``depth.png``. Its image is the first member
that ends as an image does, or the one whose suffix was asked for; its label is the member ``cls``. Files without a dot
and hidden ones (``._x.jpg``, which Macs leave beside every file) are no members.

The same rule serves tars on disks, streams and `check`. Names in tars are never used as paths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from ..images.formats import image_suffixes, passed_over
from ..images.rules import rules

_NAMED = 4  # suffixes that a sentence names


class Sample(NamedTuple):
    key: str
    parts: list[tuple]  # (suffix as written, what the reader keeps of the member ...)


def split(name: str) -> tuple[str, str] | None:
    """Key and suffix of a member; None for a name that makes it none."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return (f"{folder}{slash}{stem}", suffix) if stem and dot else None


def is_image(suffix: str) -> bool:
    """Whether a member's suffix, ``jpg`` or ``rgb.jpg``, ends as an image's."""
    return _is_image(suffix, rules().channels is not None)


@lru_cache(1024)
def _is_image(suffix: str, deep: bool) -> bool:
    return f".{suffix.rpartition('.')[2].lower()}" in image_suffixes()


def label_of(sample: Sample) -> tuple | None:
    return next((part for part in sample.parts if part[0].lower() == "cls"), None)


class SampleReader:
    """Groups members, picks each sample's image, and counts what is passed over meanwhile.

    `wanted`: the suffix of the member that is the image, whatever it ends in; empty: the first that ends as an image.
    Reads one tar at a time, from front to back; `add` takes in what another has counted.
    """

    def __init__(self, wanted: str = "") -> None:
        self.wanted = wanted.lstrip(".").lower()
        self.images = 0
        self.several = 0  # samples with more than one image
        self.repeated = 0  # samples with the key of an earlier one of their tar
        self.unpaired = 0  # labels without an image
        self.lacking = 0  # samples with images, but none that was asked for
        self.hidden = 0  # images by their suffix
        self.others: Counter[str] = Counter()  # members that end as no image, by their last suffix
        self.used: Counter[str] = Counter()  # suffixes of images in samples with more than one
        self.unused: Counter[str] = Counter()
        self._first: dict[frozenset[str], str] = {}  # which of these comes first
        self._turned: tuple[str, str] | None = None  # two that come first in turn

    def samples(self, members: Iterable[tuple]) -> Iterator[Sample]:
        """The samples of one tar, from its members: (name, what is to be kept of them ...)."""
        sample, seen = None, set()
        for name, *rest in members:
            if (found := split(name)) is None:
                self._no_member(name)
                continue
            key, suffix = found
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                self.repeated += hash(key) in seen
                seen.add(hash(key))  # half the memory of the keys themselves
                sample = Sample(key, [])
            sample.parts.append((suffix, *rest))
        if sample is not None:
            yield sample

    def image(self, sample: Sample) -> tuple | None:
        """The part that is the image, None where there is none; to be asked once for each sample."""
        images = [part for part in sample.parts if is_image(part[0])]
        if self.wanted:
            image = next((part for part in sample.parts if part[0].lower() == self.wanted), None)
        else:
            image = images[0] if images else None
        self.images += image is not None
        if image is None or len(images) > 1 or self.wanted:
            self._note_choice(image, images, label_of(sample) is not None)
        if len(sample.parts) > len(images):
            for part in sample.parts:
                if part is not image and part[0].lower() != "cls" and not is_image(part[0]):
                    self.others[f".{part[0].rpartition('.')[2].lower()}"] += 1
        return image

    def _note_choice(self, image: tuple | None, images: list[tuple], labelled: bool) -> None:
        rest = [part[0].lower() for part in images if part is not image]
        self.unused.update(rest)
        if image is None:
            self.lacking += bool(images)
            self.unpaired += labelled
        elif rest:
            used = image[0].lower()
            self.several += 1
            self.used[used] += 1
            if not self.wanted and self._first.setdefault(frozenset((used, *rest)), used) != used:
                self._turned = self._first[frozenset((used, *rest))], used

    def _no_member(self, name: str) -> None:
        base = name.rpartition("/")[2]
        if not base.startswith("."):
            self.others["without a suffix"] += 1
        elif is_image(base):
            self.hidden += 1

    def add(self, other: SampleReader) -> None:
        """Takes in what `other` has counted in another tar."""
        for name in ("images", "several", "repeated", "unpaired", "lacking", "hidden"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("others", "used", "unused"):
            getattr(self, name).update(getattr(other, name))
        self._turned = self._turned or other._turned
        for suffixes, first in other._first.items():
            if self._first.setdefault(suffixes, first) != first:
                self._turned = self._first[suffixes], first

    def turned(self) -> str | None:
        """Why there is no telling which member is the image; None where one comes first in all samples alike."""
        if self._turned is None:
            return None
        first, second = self._turned
        turn = f"samples hold several images, and now .{first}, now .{second} comes first"
        return f"{turn}; say which one to read, as in ?image={first}"

    def fault(self) -> str | None:
        """Why this is no set of images: there is none, or no telling which member of a sample it is."""
        if (turned := self.turned()) is not None or self.images:
            return turned
        members = self.others + Counter({f".{suffix}": count for suffix, count in self.unused.items()})
        found = passed_over(members) if members else "it is empty, hidden files aside"
        if self.wanted:
            return f"no sample has a member .{self.wanted}: {found}; give the suffix of one"
        ends = f"images end in {' '.join(image_suffixes())}"
        return f"no member of its tars is an image: {found}; {ends}, and another member can be named, as in ?image=bin"

    def notes(self) -> list[str]:
        """What was passed over, a sentence each; none where everything is read."""
        notes = []
        if self.several and not self.wanted:
            lost = f"{_many(self.unused.total(), 'image')} passed over, in {_many(self.several, 'sample')} with several"
            rule = "a sample's name ends at the first dot, and its first image is read"
            choose = f"another one is chosen by its suffix, as in ?image={self.unused.most_common(1)[0][0]}"
            keep = "names without further dots keep them all"
            notes.append(f"{lost} ({rule}): read {_ranked(self.used)}; not {_ranked(self.unused)}; {choose}; {keep}")
        elif self.unused:
            lost = f"{_many(self.unused.total(), 'image')} passed over, not .{self.wanted}: {_ranked(self.unused)}"
            notes.append(lost + (f"; {_many(self.lacking, 'sample')} without that member" if self.lacking else ""))
        if self.repeated:
            again = "they are there twice, or their members do not lie together"
            notes.append(f"{_many(self.repeated, 'sample')} with the name of an earlier one: {again}")
        if self.unpaired:
            notes.append(f"{_many(self.unpaired, 'label')} (.cls) passed over, without an image beside them")
        if self.others:
            notes.append(f"passed over: {passed_over(self.others)}")
        if self.hidden:
            notes.append(f"passed over: {_many(self.hidden, 'hidden file')} with an image's suffix (._x.jpg of Macs)")
        return notes


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _ranked(counts: Counter[str]) -> str:
    named = [f"{count:,} .{suffix}" for suffix, count in counts.most_common(_NAMED)]
    return ", ".join(named) + (f" and {len(counts) - _NAMED:,} more kinds" if len(counts) > _NAMED else "")
