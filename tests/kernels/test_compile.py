"""Operators inside torch.compile: one graph, the same result, and what a change of implementation costs."""

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from headrace.kernels import operator, operator_names, use
from headrace.kernels.check import values_and_gradients
from headrace.kernels.compiled import custom
from headrace.kernels.patch_loss import patch_loss
from headrace.kernels.patch_loss.reference import patch_loss as reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRACED = [
    name for name in operator_names() if name not in ("augment", "crop_resize")
]  # loaders use these two, no model


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests():
    torch._dynamo.reset()


def supported_case(name, impl):
    """The smallest arguments of an operator's cases that the implementation can run here, or a skip."""
    op = operator(name)
    (chosen,) = [implementation for implementation in op.implementations if implementation.name == impl] or [None]
    found = []
    for case in op.cases:
        args, kwargs = case.arguments()
        args = tuple(arg if arg is None else arg.to(DEVICE) for arg in args)
        if chosen and args[0].numel() and chosen.supports(*op.shape_class(*args, **kwargs)) is None:
            found.append((args, kwargs))
    if not found:
        pytest.skip(f"{name} has no {impl} for this device; a GPU may have it")
    return op, *min(found, key=lambda arguments: arguments[0][0].numel())


def forward_only(op):
    @functools.wraps(op.reference)
    def function(*args, **kwargs):
        with torch.no_grad():
            return op.reference(*args, **kwargs)

    return function


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("impl", ["reference", "triton", "forward only"])
def test_one_graph_with_the_same_result(name, impl):
    op, args, kwargs = supported_case(name, "reference" if impl == "forward only" else impl)
    choice = forward_only(op) if impl == "forward only" else impl
    with use(name, choice):
        expected = values_and_gradients(op, lambda *tensors: op(*tensors, **kwargs), args)
        compiled = torch.compile(lambda *tensors: op(*tensors, **kwargs), backend="aot_eager", fullgraph=True)
        found = values_and_gradients(op, compiled, args)
    assert found.keys() == expected.keys()
    for key in found:
        assert torch.equal(found[key], expected[key]), key


class Custom(TorchDispatchMode):
    """Collects the calls of this package's own operators."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "headrace":
            self.calls.setdefault(function, (args, kwargs or {}))
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", TRACED)
def test_custom_operators_keep_their_contract(name):
    """Schema, shapes and strides without data, registration of autograd."""
    pytest.importorskip("triton")
    op, args, kwargs = supported_case(name, "triton")
    with use(name, "triton"), Custom() as custom:
        values_and_gradients(op, lambda *tensors: op(*tensors, **kwargs), args)
    assert custom.calls
    for function, (tensors, options) in custom.calls.items():
        # What the backward runs inside of autograd has no gradient of its own; nobody writes what nobody reads, so
        # values of two runs are not compared here.
        torch.library.opcheck(function, tensors, options, test_utils=("test_schema", "test_faketensor"))


@custom("test_cubed")
def cubed(x: torch.Tensor, factor: float) -> torch.Tensor:
    return factor * x**3


cubed.register_fake(lambda x, factor: torch.empty_like(x))
cubed.register_autograd(
    lambda ctx, grad: (grad * ctx.factor * 3 * ctx.saved_tensors[0] ** 2, None),
    setup_context=lambda ctx, inputs, output: (ctx.save_for_backward(inputs[0]), setattr(ctx, "factor", inputs[1])),
)


def test_an_operator_is_torchs_only_where_torch_looks(monkeypatch):
    asked, op = [], cubed.op
    monkeypatch.setattr(cubed, "op", lambda *args: asked.append(args) or op(*args))
    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(cubed(x, 2.0).sum(), x)
    assert torch.equal(gradient, 6 * x**2) and torch.equal(cubed(x.detach(), 2.0), 2 * x.detach() ** 3)
    with torch.no_grad():
        assert not cubed(x, 2.0).requires_grad
    assert asked == []
    with Custom() as seen:
        (under_a_mode,) = torch.autograd.grad(cubed(x, 2.0).sum(), x)
    assert len(asked) == len(seen.calls) == 1 and torch.equal(under_a_mode, gradient)
    marked = torch.Tensor._make_subclass(type("Marked", (torch.Tensor,), {}), x.detach())
    assert torch.equal(cubed(marked, 2.0), 2 * x.detach() ** 3) and len(asked) == 2


@custom("test_halved")
def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


def test_one_without_a_backward_is_not_differentiated_in_silence():
    assert torch.equal(halved(torch.ones(2)), torch.full((2,), 0.5))
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        halved(torch.ones(2, requires_grad=True)).sum().backward()


def inputs():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 8, 12, generator=generator)
    return (
        images,
        torch.randn(2, 6, 48, generator=generator).requires_grad_(),
        torch.rand(2, 6, generator=generator) < 0.5,
    )


def test_each_choice_is_traced_once_and_a_return_to_it_not_at_all():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *tensors: patch_loss(*tensors, patch_size=4) + 1, backend=counter, fullgraph=True)

    def doubled(images, prediction, hidden, **options):
        return 2 * reference(images, prediction, hidden, **options)

    def tripled(images, prediction, hidden, **options):
        return 3 * reference(images, prediction.detach(), hidden, **options)

    loss = reference(*inputs(), patch_size=4).item()
    for _ in range(3):
        assert compiled(*inputs()).item() == pytest.approx(1 + loss)
        with use("patch_loss", doubled):
            assert compiled(*inputs()).item() == pytest.approx(1 + 2 * loss)
            with use("patch_loss", tripled):
                assert compiled(*inputs()).item() == pytest.approx(1 + 3 * loss)
    assert counter.frame_count == 3


def test_a_change_elsewhere_leaves_the_graph_alone():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *tensors: patch_loss(*tensors, patch_size=4), backend=counter, fullgraph=True)
    other = next(name for name in operator_names() if name != "patch_loss")
    before = compiled(*inputs())
    with use(other, "reference"):
        assert torch.equal(compiled(*inputs()), before)
    assert counter.frame_count == 1


def test_autocast_and_no_grad_inside_a_graph():
    compiled = torch.compile(lambda *tensors: patch_loss(*tensors, patch_size=4), backend="aot_eager", fullgraph=True)
    expected = patch_loss(*inputs(), patch_size=4)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(compiled(*inputs()), expected)
    with torch.no_grad():
        loss = compiled(*inputs())
    assert torch.equal(loss, expected) and not loss.requires_grad


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("name", TRACED)
def test_a_cuda_graph_replays_on_new_values(name):
    op, args, kwargs = supported_case(name, "triton")
    with torch.no_grad(), use(name, "triton"):
        op(*args, **kwargs)  # the choice and the compilation come before the capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = op(*args, **kwargs)
        for arg in args:
            if arg is not None and arg.is_floating_point():
                arg.mul_(0.5)
        graph.replay()
        expected = op(*args, **kwargs)
    pairs = zip(captured, expected, strict=True) if isinstance(captured, tuple) else [(captured, expected)]
    assert all(torch.equal(replayed, direct) for replayed, direct in pairs)
