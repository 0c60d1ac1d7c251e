"""Linear heads against scikit-learn's optimum and against training one by one; published protocols; the command."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from headrace.errors import UserError
from headrace.models.algorithms import find_algorithm
from headrace.train import pretrain
from headrace.train.engine.optim import peak_lr
from headrace.train.evaluation import linear
from headrace.train.evaluation.embed import Features
from headrace.train.evaluation.linear_protocols import PROTOCOLS, linear_recipe, protocol_of
from headrace.train.evaluation.linear_sweep import Scale, cross_entropy, fit_heads, sweep_heads
from headrace.train.recipe.recipe import load_recipe
from headrace.train.recipe.schedules import learning_rates


def rows(n, seed, classes=4, width=12, noise=2.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(7))
    return centres[labels] + noise * torch.randn(n, width, generator=generator), labels


@pytest.mark.parametrize("decay", [1e-1, 1e-2])
def test_heads_reach_the_optimum_of_logistic_regression(decay):
    """scikit-learn minimises C sum(CE) + |W|²/2, which is ours with C = 1 / (N decay)."""
    x, y = rows(200, 0)
    weights, biases = fit_heads(x, y, 4, [(0.3, decay), (0.1, decay)], epochs=400, batch_size=200)
    model = LogisticRegression(C=1 / (len(x) * decay), tol=1e-8, max_iter=1000).fit(x.numpy(), y.numpy())
    best = torch.from_numpy(model.coef_.T).float(), torch.from_numpy(model.intercept_).float()
    optimum = cross_entropy(*best, x, y, decay)
    for weight, bias in zip(weights, biases):
        assert cross_entropy(weight, bias, x, y, decay) == pytest.approx(optimum, rel=1e-5)
        assert (weight - best[0]).abs().max() < 5e-3
    assert cross_entropy(torch.zeros(12, 4), torch.zeros(4), x, y, decay) > 1.2 * optimum


def test_a_head_among_others_is_the_head_alone_and_what_autograd_and_sgd_make():
    x, y = rows(64, 1)
    settings = [(0.05, 0.0), (0.5, 1e-3), (0.01, 0.1)]
    weights, biases = fit_heads(x, y, 4, settings, epochs=3, batch_size=64, seed=3)
    factors = learning_rates(1.0, 3, 1)
    for (lr, decay), weight, bias in zip(settings, weights, biases):
        layer = torch.nn.Linear(12, 4)
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
        groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias]}]
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
        for factor in factors:  # one batch an epoch: the order does not matter
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.zero_grad()
            F.cross_entropy(layer(x), y).backward()
            optimizer.step()
        assert (layer.weight.T - weight).abs().max() < 1e-5 and (layer.bias - bias).abs().max() < 1e-5


def test_the_test_set_chooses_nothing():
    """Other test labels change the accuracy on them, and neither the rate nor the decay."""
    x, y = rows(300, 2)
    options = {"rates": [1e-4, 0.1], "decays": [0.0, 1.0], "epochs": 10, "batch_size": 32}
    test, labels = rows(200, 3)
    best, heads = sweep_heads(Features(x, y, []), Features(test, labels, []), 4, **options)
    other, again = sweep_heads(Features(x, y, []), Features(test, (labels + 1) % 4, []), 4, **options)
    assert heads == again and len(heads) == 4
    assert (best["lr"], best["weight_decay"]) == (other["lr"], other["weight_decay"])
    assert best["held-out"] == max(head["held-out"] for head in heads)
    assert best["top1"] > 0.6 > 0.3 > other["top1"]


def test_scale():
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    scale = Scale.of(x)
    assert scale(x).tolist() == [[-1.0, 0.0], [1.0, 0.0]] and scale(x + 2).tolist() == [[1.0, 0.0], [3.0, 0.0]]


PUBLISHED = {  # protocol of a recipe's method: batch, epochs, rate, decay
    "mocov2_resnet50_8xb32-coslr-200e_in1k": ("moco", 256, 100, 30.0, 0.0),
    "barlowtwins_resnet50_8xb256-coslr-300e_in1k": ("swav", 256, 100, 0.3, 1e-6),
    "byol_resnet50_16xb256-coslr-200e_in1k": ("simclr", 4096, 90, 1.6, 0.0),
    "mocov3_resnet50_8xb512-amp-coslr-100e_in1k": ("mocov3_resnet", 1024, 90, 0.4, 0.0),
    "mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k": ("mocov3_vit", 1024, 90, 12.0, 0.0),
    "mae_vit-base-p16_8xb512-amp-coslr-300e_in1k": ("mae", 16384, 90, 6.4, 0.0),
    "eva-mae-style_vit-base-p16_16xb256-amp-coslr-400e_in1k": ("milan", 16384, 100, 3.2, 0.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_protocols(name, tmp_path):
    target = ["algorithm.weights.path=random"] if name.startswith("eva") else []
    section = load_recipe(name, target).algorithm
    with torch.device("meta"):
        algorithm = find_algorithm(section.name)(section)
    protocol = protocol_of(algorithm)
    places = {"train": "a", "val": "b", "out": tmp_path, "classes": 10}
    recipe = linear_recipe(algorithm, protocol, tmp_path / "x.safetensors", **places)
    optim, train = recipe.optim, recipe.train
    assert (protocol, train.batch_size, train.epochs, optim.lr, optim.weight_decay) == PUBLISHED[name]
    assert peak_lr(optim, train.batch_size) == optim.lr
    assert peak_lr(optim, train.batch_size // 4) == optim.lr / 4
    config = recipe.algorithm
    assert config.frozen and config.classes == 10 and config.mixing.smoothing == 0
    assert (config.view.crop, config.view.scale, config.view.jitter) == ("random", (0.08, 1.0), 0.0)
    if protocol in ("mae", "milan"):
        assert config.head_norm and config.backbone.pool == "cls" and optim.form == "update"
    assert {row[0] for row in PUBLISHED.values()} == {name for name in PROTOCOLS if not name.startswith("stages")}


@pytest.mark.parametrize(
    "protocol, epochs, milestones",
    [("stages", 90, (60, 80)), ("stages_places205", 28, (7, 14, 21)), ("stages_inaturalist", 84, (24, 48, 72))],
)
def test_published_probes_of_all_stages(protocol, epochs, milestones, tmp_path):
    section = load_recipe("byol_resnet50_16xb256-coslr-200e_in1k", []).algorithm
    with torch.device("meta"):
        algorithm = find_algorithm(section.name)(section)
    places = {"train": "a", "val": "b", "out": tmp_path, "classes": 10}
    recipe = linear_recipe(algorithm, protocol, tmp_path / "x.safetensors", **places)
    assert (recipe.train.batch_size, recipe.train.epochs, recipe.optim.milestones) == (256, epochs, milestones)
    assert (recipe.optim.lr, recipe.optim.weight_decay, recipe.optim.nesterov) == (0.01, 1e-4, True)
    view = recipe.algorithm.view
    assert (view.interpolation, view.jitter, view.brightness, view.hue) == ("bicubic", 1.0, 0.4, 0.0)


@pytest.fixture(scope="module")
def colours(red_and_blue, tmp_path_factory):
    """Two classes that features of any encoder tell apart, and an encoder after two steps."""
    root = tmp_path_factory.mktemp("colours")
    red_and_blue(root / "train", 16)
    red_and_blue(root / "val", 6)
    arguments = ["mae_vit-tiny", "--smoke", f"data.train={root}/train", "data.threads=1", f"train.out={root}/run"]
    assert pretrain.main([*arguments, "train.max_steps=2"]) == 0
    return root


def test_commands(colours, tmp_path, monkeypatch, capsys):
    """Both ways on the same encoder: figures, and that the published way leaves the encoder as it was."""
    monkeypatch.chdir(tmp_path)
    sets = [f"{colours}/run", "--train", f"{colours}/train", "--val", f"{colours}/val", "--threads", "1"]
    assert linear.main([*sets, "--epochs", "20", "--head-batch", "8"]) == 0
    published = ["--protocol", "auto", "--epochs", "30", "--head-batch", "8", "--device", "cpu"]
    assert linear.main([*sets, *published, "--seed", "1"]) == 0
    fast, slow = map(json.loads, (tmp_path / "evaluation.jsonl").read_text().splitlines())
    assert fast["protocol"] == "linear sweep" and slow["protocol"] == "linear mae"
    assert fast["figures"]["top1"] == 1.0 and slow["figures"]["top1"] == 1.0
    assert len(fast["figures"]["heads"]) == len(fast["settings"]["rates"]) * len(fast["settings"]["decays"])
    (start,) = (tmp_path / "runs/linear").glob("start-*.safetensors")
    before, after = load_file(start), load_file(tmp_path / "runs/linear/encoder.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(UserError, match="--layer: .* is no ResNet"):
        linear.main([*sets, "--layer", "feat4"])
    with pytest.raises(UserError, match="rates are positive"):
        linear.main([*sets, "--lr", "0"])
