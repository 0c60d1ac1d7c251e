"""OpenMMLab's configurations, which are Python, as plain values: read, and never run."""

from __future__ import annotations

import ast
import operator
import os
import re
from pathlib import Path
from typing import Any

from ...errors import UserError

_DEEPEST = 6  # levels of _base_
_MOST = 10**5  # values in a variable
_LARGEST = 100  # of a power: more is no hyper-parameter, and can take for ever
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


_COMPARISONS = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def _power(base: float, power: float) -> float:
    if max(abs(base), abs(power)) > _LARGEST:
        raise TypeError(f"powers of numbers up to {_LARGEST} alone")
    return base**power


def _times(a: Any, b: Any) -> Any:
    if not all(isinstance(factor, (int, float)) for factor in (a, b)) and max(_size(a), _size(b)) * _LARGEST > _MOST:
        raise TypeError("too long")
    if isinstance(a, (list, str)) and b > _LARGEST or isinstance(b, (list, str)) and a > _LARGEST:
        raise TypeError(f"repeated more than {_LARGEST} times")
    return a * b


def _size(value: Any) -> int:
    """How many values are in it, up to somewhat above `_MOST`."""
    count, rest = 0, [value]
    while rest and count <= _MOST:
        one = rest.pop()
        count += len(one) if isinstance(one, str) else 1
        rest += one.values() if isinstance(one, dict) else one if isinstance(one, list) else []
    return count


_ARITHMETIC |= {ast.Pow: _power, ast.Mult: _times}


def read_config(path: Path, depth: int = 0) -> dict[str, Any]:
    """The top-level names of a configuration, merged over those of its `_base_` files.

    Understood are literals, names assigned before, ``dict(...)``, ``_base_.a.b``, ``{{_base_.a.b}}``, names of the file
    and of the environment in double braces, subscripts, arithmetic, ``name.update(...)`` and additions to lists, ``if``
    of values, and of the newer kind ``with read_base():`` and imported classes, which stand for their names. Raises
    `UserError` with file and line for anything else: functions and loops are never executed.
    """
    try:
        return _read(path, depth)
    except RecursionError:
        raise UserError(f"{path}: nests too deep") from None


def _read(path: Path, depth: int) -> dict[str, Any]:
    if depth > _DEEPEST:
        raise UserError(f"{path}: _base_ files nest more than {_DEEPEST} deep; do they name each other?")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as fault:
        raise UserError(f"{path}: {fault.strerror}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
        raise UserError(f"{path}: no Python ({str(fault).splitlines()[0]})") from None
    file = _File(path, depth)
    file.read(tree.body)
    if _size(file.own) > _MOST:  # a list that holds itself has no end
        raise UserError(f"{path}: more than {_MOST} values")
    return _merge(file.inherited, file.own)


class _File:
    """What a file has said so far."""

    def __init__(self, path: Path, depth: int) -> None:
        self.path, self.depth = path, depth
        self.inherited: dict[str, Any] = {}
        self.own: dict[str, Any] = {}
        self.classes: dict[str, str] = {}  # what is imported, by the names it has here

    def value(self, node: ast.expr) -> Any:
        return _value(node, {**self.classes, **self.inherited, **self.own}, self.path, self.inherited)

    def read(self, body: list[ast.stmt]) -> None:
        for node in body:
            match node:
                case ast.Expr(value=ast.Constant()):  # a comment in quotes
                    continue
                case ast.Import(names=names) | ast.ImportFrom(names=names, level=0):
                    self.classes |= {(n.asname or n.name).split(".")[0]: n.name.rsplit(".", 1)[-1] for n in names}
                case ast.With(items=[ast.withitem(context_expr=ast.Call(func=ast.Name(id="read_base")))], body=inner):
                    for base in inner:
                        self.inherited = _merge(self.inherited, _imported(base, self.path, self.depth))
                case ast.If(test=test, body=inner, orelse=other):  # of what is known: no more than a choice of lines
                    self.read(inner if self.value(test) else other)
                case ast.Expr(value=ast.Call(func=ast.Attribute(value=target, attr=name), args=args, keywords=words)):
                    self.call(node, target, name, [self.value(one) for one in args], words)
                case ast.AugAssign(target=target, op=ast.Add(), value=value):
                    self.grow(node, target, self.value(value))
                case ast.Delete(targets=[ast.Name(id=name)]):
                    self.own.pop(name, None), self.inherited.pop(name, None)
                case ast.Assign(targets=[target], value=value):
                    self.assign(node, _target(target, self.path), self.value(value))
                case _:
                    raise UserError(f"{self.path}:{node.lineno}: only assignments are understood; nothing is executed")

    def call(self, node: ast.stmt, target: ast.expr, name: str, given: list, words: list[ast.keyword]) -> None:
        """``name.update(...)``, ``name.append(...)`` and ``name.extend(...)``, which are assignments."""
        if name == "update":
            given.append({word.arg: self.value(word.value) for word in words})
            for values in given:
                for key, value in values.items():
                    self.assign(node, [*_target(target, self.path), key], value)
        elif name in ("append", "extend") and len(given) == 1 and not words:
            self.grow(node, target, given if name == "append" else given[0])
        else:
            raise UserError(f"{self.path}:{node.lineno}: only assignments are understood; nothing is executed")

    def grow(self, node: ast.stmt, target: ast.expr, more: Any) -> None:
        """Adds to a value; a list is the same one under all its names, as in Python."""
        before = self.value(target)
        fits = isinstance(before, list) is isinstance(more, list) and _size(before) + _size(more) <= _MOST
        try:
            grown = before + more if fits else None
        except TypeError:
            grown = None
        if grown is None:
            raise UserError(f"{self.path}:{node.lineno}: {ast.unparse(node)[:60]}: not understood; nothing is executed")
        if isinstance(before, list):
            before[:] = grown
            grown = before
        self.assign(node, _target(target, self.path), grown)

    def assign(self, node: ast.stmt, name: list, value: Any) -> None:
        place = f"{self.path}:{node.lineno}"
        if name != ["_base_"]:
            _assign(self.own, name, value, place, self.inherited)
            return
        for base in [value] if isinstance(value, str) else value:
            if "::" in base:
                raise UserError(f"{place}: {base} lies in another package; give its path")
            self.inherited = _merge(self.inherited, read_config(self.path.parent / base, self.depth + 1))


def _imported(node: ast.stmt, path: Path, depth: int) -> dict[str, Any]:
    """What ``from .._base_.models.mae import *`` brings."""
    if not isinstance(node, ast.ImportFrom) or not node.level or node.module is None:
        raise UserError(f"{path}:{node.lineno}: of read_base, only imports from neighbouring files are understood")
    folder = path.parent
    for _ in range(node.level - 1):
        folder = folder.parent
    found = read_config(folder.joinpath(*node.module.split(".")).with_suffix(".py"), depth + 1)
    if any(name.name == "*" for name in node.names):
        return found
    missing = [name.name for name in node.names if name.name not in found]
    if missing:
        raise UserError(f"{path}:{node.lineno}: {node.module} has no {missing[0]}")
    return {name.asname or name.name: found[name.name] for name in node.names}


def _target(node: ast.expr, path: Path) -> list:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*_target(node.value, path), node.attr]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return [*_target(node.value, path), node.slice.value]
    raise UserError(f"{path}:{node.lineno}: only names and their keys are assigned to; nothing is executed")


def _assign(own: dict, name: list, value: Any, place: str, inherited: dict) -> None:
    target: Any = own
    if len(name) > 1 and name[0] not in own and name[0] in inherited:
        own[name[0]] = _copy(inherited[name[0]])
    try:
        for key in name[:-1]:
            target = target[key]
        target[name[-1]] = value
    except (KeyError, IndexError, TypeError):
        raise UserError(f"{place}: {'.'.join(map(str, name))} has nothing to be assigned in") from None


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _value(node: ast.expr, scope: dict, path: Path, inherited: dict) -> Any:
    def inner(other: ast.expr) -> Any:
        return _value(other, scope, path, inherited)

    try:
        match node:
            case ast.Constant(value=str(text)) if "{{" in text:
                return _filled(text, path, inherited)
            case ast.Constant():
                return node.value
            case ast.Set(elts=[ast.Set(elts=[ast.Attribute() as other])]):  # {{_base_.a.b}}
                return inner(other)
            case ast.List() | ast.Tuple():
                items: list = []
                for item in node.elts:
                    items += inner(item.value) if isinstance(item, ast.Starred) else [inner(item)]
                return items
            case ast.Dict():
                return {inner(key): inner(item) for key, item in zip(node.keys, node.values, strict=True)}
            case ast.Call(func=ast.Name(id="dict"), args=[]):
                found: dict = {}
                for word in node.keywords:
                    found |= inner(word.value) if word.arg is None else {word.arg: inner(word.value)}
                return found
            case ast.Name():
                if _size(scope.get(node.id)) > _MOST:
                    raise ValueError(f"more than {_MOST} values")
                if node.id == "_base_":
                    return inherited
                found = scope[node.id]
                return _copy(found) if found is inherited.get(node.id) else found
            case ast.Attribute():
                return inner(node.value)[node.attr]
            case ast.Subscript(slice=ast.Slice(lower=lower, upper=upper, step=step)):
                return inner(node.value)[
                    slice(*(None if part is None else inner(part) for part in (lower, upper, step)))
                ]
            case ast.Subscript():
                return inner(node.value)[inner(node.slice)]
            case ast.UnaryOp(op=ast.USub()):
                return -inner(node.operand)
            case ast.UnaryOp(op=ast.Not()):
                return not inner(node.operand)
            case ast.BoolOp(op=op, values=values):
                return all(map(inner, values)) if isinstance(op, ast.And) else any(map(inner, values))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
                return _COMPARISONS[type(op)](inner(left), inner(right))
            case ast.IfExp(test=test, body=body, orelse=other):
                return inner(body) if inner(test) else inner(other)
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                return _ARITHMETIC[type(node.op)](inner(node.left), inner(node.right))
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError, AttributeError) as fault:
        raise UserError(f"{path}:{node.lineno}: {ast.unparse(node)[:60]}: {fault!r}") from None
    raise UserError(f"{path}:{node.lineno}: {ast.unparse(node)[:60]}: not understood; nothing is executed")


_BRACES = re.compile(r"\{\{\s*(_base_(?:\.\w+)+|\w+|\$\w+(?::[^}]*)?)\s*\}\}")


def _filled(text: str, path: Path, inherited: dict) -> Any:
    """A text with what double braces in it stand for: a value of the bases, the file's name, the environment's."""
    names = {"fileDirname": str(path.parent), "fileBasename": path.name}
    names |= {"fileBasenameNoExtension": path.stem, "fileExtname": path.suffix}

    def found(name: str) -> Any:
        if name.startswith("$"):
            variable, _, default = name[1:].partition(":")
            return os.environ.get(variable, default)
        value: Any = inherited if name.startswith("_base_.") else names
        for key in name.removeprefix("_base_.").split("."):
            value = value[key]
        return _copy(value)

    if whole := _BRACES.fullmatch(text.strip()):
        return found(whole[1])
    return _BRACES.sub(lambda match: str(found(match[1])), text)


def _merge(base: Any, own: Any) -> Any:
    """Dicts merge, everything else replaces; ``_delete_=True`` drops what a dict inherits."""
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    if own.get("_delete_"):
        return {key: value for key, value in own.items() if key != "_delete_"}
    return base | {key: _merge(base.get(key), value) for key, value in own.items()}
