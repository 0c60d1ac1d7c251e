"""ResNets against torchvision's own, and the parts that differ."""

import sys

import pytest
import torch
import torchvision

from headrace.errors import UserError
from headrace.models.backbones import ResNet, Timm, build_backbone
from headrace.models.backbones.resnet import Sobel


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_is_torchvisions(name):
    """With torchvision's weights: its features, and its maps stage by stage."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)()
    theirs.fc = torch.nn.Identity()
    ours = ResNet(ResNet.Config(name))
    ours.body.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for module in (theirs.train(), ours.train()):
        module.zero_grad()
    expected = theirs(images)
    assert torch.allclose(ours(images), expected, atol=1e-5)
    maps = ours.stages(images)
    channels = ours.features // 8
    assert [tuple(x.shape) for x in maps] == [
        (2, 64, 32, 32),
        (2, channels, 16, 16),
        (2, 2 * channels, 8, 8),
        (2, 4 * channels, 4, 4),
        (2, 8 * channels, 2, 2),
    ]
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    assert torch.allclose(maps[2], theirs.layer2(theirs.layer1(x)), atol=1e-5)


@pytest.mark.parametrize(
    "options, parameters",
    [
        (dict(name="resnet34"), 21_797_672 - 513_000),
        (dict(name="resnet101"), 44_549_160 - 2_049_000),
        (dict(name="resnet152"), 60_192_808 - 2_049_000),
        (dict(name="resnext101_32x8d"), 88_791_336 - 2_049_000),
        (dict(name="resnet50", v1d=True), 25_576_264 - 2_049_000),
        (dict(name="resnet50", sobel=True), 23_508_032 - 64 * 49),
        (dict(name="resnet50", width=128), 93_907_072),
    ],
)
def test_published_sizes(options, parameters):
    """Without the classifier's 1000 rows; ResNet-D as timm's resnet50d; twice the width: 94 M (SimCLR, table 1)."""
    with torch.device("meta"):
        count = sum(p.numel() for p in ResNet(ResNet.Config(**options)).parameters())
    assert count == parameters


def test_zero_init_residual_makes_blocks_identities():
    torch.manual_seed(0)
    resnet = ResNet(ResNet.Config("resnet18", width=8))
    x = torch.randn(2, 8, 8, 8).relu()
    assert torch.equal(resnet.body.layer1(x), x)
    plain = ResNet(ResNet.Config("resnet18", width=8, zero_init_residual=False))
    assert not torch.allclose(plain.body.layer1(x), x, atol=0.1)


def test_sobel_by_hand():
    images = torch.randn(1, 3, 5, 6)
    gray = images.mean(1)[0]
    edges = Sobel()(images)[0]
    for y, x in ((1, 1), (2, 4), (3, 3)):
        across = sum(w * (gray[y + d, x - 1] - gray[y + d, x + 1]) for d, w in ((-1, 1), (0, 2), (1, 1)))
        down = sum(w * (gray[y - 1, x + d] - gray[y + 1, x + d]) for d, w in ((-1, 1), (0, 2), (1, 1)))
        assert torch.allclose(edges[:, y, x], torch.stack([across, down]), atol=1e-5)
    assert not list(Sobel().parameters())


def test_v1d_shortcuts_average_before_they_project():
    resnet = ResNet(ResNet.Config("resnet18", width=8, v1d=True))
    assert [type(m).__name__ for m in resnet.body.layer2[0].downsample] == ["AvgPool2d", "Conv2d", "BatchNorm2d"]
    assert resnet(torch.randn(2, 3, 40, 56)).shape == (2, 64)


def test_stems_that_exclude_each_other():
    with pytest.raises(ValueError, match="^v1d: "):
        ResNet.Config(v1d=True, sobel=True)
    with pytest.raises(ValueError, match="^width: "):
        ResNet.Config(width=12)


def test_timm_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        build_backbone(Timm.Config(model="convnext_atto"), 32)
