"""Runs whose views change their size: every method takes them, and a resumed run is an undisturbed one."""

from dataclasses import fields

import pytest
import torch

from headrace.models.algorithm import Progress
from headrace.models.algorithms import algorithm_names, find_algorithm, inputs_of
from headrace.pipelines.spec import Batch, ViewSpec
from headrace.pipelines.views.masks import draw_mask
from headrace.train import pretrain
from headrace.train.engine import checkpoint

SUPERVISED = ("classifier", "detector", "segmenter", "multihead")
METHODS = [n for n in algorithm_names() if n not in SUPERVISED and not find_algorithm(n).Config.fixed_size]
SIZES = "{0: 16, 50%: [24, 32]}"


@pytest.mark.parametrize("name", METHODS)
def test_a_size_of_its_own_gives_gradients_of_the_same_parameters(name):
    """Larger ones than the network was made for: the positions of patches, biases and masks follow."""
    kind = find_algorithm(name)
    config = kind.Config().smoke()
    torch.manual_seed(0)
    algorithm, progress = kind(config), Progress(0, 10, 10)
    algorithm.prepare(8)
    learned = []
    for factor in (1, 2):
        views = {each.name: getattr(config, each.name) for each in fields(config)}
        sides = {key: view.size * factor for key, view in views.items() if isinstance(view, ViewSpec)}
        inputs = inputs_of(config.resized(**sides))
        images = {view.name: torch.randn(view.copies, 8, 3, view.side, view.side) for view in inputs.views}
        mask = inputs.mask and draw_mask(inputs.mask, 0, 0, torch.arange(8))
        batch = Batch(views=images, ids=torch.arange(8), labels=None, mask=mask, step=0, epoch=0)
        algorithm.start_epoch(progress, lambda module, view: module(torch.randn(8, 3, 32, 32)).detach())
        algorithm.zero_grad()
        output = algorithm(batch, progress)
        output.loss.backward()
        assert output.loss.isfinite()
        learned.append({key for key, p in algorithm.named_parameters() if p.grad is not None and p.grad.any()})
    assert learned[0] == learned[1]


def run(out, data, *overrides):
    arguments = ["simclr_resnet18_cifar10", "train.device=cpu", "train.precision=fp32", f"algorithm.view.size={SIZES}"]
    arguments += ["algorithm.backbone.width=8", "algorithm.hidden=32", "algorithm.projection=16", "data.threads=1"]
    arguments += ["train.batch_size=8", "train.max_steps=8", "train.log_every=1", f"data.train={data}"]
    assert pretrain.main([*arguments, f"train.out={out}", *overrides]) == 0
    return checkpoint.newest(out)[1]["model"]


def test_resumed_equals_undisturbed(photo_folder, tmp_path):
    """Interrupted among the steps whose size is drawn; with one size throughout, weights are others."""
    whole = run(tmp_path / "whole", photo_folder, "train.save_every=6", "train.keep=9")
    first = tmp_path / "whole" / "step-00000006.pt"
    resumed = run(tmp_path / "resumed", photo_folder, f"train.resume={first}")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    plain = run(tmp_path / "plain", photo_folder, "algorithm.view.size=32")
    assert not torch.equal(plain["head.0.weight"], whole["head.0.weight"])
