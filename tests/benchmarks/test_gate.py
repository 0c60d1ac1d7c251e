"""The throughput gate: what it compares with, when it fails, and that a failure is measured twice."""

import itertools
import json
import time

import numpy as np
import pytest
from PIL import Image

from headrace.benchmarks import gate, record
from headrace.errors import UserError


def row(ratio, p20=None, p80=None, processor="CPU A", job="mae", day="2026-01-02"):
    own = {"job": job, "peer": gate.PEER, "ratio": ratio, "p20": p20 or 0.98 * ratio, "p80": p80 or 1.02 * ratio}
    return own | {"processor": processor, "time": f"{day}T03:04:05Z", "day": day}


def test_the_last_day_of_this_processor_counts_else_the_lowest_of_others():
    rows = [row(6.0, day="2026-01-01"), row(5.0), row(4.4), row(4.9), row(1.0, job="eval")]
    rows += [row(4.0, processor="CPU B"), row(4.5, processor="CPU C")]
    assert gate.recorded(rows, "mae", "CPU A")["ratio"] == 4.9
    assert gate.recorded(rows, "mae", "CPU D")["ratio"] == 4.0
    assert gate.recorded(rows, "multicrop", "CPU A") is None


@pytest.mark.parametrize(
    "found, before, fails",
    [
        (row(8.6), row(10.0), False),  # 14 % less
        (row(8.4), row(10.0), True),
        (row(8.0), row(10.0), True),  # a quarter slower
        (row(8.0, p80=9.9), row(10.0), False),  # 20 % less, but the spreads meet
        (row(12.0), row(10.0), False),
    ],
)
def test_slower_means_more_than_is_allowed_and_more_than_the_spread(found, before, fails):
    assert gate.slower(found, before) == fails


@pytest.mark.parametrize("ratios, code, turns", [([10], 0, [3]), ([8, 9.5], 0, [3, 6]), ([8, 8], 1, [3, 6])])
def test_a_failure_counts_if_it_is_found_twice(ratios, code, turns, tmp_path, monkeypatch, capsys):
    seen, values = [], iter(ratios)
    monkeypatch.setattr(gate, "photos", lambda folder: folder)
    monkeypatch.setattr(gate, "measure", lambda data, name, turns, slow: seen.append(turns) or row(next(values)))
    (tmp_path / "gate.jsonl").write_text(json.dumps(row(10.0)) + "\n")
    assert gate.main(["--jobs", "mae", "--turns", "3", "--out", str(tmp_path)]) == code
    assert seen == turns and ("slower by more than 15%" in capsys.readouterr().out) == bool(code)


def test_without_a_row_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "photos", lambda folder: folder)
    with pytest.raises(UserError, match="no row of mae; measure one with --record"):
        gate.main(["--jobs", "mae", "--out", str(tmp_path)])


def test_both_gated_jobs_are_on_record():
    assert {row["job"] for row in record.read("gate")} >= set(gate.GATED)


def test_a_turn_costs_the_cpu_time_of_its_images_and_the_handicap():
    def batches():
        for _ in itertools.count():
            end = time.process_time() + 0.02
            while time.process_time() < end:
                pass
            yield None

    plain, slowed = (gate.turn(batches(), 0.2, handicap) for handicap in (0.0, 0.25))
    assert plain == pytest.approx(0.02e6 / gate._BATCH, rel=0.1) and slowed / plain == pytest.approx(1.25, rel=0.1)


def test_photos_are_the_same_everywhere_and_like_photos(tmp_path):
    """Their spectrum falls with the frequency, as a power law; sizes of files are those of photos."""
    once, again = (gate.photos(tmp_path / name, 2) / "photos" for name in "ab")
    for name in ("000.jpg", "001.jpg"):
        assert (once / name).read_bytes() == (again / name).read_bytes()
        assert 60_000 < (once / name).stat().st_size < 130_000
    gray = np.asarray(Image.open(once / "000.jpg").convert("L"), float)[:256, :256]
    power = np.abs(np.fft.rfft2(gray - gray.mean())) ** 2
    away = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256))
    bands = [power[(away > low) & (away <= 2 * low)].mean() for low in (0.01, 0.02, 0.04, 0.08)]
    slopes = np.diff(np.log2(bands))
    assert (slopes < -1.2).all() and (slopes > -3.5).all()  # of photos about -2
