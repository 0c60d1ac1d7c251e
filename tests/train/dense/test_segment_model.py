"""Segmenters and their figures: against torchvision's FCN, windows, and confusion by hand."""

import pytest
import torch
import torchvision

from headrace.models.algorithms.segmenter import Segmenter
from headrace.models.backbones import ResNet, ViT
from headrace.models.backbones.hivit import HiViT
from headrace.models.backbones.mixmim import MixMIMTransformer
from headrace.models.backbones.swin import Swin
from headrace.models.dense.maps import Maps
from headrace.pipelines.sources import open_source
from headrace.train.dense import segment
from headrace.train.dense.confusion import class_ious, confusion, segmentation_figures

SWIN = Swin.Config("swin_tiny", width=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 2))


def test_figures_by_hand():
    truth = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 1]])
    found = torch.tensor([[0, 1, 1, 1], [2, 0, 0, 1]])
    matrix = confusion(found, truth, 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 3, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    figures = segmentation_figures(matrix)
    assert figures["mIoU"] == pytest.approx((1 / 3 + 3 / 4 + 1 / 2) / 3)
    assert figures["mAcc"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3) and figures["aAcc"] == pytest.approx(5 / 7)
    assert class_ious(matrix) == pytest.approx([1 / 3, 3 / 4, 1 / 2, None])


def test_the_truth_scores_all(voc12aug):
    source, matrix = open_source(f"voc12aug:{voc12aug}?split=val"), 0
    for index in range(len(source)):
        truth = torch.from_numpy(source.target(index))
        matrix = matrix + confusion(truth, truth, 21)
    assert segmentation_figures(matrix) == {"mIoU": 1.0, "mAcc": 1.0, "aAcc": 1.0}


def test_windows():
    assert segment.window_starts(2049, 769, 513) == [0, 513, 1026, 1280]
    assert segment.window_starts(1025, 769, 513) == [0, 256] and segment.window_starts(700, 769, 513) == [0]
    assert segment.window_starts(1282, 769, 513) == [0, 513]


def test_a_sliding_window_finds_what_the_whole_image_does_where_scores_are_local(monkeypatch):
    config = Segmenter.Config(backbone=ResNet.Config("resnet18", width=8), crop=24, slide=16, classes=3)
    whole = Segmenter(Segmenter.Config(backbone=config.backbone, classes=3))
    monkeypatch.setattr(Segmenter, "scores", lambda self, images: images)  # each pixel says its own class
    images = torch.rand(3, 50, 70)
    expected = segment.predict(whole, images, (50, 70))
    assert torch.equal(expected, images.argmax(0))
    assert torch.equal(segment.predict(Segmenter(config), images, (50, 70)), expected)


def test_fcn_is_torchvisions():
    """A dilated ResNet-50, a head of one convolution, and the auxiliary one: torchvision's own, with its weights."""
    torch.manual_seed(0)
    theirs = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=7, aux_loss=True
    ).eval()
    ours = Segmenter(
        Segmenter.Config(backbone=ResNet.Config("resnet50"), classes=7, convs=1, concat=False, channels=512)
    ).eval()
    names = {"classifier.0": "head.convs.0.0", "classifier.1": "head.convs.0.1", "classifier.4": "head.classifier"}
    names |= {"aux_" + key: value.replace("head", "auxiliary") for key, value in names.items()}
    state = {}
    for key, value in theirs.state_dict().items():
        prefix = next((name for name in names if key.startswith(name + ".")), None)
        own = key.replace(prefix, names[prefix], 1) if prefix else key.replace("backbone.", "maps.encoder.body.", 1)
        state[own] = value
    ours.load_state_dict(state)
    for module in ours.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.eps == 1e-5
    images = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        expected = theirs(images)
        maps = ours.maps(images)
        found = torch.nn.functional.interpolate(ours.head(maps[-1]), (65, 97), mode="bilinear", align_corners=False)
        other = torch.nn.functional.interpolate(ours.auxiliary(maps[2]), (65, 97), mode="bilinear", align_corners=False)
    assert maps[-1].shape[-2:] == (9, 13) == maps[2].shape[-2:]
    assert torch.allclose(found, expected["out"], atol=1e-5) and torch.allclose(other, expected["aux"], atol=1e-5)


@pytest.mark.parametrize(
    "backbone",
    [
        ResNet.Config("resnet18", width=8, v1d=True),
        SWIN,
        MixMIMTransformer.Config("mixmim_base", width=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 2)),
        HiViT.Config("hivit_tiny", width=32, depths=(1, 1, 2), heads=2),
        ViT.Config(width=24, depth=6, heads=2),
    ],
    ids=lambda config: config.name,
)
def test_maps_and_gradients_of_every_encoder(backbone):
    """Four maps at strides 4 to 32; every parameter that is trained takes part, which several processes rely on."""
    from headrace.models.backbones import build_backbone

    for narrow in (False, True):
        maps = Maps(build_backbone(backbone, 64), narrow=narrow)
        found = maps(torch.randn(2, 3, 64, 96))
        shapes = [(2, width, 64 // s, 96 // s) for width, s in zip(maps.channels, (4, 8, 16, 32))]
        assert [tuple(x.shape) for x in found] == shapes
        sum(x.square().sum() for x in found).backward()
        assert [n for n, p in maps.named_parameters() if p.requires_grad and p.grad is None] == []
