"""``headrace embed``: features on disk, made once for an encoder, a data set and a view."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch

import headrace

from ...errors import ProcessError, UserError
from ...pipelines.sources import open_source
from ...pipelines.spec import ByteSource
from ...places import new_folder
from ..engine.distributed import ALONE, launch, pick_device
from .embed import Features, embed_batches
from .embed_encoder import Encoder
from .evaluate import add_arguments, encoder_of, options_of

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
    (N,) int64, keys.txt and about.json. For `options` see `embed_batches`; the features do not depend on them.
    """
    view = dataclasses.asdict(encoder.view)
    about = {"encoder": encoder.digest, "data": fingerprint(source), "view": view, "version": headrace.__version__}
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
    about = json.loads((place / "about.json").read_text(encoding="utf-8"))
    # mode c: torch wants writable memory; what is written there would not reach the file
    vectors, labels = (torch.from_numpy(np.load(place / f"{n}.npy", mmap_mode="c")) for n in ("features", "labels"))
    return Features(vectors, labels, about["left_out"], place)


def _write(place: Path, encoder: Encoder, source: ByteSource, about: dict, options: dict) -> None:
    temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
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
        if place.exists():  # without about.json: of a foreign hand
            shutil.rmtree(place)
        os.replace(temporary, place)
    except OSError as fault:
        raise UserError(f"{place}: the features could not be written ({fault}); free space or give another folder")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    for line in features.left_out:
        print(f"left out: {line}")
    return 0
