"""Distilling by the command: what the teacher is, what it sees, and that a cache changes nothing."""

import shutil

import pytest
import torch
from PIL import Image, ImageOps

from headrace.errors import UserError
from headrace.models.algorithms import distill as module
from headrace.models.algorithms.distill import Distill, Teacher
from headrace.models.backbones import ResNet, ViT
from headrace.models.targets.cached import CachedTargets
from headrace.pipelines.images.rules import rules
from headrace.pipelines.spec import ViewSpec
from headrace.train import pretrain
from headrace.train.engine import checkpoint
from headrace.train.evaluation.embed_encoder import load_encoder

TEACHER = """
algorithm:
  name: mae
  view: {recipe: mae, size: 32}
  backbone: {name: vit_tiny, patch_size: 8, width: 24, depth: 2, heads: 2}
train: {epochs: 1, batch_size: 8}
optim: {name: adamw}
"""


@pytest.fixture
def teacher(tmp_path):
    (tmp_path / "teacher.yaml").write_text(TEACHER)
    return f"random:{tmp_path / 'teacher.yaml'}"


def run(teacher, data, out, *overrides):
    arguments = ["distill_resnet18_cifar10", f"algorithm.teacher={teacher}", f"data.train={data}", f"train.out={out}"]
    arguments += [
        "algorithm.backbone.width=8",
        "algorithm.features=24",
        "algorithm.queue=32",
        "algorithm.local=1.0",
        "algorithm.backbone.name=resnet18",
    ]
    arguments += ["train.batch_size=8", "train.max_steps=4", "train.device=cpu", "train.precision=fp32"]
    assert pretrain.main([*arguments, "data.threads=1", *overrides]) == 0
    return checkpoint.newest(out)[1]["model"]


def test_cached_targets_are_those_computed_online_bit_for_bit(teacher, photo_folder, tmp_path, monkeypatch):
    """Four steps are an epoch of three and one of the next; a run that reads never asks the teacher."""
    online = run(teacher, photo_folder, tmp_path / "online")
    cache = f"algorithm.cache={tmp_path / 'cache'}"
    filling = run(teacher, photo_folder, tmp_path / "filling", cache)

    def never(self, images, with_map):
        if len(images) > 1:  # one blank image shows the shapes
            raise AssertionError("the teacher was asked")
        return forward(self, images, with_map)

    forward = Teacher.forward
    monkeypatch.setattr(Teacher, "forward", never)
    reading = run(teacher, photo_folder, tmp_path / "reading", cache)
    assert online.keys() == filling.keys() == reading.keys()
    for key, value in online.items():
        assert torch.equal(value, filling[key]) and torch.equal(value, reading[key]), key
    assert not any("teacher" in key for key in online)
    with pytest.raises(AssertionError, match="the teacher was asked"):  # other draws are not in it
        run(teacher, photo_folder, tmp_path / "other", cache, "train.seed=1")


def test_a_cache_of_another_data_set_is_not_read(teacher, photo_folder, tmp_path):
    """Samples of the same numbers, in the same epochs of the same seed, but other images."""
    others, cache = tmp_path / "others", f"algorithm.cache={tmp_path / 'cache'}"
    shutil.copytree(photo_folder, others)
    for file in others.rglob("*.jpg"):
        ImageOps.invert(Image.open(file).convert("RGB")).save(file)
    run(teacher, photo_folder, tmp_path / "first", cache)
    online, cached = (run(teacher, others, tmp_path / f"{len(more)}", *more) for more in ([], [cache]))
    assert online.keys() == cached.keys() and all(torch.equal(online[key], cached[key]) for key in online)


def test_images_are_decoded_by_the_rules_of_the_run(teacher, photo_folder, tmp_path):
    """And not by those of the run that the teacher is of."""
    sets = [f"data.train={photo_folder}", f"train.out={tmp_path / 'mae'}", "train.max_steps=1", "train.device=cpu"]
    options = ["optim.lr=1e-3", "data.threads=1", "data.range=percentile", "train.epochs=null"]
    assert pretrain.main([str(tmp_path / "teacher.yaml"), *sets, *options]) == 0
    assert rules().range == "percentile"
    run(tmp_path / "mae", photo_folder, tmp_path / "student", "train.max_steps=1")
    assert rules().range == "full"


def test_the_student_is_evaluated_without_its_teacher(teacher, photo_folder, tmp_path):
    run(teacher, photo_folder, tmp_path / "run")
    (tmp_path / "teacher.yaml").unlink()
    assert load_encoder(str(tmp_path / "run")).module(torch.zeros(1, 3, 32, 32)).shape == (1, 64)


def test_what_does_not_fit_is_said(teacher, photo_folder, tmp_path):
    with pytest.raises(UserError, match="algorithm.features: random:.* gives 24 features; set algorithm.features=24"):
        run(teacher, photo_folder, tmp_path / "a", "algorithm.features=25")
    with pytest.raises(UserError, match="Flatten gives no map of patches; set algorithm.local=0"):
        run("pixels:32", photo_folder, tmp_path / "b", "algorithm.features=3072")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="algorithm.cache: .* cannot be written"):
        run(teacher, photo_folder, tmp_path / "c", f"algorithm.cache={tmp_path / 'file'}")
    with pytest.raises(ValueError, match="cache: an untrained teacher's features"):
        Distill.Config(cache="x")


def test_the_teacher_sees_the_pixels_at_its_own_normalisation_and_size():
    shown = ViewSpec(size=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    wanted = ViewSpec(size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    flat = Teacher(torch.nn.Flatten(), shown, wanted)
    colour = torch.tensor([0.9, 0.5, 0.1]).view(1, 3, 1, 1)
    images = ((colour - torch.tensor(shown.mean).view(3, 1, 1)) / torch.tensor(shown.std).view(3, 1, 1)).expand(
        1, 3, 16, 16
    )
    expected = (colour - torch.tensor(wanted.mean).view(3, 1, 1)) / torch.tensor(wanted.std).view(3, 1, 1)
    assert torch.allclose(flat(images, False)[0].view(1, 3, 32, 32), expected.expand(1, 3, 32, 32), atol=1e-5)


@pytest.mark.parametrize("config", [ViT.Config(patch_size=8, width=24, depth=2, heads=2), ResNet.Config(width=8)])
def test_one_pass_gives_what_two_do(config):
    torch.manual_seed(0)
    encoder, images = module.build_backbone(config, 64).eval(), torch.randn(2, 3, 64, 64)
    pooled, patches = module.features_and_map(encoder, images, True)
    assert torch.allclose(pooled, encoder(images), atol=1e-6) and torch.allclose(
        patches.mean((2, 3)), pooled, atol=1e-5
    )


def test_a_cache_keeps_samples_of_several_epochs_apart(tmp_path):
    cache, calls = CachedTargets(tmp_path, "network", [(3,), (2, 2)]), []

    def targets(epochs, ids, fill):
        def compute():
            calls.append(fill)
            return [torch.full((len(ids), 3), fill), torch.full((len(ids), 2, 2), fill + 0.5)]

        return cache.targets(0, torch.tensor(epochs), torch.tensor(ids), torch.device("cpu"), compute)

    targets([0, 0, 2], [5, 1, 5], 1.0)
    again = targets([2, 0], [5, 5], 9.0)
    assert calls == [1.0] and again[0].tolist() == [[1.0] * 3] * 2 and again[1].shape == (2, 2, 2)
    targets([0, 0], [5, 2], 3.0)  # one is missing: both are computed, and written
    assert calls == [1.0, 3.0] and targets([0], [5], 0.0)[1].unique().tolist() == [3.5]
    assert targets([1], [5], 4.0)[0].unique().tolist() == [4.0]
