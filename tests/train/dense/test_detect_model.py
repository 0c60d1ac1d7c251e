"""The detectors: the same numbers as torchvision's, published sizes, every parameter in use."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from gradient_worker import images

from headrace.models.algorithm import Progress
from headrace.models.algorithms.detector import Detector
from headrace.models.backbones import ResNet, ViT
from headrace.models.backbones.hivit import HiViT
from headrace.models.backbones.swin import Swin
from headrace.pipelines.spec import Batch

RESNET = ResNet.Config("resnet18", width=8, zero_init_residual=False)


def named_as_ours(state):
    names = (("backbone.body.", "maps.encoder.body."), ("backbone.", "pyramid."))
    names += (("rpn.", "proposals."), ("roi_heads.", "heads."))
    return {next(b + key.removeprefix(a) for a, b in names if key.startswith(a)): v for key, v in state.items()}


def test_a_model_is_torchvisions(monkeypatch):
    """maskrcnn_resnet50_fpn with its weights: the same detections, and in training the same losses."""
    torch.manual_seed(0)
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=128, box_detections_per_img=10
    )
    ours = Detector(Detector.Config(backbone=ResNet.Config("resnet50"), classes=3, norm=False))
    ours.load_state_dict(named_as_ours(theirs.state_dict()))
    for name in ("_pre_nms_top_n", "_post_nms_top_n"):
        for model in (ours.proposals, theirs.rpn):
            setattr(model, name, {"training": 40, "testing": 40})
    for model in (ours.heads, theirs.roi_heads):
        model.detections_per_img = 10
        model.fg_bg_sampler.batch_size_per_image = 32
    pixels = torch.rand(3, 64, 96)
    target = {"boxes": torch.tensor([[5.0, 5, 40, 50], [50, 20, 90, 60]]), "labels": torch.tensor([1, 3])}
    target["masks"] = (torch.rand(2, 64, 96) > 0.4).to(torch.uint8)
    seen, (changed,) = theirs.transform([pixels], [target])
    with torch.inference_mode():
        expected = theirs.eval()([pixels])[0]
        (found,) = ours.eval().detect(seen.tensors, seen.image_sizes)
    assert len(expected["boxes"]) == 10 and torch.equal(found["labels"] + 1, expected["labels"])
    assert torch.allclose(found["boxes"], expected["boxes"], atol=1e-3)
    assert torch.allclose(found["scores"], expected["scores"], atol=1e-5)
    pasted = torchvision.models.detection.roi_heads.paste_masks_in_image(found["masks"], found["boxes"], (64, 96))
    assert torch.allclose(pasted, expected["masks"], atol=1e-4)

    monkeypatch.setattr(F, "l1_loss", lambda a, b, **how: F.smooth_l1_loss(a, b, beta=1 / 9, **how))  # as theirs
    torch.manual_seed(1)
    features = theirs.train().backbone(seen.tensors)
    boxes, expected = theirs.rpn(seen, features, [changed])
    expected |= theirs.roi_heads(features, boxes, seen.image_sizes, [changed])[1]
    torch.manual_seed(1)
    one = {**changed, "labels": changed["labels"] - 1, "size": seen.image_sizes[0]}
    batch = Batch({"image": seen.tensors[None]}, torch.arange(1), None, None, 0, 0, [one])
    found = ours.train()(batch, Progress(0, 1, 1))
    names = {"objects": "objectness", "anchors": "rpn_box_reg", "class": "classifier", "box": "box_reg", "mask": "mask"}
    for own, their in names.items():
        assert found.metrics[own].item() == pytest.approx(expected[f"loss_{their}"].item(), rel=1e-4), own
    assert found.loss.item() == pytest.approx(sum(expected.values()).item(), rel=1e-4)


def test_sizes_of_published_models():
    def size(model):
        return sum(p.numel() for p in model.parameters())

    with torch.device("meta"):
        build = torchvision.models.detection
        plain = build.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81)
        second = build.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=81)
        resnet = ResNet.Config("resnet50")
        assert size(Detector(Detector.Config(backbone=resnet, norm=False))) == size(plain)
        # torchvision's second version has one more convolution before the proposals
        assert size(Detector(Detector.Config(backbone=resnet))) == size(second) - (256 * 256 * 9 + 256)
        c4 = Detector(Detector.Config(backbone=resnet, head="c4", masks=False, classes=20))
        proposals = 1024 * 1024 * 9 + 1024 + (1024 + 1) * 15 + (1024 + 1) * 60
        assert size(c4) == size(c4.encoder) + proposals + 2 * 2048 + (2048 + 1) * (21 + 84)
        assert size(c4.encoder) == 23_508_032


def test_c4_sees_regions_through_the_last_stage_and_the_extra_norm():
    torch.manual_seed(0)
    detector = Detector(Detector.Config(backbone=RESNET, head="c4", width=16, classes=3)).eval()
    detector.extra_norm.running_mean.uniform_(-1, 1)
    body, pixels = detector.encoder.body, torch.randn(1, 3, 64, 96)
    boxes = torch.tensor([[4.0, 8, 60, 50], [30, 30, 90, 60]])
    with torch.inference_mode():
        third = body.layer3(body.layer2(body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(pixels)))))))
        features = detector._features(pixels)
        assert torch.allclose(features["0"], third)
        regions = detector.heads.regions(detector.heads.box_roi_pool, features, [boxes], [(64, 96)])
        pooled = torchvision.ops.roi_align(third, [boxes], 14, spatial_scale=1 / 16)
        assert torch.allclose(regions, detector.extra_norm(body.layer4(pooled)), atol=1e-5)
        assert regions.shape == (2, 64, 7, 7)
        assert torch.allclose(detector.heads.box_head(regions), regions.mean((2, 3)), atol=1e-6)
        (found,) = detector.detect(pixels, [(64, 96)])
    assert found["masks"].shape[1:] == (1, 14, 14)


@pytest.mark.parametrize(
    "backbone, head",
    [
        (RESNET, "fpn"),
        (RESNET, "c4"),
        (ViT.Config(width=24, depth=2, heads=2), "fpn"),
        (Swin.Config("swin_tiny", width=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 2)), "fpn"),
        (HiViT.Config("hivit_tiny", width=32, depths=(1, 1, 2), heads=2), "fpn"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_parameter_takes_part(backbone, head):
    """Several processes rely on it."""
    torch.manual_seed(0)
    detector = Detector(Detector.Config(backbone=backbone, head=head, width=16, classes=3, regions=32, image_size=64))
    pixels, objects = images()
    output = detector.train()(
        Batch({"image": pixels[None]}, torch.arange(4), None, None, 0, 0, objects), Progress(0, 1, 1)
    )
    output.loss.backward()
    assert [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []
    assert output.loss.item() == pytest.approx(sum(value.item() for value in output.metrics.values()), rel=1e-5)
