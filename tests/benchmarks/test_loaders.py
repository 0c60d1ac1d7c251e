"""The benchmark of loaders: what it compares is comparable, and what it writes can be read."""

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headrace.benchmarks import jobs, loaders, record
from headrace.errors import UserError
from headrace.pipelines.spec import ViewSpec

VIEWS = (
    ViewSpec(count=2, size=32, jitter=0.8, brightness=0.4, hue=0.1, gray=0.2, blur=0.5),
    ViewSpec("small", size=24),
)


@pytest.fixture
def job(photo_folder, tmp_path):
    return jobs.Job(photo_folder, VIEWS, workers=0, batch=4, scratch=tmp_path)


def test_every_contender_that_is_installed_gives_float_views_of_the_same_shapes(job):
    """In this process (no workers): what they cost is not the question here."""
    names = [
        name for name, peer in loaders.PEERS.items() if not peer.missing and name in ("torchvision", "torchvision v2")
    ]
    for name in names:
        batches = job.start(name)
        views = next(batches)
        batches.close()
        assert [tuple(view.shape) for view in views] == [(4, 3, 32, 32)] * 2 + [(4, 3, 24, 24)]
        assert all(view.dtype == torch.float32 for view in views) and not torch.equal(views[0], views[1])


def test_a_contender_with_other_views_is_caught(job, monkeypatch):
    job.workers = 1
    start = job.start

    def shifted(name):
        for views in start("headrace cpu"):
            yield [view + 1 for view in views] if name == "brighter" else views

    monkeypatch.setattr(job, "start", shifted)
    wrong = job.check(["headrace cpu", "brighter"])
    assert list(wrong) == ["brighter"]


def test_ours_must_be_right_or_nothing_is_measured(job, monkeypatch):
    oracle = jobs.reference_views
    off = lambda *arguments: {name: views + 0.1 for name, views in oracle(*arguments).items()}
    monkeypatch.setattr(jobs, "reference_views", off)
    with pytest.raises(AssertionError, match="grey levels from the reference"):
        job.check([])


def test_rates_count_images_and_all_processors_time():
    def busy():
        for _ in itertools.count():
            end = time.process_time() + 0.005
            while time.process_time() < end:
                pass
            yield None

    rate, cpu = loaders.measure(busy(), batch=10, seconds=0.5, warm=1)
    assert rate <= 10 / 0.005 * 1.01 and 10 * cpu >= 0.005e6 * 0.7 and cpu < 1.5e6 / rate + 300


def test_figures_are_medians_of_turns_in_turn(job, monkeypatch):
    seen, rates = [], iter([10, 1, 30, 3, 20, 2])
    monkeypatch.setattr(job, "start", lambda name: seen.append(name) or iter(()))
    monkeypatch.setattr(loaders, "measure", lambda *_, **__: (next(rates), 5.0))
    figures = loaders.run(job, ["a", "b"], 1.0, 3)
    assert seen == ["a", "b"] * 3
    assert figures["a"] == {
        "images_per_second": 20.0,
        "p20": 14.0,
        "p80": 26.0,
        "views_per_second": 60.0,
        "cpu_us_per_image": 5.0,
    }


def test_rows_come_back_with_what_they_were_made_with_and_the_table_takes_the_last(tmp_path):
    for rate in (100.0, 1234.0):
        figure = {"images_per_second": rate, "p20": rate - 1, "p80": rate + 1, "cpu_us_per_image": 7.0}
        row = {"job": "mae", "contender": "cpu", **figure, "config": {"workers": 2}}
        record.append("ledger", row, ("numpy",), folder=tmp_path)
    first, last = record.read("ledger", folder=tmp_path)
    assert first["images_per_second"] == 100.0 and last["config"] == {"workers": 2}
    assert last["packages"]["numpy"] == np.__version__ and last["commit"] and last["cores"] and last["processor"]
    assert loaders.table([first, last]).splitlines()[-1] == "| cpu | 1,234 (1,233-1,235), 7 us |"
    assert record.read("none", folder=tmp_path) == []


def test_every_peer_can_be_named_on_the_command_line():
    assert ",".join(loaders.PEERS).split(",") == list(loaders.PEERS)


def test_mistakes_on_the_command_line_are_said():
    with pytest.raises(UserError, match="--data is missing"):
        loaders.main([])
    with pytest.raises(UserError, match="torchvison is none of"):
        loaders.main(["--data", ".", "--peers", "torchvison"])


def test_shrinking_keeps_folders_and_small_images(photo_folder, tmp_path):
    """Names and class folders stay; only what is larger gets new bytes, and then has that side."""
    small = jobs.shrink(photo_folder, tmp_path / "small", 100)
    found = sorted(path.relative_to(small) for path in small.rglob("*.jpg"))
    assert found == sorted(path.relative_to(photo_folder) for path in photo_folder.rglob("*.jpg"))
    for name in found:
        before, after = (Image.open(folder / name) for folder in (photo_folder, small))
        if max(before.size) <= 100:
            assert (small / name).read_bytes() == (photo_folder / name).read_bytes()
        else:
            assert max(after.size) == 100
            assert after.width / after.height == pytest.approx(before.width / before.height, rel=0.02)


def test_a_cold_turn_forgets_after_warming_up_and_reads_no_more_than_it_may():
    seen = []

    def batches():
        for number in itertools.count():
            seen.append(number)
            yield None

    loaders.measure(batches(), batch=10, seconds=9.0, warm=2, forget=lambda: seen.append("forgotten"), most=30)
    assert seen == [0, 1, "forgotten", 2, 3, 4]


def test_ceilings_run_and_a_synthetic_loader_repeats_its_batch(job):
    job.workers = 1
    for name in jobs.CEILINGS:
        batches = job.start(name)
        first, second = next(batches), next(batches)
        batches.close()
        if name == "synthetic":
            assert len(first) == 3 and all(torch.equal(a, b) for a, b in zip(first, second))


def test_ratios_are_ours_over_theirs():
    rates = {"headrace cpu": 900.0, "dali": 300.0, "decode only": 1200.0}
    rows = [{"contender": name, "images_per_second": rate} for name, rate in rates.items()]
    assert loaders.ratios(rows, "mae") == "mae: headrace cpu: 3.00 x dali; 75% of decoding alone"


def test_who_is_not_installed_is_named_and_the_others_run(photo_folder, tmp_path, capsys, monkeypatch):
    nowhere = jobs.PEERS["kornia"]._replace(package="not_installed.at_all")
    monkeypatch.setitem(jobs.PEERS, "kornia", nowhere)
    figure = loaders.spread("images_per_second", [1, 2, 3]) | {"cpu_us_per_image": 1.0}
    monkeypatch.setattr(loaders, "run", lambda job, names, *_: dict.fromkeys(names, figure))
    monkeypatch.setattr(jobs.Job, "check", lambda job, names: {})
    options = ["--peers", "kornia", "--jobs", "mae", "--batch", "4", "--out", str(tmp_path)]
    loaders.main(["--data", str(photo_folder), *options])
    assert "skipped: kornia: not_installed.at_all is not installed" in capsys.readouterr().out
    rows = record.read("loaders", tmp_path)
    assert "headrace cpu" in {row["contender"] for row in rows} and "kornia" not in {row["contender"] for row in rows}
    assert {row["images_per_second"] for row in rows} == {2.0} and rows[0]["p20"] == pytest.approx(1.4)


def test_opencv_by_hand_makes_views_like_ours(job):
    """Mean and spread of many views, as the benchmark holds peers to ours."""
    pytest.importorskip("cv2", reason="needs the extra [peers]")
    job.workers = 1
    assert job.check(["headrace cpu", "opencv by hand"]) == {}


def test_the_hand_written_matrix_is_the_reference_s_jitter_where_nothing_is_clamped():
    pytest.importorskip("cv2", reason="needs the extra [peers]")
    from headrace.benchmarks.peers.opencv import _matrix

    image = np.random.default_rng(0).integers(110, 140, (8, 8, 3), dtype=np.uint8)
    view = ViewSpec(jitter=1.0, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.0, gray=1.0)
    gray = _matrix(image, view, np.random.default_rng(1))
    assert np.allclose(gray[0], gray[1]) and np.allclose(gray[1], gray[2])
    contrast = ViewSpec(jitter=1.0, contrast=0.5)
    m = _matrix(image, contrast, np.random.default_rng(2))
    luma = image.reshape(-1, 3).mean(0) @ [0.299, 0.587, 0.114]
    factor = m[0, 0]
    assert factor != 1 and np.allclose(m, np.hstack([factor * np.eye(3), np.full((3, 1), (1 - factor) * luma)]))


def test_from_a_checkout_without_headrace_it_says_what_to_do(tmp_path):
    """`python -m benchmarks.loaders` where the package itself cannot be imported."""
    (tmp_path / "benchmarks").symlink_to(Path(loaders.__file__).parent)
    command = [sys.executable, "-S", "-m", "benchmarks.loaders"]  # -S: not even what is installed beside it
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2 and "pip install -e ." in ended.stderr and "Traceback" not in ended.stderr
