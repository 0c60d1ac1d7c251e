"""Makes the helpers here importable; sets in true formats; one thread, which is best for small maps."""

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from headrace.train.engine.step import Stepper

sys.path.insert(0, str(Path(__file__).parent))
import trees  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return trees.coco(tmp_path_factory.mktemp("coco"), {"train": 8, "val": 5})


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    splits = {"2007": {"trainval": 5, "test": 5}, "2012": {"trainval": 4}}
    return trees.voc(tmp_path_factory.mktemp("voc"), splits)


@pytest.fixture(scope="module")
def voc12aug(tmp_path_factory):
    return trees.voc12aug(tmp_path_factory.mktemp("voc"), {"train": 6, "val": 3, "aug": 6})


@pytest.fixture
def stopped_at(monkeypatch):
    """``with stopped_at(step):`` a run inside gets SIGTERM in that step, counted from 0, and ends after it."""

    @contextmanager
    def stopped_at(when):
        take = Stepper.__call__

        def step(self, batch, progress):
            if progress.step == when:
                os.kill(os.getpid(), signal.SIGTERM)
            return take(self, batch, progress)

        with monkeypatch.context() as patched:
            patched.setattr(Stepper, "__call__", step)
            yield

    return stopped_at
