"""`headrace kernels`: which implementation runs and why; whether an implementation is right, and how fast."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence

import torch

from ..errors import UserError
from . import bench, records, registry, tiles
from .check import Result, check, parity
from .overview import report
from .proof import EXECUTED
from .proof.tf32 import rounded_products
from .tune import tune


def main(argv: Sequence[str]) -> int:
    """Run `headrace kernels <argv>`. Returns 0, 1 when a check failed, 2 when the request makes no sense."""
    parser = argparse.ArgumentParser(prog="headrace kernels", description=__doc__)
    parser.set_defaults(run=_list)
    commands = parser.add_subparsers(metavar="list | check | bench | roofline | tune")
    lister = commands.add_parser("list", help="what each operator runs on a device, and why (the default)")
    checker = commands.add_parser("check", help="compare implementations with the reference")
    checker.set_defaults(run=_check)
    checker.add_argument("op", nargs="?", help="operator; all of them when left out")
    checker.add_argument("impl", nargs="?", help="built-in name or pkg.mod:fn; what would run here when left out")
    checker.add_argument(
        "--all",
        action="store_true",
        help="every built-in implementation; on a CPU without compiled, which takes it many minutes",
    )
    checker.add_argument(
        "--execute",
        choices=EXECUTED,
        help="compile the Triton kernels for this GPU and execute the result on the CPU: the machine's own numbers, "
        "races, accesses out of bounds",
    )
    checker.add_argument(
        "--pessimistic",
        action="store_true",
        help="with --execute: approximate functions are wrong by up to 2 units in the last place, tensor cores round "
        "toward zero",
    )
    checker.add_argument("--first", action="store_true", help="each operator's first case alone")
    timer = commands.add_parser("bench", help="time implementations beside reference, compiled and what others offer")
    timer.set_defaults(run=_bench)
    timer.add_argument("op", help="operator")
    timer.add_argument("impl", nargs="*", help="built-in name or pkg.mod:fn; everything built-in when left out")
    bounds = commands.add_parser("roofline", help="how fast each workload can be at best, from the compiled code")
    bounds.set_defaults(run=_roofline)
    bounds.add_argument("op", nargs="*", help="operators; all of them when left out")
    bounds.add_argument("--target", choices=("sm_80", "sm_90", "sm_100"), action="append", help="default: sm_90")
    bounds.add_argument("--workload", default="", help="only those with this in their name")
    bounds.add_argument("--kernels", action="store_true", help="a line for each launch as well")
    tuner = commands.add_parser("tune", help="find the fastest tiles of an operator's Triton kernels on this GPU")
    tuner.set_defaults(run=_tune)
    tuner.add_argument("op", help="operator")
    for command in (parser, lister, checker, timer, bounds, tuner):
        default = ("cuda" if torch.cuda.is_available() else "cpu") if command is parser else argparse.SUPPRESS
        command.add_argument("--device", choices=("cpu", "cuda"), default=default)
    args = parser.parse_args(argv)
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
    for row in report(args.device):
        op = registry.operator(row.op)
        about = registry.subject(op, row.implementation, args.device)
        others = "; ".join(f"{name}: {reason}" for name, reason in row.others.items())
        rows.append((row.op, op.doc, row.chosen, row.why, _parity(about), records.benchmark(about), others))
    print(table(("operator", "computes", f"on {args.device}", "why", "parity", "last benchmark", "others"), rows))
    return 0


def _parity(about: records.Subject | None) -> str:
    outcome = records.parity(about)
    if outcome is None:
        return "not checked here"
    return f"failed: {outcome.failed}" if outcome.failed else f"passed {outcome.passed} checks"


def _check(args: argparse.Namespace) -> int:
    if args.impl and args.all:
        raise UserError("check: --all stands for every implementation; name one or give --all")
    if args.execute or args.pessimistic:
        return _check_executed(args)
    chosen = {} if args.impl or args.all else {row.op: row.chosen for row in report(args.device)}
    results: list[Result] = []
    rounded: list[str] = []
    for name in [args.op] if args.op else registry.operator_names():
        # torch.compile makes the reference anew for every stride and dtype: seconds each on a CPU, for no one's use
        built_in = [
            implementation.name
            for implementation in registry.operator(name).implementations
            if args.device != "cpu" or not implementation.compile
        ]
        for implementation in built_in if args.all else [args.impl or chosen[name]]:
            found = check(name, implementation, args.device, first=args.first)
            if args.impl and all(result.passed is None for result in found):
                raise UserError(f"check: {name}={args.impl} supports no case on {args.device}: {found[0].note}")
            results += found
            if not args.first:
                _record(name, implementation, args.device, found)
            rounded += _rounded(name, implementation)
    cases = _print(results)
    for name, implementation in sorted({(result.op, result.implementation) for result in results}):
        if implementation in registry.forward_only(name):
            print(f"{implementation} has no backward of its own: the gradients are the reference's, recomputed")
    for line in dict.fromkeys(rounded):
        print(line)
    return _verdict(results, cases, f"on {args.device}")


def _print(results: list[Result]) -> int:
    """A line for each case. Returns how many there are."""
    header = ("operator", "implementation", "case", "passed", "worst error", "of limit", "failed")
    cases = [list(group) for _, group in itertools.groupby(results, key=lambda result: result[:3])]
    print(table(header, [_row(case) for case in cases]))
    return len(cases)


def _verdict(results: list[Result], cases: int, where: str) -> int:
    judged = [result.passed for result in results if result.passed is not None]
    failed = judged.count(False)
    print(f"{len(judged)} checks of {cases} cases {where}, {failed} failed")
    return 1 if failed else 0


def _check_executed(args: argparse.Namespace) -> int:
    """Nothing is recorded: what would run on this machine is another thing."""
    from .proof.numbers import pessimistic

    if args.all or not args.execute:
        wrong = "--all has implementations without kernels" if args.all else "--pessimistic is about kernels executed"
        raise UserError(f"check: {wrong}; give --execute and at most one implementation")
    results = []
    names = [args.op] if args.op else [name for name in registry.operator_names() if _in_triton(name)]
    with pessimistic(args.pessimistic):
        for name in names:
            try:
                results += check(name, args.impl or "triton", execute=args.execute, first=args.first)
            except UserError as refused:  # of many operators, one that cannot be executed is a line of the table
                if args.op or "not among the instructions" not in str(refused):
                    raise
                results.append(Result(name, "triton", "all", "supported", None, note=str(refused)))
    if all(result.passed is None for result in results):
        raise UserError(f"check: {names[0]}={args.impl or 'triton'} supports no case: {results[0].note}")
    cases = _print(results)
    for result in results:
        if result.check in ("memory", "races", "unwritten reads") and not result.passed:
            print(f"{result.op} {result.implementation} {result.case}: {result.note}")
    return _verdict(results, cases, f"executed for {args.execute}")


def _in_triton(op: str) -> bool:
    return any(implementation.name == "triton" for implementation in registry.operator(op).implementations)


def _record(op: str, implementation: str, device: str, found: list[Result]) -> None:
    spec = registry.operator(op)
    about, outcome = registry.subject(spec, registry.resolve(spec, implementation), device), parity(found)
    if about and outcome:
        records.record_parity(about, outcome)


def _rounded(op: str, implementation: str) -> list[str]:
    """What a check on a CPU cannot see of a kernel of the user's."""
    spec = registry.operator(op)
    function = registry.users_function(spec, registry.resolve(spec, implementation))
    places = rounded_products(function) if function else []
    return [
        f"{place}: tl.dot rounds float32 to tf32 (10 bits) on a GPU, which a CPU does not show; "
        'input_precision="ieee" does not round'
        for place in places
    ]


def _bench(args: argparse.Namespace) -> int:
    op = registry.operator(args.op)
    implementations = bench.contenders(op, args.impl, args.device)
    limits = bench.ceilings(args.device)
    print(
        f"{records.device_name(args.device)}: copies {limits.bytes_per_second / 1e9:.0f} GB/s, "
        f"multiplies matrices at {limits.flops_per_second / 1e12:.2f} TFLOP/s"
    )
    rows: list[bench.Row] = []
    for case in bench.workloads(op, args.device):
        rows += bench.bench(op, case, implementations, args.device)
    print(table(bench.HEADER, [bench.cells(row, rows) for row in rows]))
    for name in sorted(registry.forward_only(op.name)):
        print(f"{name} has no backward of its own: forward+backward has the reference's, recomputed")
    said = bench.summary(rows)
    for implementation in implementations:
        about = registry.subject(op, implementation, args.device)
        if about and implementation.name in said:
            records.record_benchmark(about, said[implementation.name])
    return 1 if any(row.us_p50 is None and row.impl in args.impl for row in rows) else 0


def _roofline(args: argparse.Namespace) -> int:
    from .proof import roofline

    cells = "{:6}  {:17}  {:50}  {:8}  {:>8}" + "  {:>9}" * 6 + "  {}"
    names = ("launches", "issue", "bytes", "flops", "bound", "predicted", "target", "")
    print(cells.format("GPU", "operator", "workload", "phase", *names).rstrip())
    count = missed = 0
    for target in args.target or ["sm_90"]:
        for row in roofline.rows(target, args.op, args.workload):
            misses = 0 < row.target < row.bound  # 0: what has no floor of its own, such as a queue's gradient
            count, missed = count + 1, missed + misses
            times = map(_us, (row.issue, row.bytes, row.flops, row.bound, row.predicted, row.target))
            about = (target, row.operator, row.workload, row.phase, len(row.kernels))
            print(cells.format(*about, *times, "misses" if misses else "").rstrip(), flush=True)
            for kernel in row.kernels if args.kernels else ():
                size = (
                    f"{kernel.registers} registers, {kernel.resident} warps resident, {kernel.instructions:.0f} a warp"
                )
                own = ("", _us(kernel.issue), "", "", "", _us(kernel.predicted), "", size)
                print(cells.format("", "", f"  {kernel.name} {kernel.grid}", "", *own))
    print(f"microseconds; {missed} of {count} bounds are above their target")
    return 0


def _us(time: float) -> str:
    return f"{time:.0f}" if time >= 10 else f"{time:.1f}"


def _tune(args: argparse.Namespace) -> int:
    op = registry.operator(args.op)
    if args.device == "cpu":
        raise UserError("tune: tiles are for GPUs; a CPU runs Triton's interpreter, whose time says nothing")
    rows = []
    for trial in tune(op, args.device):
        tile = " ".join(f"{name}={value}" for name, value in trial.tile.items())
        rows.append((trial.key, tile, f"{trial.us:.1f}" if trial.us else "", trial.note))
    print(table(("kernel", "tile", "us of a forward and backward", "note"), rows))
    print(f"what beats the present tile is kept in {tiles.overlay_path(torch.cuda.current_device())}")
    return 0


def _row(case: list[Result]) -> tuple[str, ...]:
    """One line for the checks of one case: the error nearest to its limit, and what failed."""
    if case[0].passed is None:
        return (*case[0][:3], "not supported", "", "", case[0].note)
    worst = max(case, key=lambda result: -1.0 if math.isnan(result.error) else result.error / result.limit)
    figures = ("", "") if math.isnan(worst.error) else (f"{worst.error:.1e}", f"{worst.limit:.1e}")
    first, *more = [result for result in case if not result.passed] or [None]
    failed = f"{first.check}: {first.note}" if first and first.note else first.check if first else ""
    failed += f"; also {', '.join(result.check for result in more)}" if more else ""
    return (*case[0][:3], f"{sum(result.passed for result in case)} of {len(case)}", *figures, failed)
