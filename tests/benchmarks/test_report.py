"""Pages say what the ledger says; its tables take the last run of each machine, and ratios stay within a run."""

import json
import re
import shutil

import pytest

from headrace.benchmarks import ledger, record, report
from headrace.errors import UserError

FACTS = {
    "headrace": "0.1.0",
    "commit": "abcdef0123",
    "packages": {"torch": "2.15.0"},
    "cuda": None,
    "device": "x86_64",
    "cores": 2,
    "processor": "CPU A",
    "command": ["x.py"],
}


def row(job, contender, rate, run="1", **more):
    own = {"time": "2026-01-02T03:04:05Z", "job": job, "contender": contender, "images_per_second": rate}
    own |= {"p20": 0.9 * rate, "p80": 1.1 * rate, "config": {"images": 10, "workers": 2}, "run": run}
    return own | FACTS | more


def write(folder, name, rows):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


ROWS = [
    row("mae", "headrace cpu", 900.0, run="1"),
    row("mae", "dali", 100.0, run="1"),
    row("mae", "headrace cpu", 600.0, run="2"),
    row("mae", "dali", 400.0, run="2"),
    row("mae", "timm", 300.0, run="2"),
    row("mae", "decode only", 800.0, run="2"),
    row("eval", "headrace cpu", 50.0, run="1"),
    row("eval", "timm", 80.0, run="1"),
    row("mae", "headrace cpu", 7000.0, run="3", processor="CPU B", cores=64),
]


def cells(lines, first):
    return next([cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {first}"))


def test_loaders_table(tmp_path):
    write(tmp_path, "loaders", ROWS)
    lines = ledger.TABLES["loaders"](tmp_path)
    assert cells(lines, "**headrace cpu**") == ["headrace cpu", "600 (540-660)", "50 (45-55)"]
    assert cells(lines, "dali") == ["dali", "400 (360-440)", ""]
    assert cells(lines, "**ours over") == ["ours over the best peer", "1.50 x dali", "0.62 x timm"]
    assert cells(lines, "*decode only*")[1] == "800 (720-880)"
    assert sum("CPU A" in line for line in lines) == 1 and sum("64 cores of CPU B" in line for line in lines) == 1
    assert sum("7,000" in line for line in lines) == 1


def test_targets(tmp_path):
    write(tmp_path, "loaders", ROWS)
    write(tmp_path, "overhead", [{"date": "2026-01-02", "recipe": "mae", "share": 0.0123, "environment": FACTS}])
    lines = ledger.TABLES["targets"](tmp_path)
    assert cells(lines, "one view (MAE): 1.7 x dali")[1:3] == ["1.50 x", "no"]
    assert cells(lines, "one view (MAE): ahead")[1:3] == ["2.00 x timm", "yes"]
    assert cells(lines, "centre crop: ahead")[1:3] == ["0.62 x timm", "no"]
    assert cells(lines, "two views (MoCo v2): 2 x albumentations")[1:3] == ["Not measured yet.", ""]
    assert cells(lines, "loop: less")[1:3] == ["1.23%", "no"]
    assert cells(lines, "CIFAR-10 in ten")[1:3] == ["Not measured yet.", ""]


def test_the_speedrun_counts_on_a_gpu_and_in_time(tmp_path):
    of = {"knn": 88.5, "linear": 91.0, "budget": 600, "in_time": True}
    target = lambda *rows: write(tmp_path, "speedrun", rows) or cells(ledger.TABLES["targets"](tmp_path), "CIFAR")  # noqa: E731
    on_gpu = {"cuda": "13.0", "device": "GPU X"}
    assert target(row("speedrun", "byol", 1.0, **of))[1:] == ["Not measured yet.", "", ""]
    assert target(row("speedrun", "byol", 1.0, **of, **on_gpu))[1:] == ["88.5, 91.0", "yes", "GPU X"]
    assert target(row("speedrun", "byol", 1.0, **of | on_gpu | {"in_time": False}))[2] == "no"
    assert target(row("speedrun", "byol", 1.0, **of | on_gpu | {"budget": 900}))[1] == "Not measured yet."


def test_a_gpu_that_was_not_there_shows_no_figures(tmp_path):
    for name in ("speedrun", "kernels", "augment", "steps"):
        assert ledger.TABLES[name](tmp_path) == ["Not measured yet."]
    write(tmp_path, "steps", [row("simclr", "real data, auto kernels", 12.0, step_ms=1.5)])
    lines = ledger.TABLES["steps"](tmp_path)
    assert (
        lines[-1] == "On a GPU: not measured yet."
        and "| simclr | real data, auto kernels | 12 (10.8-13.2) | 1.5 |" in lines
    )
    write(
        tmp_path, "steps", [row("simclr", "real data, auto kernels", 12.0, cuda="13.0", device="GPU X", data_wait=0.03)]
    )
    assert not any("not measured" in line for line in ledger.TABLES["steps"](tmp_path))
    assert cells(ledger.TABLES["targets"](tmp_path), "simclr: waits")[1:] == ["3.00%", "no", "GPU X"]


def test_pages_say_what_the_ledger_says():
    assert report.main(["--check"]) == 0, "python -m headrace.benchmarks.report makes them anew"


def test_a_stale_page_and_a_stale_plot_are_found(tmp_path, monkeypatch):
    for name in report.PAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(report.ROOT / name, tmp_path / name)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    results = tmp_path / "results"
    shutil.copytree(record.RESULTS, results)
    options = ["--results", str(results)]
    assert report.main(options) == 0 and report.main([*options, "--check"]) == 0
    text = (tmp_path / "docs/benchmarks.md").read_text()
    before = (tmp_path / "docs/images/loaders.png").read_bytes()
    last = [row for row in record.read("loaders", results) if row["job"] == "mae"][-1]
    with open(results / "loaders.jsonl", "a") as file:
        file.write(
            json.dumps(last | {"contender": "headrace cpu", "images_per_second": 4321.0, "p20": 4300.0, "p80": 4400.0})
            + "\n"
        )
    assert report.main([*options, "--check"]) == 1
    assert (tmp_path / "docs/benchmarks.md").read_text() == text
    assert report.main(options) == 0 and report.main([*options, "--check"]) == 0
    assert "4,321" in (tmp_path / "docs/benchmarks.md").read_text() and "4,321" not in text
    assert (tmp_path / "docs/images/loaders.png").read_bytes() != before
    with pytest.raises(UserError, match="no table 'loader'"):
        report.page("<!-- ledger: loader -->\n<!-- end -->", results)


def test_speeds_stand_between_markers_only():
    """A rate or a ratio over a peer anywhere else on the README would be one that the ledger does not vouch for."""
    text = (report.ROOT / "README.md").read_text()
    outside = re.sub(r"<!-- ledger: .*?<!-- end -->", "", text, flags=re.DOTALL)
    assert (
        re.findall(r"\d[\d,.]* ?(?:images/s|img/s|views/s|images a second|x (?:faster|as fast)|times as fast)", outside)
        == []
    )


def test_no_row_holds_a_path_of_the_machine():
    def texts(value):
        if isinstance(value, dict):
            for key, item in value.items():
                yield from (key, *texts(item))
        elif isinstance(value, list):
            for item in value:
                yield from texts(item)
        elif isinstance(value, str):
            yield value

    path = re.compile(r"(?:^|[\s=:'\"(])(?:~|/[\w.-]+)/[\w.-]")
    assert path.search("data.train=/home/me/x") and path.search("~/Pictures") and not path.search("images/s, a / b")
    rows = list(ledger.measured(record.RESULTS))
    assert len(rows) > 50
    assert [text for each in rows for text in texts(each) if path.search(text)] == []


def test_the_board(tmp_path):
    """Medians over seeds, the best first; a seed run again counts once, and who is late not at all."""
    of = {"budget": 600, "in_time": True, "knn_200": 40.0, "linear": 60.0, "epochs": 12.5}
    runs = [("ours", 0, 40.0), ("ours", 0, 50.0), ("ours", 1, 52.0), ("ours", 2, 57.0), ("lightly simclr", 0, 51.0)]
    config = lambda seed: {"recipe": {"train": {"seed": seed}}}  # noqa: E731
    rows = [row("cpu-class", name, 1.0, **of, seed=n, knn=knn) | {"config": config(n)} for name, n, knn in runs]
    rows += [row("cpu-class", "late", 1.0, **of | {"in_time": False}, seed=0, knn=99.0)]
    rows += [row("speedrun", "byol", 1.0, **of, seed=0, knn=88.0)]
    write(tmp_path, "speedrun", rows)
    lines = [line for line in ledger.TABLES["board"](tmp_path) if line.startswith("| 10 min")]
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [each[:3] for each in found] == [
        ["10 min", "ours", "52.0 (50.0, 52.0, 57.0)"],
        ["10 min", "lightly simclr", "51.0"],
    ]
    assert found[0][4:7] == ["60.0", "12.5", "0, 1, 2"]
