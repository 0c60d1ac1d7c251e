import pytest

from headrace.kernels import configure, registry


@pytest.fixture(autouse=True)
def nobody_has_chosen(monkeypatch):
    """Each test starts, and leaves the next one, without a choice of implementation."""
    monkeypatch.delenv("HEADRACE_KERNELS", raising=False)
    for state in (registry._used, registry._announced, registry._forward_only):
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
