"""Tables of the ledger's rows as Markdown, by name: `TABLES`. Figures are of one run each; nothing is estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

from .gate import PEER, recorded
from .jobs import CEILINGS, DECODED
from .kernels import markdown as kernel_table
from .peers import PEERS
from .record import read

Row = dict
NOT_YET = "Not measured yet."
OURS = "headrace cpu"
# job of loaders.py, what it is, whom we have to beat there by which factor
JOBS = {
    "mae": ("one view (MAE)", {"dali": 1.7}),
    "two-views": (
        "two views (MoCo v2)",
        {"albumentations": 2.0, "torchvision": 4.0, "torchvision v2": 4.0, "dali": 4.0},
    ),
    "multicrop": ("2 x 224 + 6 x 96 (SwAV)", {"albumentations": 2.2, "torchvision": 5.0, "torchvision v2": 5.0}),
    "eval": ("centre crop", {}),
    "mae-512": ("one view, images of 512 px", {"ffcv": 1.1}),
    "two-views-512": ("two views, images of 512 px", {}),
}
_FACTS = {"job", "contender", "time", "p20", "p80", "config", "run", "headrace", "commit", "python", "packages"}
_FACTS |= {"device", "cuda", "processes", "cores", "command", "kernels", "processor", "load", "differences"}


def facts(row: Row) -> Row:
    """A row with what it was measured with, and `job`, `contender` and `time`, in one form for rows of any age."""
    row = row | row.get("environment", {})
    row.setdefault("time", row.get("date"))
    row.setdefault("job", row.get("recipe") or row.get("work") or "")
    row.setdefault("contender", row.get("who") or "")
    row.setdefault("run", f"{row['commit']} {' '.join(row['command'])}")  # before runs had a name
    return row


def machine(row: Row) -> str:
    return row["device"] if row["cuda"] else f"{row['cores']} cores of {row.get('processor', 'an unknown processor')}"


def latest(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Machine -> job -> the rows of the last run of that job there, once for each contender."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in map(facts, rows):
        found.setdefault(machine(row), {}).setdefault(row["job"], []).append(row)
    for jobs in found.values():
        for job, own in jobs.items():
            last = {row["contender"]: row for row in own if row["run"] == own[-1]["run"]}
            jobs[job] = list(last.values())
    return found


def number(value: float) -> str:
    """Four digits, or all of a whole number."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"


def lines(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A Markdown table whose first columns are text."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def about(rows: Sequence[Row]) -> str:
    """When and with what rows of one machine were measured, all of it where that differs."""
    with_what = lambda row: f"torch {row['packages']['torch']}, {row['time'][:10]}, commit {row['commit'][:8]}"  # noqa: E731
    return f"{machine(rows[-1])}, {'; '.join(dict.fromkeys(map(with_what, rows)))}"


def loaders(rows: Sequence[Row]) -> list[str]:
    """Images/s of all contenders at all jobs; below, how many times as fast as the best peer we are."""
    out = []
    for jobs in latest(rows).values():
        shown = {job: {row["contender"]: row for row in jobs[job]} for job in JOBS if job in jobs}
        shown |= {job: {row["contender"]: row for row in jobs[job]} for job in jobs if job not in shown}
        names = list(dict.fromkeys(name for own in shown.values() for name in own))
        ours = [name for name in names if name.startswith("headrace") and name != DECODED]
        rate = lambda name: -max(own[name]["images_per_second"] for own in shown.values() if name in own)  # noqa: B023
        peers = sorted((name for name in names if name in PEERS), key=rate)
        ceilings = [name for name in (DECODED, *CEILINGS) if name in names]
        body = [[f"**{name}**", *(_rate(own.get(name)) for own in shown.values())] for name in ours]
        body += [[name, *(_rate(own.get(name)) for own in shown.values())] for name in peers]
        body.append(["**ours over the best peer**", *(f"**{best(own)}**" for own in shown.values())])
        body += [[f"*{name}*", *(_rate(own.get(name)) for own in shown.values())] for name in ceilings]
        config = next(iter(jobs.values()))[0]["config"]
        out += [
            f"{about([row for own in jobs.values() for row in own])}; "
            f"{config['images']:,} images, {config['workers']} workers.",
            "",
        ]
        out += [*lines(["images/s, median (p20-p80)", *map(_title, shown)], body), ""]
    return out[:-1]


def _title(job: str) -> str:
    return JOBS.get(job.removesuffix("-cold"), (job,))[0]


def _rate(row: Row | None) -> str:
    return f"{row['images_per_second']:,.0f} ({row['p20']:,.0f}-{row['p80']:,.0f})" if row else ""


def over(own: dict[str, Row], peer: str) -> float:
    """How many times the peer's images/s ours has, in the same run."""
    return own[OURS]["images_per_second"] / own[peer]["images_per_second"]


def best(own: dict[str, Row]) -> str:
    peers = [name for name in own if name in PEERS]
    if OURS not in own or not peers:
        return ""
    first = max(peers, key=lambda name: own[name]["images_per_second"])
    return f"{over(own, first):.2f} x {first}"


def targets(rows: Sequence[Row], folder: Path) -> list[str]:
    """What was aimed at, what was measured on CPUs, and whether that is enough."""
    body = []
    for name, jobs in latest(rows).items():
        for job, (what, wanted) in JOBS.items():
            own = {row["contender"]: row for row in jobs.get(job, [])}
            peers = [peer for peer in own if peer in PEERS and peer not in wanted]
            for peer, factor in wanted.items():
                if peer in own and OURS in own:
                    found = over(own, peer)
                    body.append([f"{what}: {factor:g} x {peer}", f"{found:.2f} x", met(found >= factor), name])
                else:
                    body.append([f"{what}: {factor:g} x {peer}", NOT_YET, "", name])
            if peers and OURS in own:
                worst = min(peers, key=lambda peer: over(own, peer))
                found = over(own, worst)
                body.append([f"{what}: ahead of all others", f"{found:.2f} x {worst}", met(found > 1), name])
    for row in map(facts, read("overhead", folder)[-1:]):
        body.append(["loop: less than 1 % of a step", f"{row['share']:.2%}", met(row["share"] < 0.01), machine(row)])
    on_gpu = [row for row in map(facts, read("steps", folder)) if row["cuda"] and row["contender"].startswith("real")]
    for row in on_gpu:
        enough = met(row["data_wait"] < 0.02)
        body.append([f"{row['job']}: waits for data < 2 %", f"{row['data_wait']:.2%}", enough, machine(row)])
    if not on_gpu:
        body.append(["SimCLR-R50, MAE-B, MixMIM-B on a GPU: wait for data < 2 %", NOT_YET, "", ""])
    in_ten = "CIFAR-10 in ten minutes on a GPU: k-NN >= 88, linear >= 90"
    runs = [row for row in map(facts, read("speedrun", folder)) if row["cuda"] and row["budget"] <= 600]
    for row in runs[-1:]:
        enough = met(row["in_time"] and row["knn"] >= 88 and row["linear"] >= 90)
        body.append([in_ten, f"{row['knn']:.1f}, {row['linear']:.1f}", enough, machine(row)])
    if not runs:
        body.append([in_ten, NOT_YET, "", ""])
    return lines(["target", "measured", "met", "on"], body, left=4)


def met(enough: bool) -> str:
    return "yes" if enough else "no"


def plain(rows: Sequence[Row]) -> list[str]:
    """Any ledger whose rows have `job`, `contender`, one figure with p20 and p80, and further numbers."""
    out = []
    for jobs in latest(rows).values():
        last = [row for own in jobs.values() for row in own]
        keys = list(dict.fromkeys(key for row in last for key, value in row.items() if _is_figure(key, value)))
        main = {row["contender"] + row["job"]: _figure(row) for row in last}
        body = []
        for row in last:
            cells = [row["job"], row["contender"]]
            for key in keys:
                text = number(row[key]) if _is_figure(key, row.get(key)) else ""
                if main[row["contender"] + row["job"]] == key:
                    text += f" ({number(row['p20'])}-{number(row['p80'])})"
                cells.append(text)
            body.append(cells)
        out += [f"{about(last)}.", "", *lines(["", "", *(key.replace("_", " ") for key in keys)], body, left=2), ""]
    return out[:-1]


def _is_figure(key: str, value: object) -> bool:
    return key not in _FACTS and isinstance(value, int | float) and not isinstance(value, bool)


def _figure(row: Row) -> str | None:
    """The key of what p20 and p80 belong to: it stands before them."""
    keys = list(row)
    return keys[keys.index("p20") - 1] if "p20" in row else None


def shard(rows: Sequence[Row]) -> list[str]:
    row = facts(rows[-1])
    size = row["config"]["bytes"]
    body = [
        [
            name,
            f"{figure['seconds']:.2f} ({figure['min']:.2f}-{figure['max']:.2f})",
            f"{size / figure['seconds'] / 1e6:,.0f}",
        ]
        for name, figure in row["seconds"].items()
    ]
    files = f"{row['config']['files']:,} images, {size / 1e6:,.0f} MB"
    return [f"{about([row])}; {files}.", "", *lines(["", "seconds, median (least-most)", "MB/s"], body)]


def gate(rows: Sequence[Row]) -> list[str]:
    """What the gate compares with, for every job and processor."""
    body = []
    for job in dict.fromkeys(row["job"] for row in rows):
        for processor in dict.fromkeys(row["processor"] for row in rows if row["job"] == job):
            own = recorded(rows, job, processor)
            ratio = f"{own['ratio']:.2f} ({own['p20']:.2f}-{own['p80']:.2f})"
            body.append([job, PEER, processor, own["day"], str(own["rows"]), ratio])
    return lines(["job", "peer", "processor", "day", "runs", "ratio (p20-p80), medians"], body, left=4)


def demo(rows: Sequence[Row]) -> list[str]:
    """The demo's closing table, and how long all of it took."""
    row = facts(rows[-1])
    figures = {key: value for key, value in row.items() if _is_figure(key, value) and key != "seconds"}
    width = max(map(len, figures))
    body = [f"  {name:<{width}}  {value:6.1f}%" for name, value in figures.items()]
    return ["```", row["contender"], *body, f"in {row['seconds']:.0f} s on {machine(row)}", "```"]


def kernels(folder: Path) -> list[str]:
    files = sorted(folder.glob("kernels-*.jsonl"))
    return kernel_table(files[-1].read_text(encoding="utf-8").splitlines()).splitlines() if files else [NOT_YET]


def _of(ledger: str, form: Callable = plain, keep: Callable[[Row], bool] = lambda row: True) -> Callable:
    def made(folder: Path) -> list[str]:
        rows = [row for row in read(ledger, folder) if keep(row)]
        return form(rows) if rows else [NOT_YET]

    return made


def _steps(folder: Path) -> list[str]:
    rows = read("steps", folder)
    if not rows:
        return [NOT_YET]
    return plain(rows) + ([] if any(row["cuda"] for row in rows) else ["", f"On a GPU: {NOT_YET.lower()}"])


def _elsewhere(ledger: str, module: str, form: str) -> Callable[[Path], list[str]]:
    """Tables of a file that uses this one."""

    def made(folder: Path) -> list[str]:
        rows = read(ledger, folder)
        return getattr(import_module(f".{module}", __package__), form)(rows) if rows else [NOT_YET]

    return made


# name in a page's markers -> its lines, from a folder of ledgers
TABLES: dict[str, Callable[[Path], list[str]]] = {
    "loaders": _of("loaders", loaders, lambda row: not row["job"].endswith("-cold")),
    "loaders-cold": _of("loaders", loaders, lambda row: row["job"].endswith("-cold")),
    "targets": lambda folder: targets(read("loaders", folder), folder),
    "gate": _of("gate", gate),
    "steps": _steps,
    "threads": _of("scaling", keep=lambda row: row["job"] in ("loader threads", "training processes")),
    "order": _of("scaling", keep=lambda row: row["job"] == "order"),
    "index": _of("scaling", keep=lambda row: row["job"] == "index"),
    "evaluation": _of("evaluation"),
    "accuracy": _of("accuracy"),
    "demo": _of("demo", demo),
    "overhead": _of("overhead"),
    "shard": _of("shard", shard),
    "know-planted": _of("know", plain, lambda row: row["job"] == "planted"),
    "know-search": _of("know", plain, lambda row: row["job"] == "beside" or row["job"].startswith("all pairs")),
    "know-shard": _of("know", plain, lambda row: row["job"].startswith("shard")),
    "know-image": _of("know", plain, lambda row: row["job"] == "an image"),
    "curate": _of("curate"),
    "patch-head": _of("patch_head"),
    "gram": _elsewhere("gram", "gram", "table"),
    "self-distillation": _of("self_distillation"),
    "pixels": _of("pixels"),
    "race": _elsewhere("race", "racers.tables", "figures"),
    "race-ratios": _elsewhere("race", "racers.tables", "ratios"),
    "race-targets": _elsewhere("race", "racers.tables", "targets"),
    "race-ceilings": _elsewhere("race", "racers.tables", "ceilings"),
    "race-parts": _elsewhere("race", "racers.tables", "parts"),
    "remote": _elsewhere("remote", "remote", "table"),
    "speedrun": _of("speedrun", keep=lambda row: row["job"] == "speedrun"),
    "board": _elsewhere("speedrun", "racers.tables", "board"),
    "augment": _of("augment_gpu"),
    "contenders": _elsewhere("contenders", "contender_tables", "methods"),
    "progressive": _of("contenders", plain, lambda row: row["job"].startswith("k-NN of")),
    "taught": _of("contenders", plain, lambda row: row["job"].endswith("with a teacher")),
    "meters": _elsewhere("contenders", "contender_tables", "meters"),
    "kernels": kernels,
}


def measured(folder: Path) -> Iterator[Row]:
    """Every row of every ledger."""
    for path in sorted(folder.glob("*.jsonl")):
        yield from read(path.stem, folder)
