"""A set larger than memory: what it holds, and the group that keeps memory small, on planted folders."""

import os

import numpy as np
import pytest

from headrace.benchmarks import pixels_limited
from headrace.benchmarks.pixels_limited import Group, sets
from headrace.errors import UserError
from headrace.pipelines.pixels.sidecars import open_pixels
from headrace.pipelines.shard import shard
from headrace.pipelines.sources import open_source


@pytest.mark.parametrize("version", (1, 2))
def test_a_group_is_made_read_and_removed(tmp_path, monkeypatch, version):
    root = tmp_path / "memory" if version == 1 else tmp_path
    root.mkdir(exist_ok=True)
    limit, used, key = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_rss")
        if version == 1
        else ("memory.max", "memory.current", "anon")
    )
    if version == 1:
        (root / limit).write_text("", encoding="ascii")
    monkeypatch.setattr(pixels_limited, "GROUPS", tmp_path)
    group = Group(4_000_000_000)
    folder = root / f"headrace-{os.getpid()}"
    assert (folder / limit).read_text(encoding="ascii") == "4000000000"
    group.enter()
    assert (folder / "cgroup.procs").read_text(encoding="ascii") == str(os.getpid())
    (folder / used).write_text("123\n", encoding="ascii")
    (folder / "memory.stat").write_text(f"cache 9\n{key} 77\n{key}_huge 5\n", encoding="ascii")
    assert (group.used(), group.anonymous()) == (123, 77)
    for file in folder.iterdir():  # the kernel's own vanish with the group
        file.unlink()
    group.close()
    assert not folder.exists()
    monkeypatch.setattr(pixels_limited, "GROUPS", tmp_path / "none")
    with pytest.raises(UserError, match="no memory control group .*; be root"):
        Group(1)


def test_a_large_set_holds_the_pixels_of_the_small_one_again_and_again(photo_folder, tmp_path):
    shard(photo_folder, tmp_path / "tars")
    with sets(tmp_path / "tars", 0.000_6, 1) as (small, large):
        one, all_of_them = (open_pixels(open_source(folder), "require") for folder in (small, large))
        size = next(small.glob("*.pixels")).stat().st_size
        copies = len(list(large.glob("*.tar")))
        assert (copies - 1) * size < 600_000 <= copies * size and copies > 1
        for index in (0, 23, 24 * (copies - 1) + 5):
            assert np.array_equal(all_of_them.image(index).flat, one.image(index % 24).flat)
    assert not small.exists()
    with pytest.raises(UserError, match="GB free, needs"), sets(tmp_path / "tars", 1e9, 1):
        pass
