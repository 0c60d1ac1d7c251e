"""`waiting_fails`: notices what would make a host wait for a GPU, on a machine that has none."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_METHODS = ("cpu", "item", "tolist", "numpy", "__bool__", "__float__", "__int__")
_OPERATORS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique_dim", "_unique2")


def _waits(*_, **__):
    raise AssertionError("waits for the device")


class _NoWaiting(TorchDispatchMode):
    """Fails on a value that is read on the host, and on a shape that depends on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        assert name not in _OPERATORS, f"{function} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "an index by a mask waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def waiting_fails(monkeypatch):
    """A context in which reading a value of a tensor is an AssertionError."""

    @contextmanager
    def context():
        with monkeypatch.context() as patched:
            for name in _METHODS:
                patched.setattr(torch.Tensor, name, _waits)
            patched.setattr(torch.cuda, "synchronize", _waits)
            with _NoWaiting():
                yield

    return context
