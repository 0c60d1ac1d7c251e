"""A folder of images -> WebDataset tars with an index: ``headrace shard <folder> <out>``.

The format is that of `sources/shards.py`. Image bytes are copied unchanged. The result is a function of the files, the
seed and the shard size alone: any number of workers writes the same bytes. Everything is written inside
``<out>/.sharding`` and moved up at the end, `dataset.json` last, so nothing unfinished opens as a data set.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import UserError
from .sources import FolderSource, open_source, tar
from .sources.shards import FORMAT, INDEX_FILE, MANIFEST, UNFINISHED, VERSION
from .sources.writer import ShardPlan, WrittenShard, write_shards

_LABEL_BYTES = 2 * tar.BLOCK  # a `.cls` member: its header and one padded block


def shard(
    source_folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    shard_mb: int = 256,
    workers: int | None = None,
    prefix: str = "train",
    skip_bad: bool = False,
    shuffle_seed: int | None = 0,
    progress: bool = True,
) -> dict:
    """Writes the images under `source_folder` into tars of at most `shard_mb` MiB in `out`; returns the manifest.

    `workers`: processes, by default one a core. `shuffle_seed`: None keeps the order of the paths. A file that is no
    readable, complete image is an error that lists all of them, unless `skip_bad` leaves them out.

    Raises `UserError`; then `out` is as it was before.
    """
    if shard_mb < 1 or (workers is not None and workers < 1):
        raise UserError(f"shard_mb, workers: must be at least 1, not {shard_mb}, {workers}")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", prefix):
        raise UserError(f"prefix: letters, digits, _ and - only, not {prefix!r}")
    out, folder = Path(out).expanduser(), Path(source_folder).expanduser()
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out}: lies inside the source {folder}; write the shards somewhere else")
    source = open_source(folder)
    if not isinstance(source, FolderSource):
        raise UserError(f"{folder}: already in tars; give a folder of image files")
    order = np.arange(len(source))
    if shuffle_seed is not None:  # RandomState: its stream is frozen, so a seed means the same in every NumPy version
        order = np.random.RandomState(shuffle_seed).permutation(len(source))
    bounds, needed = _boundaries(source, order, shard_mb << 20)
    workers = min(workers or len(os.sched_getaffinity(0)), len(bounds) - 1)
    try:
        with _workspace(out, prefix) as workspace:
            if (free := shutil.disk_usage(workspace).free) < needed:
                sizes = f"needs {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free"
                raise UserError(f"{out}: {sizes}; choose another disk")
            plans = (
                ShardPlan(
                    workspace / f"{number}.tar",
                    [(at, source.path(order[at]), source.label(order[at])) for at in range(start, end)],
                )
                for number, (start, end) in enumerate(pairwise(bounds))
            )
            with _counter(len(source), progress) as count:
                written = write_shards(plans, workers, skip_bad, count)
            bad = sorted((int(order[at]), reason) for one in written for at, reason in one.bad)
            written = [one for one in written if len(one.rows)]
            if bad and not (skip_bad and written):
                raise UserError(_bad_files(source, bad, skip_bad))
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "samples": sum(len(one.rows) for one in written),
                "bytes": sum(one.bytes for one in written),
                "classes": source.classes,
                "label_source": source.label_source,
                "seed": shuffle_seed,
                "shards": [
                    {
                        "name": f"{prefix}-{number:06d}.tar",
                        "samples": len(one.rows),
                        "bytes": one.bytes,
                        "sha256": one.sha256,
                    }
                    for number, one in enumerate(written)
                ],
                "skipped": [{"path": source.key(index), "reason": reason} for index, reason in bad],
            }
            _publish(written, manifest, workspace, out)
    except OSError as fault:
        reason = fault.strerror or fault
        raise UserError(f"{out}: cannot write the shards ({reason}); mend that, or choose another place") from None
    return manifest


def _bad_files(source: FolderSource, bad: list[tuple[int, str]], skip_bad: bool) -> str:
    lines = [f"{source.name}: {len(bad):,} of {len(source):,} files are no readable images:"]
    lines += [f"  {source.key(index)}: {reason}" for index, reason in bad[:10]]
    lines += [f"  and {len(bad) - 10:,} more"] if len(bad) > 10 else []
    lines += ["nothing would be left" if skip_bad else "mend or remove them, or leave them out with --skip-bad"]
    return "\n".join(lines)


def _boundaries(source: FolderSource, order: np.ndarray, limit: int) -> tuple[list[int], int]:
    """Where shards begin in `order`, and where the last one ends; the bytes of all. From the file sizes alone."""
    bounds, filled, total = [0], len(tar.END), len(tar.END)
    for position, index in enumerate(order):
        try:
            size = os.stat(source.path(index)).st_size
        except OSError:  # the worker that reads it says why
            size = 0
        sample = tar.BLOCK + size + tar.padding(size) + (_LABEL_BYTES if source.classes else 0)
        if filled + sample > limit and position > bounds[-1]:
            bounds.append(position)
            filled = len(tar.END)
            total += len(tar.END)
        filled += sample
        total += sample
    return [*bounds, len(order)], total


@contextmanager
def _workspace(out: Path, prefix: str) -> Iterator[Path]:
    """``<out>/.sharding``, empty and locked. Removes what a killed run left in `out`; all of it if the body fails."""
    workspace, made = out / UNFINISHED, not out.exists()
    ours = re.compile(rf"{prefix}-\d{{6}}\.(tar|idx)|{re.escape(INDEX_FILE)}")  # only while the workspace is there
    present = set() if made else set(os.listdir(out))
    if MANIFEST in present:
        raise UserError(f"{out}: holds a {MANIFEST}, a finished data set; choose another folder, or delete it first")
    foreign = {name for name in present if UNFINISHED not in present or not ours.fullmatch(name)} - {UNFINISHED}
    if foreign:
        names = ", ".join(sorted(foreign)[:3])
        raise UserError(f"{out}: not empty ({names}); choose another folder, or empty it first")

    def clear() -> None:
        for file in (*out.iterdir(), *workspace.iterdir()):
            if file != workspace and (file.parent == workspace or ours.fullmatch(file.name)):
                file.unlink()

    workspace.mkdir(parents=True, exist_ok=True)
    lock = os.open(workspace, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another run is writing here; wait for it, or choose another folder") from None
        clear()
        try:
            yield workspace
        except BaseException:
            if not (out / MANIFEST).exists():
                clear()
                workspace.rmdir()
                if made:
                    out.rmdir()
            raise
        shutil.rmtree(workspace)
    finally:
        os.close(lock)


def _publish(written: list[WrittenShard], manifest: dict, workspace: Path, out: Path) -> None:
    """Numbers the shards, makes all files durable, moves them into `out`, and `dataset.json` after all the others."""
    rows = np.concatenate([one.rows for one in written])
    rows["shard"] = np.repeat(np.arange(len(written)), [len(one.rows) for one in written])
    np.save(workspace / INDEX_FILE, rows)
    (workspace / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    moves = {workspace / INDEX_FILE: out / INDEX_FILE}
    for one, entry in zip(written, manifest["shards"], strict=True):
        target = out / entry["name"]
        moves |= {one.tar: target, one.tar.with_suffix(".idx"): target.with_suffix(".idx")}
    for file in (*moves, workspace / MANIFEST):
        _sync(file)
    for file, target in moves.items():
        file.rename(target)
    _sync(out)
    (workspace / MANIFEST).rename(out / MANIFEST)
    _sync(out)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _counter(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A function that takes how many images were done since: a bar on a terminal, else a line every five seconds."""
    if shown and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            job = bar.add_task("", total=total)
            yield lambda images: bar.advance(job, images)
        return
    done, told, start = 0, time.monotonic(), time.monotonic()

    def line(images: int) -> None:
        nonlocal done, told
        done += images
        now = time.monotonic()
        if shown and now - told >= 5:
            rate = done / (now - start)
            print(f"sharding: {done:,} of {total:,} images, {rate:,.0f}/s", file=sys.stderr, flush=True)
            told = now

    yield line


def main(argv: list[str] | None = None) -> int:
    """``headrace shard``; `errors.run_command` gives `UserError` and Ctrl-C their exit codes."""
    parser = argparse.ArgumentParser(prog="headrace shard", description="Pack a folder of images into WebDataset tars.")
    parser.add_argument("folder", help="images at any depth; first-level folders, if several, are the classes")
    parser.add_argument("out", help="a folder that is empty or does not exist yet")
    parser.add_argument("--shard-mb", type=int, default=256, metavar="N", help="MiB in a shard, at most (%(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one a core); any number writes the same")
    parser.add_argument("--prefix", default="train", metavar="P", help="of the shards' names (%(default)s)")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out; dataset.json lists them")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--seed", type=int, default=0, metavar="S", help="of the shuffling (%(default)s)")
    order.add_argument("--no-shuffle", dest="seed", action="store_const", const=None, help="keep the paths' order")
    options = parser.parse_args(argv)
    start = time.monotonic()
    manifest = shard(
        options.folder,
        options.out,
        shard_mb=options.shard_mb,
        workers=options.workers,
        prefix=options.prefix,
        skip_bad=options.skip_bad,
        shuffle_seed=options.seed,
    )
    seconds = time.monotonic() - start
    classes = f"{len(manifest['classes']):,} classes" if manifest["classes"] else "no labels"
    skipped = f"; {len(manifest['skipped']):,} bad files left out" if manifest["skipped"] else ""
    print(
        f"{options.out}: {manifest['samples']:,} images ({classes}) in {len(manifest['shards']):,} shards, "
        f"{manifest['bytes'] / 1e6:,.0f} MB, {manifest['samples'] / seconds:,.0f} images/s{skipped}"
    )
    return 0
