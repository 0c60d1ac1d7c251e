"""Values between YAML and dataclasses: a tree in which each knows where it was written."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ..errors import UserError
from .yaml_nodes import Node

COMMAND_LINE = "command line"
ARGUMENT = "argument"  # of a call from Python


@dataclass(frozen=True)
class Tree:
    """A merged recipe, not yet checked. The origin of the root is the recipe's path."""

    root: Node

    def get(self, key: str) -> Node:
        """The string at a dotted key (`.value`) and where it was written (`.origin`).

        For choices that come before `build`: the type of `algorithm` depends on `algorithm.name`. Raises `UserError`
        if the key is missing or holds anything but a string.
        """
        node, parent = self.root, ""
        for name in key.split("."):
            if not isinstance(node.value, dict):
                raise UserError(f"{node.origin}: {parent}: needs a mapping, got {node}")
            if name not in node.value:
                raise UserError(f"{node.origin}: {key}: required, but missing")
            node, parent = node.value[name], dotted(parent, name)
        if not isinstance(node.value, str):
            raise UserError(f"{node.origin}: {key}: needs a string, got {node}")
        return node


def merge(under: Node, over: Node) -> Node:
    merged = dict(under.value)
    for key, node in over.value.items():
        if key in merged and isinstance(merged[key].value, str) and isinstance(node.value, dict):
            merged[key] = Node({"recipe": merged[key]}, merged[key].origin, merged[key].text)
        merged[key] = merge(merged[key], node) if _same_type(merged.get(key), node) else node
    # An override that sets one key of a section did not write the section.
    return Node(merged, under.origin if over.origin in (COMMAND_LINE, ARGUMENT) else over.origin, over.text)


def _same_type(under: Node | None, over: Node) -> bool:
    if under is None or not isinstance(under.value, dict) or not isinstance(over.value, dict):
        return False
    names = [node.value["name"].value for node in (under, over) if "name" in node.value]
    return len(names) < 2 or names[0] == names[1]


def key_of(field: dataclasses.Field) -> str:
    """What recipes call a field: its name, or the `key` of its metadata, where that is a word of Python."""
    return field.metadata.get("key", field.name)


def plain(value: Any) -> Any:
    """Sections, or any value in them, as dicts, lists and scalars: for YAML and checkpoints."""
    if is_dataclass(value):
        return {key_of(field): plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if type(value) in (bool, int, float, str) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)  # numpy's


def from_plain(values: Any, origin: str) -> Tree:
    """The inverse of `plain`, for `build`: a stored configuration whose every value comes from `origin`."""

    def node(value: Any) -> Node:
        if isinstance(value, dict):
            return Node({key: node(item) for key, item in value.items()}, origin)
        return Node([node(item) for item in value], origin) if isinstance(value, list) else Node(value, origin)

    return Tree(node(values))


def plain_node(node: Node) -> Any:
    """What a node holds as dicts, lists and scalars; of a text that was typed, every character."""
    if isinstance(node.value, dict):
        return {key: plain_node(item) for key, item in node.value.items()}
    if isinstance(node.value, str):
        return text_of(node)
    return [plain_node(item) for item in node.value] if isinstance(node.value, list) else node.value


def text_of(node: Node) -> str | None:
    """The node as a text, where the field is one: a folder may be called 2024 or 1e3."""
    return node.value if node.text is None and isinstance(node.value, str) else node.text


def dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def hint(word: str, known: Collection[str]) -> str:
    """What to say after an unknown word: the nearest known one, else all of them."""
    near = difflib.get_close_matches(str(word), list(known), 1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""
