"""`torch.compile` of a plain PyTorch function, as an implementation like any other."""

from __future__ import annotations

import importlib.util
import os
import shutil
import types
from collections.abc import Callable
from typing import Any

import torch


def compiled(function: types.FunctionType) -> Callable:
    """`function` compiled on its own: what it compiles for other shape classes does not count against its limit.

    `torch.compile` keeps its graphs with the code object, and after eight of them it would go on uncompiled, silently.
    """
    code = function.__code__.replace()
    own = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    own.__kwdefaults__ = function.__kwdefaults__
    return torch.compile(own)


def without_compiler(device: str, *shape: Any) -> str | None:
    """Why `torch.compile` cannot serve this device type, or None."""
    if device == "cpu":
        compilers = (os.environ.get("CXX"), "g++", "clang++")
        found = any(shutil.which(name) for name in compilers if name)
        return None if found else "torch.compile needs a C++ compiler on CPUs"
    return None if importlib.util.find_spec("triton") else "torch.compile needs Triton on GPUs"
