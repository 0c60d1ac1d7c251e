"""Frozen probes on patches: figures of a search and of pixels written out in numpy, an encoder that knows every class,
one that knows none, a head trained by a loop of its own; what goes wrong."""

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from headrace.errors import UserError
from headrace.models.dense.feature_map import feature_map
from headrace.pipelines.sources.voc import CATEGORIES
from headrace.pipelines.spec import ViewSpec
from headrace.tools.runs.run_record import _scores
from headrace.train.evaluation.embed_encoder import Encoder
from headrace.train.patches import features, knn, linear
from headrace.train.patches.features import PatchSet, majority

sys.path.insert(0, str(Path(__file__).parents[1] / "dense"))
import trees  # noqa: E402

COLOURS = np.array([(20, 20, 20), (230, 30, 30), (30, 220, 40), (40, 50, 230)], np.uint8)  # of classes 0 to 3


class Painted:
    """Images whose pixels have the colours of their classes, each of which fills whole patches of 8 px; `(H, W)` = 40 x
    64. A source as far as these probes know sources."""

    name, categories, classes = "painted", ["background", *CATEGORIES], None

    def __init__(self, count, seed, stripes=True):
        rng = np.random.default_rng(seed)
        cells = rng.integers(0, 4, (count, 1 if stripes else 5, 8)).repeat(5 if stripes else 1, 1)
        self.masks = cells.repeat(8, 1).repeat(8, 2).astype(np.uint8)

    def __len__(self):
        return len(self.masks)

    def key(self, index):
        return f"image {index}"

    def target(self, index):
        return self.masks[index]

    def read(self, index):
        return _png(COLOURS[self.masks[index] % 4])


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def patch_set(source, vectors, grid=(5, 8)):
    numbers = np.arange(256, dtype=np.uint8)
    return PatchSet(source, vectors.float().view(len(source), grid[0] * grid[1], -1), grid, 40, numbers)


def noise(source, seed, width=6):
    return patch_set(source, torch.randn(len(source), 40, width, generator=torch.Generator().manual_seed(seed)))


def alone(device="cpu"):
    return SimpleNamespace(rank=0, world=1, device=torch.device(device), gather=lambda value: [value])


def table(train, val, ks, temperatures=(0.1,), **options):
    bank = knn.patch_bank(train, train.classes(alone(), 1), 10**6, 0)
    return knn.patch_knn_table(bank, val, 21, ks=ks, temperatures=temperatures, **options)


def by_hand(train, val, k, temperature):
    """The same in float64: every similarity, sorted; shares of votes; bilinear by its formula; figures by loops."""

    def unit(x):
        x = x.double().numpy().reshape(-1, x.shape[-1])
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    rows, columns = val.grid
    labels = np.concatenate([train.source.masks[i][4::8, 4::8].ravel() for i in range(len(train))])
    known = labels != 255
    bank, labels = unit(train.vectors)[known], labels[known]
    intersection, union = np.zeros(21), np.zeros(21)
    right = counted = 0
    for index in range(len(val)):
        similarity = unit(val.vectors[index]) @ bank.T
        shares = np.zeros((rows * columns, 21))
        for patch, line in enumerate(similarity):
            near = np.argsort(-line)[:k]
            for place in near:
                shares[patch, labels[place]] += np.exp((line[place] - line[near[0]]) / temperature)
        shares = (shares / shares.sum(1, keepdims=True)).reshape(rows, columns, 21)
        truth = val.source.masks[index]
        predicted = np.zeros_like(truth)
        for y in range(truth.shape[0]):
            for x in range(truth.shape[1]):
                fy = np.clip((y + 0.5) * rows / truth.shape[0] - 0.5, 0, rows - 1)
                fx = np.clip((x + 0.5) * columns / truth.shape[1] - 0.5, 0, columns - 1)
                top, left = int(fy), int(fx)
                down, over = min(top + 1, rows - 1), min(left + 1, columns - 1)
                b, a = fy - top, fx - left
                upper = (1 - a) * shares[top, left] + a * shares[top, over]
                lower = (1 - a) * shares[down, left] + a * shares[down, over]
                predicted[y, x] = ((1 - b) * upper + b * lower).argmax()
        counts = truth != 255
        right, counted = right + (predicted == truth)[counts].sum(), counted + counts.sum()
        for c in range(21):
            p, t = (predicted == c) & counts, (truth == c) & counts
            intersection[c] += (p & t).sum()
            union[c] += (p | t).sum()
    there = union > 0
    return (intersection[there] / union[there]).mean(), right / counted


@pytest.mark.parametrize("memory", [1.0, 1e-5])
def test_neighbours_and_figures_are_those_of_a_search_written_out(memory):
    train, val = noise(Painted(5, 0, stripes=False), 1), noise(Painted(3, 2, stripes=False), 3)
    for source in (train.source, val.source):
        source.masks[0, 8:24, :16] = 255
    for row in table(train, val, [1, 7], (0.05, 0.3), memory=memory):
        mean, share = by_hand(train, val, row["k"], row["temperature"])
        assert row["mIoU"] == pytest.approx(mean, abs=1e-3) and row["aAcc"] == pytest.approx(share, abs=1e-3)


def test_two_processes_find_what_one_does():
    """The first one's part is kept where it would be sent, and given to the second."""
    train, val = noise(Painted(5, 0, stripes=False), 1), noise(Painted(3, 2, stripes=False), 3)

    class Sent(Exception):
        pass

    def both(work):
        parts = []

        def gather(value):
            parts.append(value)
            if len(parts) == 1:
                raise Sent
            return parts

        first, second = (SimpleNamespace(rank=r, world=2, device=torch.device("cpu"), gather=gather) for r in (0, 1))
        with pytest.raises(Sent):
            work(first)
        return work(second)

    labels = both(lambda process: train.classes(process, 1))
    assert torch.equal(labels, train.classes(alone(), 1))
    bank, options = knn.patch_bank(train, labels, 10**6, 0), {"ks": [1, 7], "temperatures": [0.05]}
    found = both(lambda process: knn.patch_knn_table(bank, val, 21, process=process, **options))
    assert found == knn.patch_knn_table(bank, val, 21, **options)


def test_patches_that_do_not_count_are_no_neighbours():
    """The nearest patch of all has no class; the next one has."""
    train, val = Painted(1, 0), Painted(1, 1)
    train.masks[:], val.masks[:] = 3, 3
    train.masks[0, :, :32] = 255
    vectors = torch.randn(1, 40, 6, generator=torch.Generator().manual_seed(0))
    (row,) = table(patch_set(train, vectors), patch_set(val, vectors), [1])
    assert row["mIoU"] == row["aAcc"] == 1
    train.masks[:] = 255
    with pytest.raises(UserError, match="--train: painted: not one patch"):
        table(patch_set(train, vectors), patch_set(val, vectors), [1])


def test_votes_of_noise_are_right_by_chance():
    """Of four classes a quarter of patches, within four standard deviations; also of a bank that is a draw of all."""
    train, val = noise(Painted(40, 0, stripes=False), 1), noise(Painted(40, 2, stripes=False), 3)
    bank = knn.patch_bank(train, train.classes(alone(), 1), 500, seed=0)
    assert len(bank.labels) == 500 == len(bank.vectors)
    for found in (bank, knn.patch_bank(train, train.classes(alone(), 1), 10**6, 0)):
        (row,) = knn.patch_knn_table(found, val, 21, ks=[1], temperatures=[0.1])
        assert abs(row["aAcc"] - 0.25) < 4 * (0.25 * 0.75 / (40 * 40)) ** 0.5
    head = linear.fit_head(train, 21, steps=10, batch_size=8, lr=0.05)
    figures = linear.segmentation_figures(linear.confusion_of(head, val, 21))
    assert abs(figures["aAcc"] - 0.25) < 0.06


@pytest.mark.parametrize("cells", [(4, 3), (1, 1), (7, 16)])
def test_majorities(cells):
    rng = np.random.default_rng(0)
    mask = rng.choice(np.array([0, 5, 255], np.uint8), (6 * cells[0], 4 * cells[1]))
    found = majority(mask, (6, 4)).reshape(6, 4)
    for row in range(6):
        for column in range(4):
            part = mask[row * cells[0] :][: cells[0], column * cells[1] :][:, : cells[1]]
            values, counts = np.unique(part, return_counts=True)
            assert found[row, column] == values[counts.argmax()]


def test_a_head_is_that_of_a_loop_written_out():
    """Batch normalisation, a layer, enlarged scores, cross entropy of pixels that count, AdamW: by their formulas."""
    train = noise(Painted(6, 0, stripes=False), 1)
    train.source.masks[:, :8, :8] = 255
    steps, lr, decay = 40, 0.02, 0.1
    head = linear.fit_head(train, 21, steps=steps, batch_size=6, lr=lr, weight_decay=decay, seed=3)
    start = linear.fit_head(train, 21, steps=1, batch_size=6, lr=1e-30, weight_decay=0, seed=3)
    weights = [torch.ones(6), torch.zeros(6), start[1].weight[:, :, 0, 0].detach(), torch.zeros(21)]
    weights = [w.double().requires_grad_() for w in weights]
    moments = [[torch.zeros_like(w), torch.zeros_like(w)] for w in weights]
    x = train.vectors.double()
    mean, variance = x.mean((0, 1)), x.var((0, 1), unbiased=False)
    masks = torch.from_numpy(np.stack([train.squashed(i, 5) for i in range(6)])).long()
    assert masks.shape == (6, 25, 40)
    warm = round(steps * 1500 / 40_000)
    for step in range(steps):
        normal = (x - mean) / (variance + 1e-5).sqrt() * weights[0] + weights[1]
        scores = (normal @ weights[2].T + weights[3]).transpose(1, 2).unflatten(2, (5, 8))
        large = nn.functional.interpolate(scores, (25, 40), mode="bilinear")
        logs = (large.exp() / large.exp().sum(1, keepdim=True)).log()
        counts = masks != 255
        loss = -logs.gather(1, masks.where(counts, 0)[:, None])[:, 0][counts].sum() / masks.numel()
        slopes = torch.autograd.grad(loss, weights)
        rate = lr * (1e-6 + (1 - 1e-6) * step / (warm - 1) if step < warm else 1 - (step - warm) / (steps - warm))
        with torch.no_grad():
            for w, m, slope in zip(weights, moments, slopes):
                w *= 1 - rate * decay
                m[0].mul_(0.9).add_(0.1 * slope)
                m[1].mul_(0.999).add_(0.001 * slope**2)
                w -= rate * m[0] / (1 - 0.9 ** (step + 1)) / ((m[1] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    mine = [head[0].weight, head[0].bias, head[1].weight[:, :, 0, 0], head[1].bias]
    assert not torch.allclose(weights[2], start[1].weight[:, :, 0, 0].double(), atol=0.05)
    for found, expected in zip(mine, weights):
        assert torch.allclose(found.double(), expected, atol=2e-3)


# commands


class Averages(nn.Module):
    """An encoder that sees the mean colour of patches of 8 px, far from grey."""

    patch_size = 8

    def feature_maps(self, images):
        return [nn.functional.avg_pool2d(images, 8)]


@pytest.fixture(scope="module")
def striped(tmp_path_factory):
    """VOC's form: whole patches of one colour a class after images of 64 x 40 px are squashed to 64."""
    root = tmp_path_factory.mktemp("striped")
    for split, count in {"train": 4, "aug": 4, "val": 3}.items():
        source, ids = Painted(count, ord(split[0])), [f"2009_{ord(split[0])}{n:03d}" for n in range(count)]
        for index, name in enumerate(ids):
            base = root / "VOCdevkit/VOC2012"
            pixels = Image.fromarray(COLOURS[source.masks[index]])
            trees.save(pixels, base / f"JPEGImages/{name}.jpg", quality=100, subsampling=0)
            folder = f"SegmentationClass{'Aug' if split == 'aug' else ''}"
            trees.save(Image.fromarray(source.masks[index]), base / folder / f"{name}.png")
        trees.write(root / f"VOCdevkit/VOC2012/ImageSets/Segmentation/{split}.txt", "\n".join(ids) + "\n")
    return root / "VOCdevkit"


@pytest.fixture
def command(striped, tmp_path, monkeypatch):
    known = features.load_encoder

    def loaded(name):
        view = ViewSpec(size=64, flip=0.0, mean=(0.5,) * 3, std=(0.2,) * 3)
        return Encoder(name, Averages(), view, "0" * 16) if name == str(tmp_path / "averages") else known(name)

    monkeypatch.setattr(features, "load_encoder", loaded)

    def command(kind, *given, encoder=None, train=f"voc12aug:{striped}", val=f"voc12aug:{striped}?split=val"):
        sets = ["--train", train, "--val", val, "--device", "cpu", "--threads", "1"]
        places = ["--features", str(tmp_path / "features"), "--results", str(tmp_path / "rows.jsonl")]
        module = {"knn": knn, "linear": linear}[kind]
        assert module.main([encoder or str(tmp_path / "averages"), *sets, *places, *given]) == 0
        return json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[-1])

    return command


def test_an_encoder_that_tells_the_classes_is_right_everywhere(command, tmp_path, capsys):
    row = command("knn", "--k", "1", "3")
    assert [(entry["mIoU"], entry["aAcc"]) for entry in row["figures"]] == [(1, 1), (1, 1)]
    assert row["protocol"] == "dense-knn" and row["settings"]["grid"] == [8, 8] and row["data"]["images"] == [8, 3]
    assert row["settings"]["neighbours"] == 8 * 64 and "100.00%" in capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.npy")}
    row = command("linear", "--steps", "60", "--lr", "0.1", "--head-batch", "4")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.npy")} == made  # used again
    assert row["figures"]["mIoU"] > 0.97 and row["figures"]["IoU"]["background"] > 0.97
    assert row["figures"]["IoU"]["person"] is None and row["settings"]["steps"] == 60
    scores = _scores(tmp_path / "rows.jsonl", tmp_path / "averages")
    on = f"voc12aug:{row['data']['val'].split(':', 1)[1]}"
    assert scores[f"dense-knn on {on}, k 1, temperature 0.02, mIoU"] == 1
    assert scores[f"dense-linear on {on}, aAcc"] == row["figures"]["aAcc"]


@pytest.mark.parametrize("encoder", ["random:simclr_resnet18_cifar10", "random:capi_vit-tiny_cifar10"])
def test_encoders_of_ours(command, encoder):
    """Untrained, on flat colours: nearest patches show the same colour."""
    row = command("knn", "--k", "1", "--size", "64", encoder=encoder)
    assert row["figures"][0]["aAcc"] > 0.9 and row["encoder"]["view"]["squash"]


def test_maps_of_encoders_of_others():
    """What they pool, or the tokens behind the one that stands for the class."""
    from torchvision.models import resnet18, swin_t
    from torchvision.models.vision_transformer import VisionTransformer

    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for model, last, shape in ((resnet18().eval(), "fc", (512, 2, 2)), (swin_t().eval(), "head", (768, 2, 2))):
        setattr(model, last, nn.Identity())
        found = feature_map(model, images)
        assert found.shape[1:] == shape and torch.allclose(found.mean((2, 3)), model(images), atol=1e-5)
    vit = VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48).eval()
    tokens = vit.encoder(torch.cat([vit.class_token.expand(2, -1, -1), vit._process_input(images)], 1))
    assert torch.allclose(feature_map(vit, images).flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-5)
    with pytest.raises(UserError, match="Flatten gives no map of features"):
        feature_map(nn.Flatten(), images)


TIMM = {"vit_tiny_patch16_224": "fc_norm", "swin_tiny_patch4_window7_224": None, "resnet18": None}


@pytest.mark.parametrize("name", TIMM)
def test_maps_of_timm(name):
    """Their means, normalised where the model does that behind its pooling, are its features."""
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    torch.manual_seed(0)
    model, images = timm.create_model(name, num_classes=0, global_pool="avg").eval(), torch.randn(1, 3, 224, 224)
    norm = getattr(model, TIMM[name]) if TIMM[name] else nn.Identity()
    with torch.inference_mode():
        assert torch.allclose(norm(feature_map(model, images).mean((2, 3))), model(images), atol=1e-4)


def test_errors(command, striped, tmp_path):
    def refused(*given, **options):
        with pytest.raises(UserError) as fault:
            command(*given, **options)
        assert "\n" not in str(fault.value)
        return str(fault.value)

    for kind in ("knn", "linear"):
        assert "--size: " in (said := refused(kind, "--size", "30")) and "multiples of 8 px, such as 32, not 30" in said
        assert "--layer: from 0 to 0" in refused(kind, "--layer", "2")
        assert "gives no map of features" in refused(kind, encoder="pixels:32")
        assert "none" in refused(kind, encoder=str(tmp_path / "none"))
        city = trees.cityscapes(tmp_path / kind, {"train": 2, "val": 1})
        assert refused(kind, val=f"cityscapes:{city}?split=val").startswith("--val: cityscapes")
        plain = tmp_path / "plain"
        trees.save(trees.scene(0)[0], plain / "1.png")
        assert (said := refused(kind, train=str(plain))).startswith("--train: ") and "no masks of classes" in said
    assert "must be positive" in refused("knn", "--temperature", "0")
    assert "--lr, --weight-decay" in refused("linear", "--lr", "0")
    assert not (tmp_path / "rows.jsonl").exists()
    copy = tmp_path / "copy"
    shutil.copytree(striped, copy / "VOCdevkit")
    mask = next((copy / "VOCdevkit/VOC2012/SegmentationClassAug").iterdir())
    Image.open(mask).resize((10, 10)).save(mask)
    assert f"{mask.stem}" in (said := refused("knn", train=f"voc12aug:{copy}")) and "but its mask (10, 10)" in said
    picture = copy / f"VOCdevkit/VOC2012/JPEGImages/{mask.stem}.jpg"
    picture.write_bytes(b"no image")
    assert f"{picture.name}" in refused("linear", train=f"voc12aug:{copy}")
