"""The methods, one file each; a file's name is the method's name in a recipe."""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from torch import nn

from ...errors import UserError
from ...outside import imported
from ...pipelines.spec import InputSpec
from ..algorithm import Algorithm


def algorithm_names() -> list[str]:
    """The methods, as recipes call them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_algorithm(name: str) -> type[Algorithm]:
    """The `Algorithm` of models/algorithms/<name>.py, or the class that a dotted name leads to.

    Raises `UserError` where there is none.
    """
    if "." in name:
        return imported(name, "algorithm.name", _is_algorithm, "Algorithm")
    if name not in algorithm_names():
        near = difflib.get_close_matches(name, algorithm_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(algorithm_names())}"
        raise UserError(f"algorithm.name: no algorithm {name!r}; {hint}")
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Algorithm) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(f"algorithm.name: {name} must define exactly one Algorithm, it defines {len(found)}")
    return found[0]


def make_algorithm(config: Algorithm.Config) -> Algorithm:
    """The algorithm of a checked section, with fresh weights.

    Raises `UserError` where values that are sound one by one make no network together: a width that the heads do not
    divide, sizes that are nobody's.
    """
    kind = find_algorithm(config.name)
    try:
        return kind(config)
    except (ValueError, ArithmeticError, RuntimeError, TypeError, LookupError, AssertionError) as fault:
        reason = f"{type(fault).__name__}: {' '.join(str(fault).split())}"[:300]
        raise UserError(f"algorithm: no {config.name} can be made of these values ({reason})") from fault


def _is_algorithm(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, Algorithm)


def inputs_of(config: Algorithm.Config) -> InputSpec:
    """What an algorithm of this configuration wants to see, without its networks: `inputs` reads `config` alone.

    So one can look at the views of methods whose target networks are not at hand.
    """
    bare = object.__new__(find_algorithm(config.name))
    nn.Module.__init__(bare)
    bare.config = config
    return bare.inputs()
