"""The labels of two sets: the same classes, whatever order they are in, and what is to be said of them."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence

import numpy as np

from ...errors import UserError
from ...pipelines.plan.given import as_source
from ...pipelines.sources.folder import FolderSource
from ...pipelines.sources.lists import ListSource
from ...pipelines.sources.stream import StreamSource
from ...pipelines.sources.subset import Subset
from ...pipelines.spec import ByteSource

FLAGS = ("--train", "--val")
_COMPARED = 16  # images whose bytes tell whether two sets are one


class Relabelled(Subset):
    """All samples of a source, with labels (N,) of other classes."""

    def __init__(self, source: ByteSource, labels: np.ndarray, classes: list[str]) -> None:
        super().__init__(source, range(len(source)))
        self.classes, self._labels = classes, labels

    def label(self, index: int) -> int:
        return int(self._labels[index])


def labels_of(source: ByteSource) -> np.ndarray:
    """(N,) int64, -1 where there is none."""
    return np.fromiter((source.label(index) for index in range(len(source))), np.int64, len(source))


def labelled(source: ByteSource) -> ByteSource:
    """The samples that have a label; a stream, whose labels come with its samples, as it is."""
    if isinstance(source, StreamSource):
        return source
    known = np.flatnonzero(labels_of(source) >= 0)
    return source if len(known) == len(source) else Subset(source, known.tolist())


def labelled_sets(train, val, flags: tuple[str, str] = FLAGS) -> tuple[ByteSource, ByteSource]:
    """Both sources, of whatever `as_source` takes, the second with the labels of the first: see `matched`."""
    first = as_source(train)
    return first, matched(first, as_source(val), flags)


def matched(first: ByteSource, second: ByteSource, flags: tuple[str, str] = FLAGS) -> ByteSource:
    """The second source with the labels that its classes have in the first; `flags` are their names for users.

    Classes are matched by name, in whatever Unicode form it is stored; the second need not have images of all.
    Raises `UserError` where one has no labels, or the second has images of a class that the first does not have.
    """
    if first.classes is None:
        raise UserError(f"{flags[0]}: {first.name} has no labels: {_why_unlabelled(first)}")
    numbers = _numbers(first, flags[0])
    if second.classes is None:
        return _one_folder(second, numbers, first, flags[1])
    if first.classes == second.classes or isinstance(second, StreamSource):
        if first.classes != second.classes:
            raise UserError(f"{flags[1]}: {second.name} has other classes than {first.name}; stream shards of the same")
        return second
    labels = labels_of(second)
    used = np.unique(labels[labels >= 0]).tolist()
    named = {label: numbers.get(composed(second.classes[label])) for label in used}
    if others := [second.classes[label] for label in used if named[label] is None]:
        raise UserError(f"{flags[1]}: {second.name} has other classes than {flags[0]}: {_unknown(others, used, first)}")
    table = np.full(len(second.classes) + 1, -1)  # the last one is for -1
    table[used] = [named[label] for label in used]
    return Relabelled(second, table[labels], first.classes)


def composed(name: str) -> str:
    """A name in the form in which equal ones are equal: macOS stores an accent apart from its letter."""
    return unicodedata.normalize("NFC", name)


def remarks(train: ByteSource, val: ByteSource, leave_one_out: bool = False) -> list[str]:
    """What a reader of figures should know: images without a label, classes without images, two sets that are one."""
    found, labels = [], []
    for source in (train, val):
        labels.append(labels_of(source) if not isinstance(source, StreamSource) else np.empty(0, np.int64))
        if missing := int((labels[-1] < 0).sum()):
            found.append(f"left out: {missing:,} of {len(source):,} images of {source.name}, which have no label")
    for source, own in zip((train, val), labels):
        absent = np.setdiff1d(np.arange(len(train.classes)), own)
        if len(own) and len(absent):
            names = _some([train.classes[label] for label in absent])
            found.append(f"{source.name} has no image of {len(absent):,} of {len(train.classes):,} classes: {names}")
    from .leakage import leak_remarks  # and with it numba's compiled search: 0.25 s of a core that few runs need

    found += leak_remarks(train, val)
    if not leave_one_out and same_images(train, val):
        found.append(f"{val.name} holds the images of {train.name}: these figures are of images that were learned from")
    return found


def same_images(first: ByteSource, second: ByteSource) -> bool:
    """Whether two sets hold the same images in the same order, to judge by their number and the bytes of a few."""
    if len(first) != len(second) or isinstance(first, StreamSource) or isinstance(second, StreamSource):
        return False
    try:
        places = range(0, len(first), -(-len(first) // _COMPARED))
        return all(bytes(memoryview(first.read(place))) == bytes(memoryview(second.read(place))) for place in places)
    except OSError:
        return False


def _numbers(source: ByteSource, flag: str) -> dict[str, int]:
    """Name -> label of the classes."""
    numbers: dict[str, int] = {}
    for label, name in enumerate(source.classes):
        if numbers.setdefault(composed(name), label) != label:
            how = "that only differ in how accents are stored" if source.classes.count(name) == 1 else "of one name"
            raise UserError(f"{flag}: {source.name} has two classes {name!r} {how}; put their images together")
    return numbers


def _one_folder(source: ByteSource, numbers: dict[str, int], train: ByteSource, flag: str) -> ByteSource:
    """A folder with one class folder in it, which by itself tells no classes apart."""
    keys = [source.key(index) for index in range(len(source))] if isinstance(source, FolderSource) else [""]
    folders = {key.partition("/")[0] for key in keys}
    number = numbers.get(composed(next(iter(folders)))) if len(folders) == 1 else None
    if number is None or "/" not in keys[0]:
        raise UserError(f"{flag}: {source.name} has no labels: {_why_unlabelled(source)}")
    return Relabelled(source, np.full(len(source), number), train.classes)


def _why_unlabelled(source: ByteSource) -> str:
    """What keeps a source from having labels, and what to do."""
    if isinstance(source, ListSource):
        return "no line of the list has one; write 'path label' in each line"
    if not isinstance(source, FolderSource):
        return "give shards or a folder of images with a folder per class, or a list with labels"
    keys = [source.key(index) for index in range(len(source))]
    loose = [key for key in keys if "/" not in key]
    if loose and len(loose) < len(keys):
        return (
            f"{len(loose):,} images, such as {loose[0]!r}, lie beside its folders; put them into those of their classes"
        )
    if loose:
        return "its images lie in no folders; give a folder per class"
    folder = keys[0].partition("/")[0]
    return f"all of its images lie in one folder, {folder!r}; give the folder that holds a folder per class"


def _unknown(others: Sequence[str], used: Sequence[int], train: ByteSource) -> str:
    """Which classes are none of the training set's, and what to do."""
    text = f"{_some(others)}, where {train.name} has {_some(train.classes)}"
    digits = [all(name.isdigit() for name in names) for names in (others, train.classes)]
    if digits[0] != digits[1]:
        which = "names and not numbers" if digits[1] else "numbers and not names"
        return f"{text}; they are {which}: make both sets alike, by headrace shard, or list:FILE?classes=NAMES"
    near = difflib.get_close_matches(others[0], train.classes, n=1)
    if near and len(others) < len(used):
        return f"{text}; is {others[0]!r} {near[0]!r}? Rename it, or leave its images out"
    return f"{text}; leave the images of {len(others):,} of its {len(used):,} classes out, or train on such images, too"


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")
