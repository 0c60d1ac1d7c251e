"""Configurations of OpenMMLab: ``headrace import-config <config.py>`` prints the recipe that says the same."""

from __future__ import annotations

import argparse

import yaml

from ...errors import UserError
from ...places import new_file, place
from .mmselfsup_config import translate
from .static_config import read_config


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="headrace import-config",
        description="Turn a configuration of MMSelfSup (0.x, 1.x) or MMPretrain into a recipe. The file is read, never "
        "run; what has no counterpart is listed in comments.",
    )
    parser.add_argument("config", type=place, help="a .py file; its _base_ files are read, too")
    parser.add_argument("--out", type=new_file, help="a new .yaml file; default: printed")
    arguments = parser.parse_args(argv)
    if arguments.out is not None and arguments.out.exists():
        raise UserError(f"--out: {arguments.out} exists; give another name")
    recipe, report = translate(read_config(arguments.config), arguments.config.stem)
    comments = [f"# from {arguments.config.name}", *(f"# {line}" for line in report.comments())]
    text = "\n".join(comments) + "\n" + yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None)
    if arguments.out is None:
        print(text, end="")
    else:
        arguments.out.write_text(text, encoding="utf-8")
        print(f"{arguments.out}: {recipe['algorithm']['name']}, {len(report.without)} settings without a counterpart")
        others = f"{len(report.same)} settings as in headrace, {len(report.views)} of views, {len(report.aside)} others"
        print("\n".join([*(f"  {line}" for line in report.without), f"{others}: in the file's comments"]))
    return 0
