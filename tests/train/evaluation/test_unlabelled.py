"""Images without a label neither teach nor count: figures are those of the set without them, and how many is said."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from headrace.errors import UserError
from headrace.models.algorithm import Progress
from headrace.models.algorithms.classifier import Classifier
from headrace.models.algorithms.multihead import MultiHead
from headrace.models.backbones import ResNet, ViT
from headrace.pipelines.spec import Batch, ViewSpec
from headrace.pipelines.views.mixing import Mixing, MixParams, mix
from headrace.train import pretrain
from headrace.train.evaluation import embed_store, finetune, knn, linear
from headrace.train.evaluation.embed import Features
from headrace.train.evaluation.knn import knn_table
from headrace.train.evaluation.linear_sweep import sweep_heads

VIT = ViT.Config(patch_size=8, width=24, depth=1, heads=2)


def rows(n, seed, classes=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = 2 * torch.eye(classes, 8)
    return Features(centres[labels] + torch.randn(n, 8, generator=generator), labels, [])


def with_some_unlabelled(features, seed):
    """The same rows, and among them others, far away, without a label."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.ones(len(features.labels) + 30, dtype=torch.bool)
    known[torch.randperm(len(known), generator=generator)[:30]] = False
    vectors, labels = 5 + torch.randn(len(known), 8, generator=generator), torch.full((len(known),), -1)
    vectors[known], labels[known] = features.vectors, features.labels
    return Features(vectors, labels, [])


def test_features_without_a_label_count_nowhere():
    bank, queries = rows(90, 0), rows(60, 1)
    more = with_some_unlabelled(bank, 2), with_some_unlabelled(queries, 3)
    assert [len(f.labels) for f in more] == [120, 90] and all((f.labels < 0).sum() == 30 for f in more)
    options = {"ks": [1, 10], "temperatures": [0.07]}
    assert knn_table(*more, **options) == knn_table(bank, queries, **options)
    options = {"rates": [0.1], "decays": [0.0], "epochs": 5, "batch_size": 16}
    assert sweep_heads(*more, 3, **options) == sweep_heads(bank, queries, 3, **options)
    none = Features(bank.vectors, torch.full((90,), -1), [])
    for call in (lambda: knn_table(none, queries, ks=[1], temperatures=[1.0]), lambda: sweep_heads(bank, none, 3)):
        with pytest.raises(UserError, match="not one of 90 images has a label"):
            call()


def batch(labels, seed=0):
    images = torch.randn(1, len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Batch({"image": images}, torch.arange(len(labels)), torch.tensor(labels), None, 0, 0)


def algorithms():
    torch.manual_seed(0)
    plain = Mixing(0.0, 0.0, 0.1)
    yield Classifier(Classifier.Config(view=ViewSpec(size=32), backbone=VIT, classes=3, mixing=plain, head_std=0.2))
    # in evaluation mode: statistics over a batch are of all its images
    yield MultiHead(MultiHead.Config(view=ViewSpec(size=32), backbone=ResNet.Config("resnet18", width=8), classes=3))


@pytest.mark.parametrize("which", [0, 1])
def test_a_batch_teaches_what_its_labelled_part_does(which):
    algorithm = list(algorithms())[which].eval()
    whole = batch([2, -1, 0, -1, 1, 1])
    part = [0, 2, 4, 5]
    known = Batch({"image": whole.views["image"][:, part]}, whole.ids[part], whole.labels[part], None, 0, 0)
    found = []
    for given in (whole, known):
        algorithm.zero_grad()
        output = algorithm(given, Progress(0, 10, 5))
        output.loss.backward()
        output.metrics = {key: value.item() for key, value in output.metrics.items()}
        found.append((output, [p.grad.clone() for p in algorithm.parameters() if p.grad is not None]))
    (one, slopes), (two, others) = found
    assert one.loss.item() == pytest.approx(two.loss.item(), rel=1e-6)
    assert one.metrics == pytest.approx(two.metrics)
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(slopes, others, strict=True))
    algorithm.zero_grad()
    output = algorithm(batch([-1] * 4), Progress(0, 10, 5))
    output.loss.backward()
    assert output.loss.item() == 0 and all(value == 0 for value in output.metrics.values())
    assert all(not p.grad.any() for p in algorithm.parameters() if p.grad is not None)


@pytest.mark.parametrize("box", [None, (1, 2, 3, 4)])
def test_what_has_no_label_is_mixed_with_nothing(box):
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([1, -1, 0, 2])
    params = MixParams(torch.tensor([1, 2, 3, 0]), 0.7, box)  # only the third has a partner with a label
    got, soft = mix(images, labels, 3, Mixing(smoothing=0.0), params)
    for row in (0, 1, 3):
        alone = row != 3
        expected = images[row] if alone else None
        assert expected is None or torch.equal(got[row], expected)
    for row, partner in ((2, 3), (3, 0)):
        wanted = 0.7 * images[row] + 0.3 * images[partner]
        if box is not None:
            wanted = images[row].clone()
            wanted[:, 2:6, 1:4] = images[partner][:, 2:6, 1:4]
        assert (got[row] - wanted).abs().max() < 1e-6
    assert soft[2].tolist() == pytest.approx([0.7, 0, 0.3]) and soft[3].tolist() == pytest.approx([0, 0.3, 0.7])
    assert soft[0].tolist() == [0, 1, 0]


def test_mixing_reaches_the_loss_written_out():
    """Of the rows that have a label: cross entropy with the labels of both, weighted by their shares."""
    torch.manual_seed(0)
    mixing = Mixing(mixup=0.8, cutmix=0.0, smoothing=0.0)
    algorithm = Classifier(Classifier.Config(view=ViewSpec(size=32), backbone=VIT, classes=3, mixing=mixing)).eval()
    seen, given = [], batch([2, -1, 0, -1, 1, 1])
    algorithm.backbone.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    torch.manual_seed(3)
    loss = algorithm(given, Progress(0, 10, 5)).loss.item()
    images, known = given.views["image"][0], given.labels >= 0
    flat = images.flatten(1).T.double()
    shares = torch.linalg.lstsq(flat, seen[0].flatten(1).T.double()).solution.T  # which image is how much in each
    assert shares[known][:, ~known].abs().max() < 1e-6 and (shares[known] - torch.eye(6)[known]).abs().max() > 0.05
    soft = (shares[:, known] @ F.one_hot(given.labels[known], 3).double()).float()[known]
    assert loss == pytest.approx(F.cross_entropy(algorithm.scorer(seen[0][known]), soft).item(), rel=1e-4)


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """Images of two colours, some of others without a label: lists with all of them, and lists without those."""
    root = tmp_path_factory.mktemp("lists")
    for split, count in (("train", 24), ("val", 12)):
        lines = []
        for index in range(count):
            label = (0, 1, -1)[index % 3]
            colour = [(200, 20 * index % 60, 0), (0, 20 * index % 60, 200), (20 * index % 60, 160, 40)][index % 3]
            rng = np.random.default_rng(count + index)
            pixels = rng.integers(0, 256, (5, 5, 3)).repeat(8, 0).repeat(8, 1) * 0.9 + 0.1 * np.array(colour)
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"{split}-{index:02d}.png")
            lines.append(f"{split}-{index:02d}.png {label}\n")
        (root / f"{split}.txt").write_text("".join(lines))
        (root / f"{split}-known.txt").write_text("".join(line for line in lines if not line.endswith("-1\n")))
    arguments = ["mae_vit-tiny", "--smoke", f"data.train=list:{root}/train.txt", f"train.out={root}/run"]
    assert pretrain.main([*arguments, "data.threads=1", "train.max_steps=2"]) == 0
    return root


def figures():
    return [json.loads(line)["figures"] for line in Path("evaluation.jsonl").read_text().splitlines()]


def both(lists, command, capsys):
    """Figures of a command on the lists with and without unlabelled images, and what it said of the former."""
    said = []
    for name, out in (("", "one"), ("-known", "two")):
        assert command(f"list:{lists}/train{name}.txt", f"list:{lists}/val{name}.txt", out) == 0
        said.append(capsys.readouterr().out)
    assert "left out: 8 of 24 images of" in said[0] and "left out: 4 of 12 images of" in said[0]
    assert "have no label" not in said[1]
    return figures()


def test_commands(lists, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run, common = f"{lists}/run", ["--threads", "1", "--device", "cpu"]
    sets = lambda train, val: [run, "--train", train, "--val", val, *common]
    with_, without = both(lists, lambda train, val, _: knn.main([*sets(train, val), "--k", "1", "5"]), capsys)
    assert with_ == without
    row = json.loads((tmp_path / "evaluation.jsonl").read_text().splitlines()[0])
    assert row["data"]["unlabelled"] == [8, 4] and (row["data"]["neighbours"], row["data"]["queries"]) == (16, 8)
    (tmp_path / "evaluation.jsonl").unlink()
    fast = ["--epochs", "3", "--head-batch", "8"]
    with_, without = both(lists, lambda train, val, _: linear.main([*sets(train, val), *fast]), capsys)
    assert with_ == without and len(with_["heads"]) == 50
    assert embed_store.main([run, f"list:{lists}/train.txt", "--threads", "1"]) == 0
    assert "8 of them are of images without a label" in capsys.readouterr().out


def test_runs(lists, tmp_path, monkeypatch, capsys):
    """Both kinds of run that learn from labels end with the very same classifier as without those images."""
    monkeypatch.chdir(tmp_path)
    published = ["--protocol", "mae", "--epochs", "2", "--head-batch", "8", "--threads", "1", "--device", "cpu"]

    def probe(train, val, out):
        return linear.main([f"{lists}/run", "--train", train, "--val", val, *published, "--out", f"linear-{out}"])

    with_, without = both(lists, probe, capsys)
    assert with_ == without
    (tmp_path / "evaluation.jsonl").unlink()
    tiny = ["algorithm.view.size=32", "algorithm.backbone={patch_size: 8, width: 24, depth: 1, heads: 2}"]
    tiny += ["train.device=cpu", "train.batch_size=8", "data.threads=1", "train.epochs=2", "train.precision=fp32"]
    tiny += ["algorithm.mixing={mixup: 0.8, cutmix: 1.0, smoothing: 0.1}"]

    def tune(train, val, out):
        sets = [f"data.train={train}", f"data.val={val}", f"train.out=tune-{out}"]
        return finetune.main(["finetune/vit-tiny_cifar10", "scratch", *tiny, *sets])

    with_, without = both(lists, tune, capsys)
    assert with_ == without
    digests = [json.loads(line)["encoder"]["digest"] for line in Path("evaluation.jsonl").read_text().splitlines()]
    assert digests[0] == digests[1]


def test_scores_on_the_way(lists, tmp_path, monkeypatch, capsys):
    """The bank of `train.knn_every` holds labelled images alone: equal to the command on the encoder at the end."""
    monkeypatch.chdir(tmp_path)
    arguments = ["mae_vit-tiny", f"data.train=list:{lists}/train.txt", f"data.val=list:{lists}/val.txt"]
    arguments += ["algorithm.view.size=32", "algorithm.backbone={patch_size: 8, width: 24, depth: 1, heads: 2}"]
    arguments += ["algorithm.decoder={width: 16, depth: 1, heads: 2}", "train.device=cpu", "train.out=run"]
    arguments += ["train.batch_size=8", "train.max_steps=3", "train.knn_every=1", "data.threads=1"]
    assert pretrain.main(arguments) == 0
    assert "train.knn_every: left out: 8 of 24 images" in capsys.readouterr().out
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    sets = ["--train", f"list:{lists}/train-known.txt", "--val", f"list:{lists}/val-known.txt"]
    assert knn.main(["run", *sets, "--k", "20", "--threads", "1", "--device", "cpu"]) == 0
    assert [row["metrics"]["knn"] for row in log if "knn" in row["metrics"]] == [pytest.approx(figures()[0][0]["top1"])]
