"""Compiles every Triton kernel for GPUs that need not be present: `python -m headrace.kernels.aot [op ...]`.

A build fails when it does not compile, wants more shared memory than the GPU has, or does worse than the figures kept
in its operator's `resources.json`: any more stack (which is what spilling registers looks like), or more registers by a
quarter and by 8; in the machine code for sm_90, no tensor-core instructions where there were some, loads narrower by a
tenth on average, or an inner loop (without one, a kernel) longer by a tenth. Registers on record are the larger of
Triton 3.6 to 3.9, which differ by up to half. Loops are compared under the version on record alone, and the width of
loads under another one for half of it: compilers unroll differently.
`--record` writes the file anew; `--raise` only where the figures of the installed version are worse.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from .proof.sass import Summary, disassemble, summary, tool

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
READ = ("sm_90",)  # whose machine code is read: a third of a second a kernel, as much as all else together


@dataclass(frozen=True)
class Build:
    """One kernel as it is launched: what `triton_impl.builds()` yields.

    `types` are Triton's names ("*bf16", "fp32") of the arguments that are no plain i32; `constants` the constexprs and
    the integers that a launch finds to be 1; `aligned` the arguments divisible by 16, as a launch finds them. A kernel
    with tiles of its own for some GPU yields one build per target, under one name. What neither a build nor its launch
    says, such as stages, is left to Triton in both.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[str, ...] = ()
    warps: int = 4
    stages: int | None = None
    targets: tuple[str, ...] = GATE


class Figures(NamedTuple):
    registers: int
    stack: int  # bytes a thread
    shared: int  # bytes a program
    code: Summary | None = None  # of `READ`, where there is a disassembler

    @property
    def record(self) -> list[int]:
        """What `resources.json` keeps."""
        return [self.registers, self.stack, *(self.code or ())]


def compile_build(build: Build, target: Target) -> Figures:
    """Compile one build for one target and read what it uses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    signature = {name: "constexpr" if name in build.constants else build.types.get(name, "i32") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned}
    source = ASTSource(build.kernel, signature, build.constants, attributes)
    options = {"num_warps": build.warps} | ({} if build.stages is None else {"num_stages": build.stages})
    compiled = triton.compile(source, target=GPUTarget(target.backend, target.arch, target.warp_size), options=options)
    if target.backend != "cuda":
        return Figures(*_amdgcn_figures(compiled.asm["amdgcn"]), compiled.metadata.shared)
    code = None
    if str(target) in READ and not unread():
        code = summary(disassemble(compiled.asm["cubin"]))
    return Figures(*binary_figures(compiled.asm["cubin"]), compiled.metadata.shared, code)


def unread() -> str:
    """Why machine code cannot be read here; empty when it can."""
    try:
        tool("nvdisasm")
    except UserError as missing:
        return str(missing)
    return ""


def binary_figures(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) of a kernel for one of NVIDIA's GPUs."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.check_output([tool("cuobjdump"), "--dump-resource-usage", file.name], encoding="utf-8")
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return int(registers), int(stack)


def _amdgcn_figures(text: str) -> tuple[int, int]:
    def figure(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", text).group(1))

    return figure("vgpr_count"), figure("private_segment_fixed_size")


def on_record(path: Path) -> dict[str, Any]:
    """build -> target -> `Figures.record`; "triton" -> the version that loops are of."""
    return json.loads(path.read_text(encoding="utf-8"))


def faults(figures: Figures, recorded: Sequence[int] | None, target: Target, same_triton: bool = True) -> str:
    """What is wrong with a build's figures, given those on record (`Figures.record`); empty when nothing is."""
    if recorded is None:
        return "no figures on record"
    (registers, stack), code = recorded[:2], recorded[2:]
    found = []
    if figures.stack > stack:
        found.append(f"{figures.stack} bytes of stack, {stack} on record")
    if figures.registers > max(1.25 * registers, registers + 8):
        found.append(f"{figures.registers} registers, {registers} on record")
    if figures.shared > target.shared:
        found.append(f"{figures.shared} bytes of shared memory, the GPU has {target.shared}")
    if figures.code and not code:
        found.append("no machine code on record")
    elif figures.code:
        products, width, loop = code
        if products and not figures.code.products:
            found.append(f"no tensor-core instructions, {products} on record")
        if figures.code.width < (0.9 if same_triton else 0.5) * width:
            found.append(f"loads of {figures.code.width} bits on average, {width} on record")
        if same_triton and figures.code.loop > 1.1 * loop:
            found.append(f"{figures.code.loop} instructions in an inner loop, {loop} on record")
    return "; ".join(found)


def worse(figures: Sequence[int], known: Sequence[int], same_triton: bool) -> list[int]:
    """Of two records the figures that allow more: both versions of Triton stay within them."""
    if len(figures) != len(known):
        return list(max(figures, known, key=len))
    registers, stack, *code = map(max, figures, known)
    if code:
        code = [min(figures[2], known[2]), min(figures[3], known[3]), code[2] if same_triton else known[4]]
    return [registers, stack, *code]


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
    import triton

    from .commands import table

    rows, failed = [], 0
    for source in sorted(Path(__file__).parent.glob("*/triton_impl.py")):
        op, record = source.parent.name, source.parent / "resources.json"
        if args.op and op not in args.op:
            continue
        anew = args.record and not args.target and not args.raising
        recorded = on_record(record) if record.exists() and not anew else {}
        version = recorded.pop("triton", triton.__version__)
        same = version == triton.__version__
        if args.record and not args.raising and set(READ) <= set(args.target or GATE):
            version = triton.__version__
        for build in importlib.import_module(f".{op}.triton_impl", __package__).builds():
            for name in (name for name in args.target or GATE if name in build.targets):
                try:
                    figures = compile_build(build, TARGETS[name])
                except UserError as error:
                    print(error, file=sys.stderr)
                    return 2
                except Exception as error:  # each compiler stage raises its own kind
                    cells, fault = ("",) * 4, f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
                else:
                    known = recorded.get(build.name, {}).get(name)
                    if args.record:
                        merged = worse(figures.record, known, same) if args.raising and known else figures.record
                        known = recorded.setdefault(build.name, {})[name] = merged
                    read = "{} products, {} bits a load, loop {}".format(*figures.code) if figures.code else ""
                    cells = (*map(str, figures[:3]), read)
                    fault = faults(figures, known, TARGETS[name], same)
                rows.append((op, build.name, name, *cells, fault or "ok"))
                failed += bool(fault)
        if args.record:
            lines = (
                f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in {"triton": version, **recorded}.items()
            )
            record.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(table(("operator", "build", "target", "registers", "stack", "shared", "machine code", "verdict"), rows))
    if missing := unread():
        print(f"tensor cores, loads and loops were not compared: {missing}")
    print(f"{len(rows)} builds, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
