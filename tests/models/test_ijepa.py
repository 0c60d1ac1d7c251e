"""I-JEPA against its formula written out block by block, and what must not leak."""

from dataclasses import replace

import pytest
import torch
from mim_samples import START, batch_of, build

from headrace.models.algorithm import Progress
from headrace.models.algorithms.ijepa import IJEPA
from headrace.models.backbones import ViT
from headrace.models.teacher import linear_momentum
from headrace.pipelines.spec import PublishedBlocksMask


def block_by_block(m, images, mask):
    """Every block of every image is a sequence of its own."""
    total, count = 0.0, 0
    for b in range(len(images)):
        seen = m.vit.tokens(images[b : b + 1], mask.keep[b : b + 1])[0, 1:]
        said = m.teacher.vit.tokens(images[b : b + 1])[0, 1:]
        said = (said - said.mean(1, keepdim=True)) / (said.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        table = m.predictor.positions[0]
        for block in mask.targets[b]:
            x = torch.cat([m.predictor.embed(seen) + table[mask.keep[b]], m.predictor.mask_token[0] + table[block]])
            for layer in m.predictor.blocks:
                x = layer(x[None])[0]
            error = m.predictor.predict(m.predictor.norm(x[-len(block) :])) - said[block]
            total = total + torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5).sum()
            count += error.numel()
    return total / count


@pytest.mark.parametrize("masks", ["unbiased", "published"])
def test_the_loss_is_that_of_every_block_alone(masks):
    torch.manual_seed(0)
    config = replace(IJEPA.Config().smoke(), masks=masks)
    algorithm = IJEPA(replace(config, view=replace(config.view, size=64))).double()
    for parameter in algorithm.teacher.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    batch = batch_of(algorithm)
    batch.views = {name: view.double() for name, view in batch.views.items()}
    output = algorithm(batch, START)
    expected = block_by_block(algorithm, batch.views["image"][0], batch.mask)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert isinstance(algorithm.config.mask, PublishedBlocksMask) == (masks == "published")


def test_what_is_not_in_the_context_reaches_the_targets_alone():
    algorithm = build("ijepa").eval()
    batch = batch_of(algorithm)
    images, mask = batch.views["image"][0], batch.mask
    other = images.clone().unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)  # (B, 3, L, 8, 8)
    other[mask.hidden[:, None].expand(-1, 3, -1)] = 9.0
    other = other.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape_as(images)
    tokens = [algorithm.vit.tokens(x, mask.keep) for x in (images, other)]
    assert torch.equal(*tokens) and not torch.allclose(*(algorithm.teacher.vit.tokens(x) for x in (images, other)))


def test_the_teacher_follows_in_a_straight_line():
    assert [linear_momentum(0.996, Progress(step, 4, 2)) for step in range(4)] == pytest.approx(
        [0.996, 0.997, 0.998, 0.999]
    )
    algorithm = build("ijepa")
    before = algorithm.teacher.vit.norm.weight.clone()
    with torch.no_grad():
        algorithm.vit.norm.weight += 1
    algorithm.after_step(Progress(5, 10, 5))
    assert torch.allclose(algorithm.teacher.vit.norm.weight, before + 0.002)


def test_a_vit_without_a_class_token_has_the_mean_in_its_place():
    """Patches do not attend to it: the blocks see as many tokens as there are patches, and registers."""
    torch.manual_seed(0)
    for registers in (0, 2):
        config = ViT.Config(patch_size=8, width=24, depth=2, heads=2, class_token=False, registers=registers)
        vit, images = ViT(config, 32), torch.randn(2, 3, 32, 32)
        x = vit.embed(images)[0]
        if registers:
            x = torch.cat([vit.registers.expand(2, -1, -1), x], 1)
        for block in vit.blocks:
            x = block(x)
        patches = x[:, registers:]
        found = vit.outputs(images, (1,))[0]
        assert torch.allclose(found[:, 1:], patches) and torch.allclose(found[:, 0], patches.mean(1), atol=1e-6)
        assert "cls_token" not in vit.state_dict()
        assert torch.allclose(vit(images), vit.norm(patches).mean(1), atol=1e-6)
    with pytest.raises(ValueError, match="class_token: relative biases have rows for it"):
        ViT.Config(class_token=False, relative_bias="shared")
