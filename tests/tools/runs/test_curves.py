"""`headrace curves`: logs of three writers become the same rows, and every figure is that of a formula."""

import json
import math

import matplotlib.image
import numpy as np
import pytest

from headrace.errors import UserError
from headrace.tools.runs.charts import Chart, Curve, _thin, smooth, to_svg
from headrace.tools.runs.curves import chart_of, main, positions, short_names
from headrace.tools.runs.run_logs import epoch_length, read_log
from headrace.tools.runs.timing import elapsed, step_times

EPOCHS, LENGTH = 3, 20  # of the logs below, a row every 5 steps


def times(epoch, place):
    """Seconds a step: the first row of an epoch is slow, and epoch 1 (of 0, 1, 2) slower than the others."""
    return 0.1 + 0.05 * (epoch == 1) + 0.01 * place + 0.5 * (place == 0)


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def own(folder):
    """As headrace writes it: metrics within the row, images a second in place of the time."""
    lines = []
    for epoch in range(EPOCHS):
        for place in range(4):
            step = epoch * LENGTH + 5 * (place + 1)
            row = {"step": step, "epoch": epoch, "loss": 1 / step, "lr": 0.1 * step, "data_wait": 0.01}
            row |= {"images_per_s": 32 / times(epoch, place), "eta_s": 1.0, "metrics": {"grad_norm": step / 7}}
            lines.append(row)
    lines[-1]["metrics"]["knn"] = 0.5
    write(folder / "metrics.jsonl", lines)
    (folder / "config.yaml").write_text("train:\n  batch_size: 32  # here\n")
    return folder


def mmengine(folder):
    """As MMEngine writes it: epochs from 1, `iter` of the whole run, scores in rows without an epoch."""
    lines = []
    for epoch in range(EPOCHS):
        for place in range(4):
            step = epoch * LENGTH + 5 * (place + 1)
            row = {"lr": 0.1 * step, "data_time": 0.001, "grad_norm": step / 7, "loss": 1 / step}
            row |= {"time": times(epoch, place), "epoch": epoch + 1, "iter": step, "memory": 900, "step": step}
            lines.append(row)
        lines.append({"accuracy/top1": 10.0 * (epoch + 1), "data_time": 0.2, "time": 0.3, "step": epoch + 1})
    write(folder / "20240102_030405" / "vis_data" / "scalars.json", lines)
    return folder


def mmcv(folder):
    """As MMCV writes it: a header, epochs from 1, `iter` within the epoch."""
    lines = [{"env_info": "sys.platform: linux", "config": "model = dict()", "seed": 0, "exp_name": "mae.py"}]
    for epoch in range(EPOCHS):
        for place in range(4):
            step = epoch * LENGTH + 5 * (place + 1)
            row = {"mode": "train", "epoch": epoch + 1, "iter": 5 * (place + 1), "lr": 0.1 * step, "memory": 900}
            row |= {"data_time": 0.001, "loss": 1 / step, "time": times(epoch, place), "grad_norm": step / 7}
            lines.append(row)
        lines.append({"mode": "val", "epoch": epoch + 1, "iter": 7, "lr": 1.0, "accuracy/top1": 10.0 * (epoch + 1)})
    write(folder / "20200102_030405.log.json", lines)
    return folder


WRITERS = {"headrace": own, "mmengine": mmengine, "mmcv": mmcv}


@pytest.mark.parametrize("kind", WRITERS)
def test_three_logs_of_one_run(kind, tmp_path):
    log = read_log(WRITERS[kind](tmp_path))
    steps = [5 * i for i in range(1, 13)]
    for key, expected in (("loss", [1 / s for s in steps]), ("lr", [0.1 * s for s in steps])):
        rows, values = log.series(key)
        assert [row["step"] for row in rows] == steps and values == pytest.approx(expected)
    assert log.series("grad_norm")[1] == pytest.approx([s / 7 for s in steps])
    assert log.series("time")[1] == pytest.approx([times(e, p) for e in range(3) for p in range(4)])
    if kind == "headrace":
        assert [row["step"] for row in log.series("knn")[0]] == [60]
    else:  # scores stand where they were taken
        rows, values = log.series("accuracy/top1")
        assert [row["step"] for row in rows] == [20, 40, 60] and values == [10, 20, 30]


@pytest.mark.parametrize("kind", WRITERS)
def test_step_times(kind, tmp_path):
    log = read_log(WRITERS[kind](tmp_path))
    first = 0 if kind == "headrace" else 1
    found = step_times(log)
    means = [np.mean([times(e, p) for p in (1, 2, 3)]) for e in range(3)]
    assert found.slowest == (first + 1, pytest.approx(means[1])) and found.fastest[1] == pytest.approx(means[0])
    assert found.fastest[0] in (first, first + 2) and found.deviation == pytest.approx(np.std(means))
    assert found.mean == pytest.approx(np.mean(means))
    everything = [times(e, p) for e in range(3) for p in range(4)]
    assert step_times(log, first_rows=True).mean == pytest.approx(np.mean(everything))
    assert step_times(log).median == pytest.approx(np.median([times(e, p) for e in range(3) for p in (1, 2, 3)]))
    rows, _ = log.series("time")
    assert elapsed(rows) == pytest.approx(np.cumsum(everything) * 5 / 3600)
    assert epoch_length(rows) == LENGTH
    assert positions(log, rows, "epoch") == [s / LENGTH for s in range(5, 61, 5)]
    assert positions(log, rows, "hours") == elapsed(rows)


def test_the_length_of_an_epoch():
    """Rows every 10 steps of epochs of 56: no row says where an epoch ends, together they do."""
    rows = [{"step": step, "epoch": (step - 1) // 56} for step in range(10, 600, 10)]
    assert epoch_length(rows) == 56
    assert epoch_length(rows[:3]) is None


def test_an_epoch_of_one_row_keeps_it(tmp_path):
    rows = [{"iter": i, "step": i, "epoch": i, "lr": 1.0, "loss": 1.0, "time": float(i)} for i in (1, 2, 3)]
    log = read_log(write(tmp_path / "x.json", rows))
    assert step_times(log).mean == 2 and step_times(log).slowest == (3, 3.0)
    assert epoch_length(log.rows) == 1


def test_smoothing_is_the_formula():
    rng = np.random.default_rng(0)
    values = rng.normal(size=30)
    for weight in (0.0, 0.6, 0.95):
        expected = []
        for t in range(30):
            powers = weight ** np.arange(t, -1, -1.0)
            expected.append((powers * values[: t + 1]).sum() / powers.sum())
        assert smooth(values.tolist(), weight) == pytest.approx(expected)
    assert smooth([3.0] * 5, 0.9) == pytest.approx([3.0] * 5)  # no pull towards zero at the start
    holes = smooth([1.0, math.nan, 2.0, math.inf], 0.5)
    assert math.isnan(holes[1]) and holes[2] == pytest.approx(2.5 / 1.5) and holes[3] == math.inf


def test_what_a_resumed_run_wrote_again_counts(tmp_path):
    first = [{"iter": i, "step": i, "epoch": 1, "lr": 1.0, "loss": 1.0, "time": 1.0} for i in (10, 20, 30)]
    again = [{"iter": i, "step": i, "epoch": 1, "lr": 1.0, "loss": 2.0, "time": 1.0} for i in (20, 30, 40)]
    write(tmp_path / "20240101_000000" / "vis_data" / "scalars.json", first)
    write(tmp_path / "20240102_000000" / "vis_data" / "scalars.json", again)
    rows, losses = read_log(tmp_path).series("loss")
    assert [row["step"] for row in rows] == [10, 20, 30, 40] and losses == [1, 2, 2, 2]


def test_damaged_lines_are_passed_over_and_metrics_without_recipe_have_no_time(tmp_path):
    own(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 65, "lo')
    (tmp_path / "config.yaml").unlink()
    log = read_log(tmp_path)
    assert log.rows[-1]["step"] == 60 and "time" not in log.keys
    with pytest.raises(UserError, match="needs the config.yaml"):
        step_times(log)


def test_thinned_curves_keep_their_peaks():
    y = np.random.default_rng(1).normal(size=50_000)
    y[31_415], y[27_182], y[100] = 99.0, -99.0, math.nan
    x, kept = _thin(range(len(y)), y.tolist())
    assert 900 < len(x) <= 1002 and x == sorted(x) and kept == [y[i] for i in x]
    assert (31_415, 99.0) in zip(x, kept) and (27_182, -99.0) in zip(x, kept)
    assert _thin([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_a_drawing_has_the_pages_colours_and_its_names_are_text():
    chart = Chart("a < b & $x$", [Curve("<script>", [1, 2], [3, 4]), Curve("two", [1, 2], [4, 3], color=1)])
    drawing = to_svg(chart, 3)
    assert drawing.startswith("<svg") and "<script" not in drawing and "&lt;script&gt;" in drawing
    assert "var(--series-0)" in drawing and "var(--series-1)" in drawing and "currentColor" in drawing
    assert "//" not in drawing and "#0405" not in drawing and "#010203" not in drawing
    assert to_svg(chart, 3) == drawing


def test_command(tmp_path, capsys):
    runs = [str(make(tmp_path / name)) for name, make in WRITERS.items()]
    out = tmp_path / "curves.png"
    assert main([*runs, "--keys", "loss", "accuracy/top1", "--smooth", "0.5", "--x", "epoch", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    smoothed = smooth([1 / (5 * i) for i in range(1, 13)], 0.5)[-1]
    row = next(line.split() for line in text.splitlines() if line.startswith("loss, mmcv"))
    assert row[2:] == ["12", "0.2", "0.01667", f"{smoothed:.4g}", "0.01667", "60", "0.2", "5"]
    assert "accuracy/top1, mmengine" in text and "accuracy/top1, headrace" not in text
    pace = next(line.split() for line in text.splitlines() if line.startswith("mmengine"))
    assert pace[1] == f"{np.mean([times(e, p) for e in range(3) for p in (1, 2, 3)]):.4f}" and pace[3:5] == [
        "2",
        "0.1700",
    ]
    assert matplotlib.image.imread(out).std() > 0.05
    logs = [read_log(tmp_path / name) for name in WRITERS]
    chart = chart_of(logs, list(WRITERS), "accuracy/top1")
    assert [curve.label for curve in chart.curves] == ["mmengine", "mmcv"]
    assert [curve.color for curve in chart.curves] == [1, 2]  # a run keeps its colour in every chart


def test_names_for_legends():
    assert short_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert short_names(["x/run/log", "y/run/log"]) == ["x/run/log", "y/run/log"]
    assert short_names(["r", "r"]) == ["r (1)", "r (2)"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "--keys", "los"], "did you mean loss"),
        (["{run}", "--keys", "xyz"], "there are loss"),
        (["{run}", "--smooth", "1"], "--smooth"),
        (["{run}", "--legend", "a", "b"], "2 names for 1 runs"),
        (["{run}", "--out", "x.jpg"], "no .png"),
        (["{run}", "--out", "{run}/config.yaml/x.png"], "cannot be written"),
        (["{run}z"], "no such file"),
        (["{empty}"], "nothing was logged there"),
        (["{run}/config.yaml"], "no JSON object"),
        (["{run}/header.json"], "no log of a training run"),
        (["{run}/one.json", "--x", "epoch"], "one epoch only"),
        (["{run}/one.json", "--x", "hours"], "no step times"),
    ],
)
def test_mistakes_end_in_one_line(arguments, words, tmp_path):
    run, empty = own(tmp_path / "run"), tmp_path / "empty"
    empty.mkdir()
    write(run / "header.json", [{"env_info": "x", "seed": 0}])
    write(run / "one.json", [{"iter": 1, "step": 1, "epoch": 1, "lr": 1.0, "loss": 1.0}])
    with pytest.raises(UserError) as caught:
        main([argument.format(run=run, empty=empty) for argument in arguments])
    assert words in str(caught.value) and "\n" not in str(caught.value)
