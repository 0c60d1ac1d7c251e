"""Tables and plots of the README and of docs, out of the ledger: ``python -m headrace.benchmarks.report``.

What stands between ``<!-- ledger: NAME -->`` and ``<!-- end -->`` on a page is replaced by the table of that name, see
`ledger.TABLES`, and the plots in docs/images are drawn anew where their rows have changed. ``--check`` writes nothing,
and ends with 1 if a page or a plot is not what the ledger gives.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

import headrace
from headrace.errors import UserError, run_command

from .jobs import CEILINGS, DECODED
from .ledger import JOBS, TABLES, facts, latest, machine
from .peers import PEERS
from .racers import MODEL_ONLY, SYSTEMS
from .record import RESULTS, read

ROOT = Path(headrace.__file__).parent
PAGES = (
    "README.md",
    "docs/benchmarks.md",
    "docs/evaluation.md",
    "docs/know.md",
    "docs/meters.md",
    "docs/race.md",
    "benchmarks/board.md",
)
IMAGES = "docs/images"
PANELS = {  # ledger -> the jobs that are drawn
    "loaders": ("mae", "two-views", "multicrop", "eval"),
    "race": ("simclr-32", "simclr-224", "mae-32", "mae-224", "dino-224", "mixmim-128"),
}
_ROW = 4  # panels beside each other, at the most
_BLOCK = re.compile(r"(<!-- ledger: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_TEXT, _BARS, _PEERS, _CEILINGS = "#7d8590", "#2f81f7", "#9198a1", "#9198a2"  # legible on white and on black


def page(text: str, folder: Path) -> str:
    """A page with the tables between its markers made anew. Raises `UserError` for a name that is no table's."""

    def table(match: re.Match) -> str:
        if match[2] not in TABLES:
            raise UserError(f"report: there is no table {match[2]!r}; there are: {', '.join(TABLES)}")
        return "\n".join([match[1].rstrip(), "", *TABLES[match[2]](folder), "", match[3]])

    return _BLOCK.sub(table, text)


def plotted(folder: Path) -> dict[str, list[dict]]:
    """File name of a plot -> the rows in it: of our machine with the most rows, the last run of each job."""
    found = {}
    for ledger, shown in PANELS.items():
        if machines := latest(read(ledger, folder)):
            jobs = max(machines.values(), key=lambda jobs: sum(map(len, jobs.values())))
            found[f"{ledger}.png"] = [row for job in shown for row in jobs.get(job, [])]
    return found


def digest(rows: Sequence[dict]) -> str:
    keys = ("job", "contender", "images_per_second", "p20", "p80")
    shown = [[facts(row)[key] for key in keys] for row in rows]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


def plot(rows: Sequence[dict], path: Path) -> None:
    """Bars of images/s, a panel for each job: ours, others, and what there is to gain at the most."""
    jobs = list(dict.fromkeys(row["job"] for row in rows))
    tall = -(-len(jobs) // _ROW)
    wide = -(-len(jobs) // tall)
    longest = max(len({row["contender"] for row in rows if row["job"] == job}) for job in jobs)
    size = (3.1 * wide, tall * (0.9 + 0.25 * longest))
    figure, panels = plt.subplots(tall, wide, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat[len(jobs) :]:
        panel.set_axis_off()
    for panel, job in zip(panels.flat, jobs):
        own = [row for row in rows if row["job"] == job and _kind(row["contender"]) is not None]
        own.sort(key=lambda row: (_kind(row["contender"]) == _CEILINGS, -row["images_per_second"]))
        names, rates = [row["contender"] for row in own], [row["images_per_second"] for row in own]
        errors = [
            [row["images_per_second"] - row["p20"] for row in own],
            [row["p80"] - row["images_per_second"] for row in own],
        ]
        places = range(len(own))
        kinds = [_kind(name) for name in names]
        faces = ["none" if kind == _CEILINGS else kind for kind in kinds]
        panel.barh(places, rates, xerr=errors, color=faces, edgecolor=kinds, height=0.72, ecolor=_TEXT)
        for place, row in zip(places, own):
            rate, end = row["images_per_second"], max(row["p80"], row["images_per_second"])
            panel.text(end, place, f"  {rate:,.{1 if rate < 10 else 0}f}", va="center", color=_TEXT, fontsize=8)
        panel.set_yticks(places, names, fontsize=8, color=_TEXT)
        panel.invert_yaxis()
        panel.set_xlim(0, 1.3 * max(rates))
        panel.set_xticks([])
        name = own[0]["config"].get("title") or JOBS.get(job, (job,))[0]
        panel.set_title(name, fontsize=10, color=_TEXT)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    outlined = any(_kind(row["contender"]) == _CEILINGS for row in rows)
    title = f"images per second, {machine(facts(rows[0]))}" + "; outlined: ceilings, in the same run" * outlined
    figure.suptitle(title, fontsize=9, color=_TEXT)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, transparent=True, metadata={"Rows": digest(rows)})
    plt.close(figure)


def _kind(contender: str) -> str | None:
    if contender.endswith(MODEL_ONLY):
        return _CEILINGS if contender.startswith("headrace") else None
    if contender in PEERS or contender in SYSTEMS and contender != "headrace":
        return _PEERS
    if contender.startswith("headrace") and contender != DECODED:
        return _BARS
    return _CEILINGS if contender in CEILINGS[1:3] else None


def is_current(path: Path, rows: Sequence[dict]) -> bool:
    if not path.exists():
        return False
    with Image.open(path) as image:
        return image.info.get("Rows") == digest(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m headrace.benchmarks.report", description=__doc__.split(":")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the ledger (%(default)s)")
    args = parser.parse_args(argv)
    stale = []
    for name in PAGES:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        if (made := page(text, args.results)) != text:
            stale.append(name)
            if not args.check:
                path.write_text(made, encoding="utf-8")
    for name, rows in plotted(args.results).items():
        if not is_current(ROOT / IMAGES / name, rows):
            stale.append(f"{IMAGES}/{name}")
            if not args.check:
                plot(rows, ROOT / IMAGES / name)
    for name in stale:
        print(f"{name}: {'is not what the ledger gives' if args.check else 'made anew'}")
    return 1 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
