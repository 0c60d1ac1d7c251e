"""Probes of all stages against the formula written out; that the encoder stays; the published settings; the command."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from headrace.errors import UserError
from headrace.models.algorithm import Progress
from headrace.models.algorithms.multihead import MultiHead
from headrace.models.backbones import ResNet
from headrace.pipelines.spec import Batch, ViewSpec
from headrace.train import pretrain
from headrace.train.evaluation import linear

TINY = ResNet.Config("resnet18", width=8)


def multihead(size, classes=4):
    torch.manual_seed(0)
    return MultiHead(MultiHead.Config(view=ViewSpec(size=size), backbone=TINY, classes=classes))


def test_loss_is_the_formula_and_the_encoder_stays():
    """At 224 px: maps from the blocks themselves, pools and normalisation written out in double precision."""
    algorithm = multihead(224).double().train()
    images, labels = torch.randn(1, 3, 3, 224, 224, dtype=torch.float64), torch.tensor([0, 3, 1])
    body = algorithm.encoder.body
    before = {name: value.clone() for name, value in algorithm.encoder.state_dict().items()}
    with torch.no_grad():
        body.eval()
        maps = [F.relu(body.bn1(body.conv1(images[0])))]
        maps.append(body.layer1(F.max_pool2d(maps[0], 3, 2, 1)))
        for stage in (body.layer2, body.layer3, body.layer4):
            maps.append(stage(maps[-1]))
    pools = [(10, 10, 4), (16, 8, 0), (13, 5, 0), (8, 3, 0), (6, 1, 0)]
    expected = 0.0
    for own, (kernel, stride, padding), head in zip(maps, pools, algorithm.scorer.heads.values()):
        x = F.pad(own, (padding,) * 4).unfold(2, kernel, stride).unfold(3, kernel, stride).mean((-2, -1))
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        scores = ((x - mean) / (variance + 1e-5).sqrt()).flatten(1) @ head[2].weight.T + head[2].bias
        expected += (scores.logsumexp(1) - scores[torch.arange(3), labels]).mean()
    batch = Batch({"image": images}, ids=torch.arange(3), labels=labels, mask=None, step=0, epoch=0)
    # heads written in double precision meet losses that are made in single
    output = algorithm(batch, Progress(0, 1, 1))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(output.metrics) == {f"top1_feat{n}" for n in range(1, 6)}
    output.loss.backward()
    trained = {name for name, p in algorithm.named_parameters() if p.grad is not None}
    assert trained == {f"scorer.heads.feat{n}.2.{kind}" for n in range(1, 6) for kind in ("weight", "bias")}
    after = algorithm.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_widths_are_the_published_ones():
    with torch.device("meta"):
        heads = MultiHead(MultiHead.Config(backbone=ResNet.Config("resnet50"))).scorer.heads
    assert [head[2].in_features for head in heads.values()] == [9216, 9216, 8192, 9216, 8192]


@pytest.fixture(scope="module")
def colours(red_and_blue, tmp_path_factory):
    """Two classes that every stage tells apart, and a ResNet after two steps."""
    root = tmp_path_factory.mktemp("colours")
    red_and_blue(root / "images", 16)
    for recipe in ("simclr_resnet18", "mae_vit-tiny"):
        run = [recipe, "--smoke", f"data.train={root}/images", "data.threads=1", f"train.out={root}/{recipe}"]
        assert pretrain.main([*run, "train.max_steps=2"]) == 0
    return root


def test_command(colours, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sets = ["--train", f"{colours}/images", "--val", f"{colours}/images", "--threads", "1", "--device", "cpu"]
    command = [f"{colours}/simclr_resnet18", *sets, "--protocol", "stages", "--epochs", "12", "--head-batch", "8"]
    assert linear.main(command) == 0
    row = json.loads((tmp_path / "evaluation.jsonl").read_text())
    assert row["protocol"] == "linear stages"
    assert [figures["layer"] for figures in row["figures"]] == [f"feat{n}" for n in range(1, 6)]
    assert all(figures["top1"] == 1.0 for figures in row["figures"])
    optim = row["settings"]["optim"]
    assert (optim["lr"], optim["momentum"], optim["nesterov"], optim["weight_decay"]) == (0.01, 0.9, True, 1e-4)
    (start,) = (tmp_path / "runs/linear").glob("start-*.safetensors")
    before, after = load_file(start), load_file(tmp_path / "runs/linear/encoder.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(UserError, match="probes the stages of a ResNet"):
        linear.main([f"{colours}/mae_vit-tiny", *command[1:]])
