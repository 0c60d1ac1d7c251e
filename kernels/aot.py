"""Compiles every Triton kernel for GPUs that need not be present: `python -m headrace.kernels.aot [op ...]`.

A build fails when it does not compile, wants more shared memory than the GPU has, or uses more of the GPU than the
figures kept in its operator's `resources.json`: any more stack (which is what spilling registers looks like), or more
registers by a quarter and by 8. On record are the larger figures of Triton 3.8 and 3.9, which differ by up to half.
`--record` writes the file anew; `--raise` only where the figures of the installed version exceed it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError

KIB = 1024


class Target(NamedTuple):
    backend: str
    arch: int | str
    warp_size: int
    shared: int  # bytes that one program may have

    def __str__(self) -> str:
        return f"sm_{self.arch}" if self.backend == "cuda" else str(self.arch)


TARGETS = {
    str(target): target
    for target in (
        Target("cuda", 80, 32, 163 * KIB),
        Target("cuda", 90, 32, 227 * KIB),
        Target("cuda", 100, 32, 227 * KIB),
        Target("hip", "gfx942", 64, 64 * KIB),
    )
}
GATE = tuple(TARGETS)  # each has figures on record for every build


@dataclass(frozen=True)
class Build:
    """One kernel as it is launched: what `triton_impl.builds()` yields.

    `types` are Triton's names ("*bf16", "fp32") of the arguments that are no plain i32; `constants` the constexprs and
    the integers that a launch finds to be 1; `aligned` the arguments divisible by 16, as a launch finds them. A kernel
    with tiles of its own for some GPU yields one build per target, under one name.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...] = ()
    warps: int = 4
    stages: int = 1
    targets: tuple[str, ...] = GATE


class Figures(NamedTuple):
    registers: int
    stack: int  # bytes a thread
    shared: int  # bytes a program


def compile_build(build: Build, target: Target) -> Figures:
    """Compile one build for one target and read what it uses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    signature = {name: "constexpr" if name in build.constants else build.types.get(name, "i32") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned}
    source = ASTSource(build.kernel, signature, build.constants, attributes)
    options = {"num_warps": build.warps, "num_stages": build.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget(target.backend, target.arch, target.warp_size), options=options)
    if target.backend == "cuda":
        registers, stack = binary_figures(compiled.asm["cubin"])
    else:
        registers, stack = _amdgcn_figures(compiled.asm["amdgcn"])
    return Figures(registers, stack, compiled.metadata.shared)


def binary_figures(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) of a kernel for one of NVIDIA's GPUs."""
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tool = bundled if bundled.exists() else shutil.which("cuobjdump")
    if tool is None:
        raise UserError("kernels.aot: cuobjdump is neither in Triton's package nor on PATH; install the CUDA toolkit")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.check_output([tool, "--dump-resource-usage", file.name], encoding="utf-8")
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return int(registers), int(stack)


def _amdgcn_figures(text: str) -> tuple[int, int]:
    def figure(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", text).group(1))

    return figure("vgpr_count"), figure("private_segment_fixed_size")


def faults(figures: Figures, recorded: Sequence[int] | None, target: Target) -> str:
    """What is wrong with a build's figures, given the (registers, stack) on record; empty when nothing is."""
    if recorded is None:
        return "no figures on record"
    registers, stack = recorded
    found = []
    if figures.stack > stack:
        found.append(f"{figures.stack} bytes of stack, {stack} on record")
    if figures.registers > max(1.25 * registers, registers + 8):
        found.append(f"{figures.registers} registers, {registers} on record")
    if figures.shared > target.shared:
        found.append(f"{figures.shared} bytes of shared memory, the GPU has {target.shared}")
    return "; ".join(found)


def main(argv: Sequence[str]) -> int:
    """Compile, compare, print a table. Returns 0, 1 when a build fails, 2 when the request makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m headrace.kernels.aot", description=__doc__.splitlines()[0])
    parser.add_argument("op", nargs="*", help="operators; all of them when left out")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="default: all on record")
    parser.add_argument("--record", action="store_true", help="write the figures to each resources.json")
    parser.add_argument("--raise", dest="raising", action="store_true", help="the same where they exceed the old ones")
    args = parser.parse_args(argv)
    args.record |= args.raising
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("kernels.aot: TRITON_INTERPRET=1 leaves nothing to compile; unset it", file=sys.stderr)
        return 2
    from .commands import table

    rows, failed = [], 0
    for source in sorted(Path(__file__).parent.glob("*/triton_impl.py")):
        op, record = source.parent.name, source.parent / "resources.json"
        if args.op and op not in args.op:
            continue
        anew = args.record and not args.target and not args.raising
        recorded = json.loads(record.read_text(encoding="utf-8")) if record.exists() and not anew else {}
        for build in importlib.import_module(f".{op}.triton_impl", __package__).builds():
            for name in (name for name in args.target or GATE if name in build.targets):
                try:
                    figures = compile_build(build, TARGETS[name])
                except UserError as error:
                    print(error, file=sys.stderr)
                    return 2
                except Exception as error:  # each compiler stage raises its own kind
                    cells, fault = ("", "", ""), f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
                else:
                    if args.record:
                        known = recorded.setdefault(build.name, {}).get(name, (0, 0)) if args.raising else (0, 0)
                        recorded.setdefault(build.name, {})[name] = list(map(max, figures[:2], known))
                    cells = map(str, figures)
                    fault = faults(figures, recorded.get(build.name, {}).get(name), TARGETS[name])
                rows.append((op, build.name, name, *cells, fault or "ok"))
                failed += bool(fault)
        if args.record:
            lines = (f"  {json.dumps(build)}: {json.dumps(targets)}" for build, targets in recorded.items())
            record.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(table(("operator", "build", "target", "registers", "stack", "shared", "verdict"), rows))
    print(f"{len(rows)} builds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
