"""A user's function in a run: what it gives is compared before the first step counts, what it raises is one line."""

import os
import subprocess
import sys

import pytest
import torch
from two_ranks import results

from headrace.errors import UserError
from headrace.kernels import operator, operator_names, trial, use
from headrace.kernels.patch_loss import patch_loss, reference
from headrace.train.pretrain import main

MAE = ["mae_vit-tiny", "--smoke"]
SOURCE = """
calls = 0


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, prediction):
        ctx.save_for_backward(prediction)
        return prediction.sum()


class Squeezed(Backward):
    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0][0]


class Forgotten(Backward):
    @staticmethod
    def backward(ctx, grad):
        return None


class Late(Backward):
    @staticmethod
    def backward(ctx, grad):
        global calls
        calls += 1
        if calls > 2:
            raise LookupError("lost")
        return ctx.saved_tensors[0]


def raises(images, prediction, hidden, **options):
    raise ValueError("no\\n way")


def ends(images, prediction, hidden, **options):
    raise SystemExit(0)


def later(images, prediction, hidden, **options):
    global calls
    calls += 1
    if calls > 3:
        raise KeyError("five")
    return reference(images, prediction, hidden, **options)


def shape(images, prediction, hidden, **options):
    return reference(images, prediction, hidden, **options).reshape(1)


def dtype(images, prediction, hidden, **options):
    return reference(images, prediction, hidden, **options).double()


def pair(images, prediction, hidden, **options):
    return (reference(images, prediction, hidden, **options),) * 2


def nothing(images, prediction, hidden, **options):
    return None


def squeezed(images, prediction, hidden, **options):
    return Squeezed.apply(prediction)


def forgotten(images, prediction, hidden, **options):
    return Forgotten.apply(prediction)


def late(images, prediction, hidden, **options):
    return Late.apply(prediction)
"""
FAULTS = {
    "raises": "raises ValueError: no way (my_kernels.py, line ",
    "ends": "raises SystemExit: 0 (my_kernels.py",
    "later": "raises KeyError: 'five' (my_kernels.py",
    "shape": "gives float32 (1,) as result, where the reference gives float32 ()",
    "dtype": "gives float64 () as result, where the reference gives float32 ()",
    "pair": "gives float32 () and float32 () as result, where the reference gives float32 ()",
    "nothing": "gives NoneType for patch_loss, not tensors",
    "squeezed": "but expected shape compatible with [8, 16, 192]",
    "forgotten": "gives nothing as gradient of prediction, where the reference gives float32 (8, 16, 192)",
    "late": "raises LookupError: lost (my_kernels.py",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_with_it_ends_with_one_line(fault, user_module, tmp_path):
    user_module(SOURCE)
    with pytest.raises(UserError) as error:
        main([*MAE, f"train.out={tmp_path / 'run'}", f"kernels.patch_loss=my_kernels.{fault}"])
    said = str(error.value)
    assert FAULTS[fault] in said and "\n" not in said
    assert f"my_kernels.{fault}" in said and f"`headrace kernels check patch_loss my_kernels.{fault}`" in said


def test_two_processes_end_with_it(user_module, tmp_path):
    user_module(SOURCE)
    command = ["-m", "headrace.cli", "pretrain", *MAE, "train.out=run", "kernels.patch_loss=my_kernels.shape"]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command]
    done = subprocess.run(run, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if line.startswith("headrace: ")]
    assert done.returncode == 1 and len(said) == 1 and FAULTS["shape"] in said[0]
    assert "exitcode  : 2" in done.stderr and "headrace/kernels" not in done.stderr  # no frame of ours


@pytest.mark.parametrize("name", operator_names())
def test_the_reference_of_every_operator_passes_as_a_users(name):
    """And is tried once: a second call is one call. With another shape of its result it is refused."""
    op, calls = operator(name), []

    def theirs(*given, **options):
        calls.append(1)
        return op.reference(*given, **options)

    def taller(*given, **options):
        result = op.reference(*given, **options)
        return result[None] if torch.is_tensor(result) else tuple(output[None] for output in result)

    args, kwargs = op.cases[0].arguments()
    args = [a.requires_grad_() if i in op.gradient_positions and a is not None else a for i, a in enumerate(args)]
    for expected in (2, 3):
        found = op(*args, **kwargs, impl=theirs)
        assert len(calls) == expected
    torch.testing.assert_close(found, op.reference(*args, **kwargs), rtol=0, atol=0, equal_nan=True)
    with pytest.raises(UserError, match="as result, where the reference gives"):
        op(*args, **kwargs, impl=taller)


@pytest.mark.parametrize("name", ["sinkhorn", "cross_correlation", "sigreg"])
def test_what_sums_over_processes_is_tried_by_all(name):
    for found in results():
        for key in (f"{name} theirs", f"{name} theirs again"):
            torch.testing.assert_close(found[key], found[f"{name} reference"], rtol=0, atol=0)


def test_activation_checkpointing_counts_nothing_of_the_trial():
    images, prediction = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 48, requires_grad=True)

    def block(prediction):
        return patch_loss(images, prediction.sin(), torch.ones(2, 4, dtype=torch.bool), patch_size=4, impl=theirs)

    def theirs(*given, **options):
        return reference.patch_loss(*given, **options)

    torch.utils.checkpoint.checkpoint(block, prediction, use_reentrant=False).backward()
    found = prediction.grad
    prediction.grad = None
    block(prediction).backward()
    assert torch.equal(found, prediction.grad) and found.abs().sum() > 0


def test_an_exception_of_others_is_not_blamed_on_it():
    with use("patch_loss", reference.patch_loss):
        images, prediction = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 48)
        patch_loss(images, prediction, torch.ones(2, 4, dtype=torch.bool), patch_size=4)
    try:
        torch.ones(2) @ torch.ones(3)
    except RuntimeError as fault:
        assert trial.blamed(fault) is None
