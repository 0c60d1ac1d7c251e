"""ImageNet-1k (ILSVRC 2012) as it is kept: folders with lists, bare folders, or the official archives as they came.

ROOT/train/<wnid>/<wnid>_<n>.JPEG      1,281,167 images in 1,000 folders     or ILSVRC2012_img_train.tar
ROOT/val/ILSVRC2012_val_<8 digits>.JPEG    50,000 images, or a folder per wnid   or ILSVRC2012_img_val.tar
ROOT/meta/{train,val,test}.txt         lists ``path label``; labels of test, all 0 in the published list, are ignored
ROOT/meta/{1percent,10percent}.txt     names of labelled images, or train_1percent.txt ... with labels
ROOT/ILSVRC2012_devkit_t12.tar.gz      labels of val where meta/val.txt is missing

A label is the rank of the wnid among all: n01440764 is 0, n15075141 is 999.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...errors import UserError
from . import imagenet_tar
from .files import FileSource, text
from .folder import FolderSource, images_under
from .imagenet_tar import ImageNetTar
from .lists import check_first, class_names, read_lines, read_list
from .lookup import choice

SPLITS = ("train", "val", "test")
SUBSETS = ("1percent", "10percent")
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def open_imagenet(path: str | os.PathLike, *, split: str = "", subset: str = "") -> FileSource | ImageNetTar:
    """One split of ImageNet: `path` is its root, or one of the archives, which knows its split by itself.

    `split`: train (the default), val or test, the last without labels. `subset`: 1percent or 10percent of train, the
    images of SimCLR's semi-supervised lists.

    Raises `UserError` where images, lists or labels are missing.
    """
    path = Path(path)
    archive = path if path.is_file() else None
    if split:
        choice(path, "split", split, SPLITS)
    if archive is not None:
        found = imagenet_tar.split_of(archive)
        if split not in ("", found):
            raise UserError(f"{path}: the archive of {found}, not of {split}; leave split= out, or name the other one")
        split = found
    split = split or "train"
    root = path.parent if archive else path
    if subset:
        choice(path, "subset", subset, SUBSETS)
        if split != "train":
            raise UserError(f"{path}: subset={subset} is part of split=train, not of {split}; leave one of them out")
    folder = root / split
    if archive is None and not folder.is_dir():
        archive = next(iter(sorted(root.glob(f"ILSVRC2012_img_{split}*.tar"))), None)
        if archive is None:
            tar = f"ILSVRC2012_img_{split}.tar"
            raise UserError(f"{root}: neither a folder {split} nor {tar} in it; give the folder that holds one of them")
    if archive is not None:
        return _from_archive(archive, root, split, subset)
    return _from_folder(folder, root, split, subset)


def _from_archive(archive: Path, root: Path, split: str, subset: str) -> ImageNetTar:
    if split == "train":  # the archive ranks its wnids itself
        return imagenet_tar.open_train(archive, set(_subset_names(root, subset)[0]) if subset else None)
    return imagenet_tar.open_flat(archive, *(_val_labels(root) if split == "val" else (None, None)))


def _from_folder(folder: Path, root: Path, split: str, subset: str) -> FileSource:
    file, notes = root / "meta" / f"{split}.txt", []
    if subset:
        paths, labels = _subset(root, subset)
    elif file.exists():
        paths, labels = read_list(file, folder)
    elif split == "test":
        (paths, notes), labels = images_under(folder), None
    elif split == "train" or any(entry.is_dir() and entry.name[0] != "." for entry in os.scandir(folder)):
        return FolderSource(folder)
    else:
        paths, notes = images_under(folder)
        label_of, wnids = _val_labels(root)
        labels = np.array([label_of(text(path)) for path in paths], np.int32)
        return FileSource(folder, paths, labels, wnids, "list", notes)
    if split == "test" or labels is None:
        source = FileSource(folder, paths, notes=notes)
    else:
        source = FileSource(folder, paths, labels, _class_names(root, paths, labels), "list")
    check_first(source, file)
    return source


def _val_labels(root: Path) -> tuple[Callable[[str], int], list[str]]:
    """File name -> label, and the names of the classes: from meta/val.txt, else from the devkit."""
    file = root / "meta" / "val.txt"
    if file.exists():
        paths, labels = read_list(file, root / "val")
        if labels is None:
            raise UserError(f"{file}: no labels in it; give lines 'path label', or put {DEVKIT} into {root} instead")
        table = dict(zip((text(path).rpartition("/")[2] for path in paths), labels.tolist(), strict=True))

        def label_of(name: str) -> int:
            if name.rpartition("/")[2] not in table:
                raise UserError(f"{file}: no line for {name}; complete it, or put {DEVKIT} into {root} instead")
            return table[name.rpartition("/")[2]]

        return label_of, _class_names(root, paths, labels)
    if not (root / DEVKIT).exists():
        without = "for images without labels, name the folder or the tar itself as folder: or shards:"
        raise UserError(f"{root}: no labels for val; put meta/val.txt or {DEVKIT} there; {without}")
    from .devkit import Devkit

    devkit = Devkit(root / DEVKIT)
    return devkit.label, devkit.wnids


def _wnids(root: Path) -> list[str]:
    """All wnids in order: from meta/synsets.txt, else the folders of train; none where neither is there."""
    file, train = root / "meta" / "synsets.txt", root / "train"
    if file.exists():
        return sorted(read_lines(file))
    if train.is_dir():
        return sorted(entry.name for entry in os.scandir(train) if entry.is_dir() and entry.name[0] != ".")
    return []


def _class_names(root: Path, paths: list[bytes], labels: np.ndarray) -> list[str]:
    """All wnids, where they reach to the highest label and agree with the list; else what the list itself tells."""
    names, wnids = class_names(paths, labels), _wnids(root)
    agreed = all(name in (wnid, str(label)) for label, (name, wnid) in enumerate(zip(names, wnids, strict=False)))
    return wnids if agreed and len(wnids) >= len(names) else names


def _subset_names(root: Path, subset: str) -> tuple[list[bytes], np.ndarray | None, Path]:
    """File names ``<wnid>_<n>.JPEG``, labels where the list has them, and the list."""
    labelled, bare = root / "meta" / f"train_{subset}.txt", root / "meta" / f"{subset}.txt"
    file = labelled if labelled.exists() else bare
    if not file.exists():
        raise UserError(f"{root}: subset={subset} needs meta/{bare.name}, SimCLR's list of file names; put it there")
    paths, labels = read_list(file, root / "train")
    return [path.rpartition(b"/")[2] for path in paths], labels, file


def _subset(root: Path, subset: str) -> tuple[list[bytes], np.ndarray]:
    """Paths in train and labels; without labels in the list, the rank of the wnid that a file's name begins with."""
    names, labels, file = _subset_names(root, subset)
    wnids = [name.partition(b"_")[0] for name in names]
    if labels is None:
        rank = {os.fsencode(wnid): label for label, wnid in enumerate(_wnids(root))}
        if unknown := next((name for name, wnid in zip(names, wnids, strict=True) if wnid not in rank), None):
            raise UserError(f"{file}: {text(unknown)} is of no class in {root / 'train'}; is it for another data set?")
        labels = np.array([rank[wnid] for wnid in wnids], np.int32)
    return [b"/".join(pair) for pair in zip(wnids, names, strict=True)], labels
