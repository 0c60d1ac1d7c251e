"""A window of steps under torch's profiler: `train.profile=100:110`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


@contextmanager
def profiled(window: str | None, out: Path, enabled: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function to be called after every step; steps first:last (counted from 1) go to ``out/trace.json``.

    The file is read by chrome://tracing and ui.perfetto.dev.
    """
    if window is None or not enabled:
        yield lambda step: None
        return
    first, last = map(int, window.split(":"))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    recorder = profile(activities=activities)
    running = False

    def after(step: int) -> None:
        nonlocal running
        finished = step + 1
        if not running and first - 1 <= finished < last:
            recorder.start()
            running = True
        elif running and finished >= last:
            recorder.stop()
            running = False
            try:
                recorder.export_chrome_trace(str(out / "trace.json"))
            except (OSError, RuntimeError) as fault:
                warnings.warn(f"{out}/trace.json: cannot be written ({fault}); the run goes on without", stacklevel=2)

    yield after
    if running:
        recorder.stop()
