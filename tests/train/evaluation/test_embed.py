"""Features on disk are those in memory; caches know what they were made of; encoders by name."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from headrace.errors import UserError
from headrace.models.backbones import ResNet
from headrace.models.stage_pools import Stage
from headrace.pipelines.sources import open_source
from headrace.train import pretrain
from headrace.train.evaluation import embed_store
from headrace.train.evaluation.embed import embed
from headrace.train.evaluation.embed_encoder import load_encoder
from headrace.train.evaluation.embed_store import fingerprint, stored_features


@pytest.fixture(scope="module")
def run(tmp_path_factory, photo_folder):
    out = tmp_path_factory.mktemp("run")
    arguments = ["simclr_resnet18", "--smoke", f"data.train={photo_folder}", "data.threads=1", f"train.out={out}"]
    assert pretrain.main([*arguments, "train.max_steps=2"]) == 0
    return out


def test_what_is_stored_is_what_is_embedded(run, photo_folder, tmp_path):
    encoder, source = load_encoder(str(run)), open_source(photo_folder)
    fresh = embed(encoder.module, source, encoder.view, batch_size=7, threads=1)
    stored = stored_features(encoder, source, tmp_path, batch_size=5, threads=1)
    assert torch.equal(stored.labels, fresh.labels) and (stored.vectors - fresh.vectors).abs().max() < 1e-5
    array = np.load(stored.place / "features.npy")
    assert array.dtype == np.float32 and np.array_equal(array, stored.vectors.numpy())
    keys = (stored.place / "keys.txt").read_text().splitlines()
    assert keys == [source.key(i) for i in range(len(source))]
    # a second time nothing is computed: an encoder that cannot run gives the same rows
    encoder.module = None
    assert torch.equal(stored_features(encoder, source, tmp_path).vectors, stored.vectors)


def test_a_cache_is_of_one_encoder_one_set_and_one_view(run, photo_folder, tmp_path):
    encoder, source = load_encoder(str(run)), open_source(photo_folder)
    place = stored_features(encoder, source, tmp_path, threads=1).place
    other = load_encoder(f"random:{run}/config.yaml")
    assert other.digest != encoder.digest == load_encoder(f"{run}/encoder.safetensors").digest
    assert stored_features(other, source, tmp_path, threads=1).place != place
    before = fingerprint(source)
    changed = tmp_path / "photos" / "class_0"
    for path in sorted(photo_folder.rglob("*.jpg")):
        copy = tmp_path / "photos" / path.relative_to(photo_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert fingerprint(open_source(tmp_path / "photos")) == before  # wherever it lies
    first = sorted(changed.glob("*.jpg"))[0]
    Image.new("RGB", (64, 64), "red").save(first)
    assert fingerprint(open_source(tmp_path / "photos")) != before


def test_an_interrupted_cache_leaves_nothing(run, photo_folder, tmp_path, monkeypatch):
    encoder, source = load_encoder(str(run)), open_source(photo_folder)

    def fails(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(embed_store.np, "save", fails)
        with pytest.raises(KeyboardInterrupt):
            stored_features(encoder, source, tmp_path / "cache", threads=1)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(stored_features(encoder, source, tmp_path / "cache", threads=1).labels) == 24


def test_undecodable_images_have_no_row(run, photo_folder, tmp_path, capsys):
    for index, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[:6]):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{index}.jpg").write_bytes(path.read_bytes()[: 200 if index == 4 else None])
    assert embed_store.main([str(run), f"{tmp_path}/set", "--out", f"{tmp_path}/out", "--threads", "1"]) == 0
    (place,) = (tmp_path / "out").iterdir()
    assert np.load(place / "features.npy").shape[0] == len(np.load(place / "labels.npy")) == 5
    assert (place / "keys.txt").read_text().split() == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "5.jpg"]
    assert json.loads((place / "about.json").read_text())["left_out"][0].startswith("4.jpg")
    assert "left out: 4.jpg" in capsys.readouterr().out


def test_pixels_are_the_pixels(photo_folder, tmp_path):
    encoder, source = load_encoder("pixels:8"), open_source(photo_folder)
    stored = stored_features(encoder, source, tmp_path, threads=1)
    assert stored.vectors.shape == (24, 192)


def test_torchvision_encoders_end_before_the_classifier(tmp_path, monkeypatch):
    """A file in torch's cache stands in for the published weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(model.state_dict(), tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2])
    encoder = load_encoder("torchvision:resnet18")
    images = torch.randn(2, 3, 64, 64)
    model.eval()
    expected = {}
    model.avgpool.register_forward_hook(lambda _, __, out: expected.update(features=out.flatten(1)))
    model(images)
    assert torch.equal(encoder.module(images), expected["features"])
    view = encoder.view
    assert (view.size, view.center_fraction, view.interpolation) == (224, 224 / 256, "bilinear")
    with pytest.raises(UserError, match="no such model"):
        load_encoder("torchvision:resnet19")


@pytest.mark.parametrize("layer, width", [("feat1", 9216), ("feat2", 2304), ("feat5", 2048)])
def test_stages_are_pooled_as_published(layer, width):
    """ResNet-18's maps are a quarter as wide as ResNet-50's from the second on."""
    torch.manual_seed(0)
    resnet = ResNet(ResNet.Config("resnet18")).eval()
    images = torch.randn(1, 3, 224, 224)
    maps = resnet.stages(images)[int(layer[-1]) - 1]
    kernel, stride, padding = {"feat1": (10, 10, 4), "feat2": (16, 8, 0), "feat5": (6, 1, 0)}[layer]
    got = Stage(resnet, layer)(images)
    assert got.shape == (1, width)
    padded = F.pad(maps, (padding,) * 4)
    corner = padded[0, :, stride : stride + kernel, :kernel].mean((1, 2))  # the pool in row 1, column 0
    columns = (padded.shape[-1] - kernel) // stride + 1
    assert (got.view(maps.shape[1], columns, columns)[:, 1, 0] - corner).abs().max() < 1e-5


def test_names_that_are_none(tmp_path):
    for name, message in (("pixels:many", "needs the side"), (str(tmp_path), "no readable checkpoint")):
        with pytest.raises(UserError, match=message):
            load_encoder(name)
    (tmp_path / "x.safetensors").write_bytes(b"not that")
    with pytest.raises(UserError, match="no encoder.safetensors of headrace"):
        load_encoder(f"{tmp_path}/x.safetensors")
