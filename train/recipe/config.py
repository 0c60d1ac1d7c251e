"""Recipes: YAML files checked against frozen dataclasses that live beside the code that reads them.

`load` merges a recipe with its bases and the command line, `build` turns the result into dataclasses and reports every
problem at once, `show` prints what came out and where each value was written.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ...errors import UserError
from .recipe_yaml import Node, parse, render, typed

RECIPES = Path(__file__).parents[2] / "configs"
MAX_BASES = 2
COMMAND_LINE = "command line"
ARGUMENT = "argument"  # of a call from Python
_MOST = 2**63  # integers are those of tensors
_NEEDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "a string", Path: "a path"}


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
            node, parent = node.value[name], _dotted(parent, name)
        if not isinstance(node.value, str):
            raise UserError(f"{node.origin}: {key}: needs a string, got {node}")
        return node


def find_recipe(name: str | Path) -> Path:
    """An existing file as given, else the packaged recipe of that name, with or without `.yaml`.

    Raises `UserError` with the nearest names if there is neither.
    """
    for path in (Path(name), RECIPES / name, RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    whole, known = str(name).removesuffix(".yaml"), packaged()
    word = Path(whole).name
    similar = [recipe for recipe in known if word in recipe]
    similar = similar or difflib.get_close_matches(whole, known, 1) or difflib.get_close_matches(word, known, 1)
    hint = f"did you mean {' or '.join(similar[:3])}? " if similar else ""
    raise UserError(f"{name}: no such file or recipe; {hint}`headrace recipes` lists all")


def packaged() -> list[str]:
    """Names of the packaged recipes: to pre-train by, then those in folders, such as finetune/vit-tiny_cifar10."""
    paths = [path.relative_to(RECIPES) for path in RECIPES.rglob("*.yaml") if path.parent.name != "_base"]
    names = [path.as_posix().removesuffix(".yaml") for path in paths]
    return sorted(names, key=lambda name: (name.count("/"), name))


def load(recipe: str | Path, overrides: Sequence[str | tuple[str, Any]] = ()) -> Tree:
    """Reads a recipe (see `find_recipe`), its bases and then `overrides` of the form ``section.key=value``, as text or
    as pairs of ``section.key`` and any value that `plain` takes.

    `base: other.yaml`, relative to the file that says so, names one parent; a recipe has at most two ancestors. The
    later layer wins: mappings merge, lists and scalars replace. Where the two mappings of a section or below carry
    different `name`s, the later replaces the earlier as a whole, because the other keys belong to another type: a
    recipe that switches the backbone does not inherit the options of the old one. Of two equal overrides the last wins.
    A mapping over a word keeps the word as its `recipe`: `view.size=96` changes one thing of ``view: moco_v2``.

    On the command line the type of the field says what was typed: of a text or path every character counts, and only
    nothing at all or the word null stand for none; anything else is YAML.

    Raises `UserError` for missing files, bad YAML, doubled keys, cycles and malformed overrides.
    """
    try:
        return _load(recipe, overrides)
    except RecursionError:
        raise UserError(f"{recipe}: is nested too deeply to be a recipe") from None


def _load(recipe: str | Path, overrides: Sequence[str | tuple[str, Any]]) -> Tree:
    chain: list[Path] = []
    layers: list[Node] = []
    path: Path | None = find_recipe(recipe)
    while path is not None:
        chain.append(path)
        layers.append(_read(path))
        path = _base(layers[-1], chain)
    # The overrides are one layer, so that the order of `x.name=...` and `x.key=...` does not matter.
    given = functools.reduce(_merge, map(_override, overrides), Node({}, COMMAND_LINE))
    return Tree(_merge(functools.reduce(_merge, reversed(layers)), given))


def _read(path: Path) -> Node:
    shown = _shown(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{shown}: cannot be read: {error}") from None
    root = parse(text, lambda line: f"{shown}:{line}")
    if not isinstance(root.value, (dict, NoneType)):
        raise UserError(f"{root.origin}: a recipe is a mapping of sections, not {root}")
    return Node(root.value or {}, shown)


def _base(layer: Node, chain: list[Path]) -> Path | None:
    """Takes `base` out of the layer that was read from the last file of the chain."""
    node = layer.value.pop("base", None)
    if node is None:
        return None
    if not isinstance(node.value, str):
        raise UserError(f"{node.origin}: base: needs the path of one file, got {node}")
    path = chain[-1].parent / node.value
    links = " -> ".join(_shown(link) for link in (*chain, path))
    if not path.is_file():
        siblings = sorted(other.name for other in path.parent.glob("*.yaml"))
        raise UserError(f"{node.origin}: base: no file {_shown(path)}{_hint(path.name, siblings)}")
    if path.resolve() in [link.resolve() for link in chain]:
        raise UserError(f"{node.origin}: base: goes in a circle: {links}")
    if len(chain) > MAX_BASES:
        raise UserError(f"{node.origin}: base: more than {MAX_BASES} bases in a row: {links}")
    return path


def _override(given: str | tuple[str, Any]) -> Node:
    key, equals, value = given.partition("=") if isinstance(given, str) else (given[0], "=", given[1])
    names = key.strip().split(".")
    if not equals or not all(names):
        raise UserError(f"{COMMAND_LINE}: {given!r}: an override reads section.key=value")
    if isinstance(given, str):
        origin, node = COMMAND_LINE, typed(value, COMMAND_LINE, ".".join(names))
    else:
        origin, node = ARGUMENT, from_plain(plain(value), ARGUMENT).root
    return functools.reduce(lambda inner, name: Node({name: inner}, origin), reversed(names), node)


def _merge(under: Node, over: Node) -> Node:
    merged = dict(under.value)
    for key, node in over.value.items():
        if key in merged and isinstance(merged[key].value, str) and isinstance(node.value, dict):
            merged[key] = Node({"recipe": merged[key]}, merged[key].origin, merged[key].text)
        merged[key] = _merge(merged[key], node) if _same_type(merged.get(key), node) else node
    # An override that sets one key of a section did not write the section.
    return Node(merged, under.origin if over.origin in (COMMAND_LINE, ARGUMENT) else over.origin, over.text)


def _same_type(under: Node | None, over: Node) -> bool:
    if under is None or not isinstance(under.value, dict) or not isinstance(over.value, dict):
        return False
    names = [node.value["name"].value for node in (under, over) if "name" in node.value]
    return len(names) < 2 or names[0] == names[1]


def build(tree: Tree, types: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of the tree as instances of `types`: section name -> dataclass or another annotation.

    Annotations: bool, int, float, str, Path, Literal, list, tuple, dict with string keys, dataclasses, each of them or
    None, and unions of dataclasses that differ in the Literal of their `name`; one whose `name` is any string is for
    dotted names, and ``dict[str, Any]`` for the options of what such a name leads to, which checks them. A float must
    be finite; an integer may be written `1e5`. A dataclass that is given in part keeps the rest of its field's default
    instance, and an absent section is made of defaults; an absent dict is empty, and what may be None is None. For a
    dataclass of `_named` a word may stand, alone or as the `recipe` of a mapping that changes some of its keys; the
    tree then holds what it stands for.

    Raises `UserError` with one line per problem, a `__post_init__` that raises `ValueError` among them: a message
    that starts with ``key:`` is reported where that key was written. Raises `TypeError` for other annotations.
    """
    checker = _Checker()
    checker.unknown(tree.root, types, "")
    sections = {}
    for name, kind in types.items():
        node = tree.root.value.get(name)
        if node is None and (kind in _NEEDS or get_origin(kind) in (list, tuple, Literal)):
            checker.problem(tree.root.origin, name, "required, but missing")
            continue
        absent = Node(None if NoneType in get_args(kind) else {}, tree.root.origin)
        sections[name] = checker.value(absent if node is None else node, kind, name)
    if checker.problems:
        raise UserError("\n".join(checker.problems))
    return sections


class _Checker:
    """Turns nodes into values. What cannot be turned is noted as a problem and becomes None."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def problem(self, origin: str, key: str, text: str) -> None:
        self.problems.append(f"{origin}: {key}: {text}")

    def needs(self, node: Node, key: str, what: str, got: object = None) -> None:
        self.problem(node.origin, key, f"needs {what}, got {got or node}")

    def unknown(self, node: Node, known: Collection[str], key: str) -> None:
        for name, item in node.value.items():
            if name not in known:
                self.problem(item.origin, _dotted(key, name), f"unknown key{_hint(name, known)}")

    def value(self, node: Node, kind: Any, key: str, default: Any = MISSING) -> Any:
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
                return _text(node)
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
        if kind not in _NEEDS:
            raise TypeError(f"{key}: a recipe cannot hold {kind}")
        value, given = node.value, type(node.value)
        if kind in (str, Path) and (text := _text(node)) is not None:
            return text if kind is str else Path(text).expanduser()
        if kind is float:
            if given in (int, float) and abs(value) <= sys.float_info.max:
                return float(value)
        elif kind is int and given in (int, float) and abs(value) < _MOST and value == int(value):
            return int(value)
        elif given is kind and kind is not int:
            return value
        return self.needs(node, key, _NEEDS[kind])

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
        return {name: self.value(item, kind, _dotted(key, name)) for name, item in node.value.items()}

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
            name = self.choice(node.value["name"], list(by_name), _dotted(key, "name"))
            return None if name is None else self.section(node, by_name[name], key, default)
        if type(default) in members:
            return self.section(node, type(default), key, default)
        return self.problem(node.origin, _dotted(key, "name"), f"required, but missing: one of {', '.join(by_name)}")

    def section(self, node: Node, kind: type, key: str, default: Any) -> Any:
        if not isinstance(node.value, dict):
            return self.needs(node, key, "a mapping")
        before = len(self.problems)
        hints = get_type_hints(kind)
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        self.unknown(node, fields, key)
        values = {}
        for name, field in fields.items():
            fallback = getattr(default, name) if type(default) is kind else _default(field)
            if name in node.value:
                item = node.value[name] = self.spelled_out(node.value[name], hints[name], _dotted(key, name))
                values[name] = self.value(item, hints[name], _dotted(key, name), fallback)
            elif fallback is MISSING:
                self.problem(node.origin, _dotted(key, name), "required, but missing")
            else:
                values[name] = fallback
        if len(self.problems) > before:
            return None
        try:
            return kind(**values)
        except ValueError as error:
            return self.refused(node, fields, key, str(error))
        except (ArithmeticError, TypeError, LookupError) as error:  # of a check that such values were not thought of in
            return self.problem(node.origin, key, f"these values do not go together ({type(error).__name__}: {error})")

    def spelled_out(self, node: Node, kind: Any, key: str) -> Node:
        """The mapping that a word stands for where the annotation has a dataclass of `_named`; other nodes as given."""
        stand_in = next((_named()[part] for part in (kind, *get_args(kind)) if part in _named()), None)
        rest = dict(node.value) if isinstance(node.value, dict) else {}
        word = rest.pop("recipe", None) if isinstance(node.value, dict) else node
        if stand_in is None or word is None or not isinstance(word.value, str):
            return node
        try:
            meant = from_plain(plain(stand_in(word.value)), f"{word.origin}, {word.value}").root
        except ValueError as error:
            self.problem(word.origin, key, str(error))
            return Node(rest, node.origin)
        return _merge(meant, Node(rest, node.origin))

    def refused(self, node: Node, fields: Collection[str], key: str, message: str) -> None:
        """A `ValueError` of the dataclass. ``key, key: reason`` belongs to the first of the keys that was given."""
        match = re.match(r"(\w+(?:, \w+)*): ", message)
        named = match[1].split(", ") if match else []
        if not named or not set(named) <= set(fields):
            return self.problem(node.origin, key, message)
        origin = next((node.value[name].origin for name in named if name in node.value), node.origin)
        self.problems.append(f"{origin}: {_dotted(key, message)}")


@functools.cache
def _named() -> dict[type, Callable[[str], Any]]:
    """Dataclasses that a word may stand for -> what it stands for, or ValueError. A list of recipes needs no torch."""
    from ...pipelines.spec import ViewSpec
    from ...pipelines.views.recipes import view

    return {ViewSpec: view}


def show(tree: Tree, sections: Mapping[str, Any]) -> str:
    """The resolved configuration as a recipe of its own, with the origin of each value in a comment."""
    return render(plain(sections), tree.root)


def plain(value: Any) -> Any:
    """Sections, or any value in them, as dicts, lists and scalars: for YAML and checkpoints."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


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
        return _text(node)
    return [plain_node(item) for item in node.value] if isinstance(node.value, list) else node.value


def _text(node: Node) -> str | None:
    """The node as a text, where the field is one: a folder may be called 2024 or 1e3."""
    return node.value if node.text is None and isinstance(node.value, str) else node.text


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _hint(word: str, known: Collection[str]) -> str:
    """What to say after an unknown word: the nearest known one, else all of them."""
    near = difflib.get_close_matches(word, list(known), 1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _shown(path: Path) -> str:
    """Relative to the current directory when inside it, else as given."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else os.path.normpath(path)
