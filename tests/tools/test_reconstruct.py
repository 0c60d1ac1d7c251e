"""`headrace reconstruct`: visible patches are the input's, hidden ones the algorithm's, and wrong uses are one line."""

import matplotlib.image
import pytest
import torch

from headrace.errors import UserError
from headrace.tools import plots
from headrace.tools.reconstruct import main
from headrace.train import pretrain


@pytest.fixture(scope="module")
def runs(photo_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for name in ("mixmim_mixmim-small-128px", "simmim_vit-small-64px", "simclr_resnet18_cifar10"):
        arguments = [name, "--smoke", f"data.train={photo_folder}", f"train.out={out / name}"]
        assert pretrain.main(arguments) == 0
    return out


@pytest.mark.parametrize("name", ["mixmim_mixmim-small-128px", "simmim_vit-small-64px"])
def test_rows_of_the_picture(name, runs, photo_folder, tmp_path, monkeypatch, capsys):
    sheets = []
    monkeypatch.setattr(plots, "_sheet", lambda rows, path, note: sheets.append((dict(rows), path, note)))
    assert main([str(runs / name), str(photo_folder), "--out", str(tmp_path / "r.png"), "--samples", "4"]) == 0
    ((rows, path, note),) = sheets
    images, masked, restored, difference = rows.values()
    assert (
        path == tmp_path / "r.png" and "pasted from the input" in note and str(runs / name) in capsys.readouterr().out
    )
    hidden = (masked == 128).all(-1) & (images != 128).any(-1)
    assert 0.3 < hidden.float().mean() < 0.8
    assert torch.equal(restored[~hidden], images[~hidden]) and not torch.equal(restored[hidden], images[hidden])
    assert (difference[~hidden] == 255).all() and (difference[hidden] < 255).float().mean() > 0.9


def test_a_picture_is_written_and_wrong_uses_are_named(runs, photo_folder, tmp_path):
    run = str(runs / "simmim_vit-small-64px")
    assert main([run, str(photo_folder), "--out", str(tmp_path / "r.png"), "--samples", "2"]) == 0
    assert matplotlib.image.imread(tmp_path / "r.png").std() > 0.05
    with pytest.raises(UserError, match="simclr: predicts no pictures"):
        main([str(runs / "simclr_resnet18_cifar10"), str(photo_folder)])
    with pytest.raises(UserError, match="--samples: must be 2, 4, 6"):
        main([run, str(photo_folder), "--samples", "3"])
    with pytest.raises(UserError, match="is no .png"):
        main([run, str(photo_folder), "--out", "r.jpg"])
