"""Measurements on disk, by several processes at once."""

import numpy as np
import pytest

from headrace.pipelines.measure import store
from headrace.pipelines.measure.store import Store
from headrace.pipelines.sources import open_source


@pytest.mark.parametrize("blocks_read", [0, 1])
def test_who_is_slower_takes_what_the_faster_one_has_put_together(blocks_read, photo_folder, tmp_path, monkeypatch):
    """The other one starts, ends and tidies up while this one has its file open, before or after the only block."""
    ours, theirs = (Store(tmp_path, open_source(photo_folder)) for _ in range(2))
    ours.begin()
    for job in ours.jobs():
        ours.write(job, lambda seen: None)
    faster, load = [], np.load

    def slow(file, **options):
        if not str(file).endswith(".npz") or faster:
            return load(file, **options)
        block = load(file, **options) if blocks_read else None
        faster.append(None)  # what it reads is read at once
        faster[0] = theirs.finish()
        return block or load(file, **options)

    monkeypatch.setattr(store.np, "load", slow)
    found = ours.finish()
    assert found.pictures.thumbs.any(axis=(1, 2)).all() and len(found.rows) == 24
    assert np.array_equal(found.rows, faster[0].rows)
    assert np.array_equal(found.pictures.thumbs, faster[0].pictures.thumbs)
    assert not list((tmp_path / store.FOLDER).glob("*.partial"))
