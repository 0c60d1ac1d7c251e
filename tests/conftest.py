"""Shared set-up: Triton's interpreter where there is no GPU, small image sets, and no hidden skips."""

import os
import signal

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported

import numpy as np
import pytest
from PIL import Image

from headrace.pipelines.images.rules import Rules, use_rules

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of tests in the background: what they start shall hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

# bounded once: results do not depend on the machine, and test processes side by side share its cores
_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
torch.set_num_threads(max(1, min(2, len(os.sched_getaffinity(0)) // _processes)))


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory):
    """24 smooth, mutually different JPEGs of mixed sizes in three class folders."""
    root = tmp_path_factory.mktemp("photos")
    for index in range(24):
        rng = np.random.default_rng(index)
        width, height = (int(side) for side in rng.integers(60, 140, size=2))
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = root / f"class_{index % 3}" / f"photo_{index:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=92)
    return root


@pytest.fixture(scope="session")
def red_and_blue():
    """Function(folder, count): so many images of 40 x 40 in two class folders that any encoder tells apart."""

    def write(folder, count):
        for index in range(count):
            shade = 20 * index % 60
            path = folder / ("red" if index % 2 else "blue") / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (200, shade, 0) if index % 2 else (0, shade, 200)).save(path)

    return write


@pytest.fixture(autouse=True)
def usual_rules():
    """What a process takes for an image is as usual again after every test: a loader or a run may have changed it."""
    yield
    use_rules(Rules())


@pytest.fixture
def Largest():  # noqa: N802
    """A class: ``with Largest() as largest: ...`` leaves `largest.elements`, of the largest tensor that was made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if torch.is_tensor(result):
                self.elements = max(self.elements, result.numel())
            return result

    return Largest


def _unexplained(reporter):
    """Skips whose reason is neither a missing GPU or browser nor an optional package: ``needs the extra [parity]``."""
    known, reports = ("GPU", "needs Chromium", "needs the extra ["), reporter.stats.get("skipped", [])
    return [r for r in reports if not any(reason in str(r.longrepr) for reason in known)]


def pytest_terminal_summary(terminalreporter):
    skipped = _unexplained(terminalreporter)
    if os.environ.get("CI") and skipped:
        terminalreporter.write_line(f"{len(skipped)} tests were skipped without need; that is a failure here:")
        for report in skipped:
            terminalreporter.write_line(f"  {report.nodeid}: {report.longrepr[2]}")


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker of several; the first process counts
        return
    if os.environ.get("CI") and _unexplained(reporter) and exitstatus == 0:
        session.exitstatus = 1
