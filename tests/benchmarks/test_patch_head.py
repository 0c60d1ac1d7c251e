"""Memory of the loss of masked patches: both ways give the same, and the account is that of what was allocated."""

import pytest
import torch

from headrace.benchmarks import patch_head, record


def test_the_account_is_of_what_is_there_at_a_time():
    def function():
        for _ in range(3):
            a = torch.empty(250_000)  # 1 MB
            b = torch.empty(500_000)
            del a, b

    assert patch_head.peak_mb(function) == pytest.approx(3.0, abs=0.01)


def test_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("headrace.models.self_distillation.patch_loss._ELEMENTS", 4096)
    words = ["--images", "4", "--prototypes", "512", "--bottleneck", "8", "--out", str(tmp_path)]
    assert patch_head.main(words) == 0
    rows = record.read("patch_head", tmp_path)
    assert [(row["job"], row["contender"]) for row in rows] == [
        (job, contender) for job in ("centred", "assigned") for contender in ("by the formula", "in tiles")
    ]
    for formula, tiles in (rows[:2], rows[2:]):
        assert tiles["loss"] == pytest.approx(formula["loss"], rel=1e-5)
        assert tiles["gradient"] == pytest.approx(formula["gradient"], rel=1e-4)
        assert formula["peak_share"] == 1 and tiles["peak_share"] < 0.8
