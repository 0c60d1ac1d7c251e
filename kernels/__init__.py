"""Operators with interchangeable implementations; one folder each, and the folder's name is the operator's.

    augment/          crops and drawn parameters -> finished views
    patch_loss/       masked, per-patch normalised pixel regression
    registry.py       Operator, Implementation: which implementation runs, and why
    recompute.py      the reference's backward for an implementation without one
    check.py          holds any implementation, ours or a user's, to the reference
    commands.py       `headrace kernels [list | check]`
    aot.py            compiles every Triton kernel without a GPU: `python -m headrace.kernels.aot`

In an operator's folder `__init__.py` has the public function, formula and shapes, `reference.py` the definition in
plain PyTorch, `triton_impl.py` the kernels, `cases.py` the arguments everything is held to, `resources.json` what the
compiled kernels may use. Triton is imported when an implementation of it is first chosen, never by this package.

To use a kernel of one's own: `use("patch_loss", my_function)`, or `kernels: {patch_loss: my_pkg.my_function}` in a
recipe; then `headrace kernels check patch_loss my_pkg.my_function`.
"""

from .registry import configure, operator, operator_names, report, use

__all__ = ["configure", "operator", "operator_names", "report", "use"]
