"""`headrace report` and `headrace compare`: what a run holds is on the page, as text; what it lacks is said."""

import json
import re
import shutil

import numpy as np
import pytest
from browser import assert_shown_well
from html_pages import assert_stands_alone, picture

from headrace.errors import UserError
from headrace.pipelines.sources import open_source
from headrace.tools.look.reconstruct import restore
from headrace.tools.runs import compare, report
from headrace.tools.runs.compare import caveats, differing_environments, differing_settings, outcomes
from headrace.tools.runs.run_figures import charts, duration, figures
from headrace.tools.runs.run_record import read_record
from headrace.train.engine.checkpoint import load_algorithm
from headrace.train.recipe.config import load as load_config
from headrace.train.recipe.recipe import load_recipe

HOSTILE = "<script>alert(1)</script>&amp;<img src=x onerror=y>"


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def make_run(folder, *, recipe="mae_vit-tiny", overrides=(), steps=40, batch=None, losses=None, knn=(), **environment):
    """A run directory as training writes it, with figures that are known."""
    folder.mkdir(parents=True)
    resolved = load_recipe(recipe, [*overrides, f"train.max_steps={steps}", f"train.out={folder}"]).resolved
    (folder / "config.yaml").write_text(resolved)
    batch = batch or load_recipe(recipe, [*overrides, "train.max_steps=1"]).train.batch_size
    losses = losses or [1 / step for step in range(10, steps + 1, 10)]
    with open(folder / "metrics.jsonl", "w") as file:
        for number, loss in enumerate(losses):
            step = 10 * (number + 1)
            row = {"step": step, "epoch": step // 20, "loss": loss, "lr": 0.1, "images_per_s": 100.0 + number}
            row |= {"data_wait": 0.01 * number, "eta_s": (steps - step) * batch / row["images_per_s"]}
            row["metrics"] = {"grad_norm": 1.0} | ({"knn": knn[number]} if number < len(knn) else {})
            file.write(json.dumps(row) + "\n")
    start = {"headrace": "0.1.0", "device": "A", "cores": 2, "packages": {"torch": "2.9"}, "kernels": {"hog": "triton"}}
    (folder / "environment.jsonl").write_text(json.dumps(start | environment) + "\n")
    return folder


def test_a_record_is_what_the_files_say(run):
    record, rows = read_record(run), rows_of(run)
    recipe, tree = load_recipe(str(run / "config.yaml"), []), load_config(run / "config.yaml")
    assert record.value("algorithm.view.size") == str(recipe.algorithm.view.size) == "32"
    assert record.value("train.knn_every") == "2" and record.settings["train.knn_every"].origin == "--smoke"
    assert record.value("train.profile") is None and record.value("optim.betas") == "[0.9, 0.95]"
    leaves = {key for key in record.settings if not key.startswith(("algorithm.view", "algorithm.backbone"))}
    assert {f"train.{key}" for key in tree.root.value["train"].value} <= leaves
    assert (record.steps, record.total_steps, record.state) == (20, 20, "finished, step 20 of 20")
    assert record.values("loss").tolist() == [row["loss"] for row in rows]
    assert record.values("knn").tolist() == [row["metrics"]["knn"] for row in rows if "knn" in row["metrics"]]
    assert [path.name for path in record.checkpoints] == ["step-00000010.pt", "step-00000020.pt"]
    assert [entry["key"] for entry in record.quarantine] == ["class_1/photo_07.jpg"]
    assert record.missing == []
    # how long a step waits for data depends on what else the machine does
    assert len([line for line in record.warnings() if "waiting for data" not in line]) == 1


def test_the_entry_of_a_lost_shard_is_about_many_images(run):
    record = read_record(run)
    record.quarantine.extend([{"index": 7, "missing": 8}, {"index": 7, "missing": 20}, {"index": 9, "missing": "?"}])
    assert record.bad_images == 1 + 20 + 1 and any(line.endswith("by others: 22.") for line in record.warnings())


def test_the_page_of_a_run(run, tmp_path):
    out, rows = tmp_path / "report.html", rows_of(run)
    assert report.main([str(run), "--out", str(out), "--samples", "2"]) == 0
    text = out.read_text()
    page = assert_stands_alone(text)
    cells = [text for _, text in page.all("td")]
    for key, setting in read_record(run).settings.items():
        place = cells.index(key)
        assert cells[place + 1] == setting.value
    knn = [row for row in rows if "knn" in row["metrics"]]
    start = cells.index(f"{knn[0]['step']}")
    assert cells[start : start + 3] == [str(knn[0]["step"]), "2", f"{knn[0]['metrics']['knn']:.2%}"] and len(knn) == 3
    names = [attributes["aria-label"] for attributes, _ in page.all("svg") if attributes["role"] == "img"]
    for name in ("loss", "learning rate", "norm of the gradient", "k-NN accuracy", "images/s", "spread", "rank"):
        assert names.count(name) == 1
    assert "class_1/photo_07.jpg" in cells and "step-00000020.pt" in cells and "encoder.safetensors" in cells
    environment = json.loads((run / "environment.jsonl").read_text())
    assert environment["python"] in cells and " ".join(environment["command"]) in cells
    shown = {title.strip() for _, title in page.all("h2")}
    assert {"Warnings", "Figures", "Curves", "Views and masks", "Reconstructions", "Configuration"} <= shown
    # the pictures are those of the newest checkpoint, to the grey level
    pictures = {a["alt"]: picture(a["src"]) for a, _ in page.all("img")}
    algorithm = load_algorithm(run)[1]
    source = open_source(read_record(run).value("data.train"))
    for name, images in restore(algorithm, source, samples=4).rows.items():
        for number, image in enumerate(images.numpy(), 1):
            assert np.array_equal(pictures[f"{name} {number}"], image)
    assert len(page.all("img")) == 2 * 2 + 4 * 4 and len(page.all("image")) == 2


def test_nothing_that_a_run_holds_becomes_markup(tmp_path):
    folder = make_run(tmp_path / "<b>run&amp;", device=HOSTILE, command=["headrace", HOSTILE])
    text = (folder / "config.yaml").read_text()
    text = text.replace("train: null", f'train: "{HOSTILE}"') + f'extra: "{HOSTILE}"  # {HOSTILE}\n'
    (folder / "config.yaml").write_text(text)
    with open(folder / "metrics.jsonl", "a") as file:
        row = {
            "step": 50,
            "epoch": 2,
            "loss": 0.1,
            "lr": 0.1,
            "images_per_s": 1,
            "data_wait": 0,
            "metrics": {HOSTILE: 1},
        }
        file.write(json.dumps(row) + "\n")
    bad = {"index": 1, "shard": HOSTILE, "key": HOSTILE, "offset": 0, "reason": HOSTILE}
    (folder / "quarantine.jsonl").write_text(json.dumps(bad) + "\n")
    results = tmp_path / "results.jsonl"
    score = {"protocol": HOSTILE, "encoder": {"name": str(folder)}, "data": {"val": HOSTILE}, "figures": {"top1": 0.25}}
    results.write_text(json.dumps(score) + "\n")
    out = tmp_path / "report.html"
    assert report.main([str(folder), "--out", str(out), "--results", str(results)]) == 0
    page = assert_stands_alone(out.read_text())
    assert [text for _, text in page.all("h1")] == ["Run <b>run&amp;"]
    cells = [text for _, text in page.all("td")]
    assert cells.count(HOSTILE) >= 5 and f"{HOSTILE} on {HOSTILE}, top1" in cells and "25.00%" in cells
    assert any(attributes["aria-label"] == HOSTILE for attributes, _ in page.all("svg"))
    other = make_run(tmp_path / "other", device="B")
    assert compare.main([str(folder), str(other), "--html", str(out), "--results", str(results)]) == 0
    page = assert_stands_alone(out.read_text())
    assert any(text == "<b>run&amp;" for _, text in page.all("th"))


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (("config.yaml",), ["No curves", "No checkpoint", "environment.jsonl cannot be read"]),
        (("metrics.jsonl",), ["No configuration", "No checkpoint"]),
        (("step-00000020.pt",), ["No configuration", "No curves"]),
        (("environment.jsonl", "metrics.jsonl"), ["No configuration"]),
    ],
)
def test_of_a_broken_run_there_is_what_there_is(left, said, run, tmp_path):
    folder, out = tmp_path / "broken", tmp_path / "out" / "report.html"
    folder.mkdir()
    for name in left:
        shutil.copy(run / name, folder / name)
    assert report.main([str(folder), "--out", str(out)]) == 0
    page = assert_stands_alone(out.read_text())
    warnings = " ".join(text for _, text in page.all("li"))
    for words in said:
        assert words in warnings
    assert ("algorithm.mask_ratio" in [text for _, text in page.all("td")]) == ("config.yaml" in left)


def test_damaged_files_are_named(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "step-00000020.pt").write_bytes((folder / "step-00000020.pt").read_bytes()[:1000])
    (folder / "config.yaml").write_text("train: [1, 2\n")
    with open(folder / "environment.jsonl", "a") as file:
        file.write('{"headrace": "9", "dev')
    (folder / "not-finite-step-00000012-rank-0.pt").touch()
    assert report.main([str(folder)]) == 0
    page = assert_stands_alone((folder / "report.html").read_text())
    warnings = [text for _, text in page.all("li")]
    for words in (
        "step-00000020.pt is no complete checkpoint",
        "No configuration: config.yaml:2: YAML error",
        "1 lines of environment.jsonl are damaged",
        "not-finite-step-00000012-rank-0.pt is left",
    ):
        assert any(words in text for text in warnings), (words, warnings)


def test_warnings(tmp_path):
    folder = make_run(tmp_path / "run", losses=[1.0, 2.0, float("nan")])
    rows = rows_of(folder)
    for row in rows:
        row |= {"data_wait": 0.3, "skipped": 2}
        row["metrics"]["spread"] = 0.001
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = json.loads((folder / "environment.jsonl").read_text()) | {"device": "B"}
    with open(folder / "environment.jsonl", "a") as file:
        file.write(json.dumps(again) + "\n")
    text = "\n".join(read_record(folder).warnings())
    for words in ("6 steps were left out", "last loss is not finite", "30%", "collapsed", "another device: A, B"):
        assert words in text
    assert "left out" not in "\n".join(read_record(make_run(tmp_path / "fine")).warnings())
    assert read_record(folder).state == "not finished, step 30 of 40"


def test_figures_by_hand(tmp_path):
    record = read_record(make_run(tmp_path / "run", overrides=["train.batch_size=50"], steps=50, knn=[0.5, 0.75, 0.6]))
    text = (record.folder / "config.yaml").read_text()
    (record.folder / "config.yaml").write_text(re.sub("max_steps: 50", "max_steps: null", text))
    assert read_record(record.folder).total_steps == 50  # a run of epochs: by the time that was left
    found = figures(record)
    assert found["steps"] == "50 of 50" and found["last loss"] == "0.0200"
    assert found["least loss"] == "0.0200 at step 50"
    assert (found["last k-NN accuracy"], found["best k-NN accuracy"]) == ("60.00%", "75.00%")
    assert found["images/s (p20 to p80)"] == "102 (101 to 103)" and found["waiting for data"] == "2.0%"
    assert found["seconds a step"] == f"{np.median([50 / (100 + n) for n in (0, 2, 4)]):.4f}"
    seconds = sum(10 * 50 / (100 + n) for n in range(5))
    assert record.hours == pytest.approx(seconds / 3600) and found["time in steps"] == f"{seconds:.0f} s"
    assert [duration(h) for h in (0.01, 0.5, 2.0, 25.51)] == ["36 s", "30 min", "2 h 00 min", "25 h 31 min"]
    waiting = next(chart for chart in charts([record.log], ["run"]) if "waiting" in chart.name)
    assert waiting.xlabel == "minutes of steps" and waiting.curves[0].x[-1] == pytest.approx(seconds / 60)


def test_comparison_finds_exactly_what_was_changed(tmp_path):
    changes = ["optim.lr=0.25", "algorithm.mask_ratio=0.5", "optim.groups=[{match: bias, lr: 2.0}]"]
    first = make_run(tmp_path / "a", knn=[0.5])
    second = make_run(tmp_path / "b", overrides=changes, device="B", packages={"torch": "2.10"})
    records = [read_record(folder) for folder in (first, second)]
    found = differing_settings(records)
    assert {key: found[key] for key in ("optim.lr", "algorithm.mask_ratio")} == {
        "optim.lr": [read_record(first).value("optim.lr"), "0.25"],
        "algorithm.mask_ratio": ["0.75", "0.5"],
    }
    rest = set(found) - {"optim.lr", "algorithm.mask_ratio"}
    assert rest and all(key.startswith("optim.groups") for key in rest)
    assert found["optim.groups[0].match"] == ["-", "bias"] and found["optim.groups[0].lr"] == ["-", "2.0"]
    assert differing_environments(records) == {"device": ["A", "B"], "packages.torch": ["2.9", "2.10"]}
    assert differing_settings([records[0], records[0]]) == {} == differing_environments([records[0], records[0]])
    assert outcomes(records)["best k-NN accuracy"] == ["50.00%", "-"]
    assert caveats(records, ["a", "b"]) == [
        "a: No checkpoint has been written.",
        "b: No checkpoint has been written.",
        "Machines differ: so does their speed.",
    ]
    other = read_record(make_run(tmp_path / "c", recipe="simclr_resnet18_cifar10"))
    assert "Methods differ: their losses measure different things." in caveats([records[0], other], ["a", "c"])


def test_compare_prints_and_draws(tmp_path, capsys):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", overrides=["optim.lr=0.25"], losses=[3.0, 2.0])]
    results, out = tmp_path / "evaluation.jsonl", tmp_path / "page" / "c.html"
    figures = [{"k": 10, "temperature": 0.07, "top1": 0.5}, {"k": 20, "temperature": 0.07, "top1": 0.25}]
    lines = [
        {
            "protocol": "knn",
            "encoder": {"name": f"{runs[1]}/step-00000010.pt"},
            "data": {"val": "v"},
            "figures": figures,
        },
        {"protocol": "svm", "encoder": {"name": f"{runs[0]}"}, "data": {"voc": "w"}, "figures": {"mAP": 0.9, "x": {}}},
        {"protocol": "svm", "encoder": {"name": f"{runs[0]}"}, "data": {"voc": "w"}, "figures": {"mAP": 0.8}},
        {"protocol": "svm", "encoder": {"name": "elsewhere"}, "data": {"voc": "w"}, "figures": {"mAP": 0.1}},
        {"protocol": "odd", "encoder": None, "figures": 3},
    ]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines) + "cut sho")
    assert compare.main([*map(str, runs), "--html", str(out), "--results", str(results)]) == 0
    table = [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    printed = {cells[0]: cells[1:] for cells in table}
    assert printed["optim.lr"] == [read_record(runs[0]).value("optim.lr"), "0.25"]
    assert printed["last loss"] == ["0.0250", "2.0000"]
    assert printed["svm on w, mAP"] == ["80.00%", "-"]
    assert printed["knn on v, k 20, temperature 0.07, top1"] == ["-", "25.00%"]
    page = assert_stands_alone(out.read_text())
    cells = [text for _, text in page.all("td")]
    place = cells.index("optim.lr")
    assert cells[place : place + 3] == ["optim.lr", *printed["optim.lr"]]
    (loss,) = [text for attributes, text in page.all("svg") if attributes["aria-label"] == "loss"]
    assert "a" in loss.split() and "b" in loss.split()  # the legend


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (report, ["{tmp}/nothing"], "no such run directory"),
        (report, ["{tmp}/empty"], "is no run directory"),
        (report, ["{tmp}/run", "--samples", "99"], "--samples: from 0 to 32"),
        (report, ["{tmp}/run", "--out", "{tmp}/run/config.yaml/x.html"], "x.html: cannot be written in"),
        (compare, ["{tmp}/run"], "needs two runs"),
        (compare, ["{tmp}/run", "{tmp}/empty"], "is no run directory"),
        (compare, ["{tmp}/run", "{tmp}/run", "--html", "{tmp}/run/config.yaml/x.html"], "x.html: cannot be written in"),
    ],
)
def test_mistakes_end_in_one_line(command, arguments, words, tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=words) as caught:
        command.main([argument.format(tmp=tmp_path) for argument in arguments])
    assert "\n" not in str(caught.value)


def test_pages_in_a_browser(run, tmp_path):
    other, pages = make_run(tmp_path / "other"), [tmp_path / "report.html", tmp_path / "compare.html"]
    report.main([str(run), "--out", str(pages[0]), "--samples", "1"])
    compare.main([str(run), str(other), "--html", str(pages[1])])
    assert_shown_well(tmp_path, pages)
