"""Matrix products of a Triton kernel that round float32 to tf32 on a GPU, found in its source."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_EXACT = ("ieee", "tf32x3", "bf16x6", "bf16x3")  # tf32x3 and the others split each operand and lose next to nothing


def rounded_products(function: Callable) -> list[str]:
    """Places ``file:line`` in the function's file where ``tl.dot`` has its default precision, or asks for tf32.

    The default is tf32 on NVIDIA's GPUs, unless TRITON_F32_DEFAULT says otherwise; Triton's interpreter does not round.
    """
    try:
        path = Path(inspect.getfile(inspect.unwrap(function)))
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (TypeError, OSError, ValueError, SyntaxError):  # no source to read
        return []
    default = os.environ.get("TRITON_F32_DEFAULT", "tf32")
    return [f"{path.name}:{call.lineno}" for call in _dots(tree) if _precision(call, default) not in _EXACT]


def _dots(tree: ast.Module) -> Iterator[ast.Call]:
    """Calls of triton.language.dot, under whatever names the file imports it."""
    names = {"triton.language.dot"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {f"{a.asname}.dot" for a in node.names if a.name == "triton.language" and a.asname}
            names |= {f"{a.asname}.language.dot" for a in node.names if a.name == "triton" and a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module == "triton":
            names |= {f"{a.asname or a.name}.dot" for a in node.names if a.name == "language"}
        elif isinstance(node, ast.ImportFrom) and node.module == "triton.language":
            names |= {a.asname or a.name for a in node.names if a.name == "dot"}
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in names)
    yield from sorted(calls, key=lambda call: call.lineno)


def _precision(call: ast.Call, default: str) -> str:
    """What a call asks for, where that is written out; what is computed is taken for exact."""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    given |= dict(zip(("input_precision", "allow_tf32"), call.args[3:5]))
    for key, spell in (("input_precision", str), ("allow_tf32", lambda value: "tf32" if value else "ieee")):
        if key in given and not (isinstance(given[key], ast.Constant) and given[key].value is None):
            return spell(given[key].value) if isinstance(given[key], ast.Constant) else "ieee"
    return "ieee" if None in given else default  # **options may hold it
