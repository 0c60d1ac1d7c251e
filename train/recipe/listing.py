"""``headrace recipes``: what there is, one line a recipe. Imports neither torch nor what the recipes are about."""

from __future__ import annotations

import argparse

from ...errors import UserError
from . import config


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace recipes",
        description="What can be trained, one line each: of headrace pretrain, then of the commands that folders are "
        "named after.",
    )
    parser.add_argument("word", nargs="?", default="", help="only recipes with this word in name or description")
    word = parser.parse_args(argv).word
    rows = {name: _description(name) for name in config.packaged()}
    rows = {name: text for name, text in rows.items() if word.lower() in f"{name} {text}".lower()}
    if not rows:
        raise UserError(f"recipes: none has {word!r} in its name or description; headrace recipes lists them all")
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {text}" for name, text in rows.items()))
    return 0


def _description(name: str) -> str:
    node = config.load(name).root.value.get("description")
    return str(node.value) if node else ""
