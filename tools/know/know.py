"""What is in a data set: ``headrace know <data>``. Near duplicates, images that are in other sets as well, outliers;
and columns of figures that the data plan filters by.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...cores import cores
from ...errors import UserError, notice
from ...pipelines.images.rules import add_rules, use_options
from ...pipelines.measure.store import AGAINST, FOLDER, Measured, Store, about
from ...pipelines.plan.columns import folder_beside, write_columns
from ...pipelines.sharding.progress import counter, part_of
from ...pipelines.sources import open_source, resolve
from ...pipelines.sources.stream import StreamSource
from ...pipelines.spec import ByteSource
from ...pipelines.workers import require_part, run_jobs
from ...places import new_file, new_folder, write_file
from .findings import Findings, Search, find

if TYPE_CHECKING:
    from .neighbours import ByEncoder  # torch, which only an encoder needs

_EPILOG = """\
The columns lie beside the images, in <data>/columns, where recipes find them: where: "not duplicate and width >= 160".
Where that cannot be written, and of sources with options, they go to <out>/columns, which a recipe names as its table.

An interrupted run continues when the same command is given again, and another one with other options measures nothing
anew. Several machines: start the same command everywhere with --part 0/N ... N-1/N and the same <out> on a shared disk;
whichever ends last makes table and page.
"""


def know(
    data: str | os.PathLike,
    against: Sequence[str] = (),
    *,
    out: str | os.PathLike = "know",
    search: Search | None = None,
    by_encoder: ByEncoder | None = None,
    workers: int | None = None,
    part: tuple[int, int] = (0, 1),
    pictures: bool = True,
    progress: bool = True,
) -> Findings | None:
    """Measures every image of `data`, and of the sets that it is held `against`; writes the table and `out`/know.html.

    `by_encoder`: what to ask an encoder's features, if any are to be made.
    `workers`: processes, by default one a core. `part` (i, n): of every n blocks of images, only the i-th; returns None
    while other parts are at work. Raises `UserError`; what was measured stays for the next run.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers: must be at least 1, not {workers}")
    require_part(part)
    out, source = Path(out).expanduser(), _opened(os.fspath(data), "data")
    others = [_opened(name, "--against") for name in against]
    table = table_of(os.fspath(data), out / "columns")
    places = [table, *(table_of(other, out / f"against-{number}") for number, other in enumerate(against))]
    found = [_measured(*job, workers, part, progress) for job in zip((source, *others), places)]
    if any(one is None for one in found):
        return None
    own = [(other, measured, about(other)) for other, measured in zip(others, found[1:])]
    meaning = None if by_encoder is None else _meaning(by_encoder, (source, *others), found)
    findings = find(source, found[0], own, search or Search(), meaning)
    try:
        write_columns(table, source, findings.columns)
        if own:
            overlaps = [{"data": o.source.name, "about": o.about, "found": o.theirs} for o in findings.overlaps]
            write_file(table / FOLDER / AGAINST, json.dumps(overlaps, indent=1).encode())
        from .know_page import render_know  # draws

        out.mkdir(parents=True, exist_ok=True)
        named = None if table == folder_beside(os.fspath(data)) else table
        write_file(out / "know.html", render_know(findings, named, pictures).encode("utf-8", "replace"))
    except OSError as fault:
        raise UserError(f"{out}: cannot be written ({fault.strerror or fault}); choose another --out") from None
    return findings


def _opened(name: str, what: str) -> ByteSource:
    source = open_source(name)
    if isinstance(source, StreamSource):
        raise UserError(f"{what}: {name}: a stream, whose images have no numbers; copy the shards to disk")
    seen = Counter(source.key(index) for index in range(len(source)))
    if twice := sum(count > 1 for count in seen.values()):
        key, count = seen.most_common(1)[0]
        notice(
            f"{source.name}: {twice:,} keys are of several images, such as {key!r} of {count}; columns tell them apart"
        )
    return source


def table_of(name: str, elsewhere: Path) -> Path:
    """Where the columns of a source go: beside its images, if there is one place for it that can be written to."""
    beside = folder_beside(name)
    nearest = beside if beside.is_dir() else beside.parent
    return beside if not resolve(name)[2] and os.access(nearest, os.W_OK) else elsewhere


def _measured(source: ByteSource, table: Path, workers, part, progress: bool) -> Measured | None:
    store = Store(table, source)
    try:
        store.begin()
        jobs = store.jobs(part)
        share = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        with counter(f"measuring {source.name}", sum(map(len, jobs)), progress and part[0] == 0) as count:
            run_jobs(store, jobs, max(1, min(workers or share, len(jobs))), count)
        return store.finish()
    except OSError as fault:
        hint = "mend that and run the same again, which keeps what is measured, or choose another --out"
        raise UserError(f"{table}: cannot be written ({fault.strerror or fault}); {hint}") from None


def _meaning(asked: ByEncoder, sources: Sequence[ByteSource], measured: Sequence[Measured]):
    from .neighbours import meaning, vectors_of

    vectors = [vectors_of(asked, *one) for one in zip(sources, (each.rows["readable"] for each in measured))]
    return meaning(asked, sources[0], measured[0].rows, vectors[0], vectors[1:])


def _encoder(given: argparse.Namespace) -> ByEncoder | None:
    if given.encoder is None:
        return None
    from ...train.evaluation.embed_encoder import load_encoder
    from .neighbours import COSINE, NEIGHBOURS, ByEncoder

    k = NEIGHBOURS if given.neighbours is None else given.neighbours
    cosine = COSINE if given.cosine is None else given.cosine
    if k < 1:
        raise UserError(f"--neighbours: must be at least 1, not {k}")
    if not 0 < cosine <= 1:
        raise UserError(f"--cosine: more than 0 and at most 1, not {cosine:g}")
    return ByEncoder(load_encoder(given.encoder), k, cosine, given.features, given.device)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace know",
        description="What is in a data set: near duplicates, leaks, outliers; as columns, JSON and a page.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("data", help="a folder of shards or of images, or any other source on disk")
    add(
        "--against",
        nargs="+",
        default=[],
        metavar="DATA",
        help="sets that must not share images with it, as validation",
    )
    add("--out", type=new_folder, default="know", help="folder of the page know.html (know)")
    add("--json", type=new_file, metavar="FILE", help="write all that was found there")
    add("--radius", type=int, default=Search.radius, metavar="BITS", help="in which hashes may differ (%(default)s)")
    add("--no-turns", action="store_true", help="mirror images and turns are no duplicates")
    add("--no-cuts", action="store_true", help="look for images as they are only, not for cut ones: 1.6 times as fast")
    add("--encoder", metavar="NAME", help="a run, timm:NAME and others, as for headrace embed: neighbours by meaning")
    add("--cosine", type=float, metavar="C", help="from which two images are near duplicates by it (0.95)")
    add("--neighbours", type=int, metavar="K", help="of each image that are looked at (20)")
    add("--features", type=new_folder, default="features", help="folder of cached features (features)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the encoder")
    add("--no-pictures", action="store_true", help="a page of figures alone")
    add("--workers", type=int, metavar="N", help="processes (one a core)")
    add("--part", metavar="I/N", help="measure only every N-th block: see below")
    add_rules(parser)
    given = parser.parse_args(argv)
    if given.encoder is None and not (given.cosine is given.neighbours is None):
        raise UserError("--cosine, --neighbours: are about an encoder's features; give --encoder")
    by_encoder = _encoder(given)
    use_options(given)  # instead of the encoder's own
    if not 0 <= given.radius <= 20:
        raise UserError(
            f"--radius: 0 to 20 bits, not {given.radius}; hashes of unlike images differ in about 20 and more"
        )
    part, start = part_of(given.part), time.monotonic()
    os.environ.pop("LOCAL_RANK", None)  # every part speaks for itself
    findings = know(
        given.data,
        given.against,
        out=given.out,
        search=Search(given.radius, not given.no_turns, not given.no_cuts),
        by_encoder=by_encoder,
        workers=given.workers,
        part=part,
        pictures=not given.no_pictures,
    )
    if findings is None:
        print(f"{given.data}: part {part[0]}/{part[1]} is measured; the table comes with the last part")
        return 0
    if given.json is not None:
        write_file(given.json, (json.dumps(findings.to_json(), indent=1) + "\n").encode("utf-8", "surrogateescape"))
    print("\n".join([*in_words(findings), f"{given.out / 'know.html'}: {time.monotonic() - start:,.1f} s"]))
    return 0


def in_words(findings: Findings) -> list[str]:
    """A line for each thing that was found."""
    count = len(findings.source)
    lines = [f"{findings.source.name}: {count:,} images, {len(findings.measured.bad):,} unreadable"]
    extra = int(findings.columns["duplicate"].sum())
    lines.append(f"near duplicates: {len(findings.groups):,} groups, {extra:,} images more than needed")
    for other in findings.overlaps:
        lines.append(f"in {other.source.name}: {other.theirs:,} of its {len(other.source):,} images")
    if findings.source.classes is not None:
        few = ", ".join(f"{name} ({count:,})" for name, count in findings.few[:10])
        lines.append(
            f"labels: {len(findings.conflicts):,} groups of several classes; classes of few images: {few or 'none'}"
        )
    if (found := findings.meaning) is not None:
        extra, by = int(findings.columns["embedding_duplicate"].sum()), found.asked.encoder.name
        lines.append(f"by {by}: {len(found.groups):,} groups of near duplicates, {extra:,} images more than needed")
        for other, pairs in zip(findings.overlaps, found.pairs):
            lines.append(f"by {by}: in {other.source.name}: {len(set(pairs[:, 1].tolist())):,} of its images")
        if findings.source.classes is not None:
            lines.append(f"by {by}: {len(found.doubts):,} labels that the nearest images do not have")
    told = [f"{rule.name} {len(rows):,}" for rule, rows in findings.rules if len(rows)]
    lines.append(f"unusual: {', '.join(told) or 'none'}")
    if findings.where:
        lines.append(f'where: "{findings.where}"')
    return lines
