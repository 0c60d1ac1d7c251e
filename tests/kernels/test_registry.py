"""Who decides which implementation runs, and what is said when a choice cannot be honoured."""

import logging
import subprocess
import sys
from functools import partial

import pytest
import torch

from headrace.errors import UserError
from headrace.kernels import configure, operator, operator_names, records, registry, report, use
from headrace.kernels.check import doubled, relative_error
from headrace.kernels.patch_loss import patch_loss, reference
from headrace.kernels.registry import resolve
from headrace.kernels.window_attention import window_attention


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


def test_all_names_those_that_have_it(monkeypatch):
    monkeypatch.setenv("HEADRACE_KERNELS", "all=compiled")
    assert {row.why for row in report("cuda")} == {"HEADRACE_KERNELS"}
    monkeypatch.setenv("HEADRACE_KERNELS", "all=gram")
    chosen = {row.op: (row.chosen, row.why) for row in report("cpu")}
    assert chosen.pop("cross_correlation") == ("gram", "HEADRACE_KERNELS")
    assert set(chosen.values()) == {("reference", "automatic")}
    monkeypatch.setenv("HEADRACE_KERNELS", "all=tritn")
    with pytest.raises(UserError, match="has no implementation 'tritn'"):
        report("cuda")


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
        ({"patch_loss": "math:sqrt"}, "math:sqrt does not take what patch_loss is called with"),
        ({"patch_loss": "os.system"}, "os.system does not take what patch_loss is called with"),
        ({"patch_loss": "os.path"}, "'os' has no function 'path'"),
        ({"patch_loss": "headrace.errors.UserError.args"}, "cannot import 'headrace.errors.UserError'"),
        ({"patch_loss": "raises_at_once.fn"}, "'raises_at_once' of 'raises_at_once.fn' ends with RuntimeError: no"),
        ({"patch_loss": "no_python.fn"}, "'no_python' of 'no_python.fn' ends with SyntaxError"),
        ({"patch_loss": "exits.fn"}, "'exits' of 'exits.fn' ends with SystemExit: 3 when imported; mend it"),
    ],
)
def test_a_misspelt_configuration_is_an_error_and_changes_nothing(choices, words, tmp_path, monkeypatch):
    texts = {"raises_at_once": "raise RuntimeError('no\\nway')", "no_python": "f(:", "exits": "exit(3)"}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    configure({"patch_loss": marked(2)})
    with pytest.raises(UserError) as error:
        configure(choices)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert value() == 2


def test_what_gives_no_tensors_is_no_implementation():
    with (
        use("patch_loss", lambda *given, **named: None),
        pytest.raises(UserError, match="gives NoneType for patch_loss"),
    ):
        value()


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
    others = {"compiled": "comes after it", "reference": "comes after it"}
    assert (row.chosen, row.why, row.others) == ("triton", "automatic", others)
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
        shapes = [("cpu", torch.float32, 4, 3), ("cpu", torch.float64, 4, 3)]
        assert decided == shapes
        configure({})
        value()
    assert decided == 2 * shapes
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


def test_a_declared_implementation_brings_its_reasons(user_module):
    user_module(
        "from headrace.kernels.registry import Implementation\n"
        "def large(device, dtype, patch_size, channels): return 'too small' if patch_size < 8 else None\n"
        "kernel = Implementation('large', lambda i, p, h, **o: p.sum() * 0 + 6, large)\n"
    )
    use("patch_loss", "my_kernels.kernel")
    with pytest.raises(UserError, match=r"patch_loss=large \(use\(\)\) cannot run .*: too small"):
        value()
    assert patch_loss(torch.ones(1, 3, 8, 8), torch.ones(1, 1, 192), torch.ones(1, 1) > 0, patch_size=8) == 6


def test_compiled_is_there_for_every_operator_and_follows_the_reference():
    for name in operator_names():
        assert [implementation.name for implementation in operator(name).implementations][-2:] == [
            "compiled",
            "reference",
        ]
    images, prediction, hidden = inputs()
    results = []
    for batch in (2, 1):  # one compilation serves every batch
        args = images[:batch], prediction[:batch], hidden[:batch]
        for impl in ("reference", "compiled"):
            loss = patch_loss(*args, patch_size=4, impl=impl)
            results.append((loss.item(), *torch.autograd.grad(loss, prediction)))
        (value, gradient), (same_value, same_gradient) = results[-2:]
        assert value == pytest.approx(same_value, rel=1e-6) and value != 0
        assert torch.allclose(gradient, same_gradient, rtol=1e-5, atol=1e-8)


def test_compiled_is_compiled_once_per_shape_class_however_often_it_is_chosen():
    def function():
        return registry.decide(operator("patch_loss"), ("cpu", torch.float32, 4, 3), "compiled").function

    first = function()
    other = registry.decide(operator("patch_loss"), ("cpu", torch.float32, 8, 3), "compiled").function
    configure({"patch_loss": "reference"})
    assert function() is first and other is not first
    codes = {first._torchdynamo_orig_callable.__code__, other._torchdynamo_orig_callable.__code__}
    assert len({id(code) for code in codes} | {id(reference.patch_loss.__code__)}) >= 2


def test_autocast_ends_at_an_operator():
    seen = []

    def looks(images, prediction, hidden, **options):
        seen.append((prediction @ prediction.mT).dtype)
        return prediction.sum()

    with torch.autocast("cpu", torch.bfloat16):
        value(impl=looks)
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
    assert seen == [torch.float32, torch.float32, torch.bfloat16]  # the first call is tried once before


def test_autocast_casts_what_an_operator_declares():
    qkv, table = torch.randn(1, 4, 4, 3, 2, 32, requires_grad=True), torch.randn(9, 2)
    seen = []

    def looks(qkv, table, groups=None, **options):
        seen.append((qkv.dtype, table.dtype))
        return operator("window_attention").reference(qkv, table, groups, **options)

    with torch.autocast("cpu", torch.bfloat16):
        out = window_attention(qkv, table, window=2, impl=looks)
        window_attention(qkv.double(), table, window=2, impl=looks)
    assert [*dict.fromkeys(seen)] == [(torch.bfloat16, torch.float32), (torch.float64, torch.float32)]
    assert out.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(out.sum(), qkv)
    assert gradient.dtype == torch.float32 and gradient.abs().sum() > 0


def red(implementation, device):
    """The last check of it has failed."""
    op = operator("patch_loss")
    about = registry.subject(op, registry.resolve(op, implementation), device)
    records.record_parity(about, records.Parity(3, "p16-fp32: value the value is off"))


def green(implementation, device):
    op = operator("patch_loss")
    records.record_parity(registry.subject(op, registry.resolve(op, implementation), device), records.Parity(9, ""))


@pytest.mark.parametrize("name", [name for name in operator_names() if operator(name).gradients])
def test_second_gradients_are_the_references_or_refused(name):
    """One that is computed ahead is a constant to autograd, and would be a wrong answer without a word."""

    def second(function, args):
        leaves = [
            arg if arg is None else arg.detach().requires_grad_(place in op.gradient_positions)
            for place, arg in enumerate(args)
        ]
        result = function(*leaves)
        inputs = [leaves[place] for place in op.gradient_positions if leaves[place] is not None]
        outputs = (result if isinstance(result, tuple) else (result,))[:1]
        first = torch.autograd.grad(outputs[0].float().square().sum(), inputs, create_graph=True, allow_unused=True)
        total = sum(grad.float().square().sum() for grad in first if grad is not None and grad.requires_grad)
        return torch.autograd.grad(total, inputs, allow_unused=True)

    op = operator(name)
    args, options = op.cases[0].arguments()
    expected = second(lambda *leaves: op.reference(*leaves, **options), doubled(args))
    fast = [one.name for one in op.implementations if one.name not in ("reference", "compiled")]
    for one in fast:
        function = resolve(op, one).load()
        call = partial(op.run, one, function)
        try:
            found = second(lambda *leaves, call=call: call(leaves, options), args)
        except UserError as refusal:
            assert str(refusal).startswith(f"{name}: {one} has no second gradients; take impl=")
            continue
        for value, exact in zip(found, expected, strict=True):
            assert relative_error(value, exact) < 0.01
    assert fast


def test_what_failed_its_check_is_skipped_with_a_warning_or_refused(caplog):
    pytest.importorskip("triton")
    shape = ("cuda", torch.float32, 16, 3)
    assert registry.decide(operator("patch_loss"), shape).implementation.name == "triton"
    red("triton", "cuda")
    decision = registry.decide(operator("patch_loss"), shape)
    assert decision.implementation.name == "reference" and "the value is off" in decision.others["triton"]
    assert "passed a check" in decision.others["compiled"]
    assert [record.levelname for record in caplog.records if "failed its last check" in record.getMessage()]
    with pytest.raises(UserError, match=r"patch_loss=triton \(impl=\) failed its last check .*the value is off"):
        registry.decide(operator("patch_loss"), shape, "triton")
    assert registry.decide(operator("patch_loss"), ("cpu", torch.float32, 16, 3)).implementation.name == "reference"
    green("compiled", "cuda")
    assert registry.decide(operator("patch_loss"), shape).implementation.name == "compiled"
    green("triton", "cuda")
    assert registry.decide(operator("patch_loss"), shape).implementation.name == "triton"


def test_a_record_ends_with_the_sources_it_is_about(user_module, tmp_path):
    user_module("def kernel(i, p, h, **o): return p.sum() * 0 + 1\n")
    red("my_kernels.kernel", "cpu")
    with pytest.raises(UserError, match="failed its last check"):
        value(impl="my_kernels.kernel")
    with (tmp_path / "my_kernels.py").open("a") as file:
        file.write("# mended\n")
    assert value(impl="my_kernels.kernel") == 1


def test_a_broken_record_counts_as_none(user_module):
    user_module("def kernel(i, p, h, **o): return p.sum() * 0 + 1\n")
    red("my_kernels.kernel", "cpu")
    (path,) = records.cache_folder().rglob("*.json")
    path.write_text("{")
    assert value(impl="my_kernels.kernel") == 1


def test_a_cache_that_cannot_be_written_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write .*name another folder in HEADRACE_CACHE"):
        red("triton", "cuda")


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
