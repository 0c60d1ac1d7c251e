"""Operators with interchangeable implementations; one folder each, and the folder's name is the operator's.

    registry.py       Operator, Implementation: which implementation runs, and why
    compiled.py       torch.compile as an implementation    recompute.py   the reference's backward for one without
    trial.py          a user's function in a run: its first call, and what it raises
    check.py          holds any implementation, ours or a user's, to the reference
    bench.py          how fast it is, beside the others and the hardware's limits
    tiles.py          tile sizes per GPU                     tune.py        finds them
    records.py        last check and benchmark of each, on this machine
    overview.py       functions, definitions, what would run on a device
    ranks.py          sums over the processes of a run      shares.py         long reductions shared out
    commands.py       `headrace kernels [list | check | bench | tune]`
    aot.py            compiles every Triton kernel without a GPU: `python -m headrace.kernels.aot`
    proof/            executes what was compiled, on a CPU: `headrace kernels check OP --execute sm_90`

In an operator's folder `__init__.py` has the public function, formula and shapes, `reference.py` the definition in
plain PyTorch, `triton_impl.py` the kernels, `cases.py` the arguments everything is held to, `workloads.py` the sizes of
real training runs and what others offer, `resources.json` what the compiled kernels may use. Triton is imported when an
implementation of it is first chosen, never by this package.

To use a kernel of one's own: `use("patch_loss", my_function)`, or `kernels: {patch_loss: my_pkg.my_function}` in a
recipe; then `headrace kernels check patch_loss my_pkg.my_function`. docs/kernels.md shows it step by step.
"""

from ..lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "overview": "function reference report",
        "registry": "Implementation configure operator operator_names use without_triton",
    },
)
