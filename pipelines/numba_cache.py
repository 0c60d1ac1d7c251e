"""Functions that numba compiles, kept on disk where that is possible."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserWideCacheLocator
from numba.core.runtime import rtsys

_told = False


class _Places(CompileResultCacheImpl):
    # Without a home, which a foreign user id in a container does not have, the user's folder would be one called ~.
    _locator_classes = [
        one
        for one in CompileResultCacheImpl._locator_classes
        if one is not UserWideCacheLocator or os.path.isabs(os.path.expanduser("~"))
    ]


class _Cache(FunctionCache):
    """A cache whose faults are no faults: another user's files, damaged ones, a full disk."""

    _impl_class = _Places

    def load_overload(self, signature: Any, context: Any) -> Any:
        try:
            # What machine code calls while it runs. Numba's own `load_overload` also prepares to compile: it imports
            # scipy and all of numba's functions, 0.3 s of a core in every process, which compiling does itself.
            rtsys.initialize(context)
            with self._guard_against_spurious_io_errors():
                return self._load_overload(signature, context)
        except Exception:  # unpickling damaged bytes raises anything
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        with suppress(Exception):  # the index is read again
            super().save_overload(signature, result)


def compiled(*signature: Any, **options: Any) -> Callable[[Callable], Callable]:
    """``numba.njit`` without the interpreter lock, at once for a signature, else at the first call.

    The result is kept beside the function's file, or in a folder of the user's where that cannot be written, or in that
    of ``NUMBA_CACHE_DIR``. Where none can be written it is compiled in every process, and standard error says so once.
    """

    def decorate(function: Callable) -> Callable:
        made = numba.njit(nogil=True, error_model="numpy", **options)(function)
        try:
            made._cache = _Cache(made.py_func)  # as its `enable_caching` does
        except RuntimeError:  # "no locator available"
            _tell()
        for one in signature:
            made.compile(one)
        if signature:
            made.disable_compile()
        return made

    return decorate


def _tell() -> None:
    global _told
    if not _told:
        line = "no folder can be written to keep what numba compiles, which takes 10 to 20 s now; name one in"
        print(f"headrace: {line} NUMBA_CACHE_DIR", file=sys.stderr, flush=True)
    _told = True
