"""What images are stored in; every source satisfies `spec.ByteSource`, and `open_source` finds it by a name.

folder.py, lists.py       image files at any depth, and image files that a list names
shards.py, beton.py       WebDataset tars, with our index or without; FFCV's files
imagenet.py               ILSVRC 2012 in folders; imagenet_tar.py: in its own archives; devkit.py, matlab.py: its labels
remote_shards.py          our shards behind an address, in exact order
parquet.py                images in a column of parquet files; hub.py: of a data set on Hugging Face
rasters.py                windows of large TIFFs
mds.py, litdata.py        MosaicML's and Lightning's shards, which are chunks.py; lmdb_values.py: values of a database
stream.py                 tars behind an address, for the loader that streams
places205.py, inaturalist.py, cifar.py, cue_conflict.py                        labelled sets
voc.py, coco.py, segmentation.py                                               sets with boxes and masks
files.py, mapped.py       the two tables behind all these: files under a root, byte ranges of large files
lookup.py, annotations.py, unpickle.py, png.py, tar.py, samples.py             formats and names
arrays.py, paths.py, dataset.py    what comes from Python: arrays, paths, a data set of torch.utils.data
class_numbers.py                   and their labels
subset.py                 some samples of another source
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...errors import UserError, notice
from ...outside import imported
from .folder import image_files
from .lookup import choice, existing
from .shards import read_manifest, tars_in
from .stream import SCHEMES, is_folder, open_stream

if TYPE_CHECKING:
    from ..spec import ByteSource


class _Kind(NamedTuple):
    module: str
    opener: str  # takes the path, and the kind's options as keywords
    marks: tuple[str, ...] = ()  # a folder that holds one of these is of this kind
    spellings: tuple[str, ...] = ()  # of the folder, which differ between published instructions


KINDS = {
    "folder": _Kind("folder", "FolderSource"),
    "shards": _Kind("shards", "ShardSource"),
    "list": _Kind("lists", "ListSource"),
    "imagenet": _Kind("imagenet", "open_imagenet", ("meta/train.txt", "ILSVRC2012_img_train.tar")),
    "places205": _Kind("places205", "Places205Source", ("trainvalsplit_places205",), ("Places205", "places205")),
    "inaturalist": _Kind("inaturalist", "INatSource", ("train2018.json",), ("iNaturalist2018", "inaturalist2018")),
    "cifar10": _Kind("cifar", "Cifar10Source", ("data_batch_1", "cifar-10-batches-py")),
    "cifar100": _Kind("cifar", "Cifar100Source", ("cifar-100-python",)),
    "voc": _Kind("voc", "VocSource"),
    "voc12aug": _Kind("segmentation", "Voc12AugSource"),
    "coco": _Kind("coco", "CocoSource"),
    "cityscapes": _Kind("segmentation", "CityscapesSource"),
    "ade20k": _Kind("segmentation", "Ade20kSource"),
    "cue_conflict": _Kind("cue_conflict", "CueConflictSource"),
    "beton": _Kind("beton", "BetonSource"),
    "parquet": _Kind("parquet", "ParquetSource"),
    "mds": _Kind("mds", "MdsSource"),
    "litdata": _Kind("litdata", "LitDataSource"),
    "lmdb": _Kind("lmdb_values", "LmdbSource", ("data.mdb",)),
    "raster": _Kind("rasters", "RasterSource"),
    "plan": _Kind(".plan.sets", "open_plan_file"),  # which opens sources in turn
}
_PARTS = ("classes", "__len__", "read", "label", "key", "size")  # of a `ByteSource`, beside its name
_KIND = re.compile(r"([A-Za-z][\w.]+):(.*)", re.DOTALL)  # a single letter is a drive


def open_source(name: str | os.PathLike, say: Callable[[str], None] = notice) -> ByteSource:
    """The source of that name: a path, whose contents tell what it is, or ``kind:path``, with ``?key=value&key=value``.

    Addresses, ``http://host/train-{000000..000099}.tar`` and ``pipe:command``, are streams: see stream.py.
    A path that exists is one, whatever colons it holds. Options are the keywords of the class behind the kind; a dotted
    kind, ``my_module.MySource:place``, is a class or function of one's own, and its place any text.

    What a source passes over (its `notes`) is told to `say`, line by line. Raises `UserError` where there is none, and
    where a folder could be read in two ways.
    """
    name = os.fspath(name)
    if is_folder(name):
        from .hub import open_far

        source = open_far(name)
    else:
        source = open_stream(name) if name.startswith(SCHEMES) else _open(name)
    notes = getattr(source, "notes", None)
    for note in notes if isinstance(notes, (list, tuple)) else ():  # somebody's own source may mean other things by it
        say(f"{source.name}: {note}")
    return source


def resolve(name: str) -> tuple[str, str, str]:
    """(kind, place, options) of what a name on this machine means: ``kind:place?options``, or a path with or without.

    Raises `UserError` for a path that does not exist, and for a folder that could be of several kinds.
    """
    if Path(name).expanduser().exists():
        return _kind_of(Path(name).expanduser()), name, ""
    path, mark, options = name.rpartition("?")
    if match := _KIND.fullmatch(name):
        kind, rest = match.groups()
        if Path(rest).expanduser().exists():
            return kind, rest, ""
        path, _, options = rest.partition("?")
        return kind, path, options
    if mark and Path(path).expanduser().exists():
        return _kind_of(Path(path).expanduser()), path, options
    existing(name)
    raise UserError(f"{name}: does not exist")


def _open(name: str) -> ByteSource:
    kind, place, query = resolve(name)
    if "." in kind:
        opener = imported(kind, name, what="source")
    else:
        entry = KINDS[choice(name, "kind of source", kind, KINDS)]
        opener = getattr(importlib.import_module(f".{entry.module}", __package__), entry.opener)
        place = existing(place, entry.spellings)
    told = name.startswith(f"{kind}:")
    valid = [p.name for p in inspect.signature(opener).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options: dict[str, str] = {}
    for option in query.split("&") if query else ():
        key, equals, value = option.partition("=")
        if key not in valid and not told:
            hint = f"put the kind in front, as in imagenet:{name}"
            raise UserError(f"{name}: {kind}, as which it would be read, has no option {key!r}; {hint}")
        choice(name, f"option for {kind}", key, valid)
        if not equals or not value or key in options:
            raise UserError(f"{name}: {key!r} needs one value, as in {key}=value")
        options[key] = value
    try:
        source = opener(place, **options)
    except OSError as fault:
        raise UserError(f"{name}: cannot be opened ({fault})") from None
    missing = [part for part in _PARTS if not hasattr(source, part)]
    if missing:
        raise UserError(f"{name}: {kind} gave no source of images, it lacks {', '.join(missing)}")
    if kind == "folder" and not told:
        source.refuse_splits()
    if told or query:
        source.name = name
    elif kind not in ("folder", "shards"):
        source.name = f"{kind}:{place}"
    return source


def _kind_of(path: Path) -> str:
    """The kind of something that exists, by what it holds."""
    if path.is_file():
        return _kind_of_file(path)
    if not path.is_dir():
        raise UserError(f"{path}: neither a folder nor a file; give a folder of images or of tars")
    if read_manifest(path) is not None:
        return "shards"
    marked = [kind for kind, entry in KINDS.items() if any((path / mark).exists() for mark in entry.marks)]
    if len(marked) > 1:
        raise UserError(f"{path}: could be {' or '.join(marked)}; put the kind in front, as in {marked[0]}:{path}")
    if marked:
        return marked[0]
    if tars_in(path):
        if image := next(image_files(path), None):
            image = image.decode("utf-8", "backslashreplace")
            raise UserError(f"{path}: holds tars, and images such as {image}; name the tar or the folder you mean")
        return "shards"
    return "folder"


def _kind_of_file(path: Path) -> str:
    if path.suffix == ".beton":
        return "beton"
    if path.suffix != ".tar":
        hint = "give a folder of images or of tars, or say what the file is, as in list:path"
        raise UserError(f"{path}: neither a folder nor a .tar or .beton; {hint}")
    from .imagenet_tar import holds_tars

    return "imagenet" if holds_tars(path) else "shards"
