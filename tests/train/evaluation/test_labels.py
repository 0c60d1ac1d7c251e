"""Validation sets that are not quite like the training set: classes by name, what is missing, and what is said."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from headrace.errors import UserError
from headrace.pipelines.shard import shard
from headrace.pipelines.sources import open_source
from headrace.pipelines.views.recipes import CIFAR_MEAN, CIFAR_STD
from headrace.train.evaluation import finetune, knn
from headrace.train.evaluation.labels import labelled, labelled_sets, matched, remarks, same_images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twelve images that differ, by number."""
    root = tmp_path_factory.mktemp("images")
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{index}.png")
    return root


@pytest.fixture
def folder(images, tmp_path):
    """Makes a folder of given classes out of given images."""

    def make(name, classes):
        for kind, numbers in classes.items():
            (tmp_path / name / kind).mkdir(parents=True, exist_ok=True)
            for number in numbers:
                (tmp_path / name / kind / f"{number}.png").write_bytes((images / f"{number}.png").read_bytes())
        return tmp_path / name

    return make


def labels(source):
    return {source.key(i).rpartition("/")[2]: source.label(i) for i in range(len(source))}


@pytest.mark.parametrize(
    "classes, expected",
    [
        ({"b": [6], "c": [7, 8], "d": [9]}, {"6.png": 1, "7.png": 2, "8.png": 2, "9.png": 3}),  # without the first
        ({"a": [6], "c": [7]}, {"6.png": 0, "7.png": 2}),  # without others
        ({"a": [6], "b": [7], "c": [8]}, {"6.png": 0, "7.png": 1, "8.png": 2}),  # without the last
        ({"d": [6, 7]}, {"6.png": 3, "7.png": 3}),  # one alone
    ],
)
def test_classes_are_matched_by_name(folder, tmp_path, classes, expected):
    train = folder("train", {"a": [0], "b": [1], "c": [2], "d": [3]})
    sets = labelled_sets(str(train), str(folder("val", classes)))
    assert labels(sets[1]) == expected and sets[1].classes == sets[0].classes == ["a", "b", "c", "d"]
    (said,) = remarks(*sets)
    absent = [name for name in "abcd" if name not in classes]
    assert f"has no image of {len(absent)} of 4 classes: {', '.join(map(repr, absent))}" in said
    if len(classes) > 1:  # and as shards, in whatever order their classes are
        shard(tmp_path / "val", tmp_path / "shards")
        source = matched(sets[0], open_source(tmp_path / "shards"))
        assert sorted(source.label(i) for i in range(len(source))) == sorted(expected.values())


def test_numbers_without_the_highest_are_those_numbers(images, tmp_path):
    for name, numbers in (("train", [0, 1, 2, 3, 4]), ("val", [3, 1, 0])):
        (tmp_path / f"{name}.txt").write_text("".join(f"{number}.png {number}\n" for number in numbers))
    given = [f"list:{tmp_path}/{name}.txt?root={images}" for name in ("train", "val")]
    train, val = labelled_sets(*given)
    assert labels(val) == {"3.png": 3, "1.png": 1, "0.png": 0} and len(val.classes) == 5
    with pytest.raises(UserError, match="--val: .* has other classes than --train: '4', where"):
        labelled_sets(given[1], given[0])


def test_names_are_equal_in_either_unicode_form(folder):
    name = "caf\u00e9"
    train = folder("train", {unicodedata.normalize("NFD", name): [0], "zoo": [1]})
    val = folder("val", {unicodedata.normalize("NFC", name): [2, 3], "zoo": [4]})
    sets = labelled_sets(str(train), str(val))
    assert sets[0].classes != open_source(val).classes
    assert labels(sets[1]) == {"2.png": 0, "3.png": 0, "4.png": 1} and remarks(*sets) == []
    both = folder("both", {unicodedata.normalize(form, name): [number] for number, form in enumerate(("NFD", "NFC"))})
    with pytest.raises(UserError, match="--train: .* two classes 'café' that only differ in how accents are stored"):
        labelled_sets(str(both), str(val))


@pytest.mark.parametrize(
    "train, val, words",
    [
        ({"a": [0], "b": [1]}, {"": [2]}, "--val: .* no labels: its images lie in no folders; give a folder per class"),
        ({"a": [0], "b": [1]}, {"a": [2], "b": [3], "": [4, 5]}, "--val: .* 2 images, such as '4.png', lie beside its"),
        ({"a": [0], "b": [1]}, {"all": [2]}, "--val: .* in one folder, 'all'; give the folder that holds a folder per"),
        ({"a": [0]}, {"a": [2]}, "--train: .* all of its images lie in one folder, 'a'"),
        ({"a": [0], "b": [1]}, {"a": [2], "c": [3]}, "'c', where .* has 'a', 'b'; leave the images of 1 of its 2"),
        ({"apple": [0], "pear": [1]}, {"apples": [2], "pear": [3]}, "is 'apples' 'apple'[?] Rename it"),
        ({"apple": [0], "pear": [1]}, {"0": [2], "1": [3]}, "they are numbers and not names: make both sets alike"),
        ({"0": [0], "1": [1]}, {"apple": [2], "pear": [3]}, "they are names and not numbers: make both sets alike"),
    ],
)
def test_remedies_fit(folder, train, val, words):
    with pytest.raises(UserError, match=words) as caught:
        labelled_sets(str(folder("train", train)), str(folder("val", val)))
    assert "\n" not in str(caught.value)


def test_finetune_names_its_own_settings(folder):
    train, val = folder("train", {"a": [0], "b": [1]}), folder("val", {"a": [2], "x": [3]})
    with pytest.raises(UserError, match="data.val: .* has other classes than data.train: 'x'"):
        finetune.main(["finetune/vit-tiny_cifar10", "scratch", f"data.train={train}", f"data.val={val}"])


def test_a_set_that_is_the_training_set_is_said_to_be(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = str(folder("train", {"a": range(6), "b": range(6, 12)}))
    copy, other = (
        folder("copy", {"a": range(6), "b": range(6, 12)}),
        folder("other", {"a": range(7), "b": range(7, 12)}),
    )
    assert same_images(*map(open_source, (train, copy))) and not same_images(*map(open_source, (train, other)))
    assert knn.main(["pixels:8", "--train", train, "--val", str(copy), "--k", "1", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "100.00%" in said and f"holds the images of {train}: these figures are of images that were learned" in said
    arguments = ["pixels:8", "--train", train, "--val", train, "--k", "1", "200", "--leave-one-out", "--threads", "1"]
    assert knn.main(arguments) == 0
    said = capsys.readouterr().out
    assert "12 queries, each without itself" in said and "learned from" not in said
    assert "--k 200: there are only 11 neighbours, which all vote" in said
    vectors = np.stack([np.asarray(Image.open(f"{train}/{'ab'[n > 5]}/{n}.png"), float).ravel() for n in range(12)])
    vectors = (vectors / 255 - np.tile(CIFAR_MEAN, 64)) / np.tile(CIFAR_STD, 64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = (vectors @ vectors.T - 9 * np.eye(12)).argmax(1)
    assert f"{np.mean(nearest // 6 == np.arange(12) // 6):.2%}" in said.splitlines()[2]
    with pytest.raises(UserError, match="--leave-one-out: --train and --val hold different images"):
        knn.main([*arguments[:4], str(other), "--leave-one-out"])


def test_all_of_a_labelled_set_is_the_set_itself(folder):
    source = open_source(folder("train", {"a": [0], "b": [1]}))
    assert labelled(source) is source
