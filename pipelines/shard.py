"""Any source of images -> WebDataset tars with an index: ``headrace shard <source> <out>``.

The format is that of `sources/shards.py`. The result is a function of the source and the options alone: any number of
workers, of parts and of interruptions writes the same bytes. `sharding/` does the work.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..cores import cores
from ..errors import UserError
from .images.encode import Encoding
from .images.rules import add_rules, use_options
from .pixels.layout import FORMATS, Request
from .remote.cache import ShardCache
from .remote.stores import SCHEMES, open_store
from .sharding.measured import publish_measurements, without_near_duplicates
from .sharding.plan import Plan, ShardOptions, Survey, differences, make_plan, survey, without_duplicates
from .sharding.progress import counter, part_of
from .sharding.upload import finished, upload
from .sharding.workspace import Workspace
from .sharding.writer import ShardJob, ShardWriter
from .sources import open_source, read_manifest
from .sources.folder import FolderSource
from .sources.shards import FORMAT, MANIFEST, VERSION, ShardSource
from .sources.subset import Subset
from .workers import require_part, run_jobs

if TYPE_CHECKING:
    from .spec import ByteSource

_EPILOG = """\
An interrupted run continues where it stopped when the same command is given again: finished shards are kept, and the
result is the same to the byte. Arguments or a source that have changed since are an error that tells the difference.

Several machines: start the same command everywhere with --part 0/N ... N-1/N and the same <out> on a shared disk. Under
torchrun, RANK and WORLD_SIZE say the part; in a Slurm array of N tasks write
--part $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT. The parts need not run at the same time. Whichever ends last writes
index.npy and dataset.json; if some were killed, run them again, or once with --part 0/1, which does what is missing.

--format ffcv writes <out> as one .beton for the FFCV library: fields image (an RGBImageField: JPEG bytes are copied,
anything else becomes a JPEG) and label (an IntField, -1: none). It is written in one go, and cannot be continued.
"""


def shard(
    source: str | os.PathLike,
    out: str | os.PathLike,
    options: ShardOptions | None = None,
    *,
    workers: int | None = None,
    skip_bad: bool = False,
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> dict | None:
    """Writes the images of `source`, whatever `open_source` takes, into tars in `out`; returns the manifest.

    `out` is a folder, or the address of one in an object store: then the shards are written on this machine first.
    `workers`: processes, by default one a core. An image that is unreadable or incomplete is an error that lists all of
    them, unless `skip_bad` leaves them out. `part` (i, n): of every n shards, only the i-th; returns None while other
    parts still have shards to write. A data set that is finished already is returned as it is.

    Raises `UserError`; then finished shards stay for the next run of the same, and without one `out` is as before.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers: must be at least 1, not {workers}")
    require_part(part)
    if isinstance(out, str) and out.startswith(SCHEMES):
        if part != (0, 1):
            raise UserError("--part: parts share a disk; shard to one, and copy the finished folder")
        return _shard_away(source, out, options, workers=workers, skip_bad=skip_bad, progress=progress)
    out, source, options = Path(out).expanduser(), open_source(source), options or ShardOptions()
    scanned = source.root.resolve() if isinstance(source, (FolderSource, ShardSource)) else None
    if scanned is not None and scanned.is_dir() and out.resolve().is_relative_to(scanned):
        raise UserError(f"{out}: lies inside the source {source.name}; write the shards somewhere else")
    seen, workspace = survey(source, options), None
    try:
        workspace = Workspace(out, options.prefix)
        if (manifest := _complete(out, seen)) is not None:
            publish_measurements(out, workspace)  # a run may have been killed just before it did so
            workspace.remove()
            return manifest
        workspace.begin(seen)
        kept = np.arange(len(source))
        share = workers or cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if options.drop_duplicates or options.drop_near_duplicates:
            kept = workspace.kept(lambda: _kept(source, seen, workspace, options, share, progress))
        plan = make_plan(seen.sizes, kept, bool(source.classes), options)
        jobs = _jobs(plan, seen, workspace, part, progress)
        if options.encoding.max_side is None:  # else the sizes are known afterwards
            _check_space(out, int(plan.bytes[[job.number for job in jobs]].sum()))
        with counter("sharding", sum(len(job.ids) for job in jobs), progress) as count:
            writer = ShardWriter(source, workspace, options.encoding, skip_bad, options.measure)
            bad = run_jobs(writer, jobs, max(1, min(share, len(jobs))), count)
        if bad and not skip_bad:
            raise UserError(_bad_images(source, plan, bad, "mend or remove them, or leave them out with --skip-bad"))
        if all(workspace.finished(number) for number in range(len(plan))):
            return _finish(source, seen, plan, workspace, options, skip_bad)
        return _complete(out, seen)  # another part may have tidied up the records just now
    except OSError as fault:
        if isinstance(fault, FileNotFoundError) and (manifest := _complete(out, seen)) is not None:
            return manifest  # another part took the last steps at the same time
        hint = "mend that and run the same again, which keeps the finished shards, or choose another place"
        raise UserError(f"{out}: cannot write the shards ({fault.strerror or fault}); {hint}") from None
    finally:
        if workspace is not None:
            workspace.give_up()


def _shard_away(source: str | os.PathLike, out: str, options: ShardOptions | None, **rest) -> dict:
    """Shards into a folder of this machine's cache, then uploads that. Interrupted, it goes on in either part."""
    store, options = open_store(out), options or ShardOptions()
    if options.measure:
        raise UserError(f"--measure: {out}: columns lie beside shards on disk; shard to a folder, or leave it out")
    if (manifest := finished(store)) is not None:
        _require_same(out, survey(open_source(source), options), manifest)
        return manifest
    staged = ShardCache().folder.with_name("writing") / hashlib.sha256(store.address.encode()).hexdigest()[:32]
    manifest = shard(source, staged, options, **rest)
    upload(staged, store)
    shutil.rmtree(staged)
    return manifest


def _kept(source: ByteSource, seen: Survey, workspace: Workspace, options: ShardOptions, workers: int, shown: bool):
    """The ids that are no duplicates, of either kind: of images with equal bytes the first is looked at."""
    kept = without_duplicates(source, seen.sizes) if options.drop_duplicates else np.arange(len(source))
    if options.drop_near_duplicates:
        subset = source if len(kept) == len(source) else Subset(source, kept.tolist())
        kept = kept[without_near_duplicates(subset, workspace.folder, workers, shown)]
    return kept


def _complete(out: Path, seen: Survey) -> dict | None:
    """The manifest, if the data set is finished. Raises `UserError` if it is another one."""
    if not (out / MANIFEST).exists():
        return None
    manifest = read_manifest(out)
    if manifest is None:
        raise UserError(f"{out}: not empty ({MANIFEST}); choose another folder, or empty it first")
    _require_same(out, seen, manifest)
    return manifest


def _require_same(out: str | os.PathLike, seen: Survey, manifest: dict) -> None:
    """Raises `UserError` for a finished data set of another request."""
    if found := differences(seen.request, manifest.get("request", {})):
        found = "\n".join(f"  {line}" for line in found)
        raise UserError(
            f"{out}: holds a {MANIFEST}, a finished data set, made with other arguments or from another source:\n"
            f"{found}\nchoose another folder, or delete it first"
        )


def _jobs(plan: Plan, seen: Survey, workspace: Workspace, part: tuple[int, int], progress: bool) -> list[ShardJob]:
    """The shards of this part that are not finished yet."""
    ours = range(part[0], len(plan), part[1])
    jobs = []
    for number in ours:
        if not workspace.finished(number):
            start, end = plan.bounds[number : number + 2].tolist()
            jobs.append(ShardJob(number, start, plan.order[start:end], seen.sizes[plan.order[start:end]]))
    if progress and len(jobs) < len(ours):
        done = len(ours) - len(jobs)
        print(f"{workspace.out}: {done:,} of {len(ours):,} shards are finished already", file=sys.stderr)
    return jobs


def _check_space(out: Path, needed: int) -> None:
    if (free := shutil.disk_usage(out).free) < needed:
        raise UserError(f"{out}: needs {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; choose another disk")


def _finish(
    source: ByteSource, seen: Survey, plan: Plan, workspace: Workspace, options: ShardOptions, skip_bad: bool
) -> dict:
    """Publishes the data set, of whose shards every record is there; shards without an image are left out."""
    records = workspace.records(len(plan))
    filled = [number for number, record in enumerate(records) if record["samples"]]
    bad = sorted((int(plan.order[at]), at, reason) for record in records for at, reason in record["bad"])
    bad = [(at, reason) for _, at, reason in bad]
    if not filled:
        workspace.remove()
    if bad and not (skip_bad and filled):
        remedy = "nothing would be left" if skip_bad else "leave them out as before, with --skip-bad"
        raise UserError(_bad_images(source, plan, bad, remedy))
    names = {number: f"{options.prefix}-{at:06d}" for at, number in enumerate(filled)}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "samples": sum(record["samples"] for record in records),
        "bytes": sum(records[number]["bytes"] for number in filled),
        "classes": source.classes,
        "label_source": getattr(source, "label_source", "source" if source.classes else "none"),
        "seed": options.seed,
        "shards": [
            {"name": f"{name}.tar"} | {key: records[number][key] for key in ("samples", "bytes", "sha256")}
            for number, name in names.items()
        ],
        "skipped": [{"path": source.key(int(plan.order[at])), "reason": reason} for at, reason in bad],
        "duplicates": len(source) - len(plan.order),
        "request": seen.request,
    }
    workspace.publish(names, manifest)
    publish_measurements(workspace.out, workspace)
    workspace.remove()
    return manifest


def _bad_images(source: ByteSource, plan: Plan, bad: list[tuple[int, str]], remedy: str) -> str:
    lines = [f"{source.name}: {len(bad):,} of {len(source):,} files are no readable images:"]
    found = sorted((int(plan.order[at]), reason) for at, reason in bad)
    lines += [f"  {source.key(index)}: {reason}" for index, reason in found[:10]]
    lines += [f"  and {len(bad) - 10:,} more"] if len(bad) > 10 else []
    return "\n".join([*lines, remedy])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace shard",
        description="Pack images into WebDataset tars with an index.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", help="a folder of images (its first-level folders, if several, are the classes) or of tars, and more")
    add("out", help="a folder that is empty or does not exist yet, or one that an interrupted run left; or its "
        "address in an object store, s3://bucket/folder")  # fmt: skip
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shard-mb", type=int, metavar="N", help="MiB of a shard, at most, before --max-side (256)")
    size.add_argument("--shard-samples", type=int, metavar="N", help="images of a shard, instead")
    add("--max-side", type=int, metavar="N", help="shrink the longer side to N pixels and write upright JPEGs; "
        "JPEGs that are no larger keep their bytes")  # fmt: skip
    add("--quality", type=int, default=90, metavar="Q", help="of JPEGs that are written anew, 1..95 (%(default)s)")
    add("--drop-duplicates", action="store_true", help="of images with equal bytes, keep the source's first")
    add("--drop-near-duplicates", action="store_true", help="of images that show the same, keep the largest")
    add("--measure", action="store_true", help="write figures of every image as columns, for filters and headrace know")
    add("--verify", action="store_true", help="decode every image to its last pixel")
    add("--skip-bad", action="store_true", help="leave unreadable images out; dataset.json lists them")
    add("--workers", type=int, metavar="N", help="processes (one a core); any number writes the same")
    add("--part", metavar="I/N", help="write only every N-th shard, from the I-th: see below")
    add("--prefix", default="train", metavar="P", help="of the shards' names (%(default)s)")
    add_rules(parser)
    add("--format", choices=("webdataset", "ffcv"), default="webdataset", help="(%(default)s)")
    add("--pixels", choices=FORMATS, help="and then the pixels beside the tars, as headrace pixels does")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--seed", type=int, default=0, metavar="S", help="of the shuffling (%(default)s)")
    order.add_argument("--no-shuffle", dest="seed", action="store_const", const=None, help="keep the source's order")
    return parser


def main(argv: list[str] | None = None) -> int:
    """``headrace shard``; `errors.run_command` gives `UserError` and Ctrl-C their exit codes."""
    given = _parser().parse_args(argv)
    use_options(given)
    part = part_of(given.part)
    ffcv = given.format == "ffcv"
    if given.pixels and (ffcv or part[1] > 1):
        which = "--format ffcv" if ffcv else "--part"
        raise UserError(f"--pixels: not with {which}; run `headrace pixels` when the shards are complete")
    pixels = Request.usual(given.pixels) if given.pixels else None
    options = ShardOptions(
        shard_mb=given.shard_mb or (None if given.shard_samples else 256),
        shard_samples=given.shard_samples,
        prefix=given.prefix,
        seed=given.seed,
        drop_duplicates=given.drop_duplicates,
        drop_near_duplicates=given.drop_near_duplicates,
        measure=given.measure,
        encoding=Encoding(given.max_side, given.quality, plain_jpeg=ffcv, verify=given.verify),
    )
    start = time.monotonic()
    os.environ.pop("LOCAL_RANK", None)  # every part speaks for itself: its bad images are not those of the first
    if ffcv:
        if given.measure or given.drop_near_duplicates:
            which = "--measure" if given.measure else "--drop-near-duplicates"
            raise UserError(
                f"{which}: not with --format ffcv, which has no columns; shard first, then make one of the shards"
            )
        if part[1] > 1:
            raise UserError("--format ffcv: one process writes the file; start it once, without --part and torchrun")
        from .sharding.beton import write_beton

        print(write_beton(given.source, given.out, options, workers=given.workers, skip_bad=given.skip_bad))
        return 0
    manifest = shard(
        given.source,
        given.out,
        options,
        workers=given.workers,
        skip_bad=given.skip_bad,
        part=part,
        progress=part[0] == 0,
    )
    if manifest is None:
        print(f"{given.out}: part {part[0]}/{part[1]} is written; index.npy and dataset.json come with the last part")
        return 0
    seconds = time.monotonic() - start
    classes = f"{len(manifest['classes']):,} classes" if manifest["classes"] else "no labels"
    left_out = f"; {len(manifest['skipped']):,} bad images left out" if manifest["skipped"] else ""
    left_out += f"; {manifest['duplicates']:,} duplicates left out" if manifest["duplicates"] else ""
    print(
        f"{given.out}: {manifest['samples']:,} images ({classes}) in {len(manifest['shards']):,} shards, "
        f"{manifest['bytes'] / 1e6:,.0f} MB, {seconds:,.1f} s{left_out}",
        flush=True,
    )
    if pixels:
        from .pixels.command import write_pixels

        print(write_pixels(given.out, pixels, workers=given.workers))
    return 0
