"""A run to look at."""

import shutil

import pytest

from headrace.train import pretrain


@pytest.fixture(scope="session")
def run(photo_folder, tmp_path_factory):
    """A real run of 20 steps, 3 an epoch, with k-NN after every second one."""
    data = tmp_path_factory.mktemp("data") / "photos"
    shutil.copytree(photo_folder, data)
    next(data.rglob("photo_07.jpg")).write_bytes(b"\xff\xd8 not much of an image")
    out = tmp_path_factory.mktemp("runs") / "mae"
    options = [f"data.train={data}", f"data.val={photo_folder}", "train.knn_every=2", "train.save_every=10"]
    assert pretrain.main(["mae_vit-tiny", "--smoke", *options, f"train.out={out}"]) == 0
    return out
