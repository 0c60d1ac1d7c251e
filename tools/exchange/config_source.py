"""A foreign configuration from which settings are taken one after another, so that what nobody took is known.

Translating takes a value where it has a counterpart, or compares it with what headrace does in any case. What is left
at the end is reported, whatever it is: no list of things that are left out has to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str | int, ...]
ABSENT = object()


@dataclass
class Report:
    """What became of the values that did not arrive in the recipe, as ``key = value``."""

    without: list[str] = field(default_factory=list)  # no counterpart: something will be different
    same: list[str] = field(default_factory=list)  # what headrace does, too
    views: list[str] = field(default_factory=list)  # pipelines, which are not translated
    aside: list[str] = field(default_factory=list)  # of data, logs and processes: nothing learned depends on it

    def comments(self) -> list[str]:
        """The lines of a recipe's comment."""
        lines = [f"no counterpart: {line}" for line in self.without]
        titles = {
            "as in headrace": self.same,
            "views are those of the method's recipe (see `headrace browse`), not these": self.views,
            "of data, logs and processes, left to you or to headrace": self.aside,
        }
        for title, entries in titles.items():
            lines += [f"{title}:", *(f"  {entry}" for entry in entries)] if entries else []
        return [line.replace("\n", " ") for line in lines]


class Source:
    """`given` is the configuration as nested dicts and lists; a path is written ``model.neck.type``, ``a.0.type``."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.report = Report()
        self._left = copied(given)
        self._here: dict[Path, Any] = {}  # what headrace has where another value was given

    def get(self, path: str | Path, default: Any = None) -> Any:
        """A value that stays to be taken or reported."""
        found: Any = self._left
        for key in _keys(path):
            inside = isinstance(found, dict) and key in found or isinstance(found, list) and isinstance(key, int)
            if not inside or isinstance(found, list) and not 0 <= key < len(found):
                return default
            found = found[key]
        return found

    def take(self, path: str | Path, default: Any = None) -> Any:
        """A value that arrives somewhere; from then on it is absent."""
        found = self.get(path, ABSENT)
        if found is ABSENT:
            return default
        *outer, last = _keys(path)
        self.get(tuple(outer)).pop(last)
        return found

    def same(self, path: str | Path, *here: Any) -> None:
        """A value that needs no translation where it is one of `here`, which headrace does in any case."""
        found = self.get(path, ABSENT)
        if found is ABSENT:
            return
        if any(equal(found, one) for one in here):
            self.report.same.append(f"{_text(path)} = {inline(self.take(path))}")
        else:
            self._here[_keys(path)] = here[0]

    def put_aside(self, path: str | Path) -> None:
        """A value, or all below it, on which nothing that is learned depends."""
        found = self.take(path, ABSENT)
        if found is not ABSENT:
            self.report.aside += [f"{_text(where)} = {text}" for where, text in _leaves(found, _keys(path))]

    def rest(self) -> dict[str, Any]:
        """All that nobody took."""
        return self._left

    def finish(self) -> Report:
        """Reports all that is left. A value of None asks for nothing."""
        for where, text in _leaves(self._left, ()):
            here = f" (here {inline(self._here[where])})" if where in self._here else ""
            pipeline = any(isinstance(key, str) and "pipeline" in key for key in where)
            kind = self.report.views if pipeline else self.report.aside if text == "None" else self.report.without
            kind.append(f"{_text(where)} = {text}{here}")
        return self.report

    def keys(self, path: str | Path = ()) -> list[str]:
        found = self.get(path)
        return list(found) if isinstance(found, dict) else []

    def indices(self, path: str | Path) -> range:
        found = self.get(path)
        return range(len(found)) if isinstance(found, list) else range(0)


def _keys(path: str | Path) -> Path:
    if isinstance(path, tuple):
        return path
    return tuple(int(part) if part.isdigit() else part for part in path.split("."))


def _text(path: str | Path) -> str:
    return path if isinstance(path, str) else ".".join(map(str, path))


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Paths and values; what a list holds is one value, or one for each dict in it. Empty dicts and lists are none."""
    if isinstance(value, dict):
        if "type" in value and path and isinstance(path[-1], int):  # a transform, a hook: written as a call
            yield path, inline(value)
            return
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        for number, inner in enumerate(value):
            yield from _leaves(inner, (*path, number))
    elif not isinstance(value, list) or value or path[-1:] == ("milestones",):
        yield path, inline(value)


def inline(value: Any) -> str:
    """``dict(type='Flip', prob=0.5)`` as ``Flip(prob=0.5)``, other things as Python writes them."""
    if isinstance(value, dict) and "type" in value:
        return f"{value['type']}({', '.join(f'{k}={inline(v)}' for k, v in value.items() if k != 'type')})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {inline(inner)}" for key, inner in value.items()) + "}"
    return f"[{', '.join(map(inline, value))}]" if isinstance(value, list) else str(value)


def copied(value: Any) -> Any:
    """Nested dicts and lists of one's own; tuples become lists."""
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same; of the names of classes, without the library before them."""
    if isinstance(a, str) and isinstance(b, str):
        return a.rpartition(".")[2] == b
    if isinstance(a, bool) is not isinstance(b, bool):
        return False
    return copied(a) == copied(b)
