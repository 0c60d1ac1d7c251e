"""Folders as people keep them: splits that are no classes, images one folder deeper, files that nobody reads."""

import pytest

from headrace.errors import UserError, run_command
from headrace.pipelines.check import check, main
from headrace.pipelines.shard import main as shard_main
from headrace.pipelines.sources import open_source


@pytest.fixture
def tree(tmp_path, write_files, encode):
    def make(*names):
        return write_files(tmp_path / "set", {name: encode(n) for n, name in enumerate(names)})

    return make


def opened(name):
    said = []
    source = open_source(name, said.append)
    return source, [line.removeprefix(f"{name}: ") for line in said]


SPLITS = [
    ("train", "val"),
    ("train", "test"),
    ("Training", "Validation"),
    ("train2017", "val2017", "test2017"),
    ("trainval", "test"),
    ("train_images", "test_images"),
    ("images/train", "images/val"),
    ("a/b/train", "a/b/valid", "a/b/test"),
]


@pytest.mark.parametrize("folders", SPLITS)
def test_splits_are_no_classes(folders, tree):
    root = tree(*(f"{folder}/{kind}/{n}.jpg" for folder in folders for kind in "xy" for n in range(2)))
    with pytest.raises(UserError) as caught:
        open_source(root)
    train = root / folders[0]
    for part in (*folders, "splits and not classes", f"give one of them, such as {train}, or folder:{root} for all"):
        assert part in str(caught.value)
    assert open_source(train).classes == ["x", "y"]
    source, said = opened(f"folder:{root}")
    assert len(source) == 4 * len(folders) and source.classes is None and {source.label(i) for i in range(4)} == {-1}
    assert len(said) == 1 and "no labels" in said[0] and "splits and not classes" in said[0]


@pytest.mark.parametrize(
    "names",
    [
        ("train/1.jpg", "bus/2.jpg", "car/3.jpg"),  # railways
        ("training/1.jpg", "trains/2.jpg"),
        ("test/1.jpg", "val/2.jpg"),  # nothing to train on: what is meant cannot be told
        ("train_a/1.jpg", "train_b/2.jpg"),
    ],
)
def test_classes_may_be_called_like_splits(names, tree):
    assert open_source(tree(*names)).classes == sorted({name.partition("/")[0] for name in names})


def test_why_there_are_no_labels(tree, tmp_path):
    root = tree("images/cat/1.jpg", "images/dog/2.jpg")
    source, said = opened(root)
    assert source.classes is None and len(source) == 2
    given = f"its 2 folders are classes where you give {root / 'images'}"
    assert said == [f"no labels: all images lie in images/; {given}"]
    assert open_source(root / "images").classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("cat/1.jpg", "cat/2.jpg"), "all images lie in cat/, and one folder makes no classes"),
        (("x/y/1.jpg",), "all images lie in x/y/, and one folder"),
        (("cat/1.jpg", "dog/2.jpg", "sheet.png"), "1 image lies beside the folders cat, dog"),
    ],
)
def test_other_reasons_for_no_labels(names, words, tree):
    source, said = opened(tree(*names))
    assert source.classes is None and len(source) == len(names) and words in said[0]


def test_images_in_one_place_need_no_word(tree):
    assert opened(tree("1.jpg", "2.png"))[1] == [] and opened(tree("1.jpg"))[1] == []


def test_files_passed_over_are_named_by_every_command(tree, write_files, tmp_path, capsys):
    """48 JPEGs under all of their names, 12 raw files, notes."""
    suffixes = (".jpg", ".jpeg", ".jfif", ".JPE", ".jif", ".mpo")
    root = tree(*(f"{n:02}{suffixes[n % 6]}" for n in range(48)))
    write_files(root, {f"{n}.DNG": b"x" for n in range(12)} | {"notes.txt": b"", "._0.jpg": b"", ".DS_Store": b""})
    source, said = opened(root)
    assert len(source) == 48
    words = (
        "passed over: 14 other files: 12 .dng (camera raw: convert to JPEG or PNG), 1 .txt, "
        "1 hidden with an image's suffix"
    )
    assert said == [words]
    report = check(root, decode=True)
    assert report.sound and report.samples == 48 and report.notes == [f"{root}: {words}"]
    assert run_command(lambda: main([str(root)])) == 0 and words in capsys.readouterr().out
    assert run_command(lambda: shard_main([str(root), str(tmp_path / "out"), "--workers", "1"])) == 0
    out, err = capsys.readouterr()
    assert words in err and "48 images" in out
    assert len(open_source(tmp_path / "out")) == 48


def test_options_behind_a_path_are_those_of_its_kind(tree, refused):
    root = tree("a/1.jpg", "b/2.jpg")
    refused(f"{root}?split=val", "folder, as which it would be read, has no option 'split'", "put the kind in front")
    refused(f"folder:{root}?split=val", "no option for folder 'split'")


def test_shards_are_not_written_into_their_source(tree, capsys, monkeypatch):
    """However the source was named. A list names its images: what is written beside them is none of them."""
    root = tree("a/1.jpg", "b/2.jpg")
    (root / "list.txt").write_text("a/1.jpg\nb/2.jpg\n")
    monkeypatch.chdir(root)
    assert run_command(lambda: shard_main(["list:list.txt", "listed", "--workers", "1"])) == 0
    for name in (root, f"folder:{root}"):
        assert run_command(lambda name=name: shard_main([str(name), str(root / "a/out")])) == 2
        assert "lies inside the source" in capsys.readouterr().err
