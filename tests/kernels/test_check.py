"""The checker must find what is wrong with a kernel, and nothing wrong with a right one."""

import itertools

import pytest
import torch

from headrace.errors import UserError
from headrace.kernels import use
from headrace.kernels.check import check
from headrace.kernels.commands import main
from headrace.kernels.patch_loss.reference import patch_loss as reference


def failed(implementation):
    """Names of the checks that fail on at least one case."""
    return {result.check for result in check("patch_loss", implementation) if result.passed is False}


class ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return 1.01 * grad


def test_the_reference_passes():
    results = check("patch_loss", "reference")
    assert all(result.passed for result in results)
    names = {result.check for result in results}
    assert {"value", "gradient of prediction", "inputs unmodified", "repeatable", "outputs written"} <= names
    assert {"strided images", "strided prediction", "strided hidden"} <= names


def test_a_forward_only_function_passes():
    assert failed(lambda i, p, h, **o: reference(i, p.detach(), h, **o)) == set()


def test_a_wrong_value_is_found():
    assert {"value", "outputs written"} <= failed(lambda i, p, h, **o: reference(i, p, h, **o) * 1.0001)


def test_a_wrong_gradient_is_found():
    found = failed(lambda i, p, h, **o: reference(i, ScaledGradient.apply(p), h, **o))
    assert "gradient of prediction" in found and "value" not in found


def test_a_constant_gradient_scale_is_found():
    """Right for a loss that is used as it is, wrong for one that is weighted."""

    class IgnoresWhatComesIn(ScaledGradient):
        @staticmethod
        def backward(ctx, grad):
            return torch.ones_like(grad)

    found = failed(lambda i, p, h, **o: IgnoresWhatComesIn.apply(reference(i, p, h, **o)))
    assert "gradient of prediction" in found


def test_a_modified_input_is_found():
    def modifies(images, prediction, hidden, **options):
        loss = reference(images, prediction, hidden, **options)
        images.add_(1)
        return loss

    assert failed(modifies) == {"inputs unmodified"}


def test_an_unwritten_output_is_found():
    """A kernel that adds up one number more than it wrote passes by luck as long as fresh memory happens to be zero."""

    def unwritten(images, prediction, hidden, **options):
        parts = torch.empty(2)
        parts[0] = reference(images, prediction.detach(), hidden, **options)
        return parts[0] + (0 if parts[1].isfinite() else parts[1])

    assert "outputs written" in failed(unwritten)


def test_a_kernel_that_does_not_repeat_is_found():
    tick = itertools.count()

    def drifts(images, prediction, hidden, **options):
        return reference(images, prediction, hidden, **options) * (1 + 2e-7 * (next(tick) % 2))

    assert failed(drifts) == {"repeatable"}


def test_silence_about_strides_is_found_and_refusal_is_not():
    def ignores_strides(images, prediction, hidden, **options):
        flat = torch.as_strided(prediction, prediction.shape, torch.empty(prediction.shape).stride())
        return reference(images, flat, hidden, **options)

    assert "strided prediction" in failed(ignores_strides)

    def refuses(images, prediction, hidden, **options):
        if prediction.stride(-1) != 1 or images.stride(1) not in (1, images.shape[2] * images.shape[3]):
            raise ValueError("strided tensors are not supported")
        return reference(images, prediction, hidden, **options)

    results = check("patch_loss", refuses)
    assert all(result.passed for result in results)
    notes = {result.check: result.note for result in results if result.note}
    assert notes == dict.fromkeys(notes, "refused: strided tensors are not supported") and "strided prediction" in notes


def test_an_empty_batch_may_be_refused_but_not_crash_or_differ():
    def crashes(images, prediction, hidden, **options):
        images[0]
        return reference(images, prediction, hidden, **options)

    def refuses(images, prediction, hidden, **options):
        if not len(images):
            raise ValueError("an empty batch")
        return reference(images, prediction, hidden, **options)

    def one(images, prediction, hidden, **options):
        return reference(images, prediction, hidden, **options) + (len(images) == 0)

    assert failed(crashes) == failed(one) == {"empty batch"}
    assert failed(refuses) == set()


def test_a_wrong_dtype_and_a_crash_are_findings():
    assert "value" in failed(lambda i, p, h, **o: reference(i, p, h, **o).double())
    results = check("patch_loss", lambda i, p, h: None)
    assert {result.check for result in results} == {"runs"} and "unexpected keyword" in results[0].note


def test_poison_and_settings_end_with_the_check():
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    check("patch_loss", "reference")
    assert before == (torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory)


def test_command_lists_what_runs(capsys):
    with use("patch_loss", "reference"):
        assert main(["--device", "cuda"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("patch_loss")]
    assert line.split("  ")[2:] and "reference" in line and "use()" in line and "triton: not asked for" in line


@pytest.mark.parametrize("body, code", [("reference(i, p, h, **o)", 0), ("reference(i, p, h, **o) * 1.1", 1)])
def test_command_checks_a_dotted_path(user_module, capsys, body, code):
    user_module(f"def kernel(i, p, h, **o): return {body}\n")
    assert main(["check", "patch_loss", "my_kernels:kernel", "--device", "cpu"]) == code
    out = capsys.readouterr().out
    assert ("0 failed" in out) == (code == 0) and ("value; also gradient of" in out) == (code == 1)


def test_command_records_the_outcome_and_says_what_it_lacks(user_module, capsys, monkeypatch):
    user_module("def kernel(i, p, h, **o): return reference(i, p.detach(), h, **o) * 1.1\n")
    assert main(["check", "patch_loss", "my_kernels:kernel", "--device", "cpu"]) == 1
    assert "my_kernels:kernel has no backward of its own" in capsys.readouterr().out
    monkeypatch.setenv("HEADRACE_KERNELS", "patch_loss=my_kernels.kernel")
    assert main(["--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "patch_loss=my_kernels.kernel (HEADRACE_KERNELS) failed its last check" in said and "value" in said
    monkeypatch.delenv("HEADRACE_KERNELS")
    assert main(["check", "patch_loss", "reference", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["--device", "cpu"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("patch_loss")]
    count = sum(result.passed for result in check("patch_loss", "reference"))
    assert f"passed {count} checks" in line


def test_command_names_products_that_only_a_gpu_rounds(user_module, capsys, monkeypatch):
    """On a CPU tf32 is seen by nobody: each `tl.dot` without a precision is named by its line, others are not."""
    monkeypatch.delenv("TRITON_F32_DEFAULT", raising=False)
    body = """
import triton.language as tl
from triton import language
from triton.language import dot as product

def never_run(a, b, options):
    tl.dot(a, b)                                  # 9, the default
    tl.dot(a, b, input_precision="ieee")
    language.dot(a, tl.trans(b), acc=a)           # 11
    product(a, b, allow_tf32=False)
    product(a, b, None, "tf32")                   # 13, asked for
    tl.dot(a, b, input_precision="tf32x3")
    tl.dot(a, b, **options)                       # may say it
    tl.dot(a, b, input_precision=None)            # 16
    a.dot(b)                                      # not Triton's
    torch.dot(a, b)

def kernel(i, p, h, **o): return reference(i, p, h, **o)
"""
    user_module(body)
    assert main(["check", "patch_loss", "my_kernels:kernel", "--device", "cpu"]) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if "tf32" in line]
    assert [line.partition(": ")[0] for line in found] == [f"my_kernels.py:{n}" for n in (9, 11, 13, 16)]
    assert all('input_precision="ieee"' in line for line in found)
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")
    assert main(["check", "patch_loss", "my_kernels:kernel", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("tf32") == 1  # the one that asks for it
    user_module("from headrace.kernels import Implementation\n" + body + "other = Implementation('mine', kernel)\n")
    assert main(["check", "patch_loss", "my_kernels:other", "--device", "cpu"]) == 0  # which is called otherwise
    assert "my_kernels.py:14: tl.dot" in capsys.readouterr().out
    assert main(["check", "patch_loss", "reference", "--device", "cpu"]) == 0  # built in
    assert "tf32" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["check", "patchloss"], "did you mean 'patch_loss'?"),
        (["check", "patch_loss", "tritn"], "did you mean 'triton'?"),
        (["check", "patch_loss", "triton", "--all"], "--all"),
    ],
)
def test_command_refuses_with_code_2(capsys, argv, words):
    assert main(argv) == 2
    assert words in capsys.readouterr().err


def test_command_refuses_an_implementation_that_supports_nothing_here(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert main(["check", "patch_loss", "triton", "--device", "cpu"]) == 2
    assert "needs a CUDA" in capsys.readouterr().err


def test_unknown_names_are_errors():
    with pytest.raises(UserError, match="no operator"):
        check("nothing", "reference")
