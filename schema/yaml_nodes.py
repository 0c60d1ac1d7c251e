"""YAML for recipes and plans: every value knows the file and line it came from, and scalars are those of YAML 1.2.

PyYAML alone follows YAML 1.1, reads `1e-4` as a string, `on` as a bool and `1:30` as 90, and lets the last of two equal
keys win.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import yaml

from ..errors import UserError

_DIGITS = 1000  # Python itself reads no more than 4,300
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Node:
    """A value and where a person wrote it: the line of its key in a mapping, its own line in a list."""

    value: dict[str, Node] | list[Node] | Scalar
    origin: str  # "configs/x.yaml:12", "command line"
    text: str | None = None  # as it was written: an unquoted scalar of a file, all that was typed on the command line
    fault: str = ""  # why that is no value, unless it is meant as a text

    def __str__(self) -> str:
        """How messages quote the value."""
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, list):
            return "a list"
        known = self.value is None or type(self.value) in (bool, int, float)
        return _scalar(self.value) if known else repr(self.value)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # none of YAML 1.1

    def compose_node(self, parent, index):
        event = self.peek_event()
        if event.anchor or getattr(event, "tag", None):
            text = "anchors, aliases and tags have no place here"
            raise yaml.composer.ComposerError(None, None, text, event.start_mark)
        return super().compose_node(parent, index)


def _integer(text: str) -> int | float:
    if len(text) > _DIGITS:
        return math.copysign(math.inf, -1 if text[0] == "-" else 1)  # which is no integer of a recipe's
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


# tag: what matches, the first characters PyYAML looks for, what it becomes; the order decides
_SCALARS: dict[str, tuple[str, list[str], Callable[[str], Scalar]]] = {
    "null": (r"null|Null|NULL|~|", ["n", "N", "~", ""], lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF"), lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789"), _integer),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
        lambda text: float(text if text[-1] in ".0123456789" else text.replace(".", "")),
    ),
}
_CONVERT = {f"tag:yaml.org,2002:{name}": convert for name, (_, _, convert) in _SCALARS.items()}
for _name, (_pattern, _first, _) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)


def parse(text: str, where: Callable[[int], str], key: str = "") -> Node:
    """The nodes of one YAML document; an empty one is null.

    `where` turns a line number (from 1) into an origin, `key` is the dotted key the text belongs to, for messages.
    Raises `UserError` for broken syntax, for anchors, aliases and tags, and with a line for each key given twice.
    """
    try:
        composed = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"character {chr(error.character)!r} cannot be part of YAML"
        raise UserError(message(where(line), key, problem)) from None
    except yaml.MarkedYAMLError as error:
        problem = "YAML error: " + ", ".join(filter(None, (error.context, error.problem)))
        raise UserError(message(where(error.problem_mark.line + 1), key, problem)) from None
    problems: list[str] = []
    node = Node(None, where(1)) if composed is None else _convert(composed, where, key, _line(composed), problems)
    if problems:
        raise UserError("\n".join(problems))
    return node


def typed(text: str, origin: str, key: str) -> Node:
    """What was typed on the command line for the dotted key: a value, or a text of which every character counts.

    Which one it is, the type of the field says; so broken syntax is not raised but kept as the node's `fault`.
    """
    try:
        node = parse(text, lambda line: origin, key)
        rest = yaml.compose(text, Loader=_Loader)
    except UserError as fault:
        return Node(text, origin, text, str(fault))
    if rest is not None and text[rest.end_mark.index :].strip():
        problem = message(origin, key, f"{text!r}: a space and # begin a comment; leave it out")
        return Node(text, origin, text, problem)
    return replace(node, text=text)


def _convert(node: yaml.Node, where: Callable[[int], str], key: str, line: int, problems: list[str]) -> Node:
    if isinstance(node, yaml.ScalarNode):
        value = _CONVERT.get(node.tag, str)(node.value)
        return Node(value, where(line), node.value if type(value) in (int, float) else None)
    if isinstance(node, yaml.SequenceNode):
        items = enumerate(node.value)
        return Node([_convert(item, where, f"{key}[{i}]", _line(item), problems) for i, item in items], where(line))
    lines: dict[str, int] = {}
    values: dict[str, Node] = {}
    for name_node, value in node.value:
        name, at = name_node.value, _line(name_node)
        if not isinstance(name, str):
            problems.append(message(where(at), key, "a key must be a word, not a list or a mapping"))
            continue
        dotted = f"{key}.{name}" if key else name
        if name in lines:
            problems.append(message(where(at), dotted, f"given twice, first on line {lines[name]}"))
            continue
        lines[name] = at
        values[name] = _convert(value, where, dotted, at, problems)
    return Node(values, where(line))


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def message(origin: str, key: str, problem: str) -> str:
    return ": ".join(filter(None, (origin, key, problem)))


def render(value: dict, node: Node) -> str:
    """A nest of dicts, lists and scalars as YAML, each value followed by the origin it has in `node`, or `default`."""
    lines = list(_lines(value, node, ""))
    column = min(60, max((len(text) for text, origin in lines if origin), default=0))
    return "".join(f"{text:<{column}}  # {origin}\n" if origin else f"{text}\n" for text, origin in lines)


def _lines(value: dict | list, node: Node | None, indent: str) -> Iterator[tuple[str, str]]:
    """(text, origin) of each line of a collection in block style. No origin: a line that only opens a collection."""
    children = node.value if node is not None and isinstance(node.value, type(value)) else {}
    if isinstance(value, dict):
        for key, item in value.items():
            child, head = children.get(key), f"{indent}{_scalar(key)}:"
            if _inline(item):
                yield f"{head} {_flow(item)}", child.origin if child else "default"
            else:
                yield head, ""
                yield from _lines(item, child, indent + "  ")
        return
    for i, item in enumerate(value):
        child = children[i] if children else None
        block = [(_flow(item), child.origin if child else "default")] if _inline(item) else _lines(item, child, "")
        for row, (text, origin) in enumerate(block):
            yield f"{indent}{'  ' if row else '- '}{text}", origin


def _inline(value: Any) -> bool:
    """Fits on one line: a scalar, an empty mapping, a list of such."""
    return all(map(_inline, value)) if isinstance(value, list) else not (isinstance(value, dict) and value)


def _flow(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    return "{}" if isinstance(value, dict) else _scalar(value)


def _scalar(value: Scalar) -> str:
    """The value as YAML on one line, read the same by this module and by YAML 1.1 readers."""
    quoted = isinstance(value, str) and not _plain(value)
    text = yaml.safe_dump(value, default_style='"' if quoted else None, width=math.inf)
    return text.removesuffix("...\n").rstrip()


def _plain(text: str) -> bool:
    words = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) is not None and text.lower() not in words
