"""A window of steps under torch's profiler: `train.profile=100:110`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def _export(recorder: profile, file: Path) -> None:
    """A trace that cannot be written is a warning. What writes it does not say so, so that its end is looked at."""
    try:
        recorder.export_chrome_trace(str(file))
        with open(file, "rb") as written:
            written.seek(-min(8, file.stat().st_size), os.SEEK_END)
            if not written.read().rstrip().endswith(b"}"):
                raise OSError("it is cut short")
    except (OSError, RuntimeError) as fault:
        file.unlink(missing_ok=True)
        warnings.warn(f"{file}: cannot be written ({fault}); the run goes on without", stacklevel=2)


@contextmanager
def profiled(window: str | None, out: Path, enabled: bool, begin: int = 0) -> Iterator[Callable[[int], None]]:
    """Gives a function to be called after every step; steps first:last (counted from 1) go to ``out/trace.json``.

    `begin` steps are finished already. Of a run that ends within the window there is what was seen of it.

    The file is read by chrome://tracing and ui.perfetto.dev.
    """
    if window is None or not enabled:
        yield lambda step: None
        return
    first, last = map(int, window.split(":"))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    recorder = profile(activities=activities)
    running = False

    def look(finished: int) -> None:
        nonlocal running
        if not running and first - 1 <= finished < last:
            recorder.start()
            running = True
        elif running and finished >= last:
            stop()

    def stop() -> None:
        nonlocal running
        recorder.stop()
        running = False
        _export(recorder, out / "trace.json")

    look(begin)
    yield lambda step: look(step + 1)
    if running:
        stop()
