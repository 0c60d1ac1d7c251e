"""Losses of single samples: their mean is the loss, and each is its own sample's."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from mim_samples import batch_of
from mim_samples import build as build_masked
from tiny_algorithms import BATCH, OPTIONS, STEPS_PER_EPOCH, build, embed, make_batch

from headrace.kernels.info_nce import info_nce, info_nce_queue
from headrace.kernels.patch_loss import patch_loss
from headrace.kernels.prototype_ce import prototype_ce
from headrace.models.algorithm import Progress
from headrace.models.algorithms import algorithm_names, find_algorithm
from headrace.models.algorithms.barlowtwins import standardize
from headrace.models.sample_losses import hidden_mean, patch_errors, prototype_losses, row_losses
from headrace.pipelines.views.mixing import Mixing

MASKED = [
    "mae",
    "mae_hivit",
    "pixmim",
    "simmim",
    "maskfeat",
    "eva",
    "milan",
    "mixmim",
    "beit",
    "beitv2",
    "cae",
    "vqkd",
    "ijepa",
    "capi",
]
UNEQUAL = ["mae", "mae_hivit", "pixmim", "maskfeat", "eva"]  # whose masks say what counts, patch by patch
OTHERS = {  # whose losses are not the mean of their samples'
    "densecl": "has a dense part",
    "barlowtwins": "is of the matrix of the batch",
    "lejepa": "also holds the batch to a normal distribution",
    "deepcluster": "weights clusters",
    "odc": "weights clusters",
    "dinov2": "has KoLeo beside",
    "dinov3": "has KoLeo beside",
}
LATER = Progress(4, 10, STEPS_PER_EPOCH)
random = torch.Generator().manual_seed(0)


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=random, dtype=dtype)


def unit(*shape):
    return F.normalize(normal(*shape), dim=-1)


def stepped(name, batch=None, algorithm=None):
    """(algorithm, what a step of it gives), in evaluation mode, so that a sample does not depend on others."""
    if algorithm is None:
        algorithm = (build_masked(name) if name in MASKED else build(name)).eval()
        if name not in MASKED:
            algorithm.start_epoch(Progress(0, 10, STEPS_PER_EPOCH), embed)
    if batch is None:
        batch = batch_of(algorithm) if name in MASKED else make_batch(algorithm, 1)
    torch.manual_seed(0)
    if name == "vqkd":
        torch.nn.init.normal_(algorithm.codebook.vectors)
    return algorithm, algorithm(batch, LATER)


def rows_of(batch, order):
    """`batch` with the samples `order`."""
    take = {key: value[order] for key, value in vars(batch.mask).items() if value is not None} if batch.mask else {}
    views = {name: view[:, order] for name, view in batch.views.items()}
    return replace(batch, views=views, ids=batch.ids[order], mask=batch.mask and replace(batch.mask, **take))


def test_every_method_says_what_it_gives_or_gives_nothing():
    kinds = {name: find_algorithm(name) for name in algorithm_names()}
    without = {name for name, kind in kinds.items() if kind.sample_loss is None}
    assert without == {"detector", "segmenter", "multihead"}
    assert set(kinds) - without == {*MASKED, *OPTIONS, "classifier"}


@pytest.mark.parametrize("name", [*MASKED, *OPTIONS])
def test_the_mean_is_the_loss(name):
    _, output = stepped(name)
    losses = output.per_sample()
    assert losses.dtype == torch.float32 and losses.ndim == 1 and not losses.requires_grad
    assert losses.std() > 0
    if name not in OTHERS:
        assert losses.mean().item() == pytest.approx(output.loss.item(), rel=2e-6)


@pytest.mark.parametrize("name", UNEQUAL)
def test_samples_count_by_what_is_hidden_of_them(name):
    algorithm = build_masked(name).eval()
    batch, counts = batch_of(algorithm), torch.tensor([1, 2, 5, 3])
    hidden = torch.arange(batch.mask.hidden.shape[1])[None] < counts[:, None]
    output = stepped(name, replace(batch, mask=replace(batch.mask, hidden=hidden)), algorithm)[1]
    mean = (output.per_sample() * counts).sum() / counts.sum()
    assert mean.item() == pytest.approx(output.loss.item(), rel=2e-6)


# not of mixmim, whose images are in pairs, nor of those whose loss compares the samples of a batch
ALONE = [name for name in (*MASKED, "moco", "byol", "simsiam", "dino", "relative_loc", "rotation_pred")]


@pytest.mark.filterwarnings("ignore:std")  # of SimSiam, of one row
@pytest.mark.parametrize("name", [name for name in ALONE if name not in ("mixmim", "vqkd", "capi")])
def test_it_is_the_loss_of_the_sample_alone(name):
    algorithm, output = stepped(name)
    batch = batch_of(algorithm) if name in MASKED else make_batch(algorithm, 1)
    losses = output.per_sample()
    alone = [stepped(name, rows_of(batch, [row]), algorithm)[1].loss.item() for row in range(len(losses))]
    assert losses.tolist() == pytest.approx(alone, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "name", ["simclr", "mocov3", "swav", "barlowtwins", "deepcluster", "odc", "densecl", "dino", "lejepa", "distill"]
)
def test_it_goes_with_the_sample(name):
    algorithm, output = stepped(name)
    order = [3, 1, 0, 2, 7, 6, 5, 4]
    moved = stepped(name, rows_of(make_batch(algorithm, 1), order), algorithm)[1].per_sample()
    assert output.per_sample()[order].tolist() == pytest.approx(moved.tolist(), rel=1e-4, abs=1e-6)


def test_what_others_give():
    """DenseCL its global part, LeJEPA the distance of views, Barlow Twins 1 - the mean of the diagonal, clusters the
    losses that are weighted."""
    _, output = stepped("densecl")
    assert output.per_sample().mean().item() == pytest.approx(output.metrics["global"].item(), rel=2e-6)
    _, output = stepped("lejepa")
    assert output.per_sample().mean().item() == pytest.approx(output.metrics["distance"].item(), rel=2e-6)
    barlow, output = stepped("barlowtwins")
    views = make_batch(barlow, 1).views
    z1, z2 = (standardize(barlow.head(barlow.backbone(views[name][0])).float()) for name in ("first", "second"))
    diagonal = (z1 * z2).mean(0)
    variance = (z1.square().mean() + z2.square().mean()) / 2  # 1 but for the epsilon
    assert output.per_sample().mean().item() == pytest.approx((variance - diagonal.mean()).item(), rel=1e-5)
    for name, power in (("deepcluster", -1), ("odc", -0.5)):
        algorithm, output = stepped(name)
        weights = algorithm.sizes[algorithm.memory.labels[make_batch(algorithm, 1).ids]] ** power
        mean = (weights * output.per_sample()).sum() / weights.sum()
        assert mean.item() == pytest.approx(output.loss.item(), rel=2e-6)


def test_a_classifier_has_none_for_images_without_a_label():
    kind = find_algorithm("classifier")
    torch.manual_seed(0)
    algorithm = kind(replace(kind.Config().smoke(), classes=5, mixing=Mixing()))
    view = algorithm.inputs().views[0]
    labels = torch.tensor([2, -1, 0, 4])
    batch = replace(
        batch_of(algorithm), labels=labels, views={view.name: normal(1, 4, 3, view.size, view.size).float()}
    )
    output = algorithm(batch, LATER)
    losses = output.per_sample()
    assert losses.isnan().tolist() == [False, True, False, False]
    assert losses.nanmean().item() == pytest.approx(output.loss.item(), rel=2e-6)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_patches(normalize, absolute):
    images, prediction = normal(5, 3, 8, 12), normal(5, 6, 48) * 2
    hidden = torch.rand(5, 6, generator=random) < 0.5
    hidden[:, 2] = True
    prediction[~hidden] = float("inf")
    options = {"patch_size": 4, "normalize": normalize, "absolute": absolute}
    losses = patch_errors(images, prediction, hidden, **options)
    mean = (losses * hidden.sum(1)).sum() / hidden.sum()
    assert mean.item() == pytest.approx(patch_loss(images, prediction, hidden, **options).item(), rel=1e-6)
    for row in range(5):
        one = [x[row : row + 1] for x in (images, prediction, hidden)]
        assert losses[row].item() == pytest.approx(patch_loss(*one, **options).item(), rel=1e-6)


def test_one_patch_leaves_the_image_as_it_is():
    images, prediction = normal(2, 1, 4, 4), normal(2, 1, 16)
    before, hidden = images.clone(), torch.ones(2, 1, dtype=torch.bool)
    losses = patch_errors(images, prediction, hidden, patch_size=4)
    assert torch.equal(images, before)
    assert losses.mean().item() == pytest.approx(patch_loss(images, prediction, hidden, patch_size=4).item(), rel=1e-6)


def test_hidden_mean_of_nothing_hidden_is_zero():
    errors, hidden = torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[True, True], [False, False]])
    assert hidden_mean(errors, hidden).tolist() == [2.0, 0.0]


def test_rows(monkeypatch):
    """The matrix in parts, too."""
    rows, columns, keys, queue = unit(7, 5), unit(11, 5), unit(7, 5), unit(9, 5)
    positive, exclude = torch.arange(7), torch.arange(7) + 2
    for elements in (1 << 24, 25):
        monkeypatch.setattr("headrace.models.sample_losses._ELEMENTS", elements)
        losses = row_losses(rows, columns, positive, exclude, temperature=0.3)
        s = rows @ columns.T / 0.3
        expected = [
            torch.logsumexp(torch.cat([s[i, : i + 2], s[i, i + 3 :]]), 0).item() - s[i, i].item() for i in range(7)
        ]
        assert losses.tolist() == pytest.approx(expected, rel=1e-12)
        mean = info_nce(rows, columns, positive, exclude, temperature=0.3)
        assert losses.mean().item() == pytest.approx(mean.item(), rel=1e-12)
        losses = row_losses(rows, queue, keys=keys, temperature=0.3)
        expected = torch.cat([(rows * keys).sum(1, keepdim=True), rows @ queue.T], 1) / 0.3
        assert torch.allclose(losses, expected.logsumexp(1) - expected[:, 0], rtol=1e-12)
        mean = info_nce_queue(rows, keys, queue, temperature=0.3)
        assert losses.mean().item() == pytest.approx(mean.item(), rel=1e-12)


@pytest.mark.parametrize("centred", [False, True])
def test_prototypes(centred):
    student, teacher, center = normal(4, 6, 9), normal(2, 6, 9), normal(9) if centred else None
    options = {"student_temperature": 0.4, "teacher_temperature": 0.3}
    if not centred:
        teacher, options = teacher.softmax(-1), {"student_temperature": 0.4}
    losses = prototype_losses(student, teacher, center, **options)
    assert losses.mean().item() == pytest.approx(prototype_ce(student, teacher, center, **options).item(), rel=1e-9)
    alone = [prototype_ce(student[:, i : i + 1], teacher[:, i : i + 1], center, **options).item() for i in range(6)]
    assert losses.tolist() == pytest.approx(alone, rel=1e-9)
    assert len(losses) == 6 != BATCH
