"""``headrace models``: the table of models, without building one.

What the table says is in models.json, made by ``python -m headrace.tools.models_command``; a test compares the two.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import UserError

TABLE = Path(__file__).with_name("models.json")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace models",
        description="Models by name; parameters of the encoder and a linear layer to 1000 classes. Accuracies on "
        "ImageNet-1k are those published for the named weights, in percent; headrace has not trained them.",
    )
    parser.add_argument("word", nargs="?", default="", help="only models with this word in their names")
    parser.add_argument("--gflops", action="store_true", help="count multiply-adds, too; takes a few seconds a model")
    arguments = parser.parse_args(argv)
    rows = [row for row in json.loads(TABLE.read_text("utf-8")) if arguments.word in row["name"]]
    if not rows:
        raise UserError(f"models: none has {arguments.word!r} in its name; headrace models lists them all")
    print(f"{'name':<18} {'px':>4} {'parameters':>12} {'GFLOPs':>8} {'top-1':>7} {'top-5':>7}  of")
    for row in rows:
        operations = "-"
        if arguments.gflops:
            from .models_api import gflops  # builds the models

            operations = f"{gflops(row['name']):.2f}"
        shares = [f"{row[key]:.2f}" if row[key] else "-" for key in ("top1", "top5")]
        cells = (
            f"{row['name']:<18} {row['size']:>4} {row['parameters']:>12,} {operations:>8} {shares[0]:>7} {shares[1]:>7}"
        )
        print(f"{cells}  {row['source']}".rstrip())
    return 0


def made() -> list[dict]:
    """The rows of the table, from the models themselves."""
    from .models_api import MODELS, parameters

    return [
        {
            "name": name,
            "size": entry.size,
            "parameters": parameters(name),
            "top1": entry.top1,
            "top5": entry.top5,
            "source": entry.source,
        }
        for name, entry in MODELS.items()
    ]


if __name__ == "__main__":
    TABLE.write_text(json.dumps(made(), indent=1) + "\n", encoding="utf-8")
