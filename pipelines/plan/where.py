"""Filters: ``width >= 160 and blur < 0.4 and not duplicate``, an expression over the columns of a set.

Parsed, never run: names are columns, the rest is numbers, texts in quotes, ``+ - * /``, comparisons (chains as well),
``in (...)``, ``and``, ``or``, ``not`` and parentheses.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ...errors import UserError

_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_COMPARISONS = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_LONGEST = 10_000  # characters; Python's parser takes memory and stack for more


class Where:
    """A parsed filter. Raises `UserError`, which begins with `where`, for what is none."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self._where = text, where
        if not isinstance(text, str):
            raise UserError(f'{where}: needs a text such as "width >= 160", got {text!r}')
        if len(text) > _LONGEST:
            raise self._fault(f"more than {_LONGEST:,} characters")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
            raise self._fault(getattr(fault, "msg", None) or str(fault) or type(fault).__name__) from None
        self.columns = sorted({node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)})

    def _fault(self, problem: str) -> UserError:
        shown = self.text if len(self.text) <= 80 else self.text[:77] + "..."
        return UserError(f'{self._where}: {shown!r}: {problem}; write e.g. "width >= 160 and label in (1, 2)"')

    def rows(self, column: Callable[[str], np.ndarray]) -> np.ndarray:
        """(N,) bool: which rows it lets through; `column` gives the values (N,) of a name.

        What is not known, NaN or masked, makes a comparison neither true nor false: a row passes if the filter is true
        whatever stood there (Kleene's logic, as in SQL).
        """
        try:
            with np.errstate(divide="ignore", invalid="ignore"):
                found = self._value(self._tree, column)
                found = found if isinstance(found, _Answer) or _kind(found) != "b" else _Answer.of(found)
        except RecursionError:
            raise self._fault("nested too deeply") from None
        if not isinstance(found, _Answer) or np.ndim(found.yes) != 1:
            raise self._fault("gives no yes or no for each image")
        return found.yes

    def _value(self, node: ast.AST, column: Callable[[str], np.ndarray]):
        """Numbers or texts, (N,) or one, masked where unknown; an `_Answer`; yes or no as it stands in a column."""
        match node:
            case ast.Name():
                return column(node.id)
            case ast.Constant(value=int() as value) if not -(2**63) <= value < 2**63:
                return float(value) if abs(value) < 2**1023 else math.copysign(math.inf, 1 if value > 0 else -1)
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return value
            case ast.BoolOp():
                parts = [self._yes(part, column) for part in node.values]
                return functools.reduce(_Answer.both if isinstance(node.op, ast.And) else _Answer.either, parts)
            case ast.UnaryOp(op=ast.Not()):
                return self._yes(node.operand, column).opposite()
            case ast.UnaryOp(op=ast.USub()):
                return -self._number(node.operand, column)
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                return _ARITHMETIC[type(node.op)](self._number(node.left, column), self._number(node.right, column))
            case ast.Compare():
                return self._compare(node, column)
        raise self._fault(f"{ast.unparse(node)!r} is no part of a filter")

    def _yes(self, node: ast.AST, column) -> _Answer:
        value = self._value(node, column)
        if isinstance(value, _Answer):
            return value
        if _kind(value) != "b":
            raise self._fault(f"{ast.unparse(node)!r} is no yes or no; compare it with something")
        return _Answer.of(value)

    def _plain(self, node: ast.AST, column):
        value = self._value(node, column)
        if isinstance(value, _Answer):
            raise self._fault(f"{ast.unparse(node)!r} is a yes or no; write `not` or `and` instead of a comparison")
        return value

    def _number(self, node: ast.AST, column) -> np.ndarray:
        value = self._plain(node, column)
        if _kind(value) not in "biuf":
            raise self._fault(f"{ast.unparse(node)!r} is no number")
        return np.ma.filled(np.ma.asarray(value, np.float64), np.nan)

    def _compare(self, node: ast.Compare, column) -> _Answer:
        left = self._plain(node.left, column)
        if isinstance(node.ops[0], (ast.In, ast.NotIn)):
            right = node.comparators[0]
            if len(node.ops) > 1 or not isinstance(right, (ast.Tuple, ast.List)):
                raise self._fault(f"after `in` comes a list such as (1, 2), not {ast.unparse(node.comparators[-1])!r}")
            members = [self._plain(item, column) for item in right.elts]
            found = _Answer.of(np.ma.masked_array(np.zeros(np.shape(left), bool), ~_known(left)))
            found = functools.reduce(
                _Answer.either, (self._compared(operator.eq, left, member, node) for member in members), found
            )
            return found if isinstance(node.ops[0], ast.In) else found.opposite()
        parts = []
        for comparison, right in zip(node.ops, node.comparators):
            if type(comparison) not in _COMPARISONS:
                raise self._fault(f"{ast.unparse(node)!r} is no comparison of a filter")
            value = self._plain(right, column)
            parts.append(self._compared(_COMPARISONS[type(comparison)], left, value, node))
            left = value
        return functools.reduce(_Answer.both, parts)

    def _compared(self, comparison: Callable, left, right, node: ast.Compare) -> _Answer:
        if (_kind(left) == "U") != (_kind(right) == "U"):
            raise self._fault(f"{ast.unparse(node)!r} compares a text with a number")
        found = np.asarray(comparison(np.ma.getdata(left), np.ma.getdata(right)))
        return _Answer.of(np.ma.masked_array(found, ~(_known(left) & _known(right))))


class _Answer(NamedTuple):
    """Yes or no for each row: neither where it depends on what is not known."""

    yes: np.ndarray
    no: np.ndarray

    @classmethod
    def of(cls, values) -> _Answer:
        data, known = np.ma.getdata(values), _known(values)
        return cls(data & known, ~data & known)

    def both(self, other: _Answer) -> _Answer:
        return _Answer(self.yes & other.yes, self.no | other.no)

    def either(self, other: _Answer) -> _Answer:
        return _Answer(self.yes | other.yes, self.no & other.no)

    def opposite(self) -> _Answer:
        return _Answer(self.no, self.yes)


def _kind(value) -> str:
    return np.ma.getdata(value).dtype.kind


def _known(value) -> np.ndarray:
    data = np.ma.getdata(value)
    return ~np.ma.getmaskarray(value) & (~np.isnan(data) if data.dtype.kind == "f" else True)
