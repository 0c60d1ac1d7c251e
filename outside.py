"""From dotted names to things outside the tree: ``package.module.thing``, and what somebody may have meant."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .errors import UserError


def imported(path: str, where: str, wanted: Callable[[Any], bool] = callable, what: str = "function") -> Any:
    """What ``pkg.mod.name`` or ``pkg.mod:name`` leads to; modules in the current directory are found.

    Raises `UserError`, which begins with `where`, if that is nothing `wanted`; `what` is the word for such a thing.
    """
    module_name, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise UserError(f"{where}: {path!r} is no dotted name such as my_package.module.thing")
    if os.getcwd() not in sys.path:  # last, so that nothing installed is hidden
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        hint = "is it installed, in this folder, or on PYTHONPATH?"
        raise UserError(f"{where}: cannot import {module_name!r} of {path!r}: {error}; {hint}") from error
    except (Exception, SystemExit) as error:
        fault = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{where}: {module_name!r} of {path!r} ends with {fault} when imported; mend it") from error
    found = getattr(module, attribute, None)
    if not wanted(found):
        names = [name for name, value in vars(module).items() if wanted(value)]
        raise UserError(f"{where}: {module_name!r} has no {what} {attribute!r}{nearest(attribute, names)}")
    return found


def called(
    name: str,
    arguments: Iterable[str],
    options: Mapping[str, Any],
    wanted: Callable[[Any], bool] = callable,
    what: str = "function",
) -> Callable:
    """What `name` leads to, after a look at its signature: it must take `arguments`, in words, and `options`.

    For the ``__post_init__`` of a dataclass with the fields `name` and `options`: raises `ValueError` that begins with
    the one that is wrong.
    """
    if "." not in name:
        raise ValueError(f"name: {name!r} is none of ours, and no dotted name of yours such as my_module.{name}")
    try:
        function = imported(name, "name", wanted, what)
    except UserError as error:
        raise ValueError(str(error)) from None
    arguments = list(arguments)
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins do not say what they take
        return function
    parameters = list(signature.parameters.values())
    known = [p.name for p in parameters[len(arguments) :] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for option in () if any(p.kind is p.VAR_KEYWORD for p in parameters) else options:
        if option not in known:
            raise ValueError(f"options: {name} takes no {option!r}{nearest(option, known)}")
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        raise ValueError(f"name: {name}({', '.join([*arguments, *options])}): {error}") from None
    return function


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the likeliest one, else all there are."""
    names = list(names)
    close = difflib.get_close_matches(name, names, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(names)}" if names else ""
