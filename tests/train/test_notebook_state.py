"""What belongs to the process is left as it was, and has no effect on what was made before: which values are black and
white, how many channels there are, kernels, torch's settings and random numbers."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import headrace
from headrace.cli import dispatch
from headrace.kernels.registry import decide, operator
from headrace.pipelines import ViewSpec
from headrace.pipelines.images.rules import Rules, rules, use_rules

WHOLE = {"crop": "center", "center_fraction": 1.0, "flip": 0.0}
GRAY = ViewSpec(size=8, **WHOLE, mean=(0, 0, 0), std=(1, 1, 1))
TINY = {"smoke": True, "train.max_steps": 1}
DEEP = {"data.channels": 4, "algorithm.backbone.in_channels": 4}
DEEP |= {"algorithm.view.mean": [0.5] * 4, "algorithm.view.std": [0.25] * 4}


@pytest.fixture(scope="module")
def twelve_bits(tmp_path_factory):
    """Sixteen gray images, each of one level of 12 bits; a folder, and the levels by name."""
    folder = tmp_path_factory.mktemp("gray")
    levels = {f"{i:02}": 100 + 250 * i for i in range(16)}
    for name, level in levels.items():
        Image.fromarray(np.full((8, 8), level, np.uint16)).save(folder / f"{name}.png")
    return folder, np.array(list(levels.values()))


@pytest.fixture(scope="module")
def four_channels():
    images = np.random.default_rng(0).integers(0, 60000, (16, 16, 16, 4)).astype(np.uint16)
    return images, [0] * 8 + [1] * 8


def shown(loader) -> dict[int, int]:
    """What a loader makes of each image: its one gray level, of 255."""
    found = {}
    for batch in loader:
        found |= dict(zip(batch.ids.tolist(), (255 * batch.views["image"][0][:, 0, 0, 0]).round().int().tolist()))
    return found


@pytest.mark.parametrize("kind", ["cpu", "memory"])
def test_a_loader_keeps_the_rules_that_it_was_made_under(kind, twelve_bits):
    folder, levels = twelve_bits
    options = {"views": GRAY, "batch_size": 4, "loader": kind, "threads": 2}
    narrow = headrace.loader(folder, **options, range=(0, 4095))
    whole = headrace.loader(folder, **options, range="full")
    for _ in range(3):  # in turn: the threads of either are ahead while the other is read
        assert list(dict(sorted(shown(narrow).items())).values()) == np.rint(255 * levels / 4095).astype(int).tolist()
        assert list(dict(sorted(shown(whole).items())).values()) == (levels >> 8).tolist()
    narrow.close(), whole.close()


def test_functions_leave_the_rules_as_they_were(twelve_bits, tmp_path):
    folder, levels = twelve_bits
    run = headrace.pretrain("simclr_resnet18", folder, **TINY, **{"train.out": tmp_path, "data.range": [0, 4095]})
    assert rules() == Rules()
    loader = headrace.loader(folder, views=GRAY, batch_size=4)
    headrace.embed(run, folder)
    use_rules(Rules(range="percentile"))
    headrace.embed(run, folder)
    with pytest.raises(headrace.UserError, match="no labels"):
        headrace.knn(run, folder, folder, k=1)
    assert rules() == Rules(range="percentile")
    pixels = headrace.embed(torch.nn.Flatten(), folder, view=ViewSpec(**(vars(GRAY) | {"name": "evaluation"})))
    assert (pixels.vectors == 0).all()  # all of one level, which is no range: black
    assert list(dict(sorted(shown(loader).items())).values()) == (levels >> 8).tolist()


def test_deep_images_in_any_form_are_those_of_the_encoder(four_channels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    """Arrays, and files that are images because of the number of channels only, for a run and its features."""
    images, labels = four_channels
    for index, (image, label) in enumerate(zip(images, labels)):
        (tmp_path / "images" / "ab"[label]).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "images" / "ab"[label] / f"{index:02}.npy", image)
    of_arrays, of_files = (
        headrace.pretrain("mae_vit-tiny", data, **TINY, **DEEP, **{"train.out": tmp_path / name})
        for name, data in (("arrays", (images, labels)), ("files", tmp_path / "images"))
    )
    arrays, files = load_file(of_arrays / "encoder.safetensors"), load_file(of_files / "encoder.safetensors")
    assert arrays.keys() == files.keys() and all(torch.equal(arrays[key], files[key]) for key in arrays)
    found = [headrace.embed(of_files, data) for data in ((images, labels), tmp_path / "images")]
    assert np.array_equal(found[0].vectors, found[1].vectors) and found[0].vectors.shape[0] == 16
    rows = [headrace.knn(of_files, data, data, k=3) for data in ((images, labels), tmp_path / "images")]
    assert rows[0] == rows[1]
    assert rules() == Rules()
    for command in ("tsne", "attention"):  # which open the images for an encoder whose images these are
        use_rules(Rules())
        assert dispatch([command, str(of_files), str(tmp_path / "images"), "--out", str(tmp_path / "seen.png")]) == 0


def test_what_a_run_chooses_is_its_own(tmp_path):
    """Deterministic operators and its kernels; and the weights of an untrained encoder are no numbers of the caller."""
    chosen, state = {"kernels": {"augment": "reference"}}, torch.get_rng_state()
    headrace.pretrain("simclr_resnet18", **TINY, **chosen, **{"train.out": tmp_path, "train.deterministic": True})
    assert not torch.are_deterministic_algorithms_enabled()
    assert decide(operator("augment"), ("cpu", torch.float32, 8, 0)).why == "automatic"

    torch.set_rng_state(state)
    headrace.embed("random:simclr_resnet18", np.zeros((2, 8, 8, 3), np.uint8), view=GRAY)
    assert torch.equal(torch.get_rng_state(), state)
