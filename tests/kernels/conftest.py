import sys
from pathlib import Path

import pytest

from headrace.kernels import configure, registry, trial

sys.path.insert(0, str(Path(__file__).parent))  # these tests, and processes they start, import helpers beside them


@pytest.fixture(autouse=True)
def nobody_has_chosen(monkeypatch, tmp_path_factory):
    """Each test starts, and leaves the next one, without a choice of implementation and without records of checks."""
    monkeypatch.delenv("HEADRACE_KERNELS", raising=False)
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path_factory.mktemp("cache")))
    for state in (registry._used, registry._announced, registry._forward_only, registry._decisions, trial._tried):
        state.clear()
    configure({})
    yield
    registry._used.clear()
    configure({})


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Writes an importable module `my_kernels` with the reference imported as `reference`."""

    def write(source: str) -> None:
        header = "import torch\nfrom headrace.kernels.patch_loss.reference import patch_loss as reference\n"
        (tmp_path / "my_kernels.py").write_text(header + source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(__import__("sys").modules, "my_kernels", raising=False)

    return write
