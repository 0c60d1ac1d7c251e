"""Recipes: YAML files checked against frozen dataclasses that live beside the code that reads them.

`load` merges a recipe with its bases and the command line, `build` turns the result into dataclasses and reports every
problem at once, `show` prints what came out and where each value was written.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from ...errors import UserError
from ...schema.check import NEEDS, Checker
from ...schema.tree import ARGUMENT, COMMAND_LINE, Tree, from_plain, hint, merge, plain
from ...schema.yaml_nodes import Node, parse, render, typed

RECIPES = Path(__file__).parents[2] / "configs"
MAX_BASES = 2


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
    given = functools.reduce(merge, map(_override, overrides), Node({}, COMMAND_LINE))
    return Tree(merge(functools.reduce(merge, reversed(layers)), given))


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
        raise UserError(f"{node.origin}: base: no file {_shown(path)}{hint(path.name, siblings)}")
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
    checker = Checker(*_named())
    checker.unknown(tree.root, types, "")
    sections = {}
    for name, kind in types.items():
        node = tree.root.value.get(name)
        if node is None and (kind in NEEDS or get_origin(kind) in (list, tuple, Literal)):
            checker.problem(tree.root.origin, name, "required, but missing")
            continue
        absent = Node(None if NoneType in get_args(kind) else {}, tree.root.origin)
        sections[name] = checker.value(absent if node is None else node, kind, name)
    if checker.problems:
        raise UserError("\n".join(checker.problems))
    return sections


@functools.cache
def _named() -> tuple[dict[type, Callable[[str], Any]], dict[type, Callable[[Node], Node]]]:
    """The `stand_ins` and `spellings` of recipes. A list of them needs no torch."""
    from ...pipelines.spec import ViewSpec
    from ...pipelines.views.recipes import view
    from .sizes import spelled_sizes

    return {ViewSpec: view}, {ViewSpec: spelled_sizes}


def show(tree: Tree, sections: Mapping[str, Any]) -> str:
    """The resolved configuration as a recipe of its own, with the origin of each value in a comment."""
    return render(plain(sections), tree.root)


def _shown(path: Path) -> str:
    """Relative to the current directory when inside it, else as given."""
    absolute = Path(os.path.abspath(path))
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else os.path.normpath(path)
