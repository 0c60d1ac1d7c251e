"""Trees against dataclasses: every value turned into what its field holds, every problem noted where it was written."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .tree import dotted, from_plain, hint, key_of, merge, plain, plain_node, text_of
from .yaml_nodes import Node, message

_MOST = 2**63  # integers are those of tensors
NEEDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "a string", Path: "a path"}


class Checker:
    """Turns nodes into values. What cannot be turned is noted as a problem and becomes None.

    `stand_ins`: dataclasses that a word may stand for -> what it stands for, or ValueError. `spellings`: dataclasses
    that are written otherwise than they are made -> the mapping they are made of.
    """

    def __init__(
        self,
        stand_ins: Mapping[type, Callable[[str], Any]] | None = None,
        spellings: Mapping[type, Callable[[Node], Node]] | None = None,
    ) -> None:
        self.stand_ins, self.spellings = stand_ins or {}, spellings or {}
        self.problems: list[str] = []

    def problem(self, origin: str, key: str, text: str) -> None:
        self.problems.append(message(origin, key, text))

    def needs(self, node: Node, key: str, what: str, got: object = None) -> None:
        self.problem(node.origin, key, f"needs {what}, got {got or node}")

    def unknown(self, node: Node, known: Collection[str], key: str) -> None:
        for name, item in node.value.items():
            if name not in known:
                self.problem(item.origin, dotted(key, name), f"unknown key{hint(name, known)}")

    def value(self, node: Node, kind: Any, key: str, default: Any = MISSING) -> Any:
        if get_origin(kind) is Annotated:
            kind, bounds = get_args(kind)
            value = self.value(node, kind, key, default)
            return value if value is None or bounds.hold(value) else self.needs(node, key, bounds.words)
        origin, args = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            members = [member for member in args if member is not NoneType]
            as_text = {str, Path}.intersection(members) and node.text not in (None, "", "null")  # such as ~ or #2
            if node.value is None and NoneType in args and not as_text:
                return None
            if len(members) == 1:
                return self.value(node, members[0], key, default)
            if table := next((member for member in members if get_origin(member) is dict), None):  # or a text
                mapping = isinstance(node.value, dict)
                if mapping and node.text is not None:  # typed: a path such as "a: b" is no mapping of mappings
                    mapping = all(isinstance(item.value, dict) for item in node.value.values()) and bool(node.value)
                return self.value(node, table if mapping else str, key)
            if str in members and type(node.value) is str:  # a text in the place of another scalar
                return text_of(node)
            if all(member is str or get_origin(member) is Literal for member in members[1:]):  # or a word in its place
                words = [word for member in members[1:] for word in get_args(member)]
                return node.value if node.value in words else self.value(node, members[0], key, default)
            return self.member(node, members, key, default)
        if node.fault and kind not in (str, Path, Any):
            return self.problems.append(node.fault)
        if kind is Any:
            return plain_node(node)
        if is_dataclass(kind):
            return self.section(node, kind, key, default)
        if origin is Literal:
            return self.choice(node, args, key)
        if origin in (list, tuple):
            return self.items(node, origin, args, key)
        if origin is dict:
            return self.mapping(node, args[1], key)
        return self.scalar(node, kind, key)

    def scalar(self, node: Node, kind: type, key: str) -> Any:
        if kind not in NEEDS:
            raise TypeError(f"{key}: a recipe cannot hold {kind}")
        value, given = node.value, type(node.value)
        if kind in (str, Path) and (text := text_of(node)) is not None:
            return text if kind is str else Path(text).expanduser()
        if kind is float:
            if given in (int, float) and abs(value) <= sys.float_info.max:
                return float(value)
        elif kind is int and given in (int, float) and abs(value) < _MOST and value == int(value):
            return int(value)
        elif given is kind and kind is not int:
            return value
        return self.needs(node, key, NEEDS[kind])

    def choice(self, node: Node, choices: Sequence[Any], key: str) -> Any:
        for choice in choices:
            if type(choice) is type(node.value) and choice == node.value:
                return choice
        valid = [str(choice) for choice in choices]
        near = difflib.get_close_matches(str(node.value), valid, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return self.needs(node, key, f"one of {', '.join(valid)}", f"{node}{hint}")

    def items(self, node: Node, container: type, args: Sequence[Any], key: str) -> Any:
        if not isinstance(node.value, list):
            return self.needs(node, key, "a list")
        repeated = container is list or args[-1] is Ellipsis
        kinds = [args[0]] * len(node.value) if repeated else args
        if len(kinds) != len(node.value):
            return self.needs(node, key, f"a list of {len(kinds)}", f"a list of {len(node.value)}")
        return container(self.value(item, kinds[i], f"{key}[{i}]") for i, item in enumerate(node.value))

    def mapping(self, node: Node, kind: Any, key: str) -> Any:
        if not isinstance(node.value, dict):
            return self.needs(node, key, "a mapping")
        return {name: self.value(item, kind, dotted(key, name)) for name, item in node.value.items()}

    def member(self, node: Node, members: Sequence[type], key: str, default: Any) -> Any:
        """The dataclass of a union whose `name` admits the given one, else that of the default."""
        if not all(is_dataclass(member) for member in members):
            raise TypeError(f"{key}: only dataclasses can be told apart in a union, not {members}")
        if not isinstance(node.value, dict):
            return self.needs(node, key, "a mapping")
        kinds = {member: get_type_hints(member)["name"] for member in members}
        by_name = {name: member for member, kind in kinds.items() for name in get_args(kind)}
        own = next((member for member, kind in kinds.items() if kind is str), None)
        if "name" in node.value:
            if own is not None and "." in str(node.value["name"].value):
                return self.section(node, own, key, default)
            name = self.choice(node.value["name"], list(by_name), dotted(key, "name"))
            return None if name is None else self.section(node, by_name[name], key, default)
        if type(default) in members:
            return self.section(node, type(default), key, default)
        return self.problem(node.origin, dotted(key, "name"), f"required, but missing: one of {', '.join(by_name)}")

    def section(self, node: Node, kind: type, key: str, default: Any) -> Any:
        if not isinstance(node.value, dict):
            return self.needs(node, key, "a mapping")
        if kind in self.spellings:
            spelled = self.spellings[kind](node)
            node.value.update(spelled.value)  # in the tree, too, which knows where values were written
        before = len(self.problems)
        hints = get_type_hints(kind, include_extras=True)
        fields = {key_of(field): field for field in dataclasses.fields(kind) if field.init}
        self.unknown(node, fields, key)
        values = {}
        for name, field in fields.items():
            fallback = getattr(default, field.name) if type(default) is kind else _default(field)
            if name in node.value:
                hint = hints[field.name]
                item = node.value[name] = self.spelled_out(node.value[name], hint, dotted(key, name))
                values[field.name] = self.value(item, hint, dotted(key, name), fallback)
            elif fallback is MISSING:
                self.problem(node.origin, dotted(key, name), "required, but missing")
            else:
                values[field.name] = fallback
        if len(self.problems) > before:
            return None
        try:
            return kind(**values)
        except ValueError as error:
            return self.refused(node, fields, key, str(error))
        except (ArithmeticError, TypeError, LookupError) as error:  # of a check that such values were not thought of in
            return self.problem(node.origin, key, f"these values do not go together ({type(error).__name__}: {error})")

    def spelled_out(self, node: Node, kind: Any, key: str) -> Node:
        """The mapping that a word stands for where the annotation has one of the `stand_ins`; other nodes as given."""
        stand_in = next((self.stand_ins[part] for part in (kind, *get_args(kind)) if part in self.stand_ins), None)
        rest = dict(node.value) if isinstance(node.value, dict) else {}
        word = rest.pop("recipe", None) if isinstance(node.value, dict) else node
        if stand_in is None or word is None or not isinstance(word.value, str):
            return node
        try:
            meant = from_plain(plain(stand_in(word.value)), f"{word.origin}, {word.value}").root
        except ValueError as error:
            self.problem(word.origin, key, str(error))
            return Node(rest, node.origin)
        return merge(meant, Node(rest, node.origin))

    def refused(self, node: Node, fields: Collection[str], key: str, reason: str) -> None:
        """A `ValueError` of the dataclass. ``key, key: reason`` belongs to the first of the keys that was given."""
        match = re.match(r"(\w+(?:, \w+)*): ", reason)
        named = match[1].split(", ") if match else []
        if not named or not set(named) <= set(fields):
            return self.problem(node.origin, key, reason)
        origin = next((node.value[name].origin for name in named if name in node.value), node.origin)
        self.problems.append(message(origin, "", dotted(key, reason)))


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
