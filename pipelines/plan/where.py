"""Filters: ``width >= 160 and blur < 0.4 and not duplicate``, an expression over the columns of a set.

Parsed, never run: names are columns, the rest is numbers, texts in quotes, ``+ - * /``, comparisons (chains as well),
``in (...)``, ``and``, ``or``, ``not`` and parentheses.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

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
        """(N,) bool: which rows it lets through; `column` gives the values (N,) of a name. NaN passes no comparison."""
        try:
            with np.errstate(divide="ignore", invalid="ignore"):
                found = self._value(self._tree, column)
        except RecursionError:
            raise self._fault("nested too deeply") from None
        if np.ndim(found) != 1 or np.asarray(found).dtype != bool:
            raise self._fault("gives no yes or no for each image")
        return found

    def _value(self, node: ast.AST, column: Callable[[str], np.ndarray]):
        match node:
            case ast.Name():
                return column(node.id)
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return value
            case ast.BoolOp():
                parts = [self._yes(part, column) for part in node.values]
                combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
                return combine.reduce(np.broadcast_arrays(*parts))
            case ast.UnaryOp(op=ast.Not()):
                return ~self._yes(node.operand, column)
            case ast.UnaryOp(op=ast.USub()):
                return -self._number(node.operand, column)
            case ast.BinOp() if type(node.op) in _ARITHMETIC:
                return _ARITHMETIC[type(node.op)](self._number(node.left, column), self._number(node.right, column))
            case ast.Compare():
                return self._compare(node, column)
        raise self._fault(f"{ast.unparse(node)!r} is no part of a filter")

    def _yes(self, node: ast.AST, column) -> np.ndarray:
        value = np.asarray(self._value(node, column))
        if value.dtype != bool:
            raise self._fault(f"{ast.unparse(node)!r} is no yes or no; compare it with something")
        return value

    def _number(self, node: ast.AST, column):
        value = self._value(node, column)
        if np.asarray(value).dtype.kind not in "biuf":
            raise self._fault(f"{ast.unparse(node)!r} is no number")
        return np.asarray(value, np.float64)

    def _compare(self, node: ast.Compare, column) -> np.ndarray:
        result, left = True, self._value(node.left, column)
        for comparison, right in zip(node.ops, node.comparators):
            if isinstance(comparison, (ast.In, ast.NotIn)):
                if not isinstance(right, (ast.Tuple, ast.List)):
                    raise self._fault(f"after `in` comes a list such as (1, 2), not {ast.unparse(right)!r}")
                members = [self._value(item, column) for item in right.elts]
                found = np.isin(left, np.array(members)) if members else np.zeros(np.shape(left), bool)
                result, left = result & (~found if isinstance(comparison, ast.NotIn) else found), members
                continue
            if type(comparison) not in _COMPARISONS:
                raise self._fault(f"{ast.unparse(node)!r} is no comparison of a filter")
            value = self._value(right, column)
            texts = [np.asarray(side).dtype.kind in "UO" for side in (left, value)]
            if texts[0] != texts[1]:
                raise self._fault(f"{ast.unparse(node)!r} compares a text with a number")
            result, left = result & _COMPARISONS[type(comparison)](left, value), value
        return np.asarray(result)
