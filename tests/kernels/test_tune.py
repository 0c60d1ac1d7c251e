"""Tiles: who is asked in which order, and what `tune` keeps."""

import sys
import types

import pytest

from headrace.errors import UserError
from headrace.kernels import operator, tiles, tune
from headrace.kernels.commands import main

pytest.importorskip("triton")

OP = operator("patch_loss")


@pytest.fixture(autouse=True)
def no_tiles_known():
    tiles._known.cache_clear()
    yield
    tiles._known.cache_clear()


@pytest.fixture
def table(monkeypatch):
    """An operator `invented` with a table for the architecture at hand and for another one."""
    here = tiles.architecture(0 if tiles.torch.cuda.is_available() else None)
    module = types.ModuleType("triton_impl")
    module.TILES = {here: {"forward 64": {"BLOCK": 2}}, "sm_1": {"forward 128": {"BLOCK": 9}}}
    monkeypatch.setitem(sys.modules, "headrace.kernels.invented.triton_impl", module)


def test_tuned_before_table_before_default(table):
    device = 0 if tiles.torch.cuda.is_available() else None
    assert tiles.tile("invented", "forward 128", {"BLOCK": 1}) == {"BLOCK": 1}
    assert tiles.tile("invented", "forward 64", {"BLOCK": 1}) == {"BLOCK": 2}
    tiles.save("invented", device, {"forward 64": {"BLOCK": 3}})
    tiles.save("invented", device, {"backward 64": {"BLOCK": 4}})
    assert tiles.tile("invented", "forward 64", {"BLOCK": 1}) == {"BLOCK": 3}
    assert tiles.tile("invented", "backward 64", {"BLOCK": 1}) == {"BLOCK": 4}
    with tiles.trial("invented", "forward 64", {"BLOCK": 5}):
        assert tiles.tile("invented", "forward 64", {"BLOCK": 1}) == {"BLOCK": 5}
    assert tiles.tile("invented", "forward 64", {"BLOCK": 1}) == {"BLOCK": 3}
    asked = {"forward 64": {"BLOCK": 3}, "backward 64": {"BLOCK": 4}, "forward 128": {"BLOCK": 1}}
    assert tiles.asked("invented") == asked and tiles.asked("invented") == {}


@pytest.fixture
def small(monkeypatch):
    (case,) = [case for case in OP.cases if case.id == "p4-one-image"]
    monkeypatch.setattr(tune, "workloads", lambda op, device: (case,))
    return "cuda" if tiles.torch.cuda.is_available() else "cpu"


def pretended(times):
    """A timer that takes the time from the tiles in force instead of a clock."""

    def timer(step, device):
        tiles.asked("patch_loss")
        step()
        return sum(times[key.split()[0]][tile["num_warps"]] for key, tile in tiles.asked("patch_loss").items())

    return timer


def test_the_fastest_is_kept_where_it_is_faster(small):
    forward = {1: 50.0, 2: 40.0, 4: 30.0, 8: 35.0, 16: 45.0}
    backward = {1: 20.0, 2: 19.9, 4: 19.8, 8: 25.0, 16: 30.0}  # under 2 % of the whole
    trials = list(tune.tune(OP, small, pretended({"forward": forward, "backward": backward})))
    present = [trial for trial in trials if trial.note == "present"]
    assert [trial.key for trial in present] == ["forward 64", "backward 64"]
    assert {trial.tile["num_warps"] for trial in trials if trial.key == "forward 64"} == {1, 2, 4, 8, 16}
    assert all(trial.us == 20.0 + forward[trial.tile["num_warps"]] for trial in trials if trial.key == "forward 64")
    default = {"num_warps": 3}
    triton_default = present[1].tile
    assert tiles.tile("patch_loss", "forward 64", default) == {"num_warps": 4}
    assert triton_default == {"num_warps": 1} and tiles.tile("patch_loss", "backward 64", default) == default


def test_wrong_results_and_failures_are_out(small, monkeypatch):
    triton_impl = sys.modules["headrace.kernels.patch_loss.triton_impl"]
    monkeypatch.setattr(triton_impl, "CANDIDATES", {"backward": [{"num_warps": 1, "BLOCK": 16}, {"BLOCK": 63}]})
    trials = [trial for trial in tune.tune(OP, small, lambda step, device: 1.0) if trial.note != "present"]
    assert [trial.us for trial in trials] == [None, None]
    assert trials[0].note == "wrong results" and "Error" in trials[1].note
    assert not tiles.overlay_path(0 if small == "cuda" else None).exists()


def test_nothing_to_tune_is_an_error(small, monkeypatch, capsys):
    import headrace.kernels.patch_loss.triton_impl as triton_impl

    monkeypatch.setattr(triton_impl, "CANDIDATES", {})
    with pytest.raises(UserError, match="names none in CANDIDATES"):
        list(tune.tune(OP, small))
    assert main(["tune", "patch_loss", "--device", "cpu"]) == 2
    assert "tiles are for GPUs" in capsys.readouterr().err
