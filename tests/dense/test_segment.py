"""``headrace segment``: samples, heads and figures against independent ones; training on real formats, made small."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
import torchvision
import trees
import yaml
from PIL import Image
from safetensors.torch import save_file

from headrace.benchmarks import processes
from headrace.errors import ProcessError, UserError
from headrace.models.algorithms.classifier import Classifier
from headrace.models.algorithms.segmenter import Segmenter
from headrace.models.backbones import ResNet, ViT
from headrace.models.backbones.hivit import HiViT
from headrace.models.backbones.mixmim import MixMIMTransformer
from headrace.models.backbones.swin import Swin
from headrace.models.dense.maps import Maps
from headrace.pipelines.order import Order
from headrace.pipelines.sources import open_source
from headrace.pipelines.spec import ViewSpec
from headrace.train import checkpoint, pretrain
from headrace.train.config import plain
from headrace.train.dense import detect, segment
from headrace.train.dense.confusion import class_ious, confusion, segmentation_figures
from headrace.train.dense.image import distorted, fitted
from headrace.train.dense.loader import DRAWS, AnnotatedLoader, workers_watched
from headrace.train.dense.masks import Scene, collate
from headrace.train.dense.run import recipes
from headrace.train.metrics import read_metrics
from headrace.train.recipe import load_recipe
from headrace.train.step import Stepper

SMALL = [
    "algorithm.backbone={name: resnet18, width: 8}",
    "algorithm.channels=16",
    "algorithm.auxiliary_channels=8",
    "algorithm.crop=64",
    "algorithm.scale=[96, 72]",
    "algorithm.ratio=[0.8, 1.25]",
    "train.batch_size=4",
    "train.log_every=1",
    "train.device=cpu",
    "data.threads=1",
]
VOC, CITY = "segment/fcn-d8_4xb4-20k_voc12aug-512x512", "segment/fcn-d8_4xb2-40k_cityscapes-769x769"
ADE = "segment/upernet-swin_8xb2-160k_ade20k-512x512"
SWIN = Swin.Config("swin_tiny", width=8, depths=(1, 1, 2, 1), heads=(1, 2, 2, 2))


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return trees.voc12aug(tmp_path_factory.mktemp("voc"), {"train": 6, "val": 3, "aug": 6})


@pytest.fixture
def command(voc, tmp_path):
    def command(*given, recipe=VOC, data=(f"voc12aug:{voc}", f"voc12aug:{voc}?split=val"), out="run"):
        sets = [f"data.train={data[0]}", f"data.val={data[1]}", f"train.out={tmp_path / out}"]
        code = segment.main([recipe, "scratch", *sets, *SMALL, *given, "--results", str(tmp_path / "rows.jsonl")])
        rows = (tmp_path / "rows.jsonl").read_text().splitlines() if code == 0 else []
        return json.loads(rows[-1]) if rows else None

    return command


def test_it_learns_and_is_scored(command, tmp_path, capsys):
    options = ["train.max_steps=80", "optim.lr=0.05", "algorithm.dropout=0"]
    row = command(*options, "--picture", str(tmp_path / "some.png"))
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    assert np.mean(losses[-5:]) < 0.4 * np.mean(losses[:5])
    (figures,) = row["figures"]["rows"]
    assert figures["mIoU"] > 0.3 and figures["aAcc"] > 0.8
    counted = [iou for iou in row["figures"]["IoU"].values() if iou is not None]
    assert np.mean(counted) == pytest.approx(figures["mIoU"]) and len(row["figures"]["IoU"]) == 21
    assert row["protocol"].startswith("segment fcn") and row["data"]["images"] == 3 and row["seconds"] > 0
    assert f"{figures['mIoU']:.2%}" in capsys.readouterr().out
    assert Image.open(tmp_path / "some.png").height == 3 * 244
    again = command(*options)  # finished: tested once more
    assert again["figures"] == row["figures"] and again["encoder"] == row["encoder"]


@pytest.mark.parametrize("recipe", [CITY, ADE])
def test_other_sets_and_heads(command, tmp_path, recipe):
    if recipe == CITY:
        root, splits = trees.cityscapes(tmp_path / "city", {"train": 4, "val": 2}), ("train", "val")
        change = ["algorithm.slide=40", "algorithm.scale=[128, 64]"]
    else:
        root, splits = trees.ade20k(tmp_path / "ade", {"training": 4, "validation": 2}), ("training", "validation")
        change = ["algorithm.backbone={name: swin_tiny, width: 8, depths: [1,1,2,1], heads: [1,2,2,2], drop_path: 0}"]
        change += ["train.precision=fp32", "optim.lr=0.01", "optim.warmup=0", "algorithm.drop_path=0"]
    kind = recipe.split("_")[-1].split("-")[0]
    data = tuple(f"{kind}:{root}?split={split}" for split in splits)
    row = command("train.max_steps=16", *change, recipe=recipe, data=data)
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:2])
    assert row["figures"]["rows"][0]["aAcc"] > 0.3


def test_stopped_and_resumed_is_undisturbed(command, tmp_path, monkeypatch):
    options = ["train.max_steps=5"]
    command(*options, out="whole")

    def step(self, batch, progress):
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return true_step(self, batch, progress)

    true_step = Stepper.__call__
    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "__call__", step)
        command(*options, out="parts")
    assert checkpoint.newest(tmp_path / "parts")[1]["step"] == 3
    row = command(*options, out="parts")
    whole, parts = (checkpoint.newest(tmp_path / name)[1]["model"] for name in ("whole", "parts"))
    assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
    assert row["figures"]["rows"]


def test_two_processes_are_one(command, voc, tmp_path):
    """The same weights after three steps, to rounding, and the same figures."""
    options = ["train.max_steps=3", "algorithm.dropout=0"]
    row = command(*options, out="one")
    worker = str(trees.Path(__file__).with_name("command_worker.py"))
    sets = [f"data.train=voc12aug:{voc}", f"data.val=voc12aug:{voc}?split=val", f"train.out={tmp_path / 'two'}"]
    arguments = [worker, "segment", VOC, "scratch", *sets, *SMALL, *options, "--results", str(tmp_path / "two.jsonl")]
    assert processes.run(arguments, tmp_path / "log", world=2) == [0, 0], (tmp_path / "log").read_text()
    one, two = (checkpoint.newest(tmp_path / name)[1]["model"] for name in ("one", "two"))
    for key, value in one.items():
        assert torch.allclose(value.float(), two[key].float(), atol=1e-5, rtol=1e-3), key
    other = json.loads((tmp_path / "two.jsonl").read_text())
    assert other["figures"]["rows"][0] == pytest.approx(row["figures"]["rows"][0], abs=2e-3)


# figures


def test_figures_by_hand():
    truth = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 1]])
    found = torch.tensor([[0, 1, 1, 1], [2, 0, 0, 1]])
    matrix = confusion(found, truth, 4)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 3, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    figures = segmentation_figures(matrix)
    assert figures["mIoU"] == pytest.approx((1 / 3 + 3 / 4 + 1 / 2) / 3)
    assert figures["mAcc"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3) and figures["aAcc"] == pytest.approx(5 / 7)
    assert class_ious(matrix) == pytest.approx([1 / 3, 3 / 4, 1 / 2, None])


def test_the_truth_scores_all(voc):
    source, matrix = open_source(f"voc12aug:{voc}?split=val"), 0
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


# samples


class Painted:
    """Images whose red is where their mask is 1; the rest is black."""

    categories, name = ["rest", "thing"], "painted"

    def __init__(self, mask):
        self.mask = mask

    def __len__(self):
        return 12

    def key(self, index):
        return str(index)

    def read(self, index):
        import io

        pixels = np.zeros((*self.mask.shape, 3), np.uint8)
        pixels[self.mask == 1, 0] = 255
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return np.frombuffer(buffer.getvalue(), np.uint8)

    def target(self, index):
        return self.mask


def painted(width=90, height=60):
    mask = np.zeros((height, width), np.uint8)
    mask[10:30, 5:60] = 1
    return Painted(mask)


def config(**change):
    values = {"backbone": ResNet.Config("resnet18", width=8), "crop": 64, "scale": (90, 60)}
    return Segmenter.Config(**{**values, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **change})


@pytest.mark.parametrize("flip", [0.1, 0.9])
def test_image_and_mask_move_together(flip):
    plain = [0.9] * 18  # no distortion
    rng = np.random.default_rng(0)
    for _ in range(20):
        draws = [rng.uniform(), flip, *plain, *rng.uniform(size=20)]
        sample = Scene(config())(painted(), 0, draws)
        image, mask = sample["image"], sample["mask"]
        assert image.shape == (3, 64, 64) and mask.shape == (64, 64)
        inside = mask != 255
        assert ((image[0] > 0.5) == (mask == 1))[inside].float().mean() > 0.98
        assert (image[:, ~inside] == 0).all() and mask[0, 0] != 255


def test_a_flip_mirrors():
    draws = [1 / 3, 0.9, *[0.9] * 18, *[0.0] * 20]  # ratio 1, the crop at the corner
    plain = Scene(config())(painted(), 0, draws)
    draws[1] = 0.1
    flipped = Scene(config())(painted(), 0, draws)
    width = 64
    assert torch.equal(flipped["mask"][:60, :width], plain["mask"][:60, :width].flip(1))
    assert torch.equal(flipped["image"][:, :60, :width], plain["image"][:, :60, :width].flip(2))


def test_no_class_fills_a_crop_if_it_can_be_helped():
    mask = np.zeros((200, 200), np.uint8)
    mask[:, 120:] = 1
    scene, rng, shares = Scene(config()), np.random.default_rng(1), []
    for _ in range(400):
        left, top, right, bottom = scene.crop_box(mask, rng.uniform(size=20).tolist())
        assert (right - left, bottom - top) == (64, 64) and 0 <= left and right <= 200
        share = (mask[top:bottom, left:right] == 1).mean()
        shares.append(max(share, 1 - share))
    assert np.mean(np.array(shares) < 0.75) == pytest.approx(1 - (1 - 31 / 137) ** 10, abs=0.05)  # ten of 137 places
    free = Scene(config(largest_share=1.0))
    boxes = [free.crop_box(mask, rng.uniform(size=20).tolist()) for _ in range(50)]
    assert max((mask[t:b, a:c] == 1).mean() for a, t, c, b in boxes) < 1  # one class alone is refused all the same


def test_sizes():
    assert fitted(500, 375, 2048, 512) == (683, 512) and fitted(375, 500, 2048, 512) == (512, 683)
    assert fitted(2048, 1024, 2049, 1025) == (2049, 1024)
    assert fitted(3000, 300, 2048, 512) == (2048, 205)


def test_distortion_by_its_parts():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    pixels, none = np.asarray(image).astype(int), [0.9] * 9

    def changed(**draws):
        names = ["bright", "by", "first", "contrast", "factor", "saturate", "amount", "turn", "angle"]
        return np.asarray(distorted(image, [draws.get(n, v) for n, v in zip(names, none)])).astype(int)

    assert (changed() == pixels).all()
    assert (changed(bright=0.1, by=0.75) == np.clip(pixels + 16, 0, 255)).all()
    assert (changed(bright=0.1, by=0.0) == np.clip(pixels - 32, 0, 255)).all()
    for first in (0.1, 0.9):
        assert abs(changed(contrast=0.1, factor=0.25, first=first) - pixels * 0.75).max() < 1
    more, less = (changed(saturate=0.1, amount=amount) for amount in (0.99, 0.0))
    spread = np.ptp(pixels, axis=2)
    assert (np.ptp(less, axis=2) <= spread * 0.5 + 3).all() and (np.ptp(more, axis=2) >= spread - 3).all()
    turned = changed(turn=0.1, angle=0.99)
    assert abs(turned.max(2) - pixels.max(2)).max() <= 1 and abs(turned - pixels).max() > 20


def batches_of(source, **share):
    """Six steps of a loader."""
    order = Order(len(source), 4, seed=3)
    share = {"seed": 3, "device": torch.device("cpu"), "threads": 1, "rank": 0, "world": 1, **share}
    loader = AnnotatedLoader(source, Scene(config()), collate, order, **share)
    first = share.pop("first", 0)
    found = [next(loader) for _ in range(6 - first)]
    loader.close()
    return found


def test_a_sample_depends_on_seed_epoch_and_id_alone():
    source = painted()
    one = batches_of(source)
    shares = [batches_of(source, rank=rank, world=2, threads=2) for rank in (0, 1)]
    for step, batch in enumerate(one):
        halves = [share[step] for share in shares]
        assert torch.equal(batch.ids, torch.cat([half.ids for half in halves]))
        assert torch.equal(batch.views["image"], torch.cat([half.views["image"] for half in halves], 1))
        assert torch.equal(batch.labels, torch.cat([half.labels for half in halves]))
    masks = {(batch.epoch, int(i)): mask for batch in one for i, mask in zip(batch.ids, batch.labels)}
    assert not torch.equal(masks[0, 5], masks[1, 5])  # other draws in the next epoch
    order = Order(len(source), 4, seed=3)
    loader = AnnotatedLoader(
        source, Scene(config()), collate, order, seed=3, device=torch.device("cpu"), threads=1, rank=0, world=1
    )
    loader.load_state_dict({"step": 4})
    assert torch.equal(next(loader).views["image"], one[4].views["image"]) and loader.state_dict() == {"step": 5}
    loader.close()
    assert DRAWS >= 40  # what crop_box takes


def test_signals_to_workers():
    """Of schedulers they take none; one that is killed is named in a line, and nobody waits for it."""
    source = painted()
    share = {"seed": 3, "device": torch.device("cpu"), "threads": 1, "rank": 0, "world": 1}
    loader = AnnotatedLoader(source, Scene(config()), collate, Order(12, 4, seed=3), **share)
    first = next(loader)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, number)
    assert [next(loader).step for _ in range(4)] == [1, 2, 3, 4] and worker.is_alive() and first.step == 0
    loader.close()
    assert not worker.is_alive()
    next(loader)  # starts another
    (worker,) = multiprocessing.active_children()
    with pytest.raises(ProcessError, match="worker .*(killed|exited|ended).*data.threads"), workers_watched():
        os.kill(worker.pid, signal.SIGKILL)
        for _ in range(50):
            next(loader)
            time.sleep(0.05)
    loader.close()


# heads and maps


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


@pytest.mark.parametrize("name", recipes("segment"))
def test_recipes(name):
    recipe = load_recipe(name, [])
    assert isinstance(recipe.algorithm, Segmenter.Config) and "description" in recipe.resolved
    assert recipe.train.max_steps in (20_000, 40_000, 160_000) and recipe.algorithm.backbone is None


# what goes wrong


def test_errors(command, voc, tmp_path):
    def refused(*given, **options):
        with pytest.raises(UserError) as fault:
            command("train.max_steps=2", *given, **options)
        assert "\n" not in str(fault.value)
        return str(fault.value)

    assert "maps have strides 1 to 8" in refused("algorithm.backbone={name: resnet18, small_image_stem: true}")
    assert "upernet" in refused("algorithm.backbone={name: vit_tiny}")
    assert "data.block" in refused("data.block=4")
    assert "multiples of 32" in refused(
        "algorithm.backbone={name: swin_tiny}", "algorithm.head=upernet", "algorithm.crop=50"
    )
    with pytest.raises(UserError, match="finetune/vit-tiny_cifar10: trains a classifier; take one of segment/fcn"):
        segment.main(["finetune/vit-tiny_cifar10", "scratch"])
    city = trees.cityscapes(tmp_path / "city", {"train": 4, "val": 2})
    assert "other categories" in refused(data=(f"voc12aug:{voc}", f"cityscapes:{city}?split=val"))
    folder = tmp_path / "plain"
    trees.save(trees.scene(0)[0], folder / "1.png")
    assert "no masks of classes" in refused(data=(str(folder), str(folder)))
    for mask in (city / "gtFine/train/ulm").glob("*000003*"):
        mask.unlink()
    assert "000003_000019_gtFine_labelIds.png: does not exist" in refused(
        "algorithm.slide=40", recipe=CITY, data=(f"cityscapes:{city}", f"cityscapes:{city}?split=val")
    )
    (city / "leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png").write_bytes(b"x")
    with pytest.raises(ProcessError, match="ulm_000001_000019_leftImg8bit.png: not an image"):
        data = (f"cityscapes:{city}?split=val", f"cityscapes:{city}?split=val")
        command("train.max_steps=2", "train.batch_size=2", "algorithm.slide=40", recipe=CITY, data=data, out="broken")


# encoders


@pytest.mark.parametrize("name", ["segment", "detect"])
def test_an_encoder_brings_its_weights_and_its_normalisation(name, voc, tmp_path):
    """From the file that a run leaves, and from that of a run whose recipe has another kind of encoder."""
    torch.manual_seed(0)
    backbone = ResNet.Config("resnet18", width=8)
    view = ViewSpec(size=96, mean=(0.5,) * 3, std=(0.25,) * 3)
    classifier = Classifier(Classifier.Config(backbone=backbone, view=view, classes=3))
    given = {key: value.contiguous() for key, value in classifier.encoder.state_dict().items()}
    about = {"config": yaml.safe_dump(plain(classifier.config))}
    save_file(given, tmp_path / "encoder.safetensors", metadata=about)
    if name == "segment":
        recipe, data = VOC, (f"voc12aug:{voc}", f"voc12aug:{voc}?split=val")
        small = SMALL[1:]
    else:
        root = trees.coco(tmp_path / "coco", {"train": 4, "val": 1})
        recipe, data = "detect/mask-rcnn-fpn_8xb2-1x_coco", (f"coco:{root}", f"coco:{root}?split=val")
        small = ["algorithm.width=16", "algorithm.regions=32", "algorithm.short=[72]", "algorithm.test_short=72"]
        small += ["train.batch_size=4", "train.device=cpu", "data.threads=1"]
    options = [*small, "train.max_steps=1", "optim.lr=1e-12", f"train.out={tmp_path / 'run'}"]
    sets = [f"data.train={data[0]}", f"data.val={data[1]}", "--results", str(tmp_path / "rows.jsonl")]
    command = {"segment": segment, "detect": detect}[name]
    assert command.main([recipe, str(tmp_path / "encoder.safetensors"), *sets, *options]) == 0
    trained = checkpoint.load_algorithm(tmp_path / "run")[1]
    assert trained.config.mean == (0.5,) * 3 and trained.config.std == (0.25,) * 3
    assert trained.config.backbone == backbone and trained.config.image_size == 96
    found = trained.encoder.state_dict()
    weights = [key for key in given if "running" not in key and "num_batches" not in key]
    assert all(torch.allclose(found[key], given[key], atol=1e-6) for key in weights)
    given.pop("body.conv1.weight")
    save_file(given, tmp_path / "encoder.safetensors", metadata=about)
    with pytest.raises(UserError, match="lacks 1 of the backbone's tensors, such as body.conv1.weight"):
        command.main(
            [recipe, str(tmp_path / "encoder.safetensors"), *sets, *options[:-1], f"train.out={tmp_path / 'b'}"]
        )


def test_a_vit_of_a_run_segments(command, voc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrain.main(["mae_vit-tiny", "--smoke", "train.max_steps=1", f"train.out={tmp_path / 'mae'}"]) == 0
    sets = [f"data.train=voc12aug:{voc}", f"data.val=voc12aug:{voc}?split=val", "algorithm.head=upernet"]
    options = [*SMALL[1:], "train.max_steps=1", f"train.out={tmp_path / 'run'}", "algorithm.backbone.drop_path=0.1"]
    assert segment.main([VOC, str(tmp_path / "mae"), *sets, *options]) == 0
    trained = checkpoint.load_algorithm(tmp_path / "run")[1]
    assert trained.config.backbone.drop_path == 0.1 and trained.config.backbone.patch_size == 8
