"""`headrace kernels`: which implementation runs and why; whether an implementation is right."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
from collections.abc import Sequence

import torch

from ..errors import UserError
from . import registry
from .check import Result, check


def main(argv: Sequence[str]) -> int:
    """Run `headrace kernels <argv>`. Returns 0, 1 when a check failed, 2 when the request makes no sense."""
    parser = argparse.ArgumentParser(prog="headrace kernels", description=__doc__)
    parser.set_defaults(run=_list)
    commands = parser.add_subparsers(metavar="list | check")
    lister = commands.add_parser("list", help="what each operator runs on a device, and why (the default)")
    checker = commands.add_parser("check", help="compare implementations with the reference")
    checker.set_defaults(run=_check)
    checker.add_argument("op", nargs="?", help="operator; all of them when left out")
    checker.add_argument("impl", nargs="?", help="built-in name or pkg.mod:fn; what would run here when left out")
    checker.add_argument("--all", action="store_true", help="every built-in implementation")
    for command in (parser, lister, checker):
        default = ("cuda" if torch.cuda.is_available() else "cpu") if command is parser else argparse.SUPPRESS
        command.add_argument("--device", choices=("cpu", "cuda"), default=default)
    args = parser.parse_args(argv)
    sys.path.insert(0, os.getcwd())  # a console script does not look for the user's kernel there by itself
    try:
        return args.run(args)
    except UserError as error:
        print(f"headrace kernels: {error}", file=sys.stderr)
        return 2


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = ((cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _list(args: argparse.Namespace) -> int:
    rows = []
    for row in registry.report(args.device):
        others = "; ".join(f"{name}: {reason}" for name, reason in row.others.items())
        rows.append((row.op, registry.operator(row.op).doc, row.chosen, row.why, others))
    print(table(("operator", "computes", f"on {args.device}", "why", "others"), rows))
    return 0


def _check(args: argparse.Namespace) -> int:
    if args.impl and args.all:
        raise UserError("check: --all stands for every implementation; name one or give --all")
    chosen = {} if args.impl or args.all else {row.op: row.chosen for row in registry.report(args.device)}
    results: list[Result] = []
    for name in [args.op] if args.op else registry.operator_names():
        built_in = [implementation.name for implementation in registry.operator(name).implementations]
        for implementation in built_in if args.all else [args.impl or chosen[name]]:
            found = check(name, implementation, args.device)
            if args.impl and all(result.passed is None for result in found):
                raise UserError(f"check: {name}={args.impl} supports no case on {args.device}: {found[0].note}")
            results += found
    header = ("operator", "implementation", "case", "passed", "worst error", "of limit", "failed")
    cases = [list(group) for _, group in itertools.groupby(results, key=lambda result: result[:3])]
    print(table(header, [_row(case) for case in cases]))
    failed = sum(result.passed is False for result in results)
    print(f"{len(results)} checks of {len(cases)} cases on {args.device}, {failed} failed")
    return 1 if failed else 0


def _row(case: list[Result]) -> tuple[str, ...]:
    """One line for the checks of one case: the error nearest to its limit, and what failed."""
    if case[0].passed is None:
        return (*case[0][:3], "not supported", "", "", case[0].note)
    worst = max(case, key=lambda result: -1.0 if math.isnan(result.error) else result.error / result.limit)
    figures = ("", "") if math.isnan(worst.error) else (f"{worst.error:.1e}", f"{worst.limit:.1e}")
    failed = "; ".join(f"{result.check} {result.note}".strip() for result in case if not result.passed)
    return (*case[0][:3], f"{sum(result.passed for result in case)} of {len(case)}", *figures, failed)
