"""Plants faults in compiled kernels and looks who finds them: `python -m headrace.kernels.proof.mutants [--every N]`.

Each mutant is one change of one instruction of the PTX. It counts as found when the executor reports it or a value or
gradient leaves the checker's limit. One that changes no bit of a result and is not reported has no effect: a mask of
what is masked again later, a barrier that another one makes needless.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..check import doubled, limit, relative_error, values_and_gradients
from ..commands import table
from ..registry import operator, resolve
from .launches import Launch, executed
from .ptx import Fault

SUBJECTS = (  # operator, case, kernel: products by tensor cores, asynchronous copies, sums over a block, masks
    ("window_attention", "w7-shift-bf16", "forward_kernel"),
    ("window_attention", "w4-groups-of-each", "backward_kernel"),
    ("info_nce", "queue-d32-fp16", "_pass_kernel"),
    ("prototype_ce", "dino", "_student_kernel"),
    ("patch_loss", "p14-odd-grid", "_forward_kernel"),
)
KINDS = {  # name -> what is searched, what takes its place
    "barrier removed": (r"^\s*bar\.sync.*$", ""),
    "mask of a load dropped": (r"^(\s*)@%p\d+ (ld\.global)", r"\1\2"),
    "mask of a store dropped": (r"^(\s*)@!?%p\d+ (st\.global)", r"\1\2"),
    "swizzle broken": (r"\bxor\.b32", "or.b32"),
    "bound off by one": (r"\bsetp\.lt\.([su])", r"setp.le.\1"),
    "copies not waited for": (r"^\s*cp\.async\.wait_group.*$", ""),
    "sign turned": (r"\bsub\.f32", "add.f32"),
    "shuffle of another lane": (r"(shfl\.sync\.bfly\.b32.*, )(16|8|4|2|1)(, )", r"\g<1>3\3"),
}


MISSED, NO_EFFECT = "missed", "no effect"


class Outcome(NamedTuple):
    subject: str
    kind: str
    number: int
    found: str  # by what; MISSED or NO_EFFECT


def mutants(ptx: str, kind: str) -> list[str]:
    """The text with one fault, at each place there is."""
    pattern, instead = KINDS[kind]
    places = [match.span() for match in re.finditer(pattern, ptx, re.MULTILINE)]
    return [ptx[:start] + re.sub(pattern, instead, ptx[start:end]) + ptx[end:] for start, end in places]


class Subject:
    """One operator's case, of which one kernel is changed."""

    def __init__(self, target: str, name: str, case_id: str, kernel: str) -> None:
        self.target, self.kernel, self.op = target, kernel, operator(name)
        self.function = resolve(self.op, "triton").load()
        self.args, self.kwargs = next(case for case in self.op.cases if case.id == case_id).arguments()
        self.exact = values_and_gradients(self.op, self._reference, doubled(self.args))
        plain = values_and_gradients(self.op, self._reference, self.args)
        self.limits = {key: limit(plain[key], self.exact[key]) for key in self.exact}
        self.text = ""
        _, self.right = self._run("")

    def _reference(self, *tensors: Tensor) -> Any:
        return self.op.reference(*tensors, **self.kwargs)

    def _candidate(self, *tensors: Tensor) -> Any:
        return self.op.run("triton", self.function, tensors, self.kwargs)

    def _run(self, instead: str) -> tuple[str, dict[str, Tensor]]:
        """What is reported with another text in the kernel's place, and the values."""

        def alter(launch: Launch, ptx: str) -> str:
            if launch.name != self.kernel:
                return ptx
            self.text = self.text or ptx
            return instead if instead and ptx == self.text else ptx

        try:
            with executed(self.target, alter) as findings:
                values = values_and_gradients(self.op, self._candidate, self.args)
        except Fault as fault:
            return str(fault).partition(",")[0].partition(":")[0], {}
        return "race" if findings.races else "unwritten read" if findings.unwritten else "", values

    def outcome(self, mutant: str) -> str:
        reported, values = self._run(mutant)
        if reported:
            return reported
        if any(not relative_error(values[key], self.exact[key]) <= self.limits[key] for key in self.exact):
            return "value"
        return NO_EFFECT if all(torch.equal(values[key], self.right[key]) for key in self.exact) else MISSED


def plant(target: str, every: int = 1) -> Iterator[Outcome]:
    """Run every `every`-th mutant of each subject and kind."""
    for name, case_id, kernel in SUBJECTS:
        subject = Subject(target, name, case_id, kernel)
        for kind in KINDS:
            for number, mutant in list(enumerate(mutants(subject.text, kind)))[::every]:
                yield Outcome(f"{name} {kernel}", kind, number, subject.outcome(mutant))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m headrace.kernels.proof.mutants", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--target", choices=("sm_80", "sm_90"), default="sm_90")
    parser.add_argument("--every", type=int, default=1, help="only every so-manieth")
    args = parser.parse_args(argv)
    outcomes = list(plant(args.target, args.every))
    rows = []
    for kind in KINDS:
        by = Counter(outcome.found for outcome in outcomes if outcome.kind == kind)
        planted, missed, idle = sum(by.values()), by.pop(MISSED, 0), by.pop(NO_EFFECT, 0)
        how = ", ".join(f"{what} {count}" for what, count in by.most_common())
        rows.append((kind, str(planted), str(idle), str(planted - idle - missed), str(missed), how))
    print(table(("fault", "planted", "no effect", "found", "missed", "found by"), rows))
    for outcome in outcomes:
        if outcome.found == MISSED:
            print(f"missed: {outcome.subject}, {outcome.kind}, number {outcome.number}")
    effective = [outcome for outcome in outcomes if outcome.found != NO_EFFECT]
    found = sum(outcome.found != MISSED for outcome in effective)
    print(f"{found} of {len(effective)} faults with an effect found, {found / max(len(effective), 1):.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
