"""k-NN against scikit-learn, features against a plain forward, and the command on a trained encoder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from headrace.errors import UserError
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import InputSpec, ViewSpec
from headrace.pipelines.views.reference import reference_views
from headrace.train.evaluation import knn
from headrace.train.evaluation.embed import Features, embed, evaluation_view
from headrace.train.evaluation.knn import knn_accuracy, nearest, vote


def features(n, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, 16, generator=torch.Generator().manual_seed(99))
    return Features(centres[labels] + 2.5 * torch.randn(n, 16, generator=generator), labels, [])


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (7, 0.5), (1000, 0.1)])
def test_accuracy_is_scikit_learns(k, temperature):
    bank, queries = features(300, 5, 0), features(200, 5, 1)
    unit = lambda f: (f.vectors / f.vectors.norm(dim=1, keepdim=True)).double().numpy()
    # for unit vectors the cosine is 1 - distance² / 2
    weights = lambda distance: np.exp((1 - distance**2 / 2) / temperature)
    classifier = KNeighborsClassifier(min(k, 300), weights=weights, algorithm="brute").fit(unit(bank), bank.labels)
    expected = (classifier.predict(unit(queries)) == queries.labels.numpy()).mean()
    assert 0.25 < expected < 0.99
    assert knn_accuracy(bank, queries, k=k, temperature=temperature) == pytest.approx(expected)


def test_the_search_is_exact_however_little_memory_it_has():
    """Blocks of 20 rows of the bank and chunks of a few queries against all distances at once, in double precision."""
    bank, queries = features(310, 5, 0).vectors, features(37, 5, 1).vectors
    unit = lambda x: x.double() / x.double().norm(dim=1, keepdim=True)
    similarity, rows = nearest(bank, queries, 20, memory=4 * 4 * 16 * 20 / 2**30)
    expected = (unit(queries) @ unit(bank).T).sort(dim=1, descending=True)
    assert torch.equal(rows, expected.indices[:, :20])
    assert (similarity - expected.values[:, :20]).abs().max() < 1e-6


def test_votes_written_out():
    similarity, labels = torch.tensor([[0.9, 0.8, 0.79]]), torch.tensor([[2, 0, 0]])
    got = vote(similarity, labels, 4, temperature=0.1)[0] * np.exp(0.9 / 0.1)
    assert got.tolist() == pytest.approx([np.exp(8.0) + np.exp(7.9), 0, np.exp(9.0), 0], rel=1e-5)
    assert vote(similarity, labels, 4, temperature=1e-3).argmax() == 2  # exp(900) would be no number


class Mean(nn.Module):
    def forward(self, images):
        return images.mean((-2, -1))


def test_features_are_those_of_the_source_in_order(photo_folder):
    source = open_source(photo_folder)
    view = evaluation_view(ViewSpec(size=32, interpolation="bicubic", jitter=0.5, flip=0.5))
    got = embed(Mean(), source, view, batch_size=10)
    oracle = reference_views(source, InputSpec((view,)), 0, 0, torch.arange(len(source)))["evaluation"][0].mean(
        (-2, -1)
    )
    assert (got.vectors - oracle).abs().max() < 0.02
    assert got.labels.tolist() == [source.label(i) for i in range(len(source))] and got.left_out == []


def test_undecodable_images_are_left_out_and_named(photo_folder, tmp_path):
    for index, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[:7]):
        (tmp_path / f"{index}.jpg").write_bytes(path.read_bytes()[: 200 if index == 3 else None])
    view = evaluation_view(ViewSpec(size=32))
    whole = embed(Mean(), open_source(tmp_path), view, batch_size=4)
    (tmp_path / "3.jpg").unlink()
    without = embed(Mean(), open_source(tmp_path), view, batch_size=4)
    assert torch.equal(whole.vectors, without.vectors) and len(whole.vectors) == 6
    assert len(whole.left_out) == 1 and whole.left_out[0].startswith("3.jpg")


@pytest.fixture(scope="module")
def stripes(red_and_blue, tmp_path_factory):
    """Two classes that any encoder tells apart: red and blue images."""
    root = tmp_path_factory.mktemp("stripes")
    red_and_blue(root / "train", 12)
    red_and_blue(root / "val", 6)
    return root


def test_command(stripes, tmp_path, capsys, monkeypatch):
    from headrace.train import pretrain

    overrides = [
        "algorithm.view.size=32",
        "algorithm.backbone.patch_size=8",
        "algorithm.backbone.width=24",
        "algorithm.backbone.depth=1",
        "algorithm.backbone.heads=2",
        "algorithm.decoder.width=16",
        "algorithm.decoder.depth=1",
        "algorithm.decoder.heads=2",
    ]
    pretrain.main(
        [
            "mae_vit-tiny",
            *overrides,
            f"data.train={stripes}/train",
            f"train.out={tmp_path}",
            "train.batch_size=4",
            "train.max_steps=2",
            "train.device=cpu",
        ]
    )
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    arguments = [str(tmp_path), "--train", f"{stripes}/train", "--val", f"{stripes}/val", "--k", "3", "1"]
    assert knn.main(arguments) == 0
    assert capsys.readouterr().out.startswith("k-NN, 12 neighbours, 6 queries")
    row = json.loads((tmp_path / "evaluation.jsonl").read_text())
    assert row["figures"] == [{"k": k, "temperature": 0.07, "top1": 1.0, "top5": 1.0} for k in (1, 3)]
    assert (row["protocol"], row["data"]["neighbours"], row["data"]["queries"]) == ("knn", 12, 6)
    with pytest.raises(UserError, match="--val: .* has no labels"):
        knn.main([*arguments[:3], "--val", f"{stripes}/val/red"])
    (stripes / "other" / "green").mkdir(parents=True, exist_ok=True)
    (stripes / "other" / "blue").mkdir(parents=True, exist_ok=True)
    for name in ("green", "blue"):
        Image.new("RGB", (40, 40), name).save(stripes / "other" / name / "x.png")
    with pytest.raises(UserError, match="has other classes than --train: 'green'"):
        knn.main([*arguments[:3], "--val", f"{stripes}/other"])
