"""docs/customize.md: the page runs as it stands, and what its examples compute is what they say."""

import importlib
import json
import re
import shlex
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from pages import Page, pages, run
from safetensors.torch import load_file

from headrace.errors import UserError
from headrace.models.algorithm import Progress
from headrace.pipelines.loaders.choose import make_loader
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import Batch, InputSpec, Operation, ViewSpec
from headrace.pipelines.views.masks import draw_mask
from headrace.pipelines.views.reference import reference_views
from headrace.train.engine.optim import Schedules, build_optimizer
from headrace.train.engine.step import Stepper
from headrace.train.evaluation.embed_encoder import load_encoder
from headrace.train.recipe.recipe import load_recipe

LION = "optim={name: my_optim.Lion, lr: 3e-5, options: {betas: [0.95, 0.98]}}"


@pytest.fixture(scope="module")
def page(photo_folder, tmp_path_factory):
    """The page, carried out; tests run in its folder and can import what it wrote."""
    page = Page(pages()["customize.md"], tmp_path_factory.mktemp("customize"), lambda line: shlex.split(line, True))
    shutil.copytree(photo_folder, page.folder / "photos")
    with page.inside():
        page.carry_out()
        yield page


def mine(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_every_command_ends_as_the_page_says(page):
    assert len(page.said) > 15 and [said for said in page.said if said.code != said.wanted] == []


def test_source(page):
    source = open_source("my_sources.Zip:photos.zip?suffix=_05.jpg")
    with zipfile.ZipFile("photos.zip") as file:
        names = [name for name in file.namelist() if name.endswith("_05.jpg")]
        assert [source.key(i) for i in range(len(source))] == names and len(names) == 1
        assert source.read(0).tobytes() == file.read(names[0])
    assert source.classes == ["class_2"] and source.label(0) == 0
    assert source.name == "my_sources.Zip:photos.zip?suffix=_05.jpg"


@pytest.mark.parametrize(
    "name, words",
    [
        ("my_sources.Zipp:photos.zip", "'my_sources' has no source 'Zipp'; did you mean 'Zip'?"),
        ("my_source.Zip:photos.zip", "cannot import 'my_source'"),
        ("my_sources.Zip:photoz.zip", "cannot be opened (.*photoz.zip"),
        ("my_sources.Zip:photos.zip?sufix=.png", "no option for my_sources.Zip 'sufix'; did you mean suffix?"),
        ("zipfile.ZipFile:photos.zip", "gave no source of images, it lacks classes, __len__, label, key, size"),
    ],
)
def test_source_that_is_none(page, name, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(").replace("?", r"\?")) as caught:
        open_source(name)
    assert "\n" not in str(caught.value)


CUT = ViewSpec(
    size=40, count=2, flip=0.5, operations=(), mean=(0.0,) * 3, std=(1.0,) * 3, crop="center", center_fraction=1.0
)


def cut(**change):
    return replace(CUT, operations=(Operation("my_views.cutout", options={"side": 12}, **change),))


def batches(source, view, kind, steps, start=0, seed=0):
    order = Order(len(source), 8, seed=seed)
    loader = make_loader(source, InputSpec((view,)), order, kind=kind, threads=1, seed=seed)
    loader.load_state_dict({"step": start})
    try:
        return [next(loader) for _ in range(steps)]
    finally:
        loader.close()


def test_operation_is_the_same_in_every_loader_and_drawn_as_stated(page):
    source = open_source("photos")
    view = cut()
    found = {kind: batches(source, view, kind, 4) for kind in ("cpu", "memory", "dali")}
    squares = {}
    for kind, made in found.items():
        for batch in made:
            views = batch.views["image"]
            black = (views == 0).all(2)
            assert (black.sum((2, 3)) >= 144).all()
            reference = reference_views(source, InputSpec((view,)), 0, batch.epoch, batch.ids)["image"]
            assert (black == (reference == 0).all(2)).float().mean() > 0.999 and (views - reference).abs().mean() < 0.02
            squares.setdefault(kind, []).append(black)
    corners = torch.stack(squares["cpu"]).flatten(0, 2).flatten(1).float().argmax(1)
    assert len(corners.unique()) > 0.9 * min(len(corners), 29**2) * 0.9  # of 64 draws out of 841 places
    for kind in ("memory", "dali"):
        assert all(torch.equal(a, b) for a, b in zip(squares["cpu"], squares[kind]))


def test_operation_depends_on_seed_epoch_id_and_view_alone(page):
    """However far the run is resumed, and in whatever company a sample is drawn; a chance of 0.5 meets half of them."""
    source, view = open_source("photos"), cut(chance=0.5)
    whole = batches(source, view, "cpu", 9)
    for start in (4, 8):
        (resumed,) = batches(source, view, "cpu", 1, start)
        assert torch.equal(resumed.views["image"], whole[start].views["image"])
    by_id = {}
    for batch in whole:
        for place, sample in enumerate(batch.ids.tolist()):
            by_id[batch.epoch, sample] = batch.views["image"][:, place]
    assert len(by_id) == 72
    again = reference_views(source, InputSpec((view,)), 0, 2, torch.tensor([5]))["image"][:, 0]
    assert ((again == 0).all(1) == (by_id[2, 5] == 0).all(1)).float().mean() > 0.999
    met = torch.stack([(views == 0).all(1).sum((1, 2)) >= 144 for views in by_id.values()])
    assert 0.35 < met.float().mean() < 0.65  # of 144, standard deviation 0.042
    assert (met[:, 0] != met[:, 1]).any()  # the two views are drawn apart
    black = torch.stack([(views == 0).all(1).any(2) for views in by_id.values()])  # (samples, views, rows)
    assert black.float().argmax(2)[met].max() > 20  # places lie anywhere up to 28, whatever the chance drew
    assert not torch.equal(by_id[0, 5], by_id[1, 5])


def test_operation_that_gives_something_else_is_an_error(page):
    (page.folder / "my_wrong.py").write_text(
        "def floats(pixels, uniform):\n    return pixels / 255\ndef plain(pixels):\n    return pixels\n"
    )
    view = replace(CUT, operations=(Operation("my_wrong.floats"),))
    with pytest.raises(UserError, match=r"my_wrong.floats must give uint8 \(16, 40, 40, 3\), it gave torch.float32"):
        batches(open_source("photos"), view, "cpu", 1)
    for name, options, words in (
        ("my_wrong.plain", {}, r"name: my_wrong.plain\(pixels, uniform\): too many"),
        ("my_views.cutout", {"sid": 3}, "options: my_views.cutout takes no 'sid'; did you mean 'side'?"),
        ("my_views.cutout", {}, "missing a required .*'side'"),
        ("cutout", {}, "no dotted name of yours such as my_module.cutout"),
    ):
        with pytest.raises(ValueError, match=words.replace("?", r"\?")):
            Operation(name, options=options)


def test_mask(page):
    spec = mine("my_masks.Stripes")(grid=(8, 8), ratio=0.75)
    ids = torch.arange(500)
    mask = draw_mask(spec, 3, 1, ids)
    rows = mask.hidden.view(500, 8, 8)
    assert (rows.all(2) == rows.any(2)).all() and (mask.hidden.sum(1) == 48).all()
    shares = rows[:, :, 0].float().mean(0)
    assert ((shares - 0.75).abs() < 5 * (0.75 * 0.25 / 500) ** 0.5).all()
    some = torch.tensor([77, 3])
    assert torch.equal(draw_mask(spec, 3, 1, some).hidden, mask.hidden[some])
    assert not torch.equal(draw_mask(spec, 3, 2, ids).hidden, mask.hidden)
    order = mask.hidden.long().argsort(dim=1, stable=True)
    assert torch.equal(mask.keep, order[:, :16]) and torch.equal(mask.restore, order.argsort(1))


def test_backbone(page):
    module = load_encoder("runs/plain").module
    assert type(module) is mine("my_nets.Plain") and module.features == 64
    weights = load_file("runs/plain/encoder.safetensors")
    assert torch.equal(module.state_dict()["body.0.0.weight"], weights["body.0.0.weight"])
    for given, words in (
        ("{name: my_nets.Plain, options: {widht: 8}}", "takes no 'widht'; did you mean 'width'?"),
        ("{name: my_nets.Plane}", "'my_nets' has no backbone 'Plane'; did you mean 'Plain'?"),
        ("{name: resnet19}", "needs one of resnet18"),
    ):
        with pytest.raises(UserError, match=f"^command line: algorithm.backbone.*{words}".replace("?", r"\?")):
            load_recipe("simclr_resnet18", [f"algorithm.backbone={given}"])


def test_algorithm(page):
    config = load_recipe(
        "simclr_resnet18", ["algorithm.name=my_methods.AlignUniform", "algorithm.weight=0.5"]
    ).algorithm
    torch.manual_seed(0)
    algorithm = mine("my_methods.AlignUniform")(config.smoke())
    images = torch.randn(2, 6, 3, 32, 32)
    batch = Batch({"image": images}, torch.arange(6), None, None, 0, 0)
    loss = algorithm(batch, Progress(0, 1, 1)).loss.item()
    z = algorithm.head(algorithm.encoder(images.flatten(0, 1))).detach().double().numpy()
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    a, b = z[:6], z[6:]
    spread = np.mean([np.log(np.mean([np.exp(-2 * ((x - y) ** 2).sum()) for y in a])) for x in a])
    assert loss == pytest.approx(((a - b) ** 2).sum(1).mean() + 0.5 * spread, rel=1e-4)


def test_optimizer(page):
    """One step by hand; a step that is not finite leaves weights and momentum as they were."""
    settings = load_recipe("mae_vit-tiny", [LION, "optim.weight_decay=0.1"]).optim
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model, settings)
    assert type(optimizer) is mine("my_optim.Lion")
    start, gradients = model.weight.detach().double().numpy(), [torch.randn(2, 3) for _ in range(2)]
    w, m = start.copy(), np.zeros((2, 3))
    for gradient in gradients:
        model.weight.grad = gradient.clone()
        optimizer.step()
        g = gradient.double().numpy()
        w = w * (1 - 3e-5 * 0.1) - 3e-5 * np.sign(0.95 * m + 0.05 * g)
        m = 0.98 * m + 0.02 * g
    assert np.allclose(model.weight.detach().numpy(), w, atol=1e-7) and not np.allclose(start, w, atol=1e-6)


def test_a_step_that_is_not_finite_is_left_out_by_any_optimizer(page):
    recipe = load_recipe("mae_vit-tiny", [LION])
    algorithm = mine("headrace.models.algorithms.mae.MAE")(recipe.algorithm.smoke())
    optimizer = build_optimizer(algorithm, recipe.optim)
    stepper = Stepper(algorithm, algorithm, optimizer, Schedules(recipe.optim, 8, 10, 10))
    mask = draw_mask(algorithm.config.mask, 0, 0, torch.arange(4))
    images = torch.randn(1, 4, 3, 32, 32)

    def step(images):
        before = [p.clone() for p in algorithm.parameters()]
        batch = Batch({"image": images}, torch.arange(4), None, mask, 5, 0)
        skipped = stepper(batch, Progress(5, 10, 10)).metrics["skipped"].item()
        return skipped, any(not torch.equal(a, b) for a, b in zip(before, algorithm.parameters()))

    assert step(images * torch.inf) == (1, False)
    assert step(images) == (0, True)


def test_schedule(page):
    settings = load_recipe("mae_vit-tiny", ["optim.schedule=my_schedules.restarts", "optim.warmup=4 steps"]).optim
    rates = Schedules(settings, settings.lr_batch, 100, 10).lrs / settings.lr
    progress = (np.arange(4, 100) - 4) / 96
    assert np.allclose(rates[:4], [0.25, 0.5, 0.75, 1.0])
    assert np.allclose(rates[4:], np.cos(np.pi / 2 * (progress * 3 - np.floor(progress * 3))) ** 2)


def test_schedule_that_is_none(page):
    (page.folder / "my_rates.py").write_text("one = lambda progress: 1.0\nnegative = lambda progress: progress - 1\n")
    for name, words in (
        ("cosin", "needs one of cosine, .* or a dotted name, got 'cosin'; did you mean cosine?"),
        ("my_rates.one", "must give a finite factor of at least 0"),
        ("my_rates.negative", "must give a finite factor of at least 0"),
        ("my_schedules.np", "has no function"),
    ):
        with pytest.raises(UserError, match=f"command line: optim.schedule: .*{words}".replace("?", r"\?")):
            load_recipe("mae_vit-tiny", [f"optim.schedule={name}"])


def test_optimizer_that_is_none(page):
    for given, words in (
        ("{name: torch.optim.Adamm}", "optim.name: 'torch.optim' has no optimizer 'Adamm'; did you mean"),
        ("{name: my_views.cutout}", "has no optimizer 'cutout'"),
        ("{name: my_optim.Lion, options: {lr: 1}}", "options: lr belong into the section itself"),
        ("{name: adamv}", "needs one of adamw, sgd"),
    ):
        with pytest.raises(UserError, match=words):
            load_recipe("mae_vit-tiny", [f"optim={given}"])


def test_evaluation(page):
    printed = next(said.output for said in page.said if "my_evaluation" in said.line)
    encoder, source = load_encoder("runs/own"), open_source("photos")
    made = reference_views(source, InputSpec((encoder.view,)), 0, 0, torch.arange(24))[encoder.view.name][0]
    x = encoder.module(made).numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.array([source.label(i) for i in range(24)])
    means = np.stack([x[labels == c].mean(0) for c in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    share = ((x @ means.T).argmax(1) == labels).mean()
    assert abs(float(re.search(r"nearest mean: ([\d.]+)%", printed)[1]) / 100 - share) <= 1 / 24 + 1e-3


def test_everything_of_ones_own_resumes_exactly(page):
    """Twelve steps in one go, and six that go on to twelve by the same command: the same bits."""
    given = ["algorithm.name=my_masks.StripedMAE", LION, "optim.schedule=my_schedules.restarts"]
    given += ["algorithm.view.operations=[{name: my_views.cutout, chance: 0.7, options: {side: 9}}]"]
    given += ["data.train=my_sources.Zip:photos.zip", "train.save_every=6"]

    def pretrain(out, *more):
        return run(["headrace", "pretrain", "mae_vit-tiny", "--smoke", *given, f"train.out={out}", *more])

    assert pretrain("whole", "train.max_steps=12") == 0
    (page.folder / "parts").mkdir()
    shutil.copy("whole/step-00000006.pt", "parts")
    assert pretrain("parts", "train.max_steps=12") == 0
    whole, parts = (load_file(f"{out}/encoder.safetensors") for out in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    rows = [json.loads(line) for line in (page.folder / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] > 6


def test_kernel(page):
    a, b = (torch.randn(12, 7, dtype=torch.float64) for _ in range(2))
    matrix = (a.T @ b / 12).numpy()
    eye = np.eye(7)
    expected = ((matrix - 1) ** 2 * eye).sum() + 0.3 * (matrix**2 * (1 - eye)).sum()
    assert mine("my_kernels.cross_correlation")(a, b, weight=0.3).item() == pytest.approx(expected, rel=1e-5)
