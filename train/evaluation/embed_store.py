"""``headrace embed``: features on disk, made once for an encoder, a data set and a view."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import hashlib
import json
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

import headrace

from ...errors import ProcessError, UserError
from ...pipelines.images.rules import rules
from ...pipelines.loaders.quarantine import MAX_BAD, Quarantine
from ...pipelines.sources import open_source
from ...pipelines.spec import ByteSource
from ...places import new_folder
from ..engine.distributed import ALONE, launch, pick_device
from .embed import Features, embed_batches
from .embed_encoder import Encoder
from .evaluate import add_arguments, encoder_of, options_of, say_left_out

_SAMPLED = 1024  # images whose bytes are looked at to tell data sets apart; of all others keys and labels


def fingerprint(source: ByteSource) -> str:
    """16 hexadecimal digits of what is in a source, wherever it lies: keys, labels, and the bytes of 1,024 images."""
    total = hashlib.sha256(json.dumps([len(source), source.classes]).encode())
    for index in range(len(source)):
        total.update(f"{source.key(index)}\n{source.label(index)}\n".encode("utf-8", "surrogateescape"))
    for index in range(0, len(source), max(1, len(source) // _SAMPLED)):
        try:
            total.update(memoryview(source.read(index)))
        except OSError as fault:  # an unreadable image is left out of the features, too
            total.update(str(fault).encode())
    return total.hexdigest()[:16]


def stored_features(encoder: Encoder, source: ByteSource, folder: Path, **options) -> Features:
    """Features as memory-mapped arrays from a folder of caches; computed if they are not there yet.

    Several processes compute a share each, and the first writes; all of them must see the folder.
    A cache appears under its name only when it is complete: ``<hash>/`` with features.npy (N, D) float32, labels.npy
    (N,) int64, keys.txt and about.json. Whoever makes the same one at the same time keeps the one that came first, and
    no complete one is ever taken away. For `options` see `embed_batches`; the features do not depend on them.
    """
    view = dataclasses.asdict(encoder.view)
    about = {"encoder": encoder.digest, "data": fingerprint(source), "view": view, "version": headrace.__version__}
    if rules().unusual:  # other pixels, other features
        about["rules"] = rules().unusual
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / name
    process = options.get("process", ALONE)
    known = process.gather((place / "about.json").exists())  # some may look a moment later than others
    if not all(known):
        about |= {"encoder_name": encoder.name, "data_name": source.name}
        if process.is_main:
            _write(place, encoder, source, about, options)
        else:
            for _ in embed_batches(encoder.module, source, encoder.view, [], **options):
                pass
        process.barrier()
        if not (place / "about.json").exists():
            raise ProcessError(f"{place}: not seen by process {process.rank}; all processes need the same folder")
    try:
        left_out = json.loads((place / "about.json").read_text(encoding="utf-8"))["left_out"]
        # mode c: torch wants writable memory; what is written there would not reach the file
        vectors, labels = (torch.from_numpy(np.load(place / f"{n}.npy", mmap_mode="c")) for n in ("features", "labels"))
        if len(vectors) != len(labels):
            raise ValueError(f"{len(vectors)} rows, {len(labels)} labels")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as fault:
        raise ProcessError(
            f"{place}: damaged features ({fault}); delete this folder, they are then made anew"
        ) from None
    limit = {"max_bad": options.get("max_bad", MAX_BAD), "setting": options.get("setting", "--max-bad")}
    Quarantine(source, **limit).check(len(source) - len(labels), left_out)  # whatever was allowed when they were made
    return Features(vectors, labels, left_out, place)


def _write(place: Path, encoder: Encoder, source: ByteSource, about: dict, options: dict) -> None:
    temporary = place.with_name(f"{place.name}.{uuid.uuid4().hex}.tmp")  # processes of several machines share numbers
    try:
        temporary.mkdir(parents=True)
        about = {**about, "left_out": []}
        kept: list[int] = []
        with open(temporary / "features.npy", "wb") as file:
            for ids, vectors in embed_batches(encoder.module, source, encoder.view, about["left_out"], **options):
                if not kept:
                    _header(file, 0, vectors.shape[1])
                kept += ids.tolist()
                file.write(vectors.contiguous().numpy().data)
            if not kept:
                raise UserError(f"{source.name}: not one image could be decoded; run headrace check on it")
            file.seek(0)
            _header(file, len(kept), vectors.shape[1])  # as long as the first: numpy leaves room for the number of rows
        np.save(temporary / "labels.npy", np.array([source.label(i) for i in kept], np.int64))
        (temporary / "keys.txt").write_text("".join(f"{source.key(i)}\n" for i in kept), "utf-8", "surrogateescape")
        (temporary / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        _publish(temporary, place)
    except OSError as fault:
        raise UserError(f"{place}: the features could not be written ({fault}); free space or give another folder")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, place: Path) -> None:
    """Gives a complete cache its name, unless another process has put the same one there in the meantime."""
    while not (place / "about.json").exists():
        try:
            temporary.rename(place)  # atomic; it fails where there is a folder with something in it
            return
        except OSError as fault:
            if fault.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        if not (place / "about.json").exists():  # of a foreign hand: no cache appears without it
            aside = temporary.with_suffix(".old")
            with suppress(FileNotFoundError):
                place.rename(aside)
                shutil.rmtree(aside) if aside.is_dir() else aside.unlink()


def _header(file, rows: int, width: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="headrace embed", description="Features of a data set, as numpy arrays.")
    add_arguments(parser)
    parser.add_argument("data", help="shards, a folder, or another source of images")
    parser.add_argument("--out", type=new_folder, default="features", help="folder of caches (features)")
    arguments = parser.parse_args(argv)
    encoder, source = encoder_of(arguments), open_source(arguments.data)
    with launch(pick_device(arguments.device)) as process:
        features = stored_features(encoder, source, arguments.out, **options_of(arguments, process))
    if not process.is_main:
        return 0
    rows, width = features.vectors.shape
    print(f"{features.place}: {rows:,} x {width:,} features of {source.name} by {encoder.name} ({encoder.digest})")
    if source.classes is not None and (unlabelled := int((features.labels < 0).sum())):
        print(f"{unlabelled:,} of them are of images without a label, which is -1 in labels.npy")
    say_left_out(features.left_out)
    return 0
