"""The ledger of the race as tables: all figures, ours over each peer, what was aimed at, what there is to gain; and the
board."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from ..ledger import NOT_YET, about, facts, latest, lines, machine, met
from . import MODEL_ONLY

Row = dict
OURS = "headrace"
# job -> peer -> how many times its images/s were aimed at
TARGETS = {
    "simclr-224": {"lightly": 1.3, "mmpretrain": 1.5},
    "simclr-32": {"lightly": 1.5},
    "mae-224": {"lightly": 1.3, "mmpretrain": 1.5},
    "dino-224": {"lightly": 1.4},
}
SHARE = 0.8  # aimed at beside busy processes: of the cores' share that is left


def heats(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Row]]]:
    """Job and its rows by contender, of the last run on each machine; ours is among them. Whole steps alone."""
    for job, found in _runs(rows):
        yield job, {name: row for name, row in found.items() if not name.endswith(MODEL_ONLY)}


def _runs(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, Row]]]:
    for jobs in latest(rows).values():
        for job, own in jobs.items():
            found = {row["contender"]: row for row in own}
            if OURS in found:
                yield job, found


def over(own: dict[str, Row], peer: str) -> float:
    return own[OURS]["images_per_second"] / own[peer]["images_per_second"]


def title(row: Row) -> str:
    beside = row["config"]["beside"]
    return row["config"]["title"] + (f", beside {beside} busy processes" if beside else "")


def figures(rows: Sequence[Row]) -> list[str]:
    """Every row of the last run of each heat."""
    out = []
    for _, own in heats(rows):
        body = []
        for name, row in own.items():
            rate = f"{row['images_per_second']:,.1f} ({row['p20']:,.1f}-{row['p80']:,.1f})"
            ratio = "" if name == OURS else f"{over(own, name):.2f} x"
            version = next((each for package, each in row["packages"].items() if package == name), "")
            cells = [f"**{name}**" if name == OURS else f"{name} {version}".strip(), rate, ratio]
            cells += [f"{row['cpu_us_per_image'] / 1e3:,.2f}", f"{row['data_wait']:.1%}", f"{row['peak_mb']:,.0f}"]
            body.append([*cells, f"{row['parameters']:,}", f"{row['loss']:.2f}", row.get("differences", "")])
        first = own[OURS]
        of = first["config"]
        out += [f"**{title(first)}**: batches of {of['batch']}, {of['workers']} workers, {of['repeat']} turns of "]
        out[-1] += f"{of['seconds']:g} s each; {about(list(own.values()))}."
        header = ["", "images/s, median (p20-p80)", "ours over it", "CPU ms an image", "waits", "peak MB"]
        out += ["", *lines([*header, "parameters", "first loss", "differs in"], body), ""]
    return out[:-1]


def ratios(rows: Sequence[Row]) -> list[str]:
    """Ours over each peer, a line for each heat with peers."""
    found = {title(own[OURS]): own for _, own in heats(rows) if len(own) > 1}
    peers = list(dict.fromkeys(name for own in found.values() for name in own if name != OURS))
    body = []
    for name, own in found.items():
        cells = [f"{over(own, peer):.2f} x" if peer in own else "" for peer in peers]
        body.append([name, f"{own[OURS]['images_per_second']:,.1f}", *cells])
    last = [row for own in found.values() for row in own.values()]
    return [
        f"{about(last)}.",
        "",
        *lines(["whole steps, images/s", "headrace", *(f"over {peer}" for peer in peers)], body),
    ]


def targets(rows: Sequence[Row]) -> list[str]:
    """What was aimed at, what was measured, and whether that is enough."""
    body = []
    found = dict(heats(rows))
    for job, wanted in TARGETS.items():
        own = found.get(job, {})
        for peer, factor in wanted.items():
            name = f"{own[OURS]['config']['title'] if own else job}: {factor:g} x {peer}"
            known = peer in own
            ratio = over(own, peer) if known else 0.0
            body.append([name, f"{ratio:.2f} x" if known else NOT_YET, met(ratio >= factor) if known else ""])
    for job, own in found.items():
        alone, count = found.get(job.partition("-beside-")[0], {}), own[OURS]["config"]["beside"]
        if count and alone:
            cores = own[OURS]["cores"]
            share = over(own | {"alone": alone[OURS]}, "alone") * (cores + count) / cores
            name = f"{title(own[OURS])}: {SHARE:g} of the share of the cores"
            body.append([name, f"{share:.2f}", met(share >= SHARE)])
        peers = {name: row["peak_mb"] for name, row in own.items() if name != OURS}
        if peers:
            least = min(peers, key=peers.get)
            ours = own[OURS]["peak_mb"]
            name = f"{title(own[OURS])}: no more memory than any peer"
            body.append([name, f"{ours:,.0f} MB, {least} {peers[least]:,.0f} MB", met(ours <= peers[least])])
    return [
        f"{machine(next(iter(found.values()))[OURS])}." if found else "",
        "",
        *lines(["target", "measured", "met"], body, left=3),
    ]


def ceilings(rows: Sequence[Row]) -> list[str]:
    """Over each peer as if our data cost nothing, and our model over a peer's, both without data."""
    found = {title(own[OURS]): own for _, own in _runs(rows) if OURS + MODEL_ONLY in own}
    if not found:
        return [NOT_YET]
    names = list(dict.fromkeys(name for own in found.values() for name in own if not name.startswith(OURS)))
    peers, alone = ([name for name in names if name.endswith(MODEL_ONLY) == only] for only in (False, True))
    body = []
    for name, own in found.items():
        free = own | {OURS: own[OURS + MODEL_ONLY]}
        cells = [f"{row[OURS]['images_per_second']:,.1f}" for row in (own, free)]
        body.append([name, *cells, *(f"{over(free, peer):.2f} x" if peer in own else "" for peer in [*peers, *alone])])
    header = ["images/s", OURS, OURS + MODEL_ONLY, *(f"that over {peer}" for peer in [*peers, *alone])]
    return [f"{about([row for own in found.values() for row in own.values()])}.", "", *lines(header, body)]


def parts(rows: Sequence[Row]) -> list[str]:
    """What the steps of models without data consist of: shares of their time by operators."""
    body, kinds = [], {}
    for _, own in _runs(rows):
        for name, row in own.items():
            if "shares" in row:
                kinds |= row["shares"]
                cells = [f"{share:.1%}" for share in row["shares"].values()]
                body.append([f"{title(row)}: {name.removesuffix(MODEL_ONLY)}", *cells])
    return lines(["share of a step", *kinds], body) if body else [NOT_YET]


def board(rows: Sequence[Row]) -> list[str]:
    """The best first: entries of one length on one processor by k-NN, medians over seeds. Late rows do not count.

    Of the ledger of the speedrun, those of the CPU class.
    """
    entries: dict[tuple, dict[int, Row]] = {}
    for row in map(facts, rows):
        if row["in_time"] and row["job"] == "cpu-class":
            key = (row["budget"], row["processor"], row["contender"], _but_seed(row["config"]))
            entries.setdefault(key, {})[row["seed"]] = row  # the last run of a seed
    if not entries:
        return [NOT_YET]
    body = []
    for (budget, processor, contender, _), own in entries.items():
        runs = list(own.values())
        cells = [f"{statistics.median(row[key] for row in runs):.1f}" for key in ("knn", "knn_200", "linear")]
        each = ", ".join(f"{row['knn']:.1f}" for row in runs)
        cells[0] += f" ({each})" if len(runs) > 1 else ""
        last = runs[-1]
        cells += [f"{last['epochs']:g}", ", ".join(map(str, own)), last["time"][:10], last["commit"][:8]]
        median = statistics.median(row["knn"] for row in runs)
        body.append((budget, processor, -median, [f"{budget / 60:g} min", contender, *cells, processor]))
    header = ["wall time", "entry", "k-NN (each seed)", "k = 200", "linear", "epochs", "seeds", "day", "commit", "on"]
    return lines(header, [cells for *_, cells in sorted(body, key=lambda each: each[:3])], left=2)


def _but_seed(config: dict) -> str:
    recipe = config.get("recipe", {})
    train = {key: value for key, value in recipe.get("train", {}).items() if key != "seed"}
    return str(config | {"recipe": recipe | {"train": train}})
