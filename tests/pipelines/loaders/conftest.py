"""Tars that streams are made of."""

import pytest


@pytest.fixture(scope="module")
def tars(photo_folder, tar_bytes, tmp_path_factory):
    """Three tars of eight photos, with class indices, and the manifest that tells their number."""
    folder = tmp_path_factory.mktemp("tars")
    photos = sorted(photo_folder.rglob("*.jpg"))
    for shard in range(3):
        files = {}
        for index in range(8 * shard, 8 * shard + 8):
            files |= {f"{index:03d}.jpg": photos[index].read_bytes(), f"{index:03d}.cls": b"%d" % (index % 3)}
        (folder / f"train-{shard}.tar").write_bytes(tar_bytes(files))
    return folder
