"""Who decides which implementation runs, and what is said when a choice cannot be honoured."""

import logging
import subprocess
import sys

import pytest
import torch

from headrace.errors import UserError
from headrace.kernels import configure, operator, operator_names, registry, report, use
from headrace.kernels.patch_loss import patch_loss, reference


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 8, 12, generator=generator)
    prediction = torch.randn(2, 6, 48, generator=generator).to(dtype).requires_grad_()
    return images, prediction, torch.rand(2, 6, generator=generator) < 0.5


def marked(number):
    """An implementation that can be recognised by its result."""
    return lambda images, prediction, hidden, **options: prediction.sum() * 0 + number


def value(**options):
    return patch_loss(*inputs(), patch_size=4, **options).item()


def test_the_order_of_authority(monkeypatch, user_module):
    user_module("def env(i, p, h, **o): return p.sum() * 0 + 1\ndef config(i, p, h, **o): return p.sum() * 0 + 2\n")
    automatic = value()
    assert automatic == reference.patch_loss(*inputs(), patch_size=4).item()
    monkeypatch.setenv("HEADRACE_KERNELS", "patch_loss=my_kernels.env")
    configure({})
    assert value() == 1
    configure({"patch_loss": "my_kernels:config"})
    assert value() == 2
    use("patch_loss", marked(3))
    assert value() == 3
    with use("patch_loss", marked(4)):
        assert value() == 4
        with use("all", "reference"):
            assert value() == automatic
        assert value() == 4
        assert value(impl=marked(5)) == 5
    assert value() == 3


def test_a_block_that_fails_restores_the_choice():
    with pytest.raises(RuntimeError), use("patch_loss", marked(4)):
        raise RuntimeError
    assert value() not in (4,) and registry._used == {}


@pytest.mark.parametrize("setting", ["all=reference", "patch_loss=reference, ", "all=triton,patch_loss=reference"])
def test_the_environment_reaches_every_operator_and_a_name_beats_all(monkeypatch, setting):
    monkeypatch.setenv("HEADRACE_KERNELS", setting)
    rows = {row.op: row for row in report("cuda")}
    assert rows["patch_loss"].chosen == "reference" and rows["patch_loss"].why == "HEADRACE_KERNELS"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("patch_lss=reference", "no operator 'patch_lss'; did you mean 'patch_loss'?"),
        ("patch_loss=refrence", "no implementation 'refrence'; did you mean 'reference'?"),
        ("patch_loss", "'patch_loss' is no choice"),
        ("patch_loss=reference,patch_loss=triton", "'patch_loss' is named twice"),
    ],
)
def test_a_misspelt_environment_is_an_error(monkeypatch, setting, words):
    monkeypatch.setenv("HEADRACE_KERNELS", setting)
    with pytest.raises(UserError) as error:
        value()
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"patchloss": "reference"}, "did you mean 'patch_loss'?"),
        ({"patch_loss": "tritn"}, "did you mean 'triton'?"),
        ({"patch_loss": "no_such_package.fn"}, "cannot import 'no_such_package'"),
        ({"patch_loss": "math:sqrtt"}, "'math' has no function 'sqrtt'; did you mean 'sqrt'?"),
    ],
)
def test_a_misspelt_configuration_is_an_error_and_changes_nothing(choices, words):
    configure({"patch_loss": marked(2)})
    with pytest.raises(UserError) as error:
        configure(choices)
    assert words in str(error.value)
    assert value() == 2


def test_an_explicit_choice_never_falls_back(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    images, prediction, hidden = inputs(torch.float64)
    for choose in (lambda: use("patch_loss", "triton"), lambda: configure({"patch_loss": "triton"})):
        registry._used.clear()
        choose()
        with pytest.raises(UserError) as error:
            patch_loss(images, prediction, hidden, patch_size=4)
        message = str(error.value)
        assert "patch_loss=triton" in message and "cpu float64 patch_size=4 channels=3" in message
        assert "it computes in float32" in message and "reference: supported" in message
    configure({})
    registry._used.clear()
    assert patch_loss(images, prediction, hidden, patch_size=4).dtype == torch.float64


def test_the_interpreter_is_never_chosen_for_anybody(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    decision = registry.decide(operator("patch_loss"), ("cpu", torch.float32, 16, 3))
    assert decision.implementation.name == "reference" and decision.why == "automatic"


def test_automatic_choice_on_a_gpu_and_its_reasons(monkeypatch):
    pytest.importorskip("triton")
    row = next(row for row in report("cuda") if row.op == "patch_loss")
    assert (row.chosen, row.why, row.others) == ("triton", "automatic", {"reference": "comes after it"})
    double = registry.decide(operator("patch_loss"), ("cuda", torch.float64, 16, 3))
    assert double.implementation.name == "reference" and "float64" in double.others["triton"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = registry.decide(operator("patch_loss"), ("cuda", torch.float32, 16, 3))
    assert missing.others["triton"] == "Triton is not installed"


def test_a_choice_is_made_once_per_shape_class_and_logged_once(caplog, monkeypatch):
    decided = []
    original = registry.decide
    monkeypatch.setattr(registry, "decide", lambda *a: decided.append(a[1]) or original(*a))
    with caplog.at_level(logging.INFO, logger="headrace.kernels.registry"):
        for _ in range(3):
            value()
        patch_loss(*inputs(torch.float64), patch_size=4)
        configure({})
        value()
    assert decided == [("cpu", torch.float32, 4, 3), ("cpu", torch.float64, 4, 3), ("cpu", torch.float32, 4, 3)]
    assert [record.getMessage() for record in caplog.records] == [
        "patch_loss for cpu float32 patch_size=4 channels=3: reference (automatic)",
        "patch_loss for cpu float64 patch_size=4 channels=3: reference (automatic)",
    ]


def test_a_forward_only_function_gets_the_gradient_of_the_reference():
    def forward_only(images, prediction, hidden, **options):
        return reference.patch_loss(images, prediction.detach(), hidden, **options)

    images, prediction, hidden = inputs()
    (expected,) = torch.autograd.grad(3 * patch_loss(images, prediction, hidden, patch_size=4), prediction)
    use("patch_loss", forward_only)
    loss = patch_loss(images, prediction, hidden, patch_size=4)
    (gradient,) = torch.autograd.grad(3 * loss, prediction)
    assert expected.abs().sum() > 0 and torch.equal(gradient, expected)
    row = next(row for row in report("cpu") if row.op == "patch_loss")
    assert "forward_only" in row.chosen and row.why == "use(); no backward of its own: the reference's, recomputed"
    with torch.no_grad():
        assert not patch_loss(images, prediction, hidden, patch_size=4).requires_grad
    compiled = torch.compile(patch_loss, backend="aot_eager")  # at the price of a graph break
    (gradient,) = torch.autograd.grad(3 * compiled(images, prediction, hidden, patch_size=4), prediction)
    assert torch.equal(gradient, expected)


def test_a_compiled_graph_follows_a_new_choice():
    compiled = torch.compile(lambda *tensors: patch_loss(*tensors, patch_size=4), backend="aot_eager", fullgraph=True)
    automatic = compiled(*inputs()).item()
    with use("patch_loss", marked(7)):
        assert compiled(*inputs()).item() == 7
    assert compiled(*inputs()).item() == automatic != 7


def test_operators_are_folders_with_cases():
    assert "patch_loss" in operator_names()
    assert [operator(name).name for name in operator_names()] == operator_names()
    for name in operator_names():
        ids = [case.id for case in operator(name).cases]
        assert len(ids) == len(set(ids)) > 0


def test_the_package_imports_without_triton():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, headrace.kernels\n"
        "from headrace.kernels.patch_loss import patch_loss\n"
        "images, prediction, hidden = torch.ones(1, 3, 4, 4), torch.ones(1, 1, 48), torch.ones(1, 1).bool()\n"
        "print(patch_loss(images, prediction, hidden, patch_size=4).item())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "1.0", done.stderr
