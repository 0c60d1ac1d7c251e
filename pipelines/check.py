"""Is a data set what it should be? ``headrace check <data>``: every byte against its checksum, every sample against
the indexes; with --decode, every image to its last pixel.

Tars are read as anybody may have made or damaged them: nothing in them is trusted, and nothing is written anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..cores import cores
from ..errors import UserError
from ..places import new_file
from .check_far import far_folder
from .check_tar import Problem, TarCheck
from .images.decode import DecodeError, decode, image_size
from .images.rules import add_rules, rules, use_options
from .measure.channels import Channels, measure_channels
from .pixels.check import sidecar_problems
from .range_use import small_range
from .sources import existing, open_source, read_manifest, resolve
from .sources.samples import SampleReader
from .sources.shards import FORMAT, INDEX, INDEX_FILE, MANIFEST, Tar, tars_in
from .sources.stream import SCHEMES, is_folder

if TYPE_CHECKING:
    from .spec import ByteSource

_TASK = 256  # images of a source without tars that a thread takes at a time


@dataclass
class Report:
    """What `check` found."""

    data: str
    decoded: bool
    shards: int = 0
    samples: int = 0
    bytes: int = 0
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what will not be read, or may not be meant; no fault in itself
    channels: Channels | None = None  # of deep images

    @property
    def sound(self) -> bool:
        return not self.problems

    def to_json(self) -> str:
        return json.dumps({"sound": self.sound} | asdict(self), indent=1)

    def __str__(self) -> str:
        """A table of the problems, the first fifty, the notes, and a summary."""
        rows = [(one.kind, one.shard, one.key, one.detail) for one in self.problems[:50]]
        kind, shard, key = (max((len(row[column]) for row in rows), default=0) for column in range(3))
        lines = [f"{row[0]:{kind}}  {row[1]:{shard}}  {row[2]:{key}}  {row[3]}" for row in rows]
        if len(self.problems) > len(rows):
            lines.append(f"and {len(self.problems) - len(rows):,} more")
        lines += self.notes
        lines += [] if self.channels is None else self.channels.lines()
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(one.kind for one in self.problems).items())
        shards = f" in {self.shards:,} shards" if self.shards else ""
        depth = "decoded" if self.decoded else "structure and checksums"
        rate = self.bytes / 1e6 / max(self.seconds, 1e-9)
        size = f"{self.bytes / 1e6:,.0f} MB, {self.seconds:,.1f} s, {rate:,.0f} MB/s"
        verdict = "sound" if self.sound else f"{len(self.problems):,} problems: {kinds}"
        return "\n".join([*lines, f"{self.data}: {self.samples:,} images{shards} ({depth}; {size}): {verdict}"])


def check(data: str | os.PathLike, decode: bool = False, workers: int | None = None) -> Report:
    """Looks at every shard of `data`, a folder of tars or one tar, in `workers` threads (one a core); at every image of
    any other source. `decode`: decodes every image.

    Raises `UserError` where there is no data set at all, or one that is still being written.
    """
    with contextlib.ExitStack() as stack:
        if is_folder(os.fspath(data)):
            image, (path, look_at) = "", stack.enter_context(far_folder(os.fspath(data)))
        else:
            (path, image), look_at = _tars_of(os.fspath(data)), TarCheck.check
        return _check(data, path, image, look_at, decode, workers or cores())


def _check(data, path: Path | None, image: str, look_at: Callable, decode: bool, workers: int) -> Report:
    start, report = time.monotonic(), Report(str(data), decode)
    manifest = _manifest(path, report.problems) if path and (path / MANIFEST).exists() else None
    tars = [] if path is None else tars_in(path) if path.is_dir() else [path]
    if manifest is not None:
        jobs = _ours(path, manifest, tars, report.problems)
    else:
        jobs = [TarCheck(tar, image=image) for tar in tars]
    with ThreadPoolExecutor(workers) as threads:
        if jobs or report.problems:
            report.shards = len(jobs)
            everything = SampleReader(image)
            for job in threads.map(lambda job: look_at(job, decode), jobs):
                report.samples += job.samples
                report.bytes += job.bytes
                report.problems += job.problems
                everything.add(job.reader)
                if not job.problems:  # pixels of what is damaged itself are nobody's
                    report.problems += _check_pixels(job, decode)
            report.notes += everything.notes()
            if manifest is None and not report.problems and (fault := everything.fault()):
                report.problems.append(Problem("member", "", "", fault))
        else:
            source = open_source(data, report.notes.append)
            tasks = (range(at, min(at + _TASK, len(source))) for at in range(0, len(source), _TASK))
            for size, problems in threads.map(lambda task: _check_images(source, task, decode), tasks):
                report.bytes += size
                report.problems += problems
            report.samples = len(source)
    if manifest is not None:
        _check_sequence(jobs, report.problems)
    if all(one.kind == "image" for one in report.problems):
        with contextlib.suppress(UserError):
            source = open_source(data, lambda note: None)
            report.notes += filter(None, [small_range(source)])
            report.channels = None if rules().channels is None else measure_channels(source)
    report.seconds = time.monotonic() - start
    return report


def _tars_of(data: str) -> tuple[Path | None, str]:
    """The folder or file whose tars are to be looked at, and the suffix of the member to read in them.

    None where the data are of another kind. `UserError` where there are none, or of several kinds.
    """
    path = Path(data).expanduser()
    if (path / MANIFEST).exists():  # perhaps damaged, and then nothing that could be opened
        return path, ""
    kind, place, options = ("", "", "") if data.startswith(SCHEMES) else resolve(data)
    if kind != "shards" or options and not re.fullmatch(r"image=[^&=]+", options):
        return None, ""
    return existing(place), options.removeprefix("image=")


def _manifest(folder: Path, problems: list[Problem]) -> dict | None:
    """Our manifest; None, perhaps with a problem, where it is not one that can be used."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError) as fault:
        problems.append(Problem("manifest", MANIFEST, "", f"cannot be read ({fault})"))
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        if (folder / INDEX_FILE).exists():
            problems.append(Problem("manifest", MANIFEST, "", f"its format is not {FORMAT}"))
        return None
    wanted = {"name": str, "samples": int, "bytes": int, "sha256": str}
    shards = manifest.get("shards")
    usable = isinstance(shards, list) and all(
        isinstance(one, dict) and all(isinstance(one.get(key), kind) for key, kind in wanted.items()) for one in shards
    )
    if not usable or not isinstance(manifest.get("version"), int):
        problems.append(Problem("manifest", MANIFEST, "", "its list of shards is damaged"))
        return None
    if names := [one["name"] for one in shards if one["name"] in ("", ".", "..") or set(one["name"]) & {"/", "\0"}]:
        problems.append(Problem("manifest", MANIFEST, names[0], "not the name of a file in this folder"))
        return None
    read_manifest(folder)  # its word on versions
    if sum(one["samples"] for one in shards) != manifest.get("samples"):
        problems.append(Problem("manifest", MANIFEST, "", "the samples of its shards do not add up"))
    return manifest


def _ours(folder: Path, manifest: dict, tars: list[Path], problems: list[Problem]) -> list[TarCheck]:
    entries = manifest["shards"]
    listed = {entry["name"] for entry in entries}
    problems += [Problem("extra", tar.name, "", f"not in {MANIFEST}") for tar in tars if tar.name not in listed]
    index = None
    try:
        index = np.load(folder / INDEX_FILE)
        if index.dtype != INDEX or index.ndim != 1:
            raise ValueError(f"of type {index.dtype}")
    except Exception as fault:  # NumPy's reader raises almost anything on hostile headers
        index = None
        problems.append(Problem("index", INDEX_FILE, "", f"cannot be read ({str(fault) or type(fault).__name__})"))
    if index is not None:
        if len(index) != manifest.get("samples"):
            detail = f"{len(index):,} rows, {MANIFEST} has {manifest.get('samples')} samples"
            problems.append(Problem("index", INDEX_FILE, "", detail))
        if len(index) and index["shard"].max() >= len(entries):
            problems.append(Problem("index", INDEX_FILE, "", "names a shard that there is none of"))
    rows = [None if index is None else index[index["shard"] == number] for number in range(len(entries))]
    return [TarCheck(folder / one["name"], one, part) for one, part in zip(entries, rows, strict=True)]


def _check_sequence(jobs: list[TarCheck], problems: list[Problem]) -> None:
    """Our keys ascend through all shards, so none is there twice."""
    last = ""
    for job in jobs:
        if job.keys:
            if job.keys[0] <= last:
                problems.append(Problem("order", job.path.name, job.keys[0], f"comes after {last} of an earlier shard"))
            last = max(last, job.keys[-1])


def _check_pixels(job: TarCheck, decoded: bool) -> list[Problem]:
    tar = Tar(job.path, job.samples, job.entry and job.entry["sha256"], job.reader.wanted)
    return [Problem("pixels", job.path.name, key, detail) for key, detail in sidecar_problems(tar, decoded)]


def _check_images(source: ByteSource, ids: range, decoded: bool) -> tuple[int, list[Problem]]:
    size, problems = 0, []
    for index in ids:
        try:
            data = source.read(index)
            size += len(data)
            decode(data) if decoded else image_size(data)
        except (OSError, DecodeError) as fault:
            problems.append(Problem("image", "", source.key(index), getattr(fault, "strerror", None) or str(fault)))
    return size, problems


def main(argv: list[str] | None = None) -> int:
    """``headrace check``: 0 for a sound data set, 1 with problems; `UserError` is 2."""
    parser = argparse.ArgumentParser(prog="headrace check", description=__doc__.split("\n\n")[0])
    parser.add_argument("data", help="a folder of shards, any folder of tars, one tar, or any other source")
    parser.add_argument("--decode", action="store_true", help="decode every image, too")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the whole report there")
    parser.add_argument("--workers", type=int, metavar="N", help="threads (one a core)")
    add_rules(parser)
    options = parser.parse_args(argv)
    use_options(options)
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers: must be at least 1, not {options.workers}")
    report = check(options.data, options.decode, options.workers)
    if options.json:
        try:
            options.json.write_text(report.to_json() + "\n", encoding="utf-8")
        except OSError as fault:
            raise UserError(f"{options.json}: cannot be written ({fault.strerror}); choose another file") from None
    print(report)
    return 0 if report.sound else 1
