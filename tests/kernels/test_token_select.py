"""token_select: the reference against a loop, Triton against the reference; visible patches against a convolution."""

import pytest
import torch
import torch.nn.functional as F

from headrace.errors import UserError
from headrace.kernels import operator, use
from headrace.kernels.check import check
from headrace.kernels.token_select import token_select, visible_patches

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU runs Triton's interpreter
CASES = {case.id: case for case in operator("token_select").cases}


def place_by_place(tokens, mask_token, positions, restore, prefix):
    out = torch.zeros(len(tokens), prefix + restore.shape[1], tokens.shape[2], dtype=torch.float64)
    out[:, :prefix] = tokens[:, :prefix]
    for b, row in enumerate(restore.tolist()):
        for i, source in enumerate(row):
            known = prefix + source < tokens.shape[1]
            out[b, prefix + i] = (tokens[b, prefix + source] if known else mask_token).double() + positions[i].double()
    return out


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_reference_is_the_loop(case):
    args, options = case.arguments()
    doubled = [arg.double() if arg.is_floating_point() else arg for arg in args]
    assert torch.equal(token_select(*doubled, impl="reference", **options), place_by_place(*args, **options))


def test_reference_gradient_by_finite_differences():
    (*floats, restore), options = CASES["two-class-tokens"].arguments()
    select = lambda *leaves: token_select(*leaves, restore, impl="reference", **options)  # noqa: E731
    assert torch.autograd.gradcheck(select, [x.double().requires_grad_() for x in floats], fast_mode=True)


def test_triton_passes_the_checker_on_every_case():
    pytest.importorskip("triton")
    found = check("token_select", "triton", DEVICE)
    assert [result for result in found if result.passed is False] == []
    left_out = {result.case for result in found if result.passed is None}
    assert left_out == ({name for name in CASES if "bf16" in name} if DEVICE == "cpu" else set())


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_gradient_of_the_mask_token_counts_hidden_places(impl):
    """A gradient of one everywhere: each hidden place of each image adds one, also beyond one program's share."""
    batch, places, visible = 3, 40, 7
    generator = torch.Generator().manual_seed(8)
    tokens = torch.zeros(batch, 1 + visible, 16, device=DEVICE, requires_grad=True)
    mask_token = torch.zeros(16, device=DEVICE, requires_grad=True)
    positions = torch.zeros(places, 16, device=DEVICE, requires_grad=True)
    restore = torch.rand(batch, places, generator=generator).argsort(1).to(DEVICE)
    token_select(tokens, mask_token, positions, restore, prefix=1, impl=impl).sum().backward()
    assert torch.all(mask_token.grad == batch * (places - visible))
    assert torch.all(tokens.grad == 1) and torch.all(positions.grad == batch)


@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_what_the_decoder_adds_up_is_not_rounded_to_bfloat16(impl):
    """Under autocast tokens come in low precision, parameters do not: the sum keeps the better one."""
    tokens = torch.ones(1, 1, 4, dtype=torch.float16, device=DEVICE)
    positions = torch.full((2, 4), 2.0**-20, device=DEVICE)
    restore = torch.tensor([[1, 0]], device=DEVICE)
    out = token_select(tokens, positions[0], positions, restore, impl=impl)
    assert out.dtype == torch.float32 and (out[0, 1] == 1 + 2.0**-20).all() and (out[0, 0] == 2.0**-19).all()


def test_compiles_to_one_graph_with_the_same_result():
    pytest.importorskip("triton")
    (*floats, restore), options = CASES["mae"].arguments()
    compiled = torch.compile(token_select, backend="aot_eager", fullgraph=True)
    results = []
    for function in (token_select, compiled):
        leaves = [x.to(DEVICE).requires_grad_() for x in floats]
        with use("token_select", "triton"):
            out = function(*leaves, restore.to(DEVICE), **options)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_opcheck():
    pytest.importorskip("triton")
    from headrace.kernels.token_select import triton_impl

    (*floats, restore), options = CASES["two-class-tokens"].arguments()
    leaves = [x.to(DEVICE).requires_grad_() for x in floats]
    torch.library.opcheck(triton_impl._forward.op, (*leaves, restore.to(DEVICE), options["prefix"]))


@pytest.mark.parametrize("channels_last", [True, False])
def test_visible_patches_embed_like_a_convolution(channels_last):
    generator = torch.Generator().manual_seed(9)
    images = torch.randn(2, 3, 12, 20, generator=generator, dtype=torch.float64)
    images = images.to(memory_format=torch.channels_last) if channels_last else images
    weight, bias = torch.randn(7, 3, 4, 4, generator=generator).double(), torch.randn(7, generator=generator).double()
    keep = torch.stack([torch.randperm(15, generator=generator)[:6] for _ in range(2)])
    everything = F.conv2d(images, weight, bias, stride=4).flatten(2).transpose(1, 2)
    visible = F.linear(visible_patches(images, keep, 4).flatten(2), weight.flatten(1), bias)
    assert torch.allclose(visible, torch.stack([row[kept] for row, kept in zip(everything, keep)]))


def test_visible_patches_are_the_pixels():
    """Patch 5 of a 2 x 3 grid is the last row's last column; hidden patches may hold anything."""
    images = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    patches = visible_patches(images, torch.tensor([[5], [1]]), 2)
    assert torch.equal(patches[0, 0], images[0, :, 2:, 4:]) and torch.equal(patches[1, 0], images[1, :, :2, 2:4])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"restore": torch.zeros(2, 6)}, "restore is torch.float32 (2, 6)"),
        ({"restore": torch.zeros(3, 6, dtype=torch.int64)}, "must be torch.int64 (2, places)"),
        ({"prefix": 5}, "4 tokens, 5 of them in front"),
        ({"restore": torch.zeros(2, 2, dtype=torch.int64)}, "do not fit 2 places"),
        ({"mask_token": torch.zeros(1, 8)}, "mask_token (1, 8)"),
        ({"positions": torch.zeros(7, 8)}, "positions (7, 8)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    arguments = {
        "tokens": torch.zeros(2, 4, 8),
        "mask_token": torch.zeros(8),
        "positions": torch.zeros(6, 8),
        "restore": torch.zeros(2, 6, dtype=torch.int64),
        "prefix": 1,
    }
    with pytest.raises(UserError) as error:
        token_select(**{**arguments, **change})
    assert words in str(error.value)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="patch_size 5 does not divide images of 8x10"):
        visible_patches(torch.zeros(1, 3, 8, 10), torch.zeros(1, 2, dtype=torch.int64), 5)
    with pytest.raises(UserError, match="keep is"):
        visible_patches(torch.zeros(2, 3, 8, 8), torch.zeros(1, 2, dtype=torch.int64), 4)
