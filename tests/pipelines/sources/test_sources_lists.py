"""Annotation lists against what their lines say."""

import pickle

import numpy as np
import pytest

from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.lists import class_names
from headrace.pipelines.spec import ByteSource


@pytest.fixture
def photos(tmp_path, write_files, encode):
    names = ["b/one.jpg", "a/two blanks here.JPEG", "a/7 8.png", "ü.jpg"]
    return write_files(tmp_path, {name: encode(n) for n, name in enumerate(names)})


def test_labelled_list_with_blanks_in_paths(photos, write_files, encode, contents):
    lines = "\ufeffb/one.jpg 2\r\n\r\n  a/two blanks here.JPEG\t0 \n\na/7 8.png 11\nü.jpg -1"
    write_files(photos, {"list.txt": lines})
    source = open_source(f"list:{photos}/list.txt")
    keys = ["b/one.jpg", "a/two blanks here.JPEG", "a/7 8.png", "ü.jpg"]
    assert contents(source) == [
        (k, encode(n), label) for n, (k, label) in enumerate(zip(keys, (2, 0, 11, -1), strict=True))
    ]
    assert source.classes == [str(n) for n in range(12)] and source.label_source == "list"
    assert isinstance(source, ByteSource) and contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_unlabelled_list(photos, write_files, contents):
    write_files(photos, {"l/list.txt": "a/two blanks here.JPEG\na/7 8.png\n"})
    source = open_source(f"list:{photos}/l/list.txt?root={photos}")
    assert [(key, label) for key, _, label in contents(source)] == [("a/two blanks here.JPEG", -1), ("a/7 8.png", -1)]
    assert source.classes is None and source.label_source == "none"


def test_all_labels_minus_one_is_no_labels(photos, write_files):
    write_files(photos, {"list.txt": "ü.jpg -1\nb/one.jpg -1\n"})
    source = open_source(f"list:{photos}/list.txt")
    assert source.classes is None and source.label(0) == -1


def test_class_file(photos, write_files, refused):
    write_files(photos, {"list.txt": "ü.jpg 1\nb/one.jpg 0\n", "names.txt": "red deer\n\nfox\n", "one.txt": "fox\n"})
    assert open_source(f"list:{photos}/list.txt?classes={photos}/names.txt").classes == ["red deer", "fox"]
    refused(f"list:{photos}/list.txt?classes={photos}/one.txt", f"{photos}/list.txt:1", "label 1", "end at 0")
    refused(f"list:{photos}/list.txt?classes={photos}/nams.txt", f"did you mean {photos}/names.txt?")


def test_classes_are_folders_where_these_correspond():
    named = class_names([b"y/1.jpg", b"x/k/2.jpg", b"y/3.jpg", b"4.jpg"], np.array([2, 0, 2, -1]))
    assert named == ["x/k", "1", "y"]
    for paths, labels in (([b"x/1", b"x/2"], [0, 1]), ([b"x/1", b"y/2"], [0, 0]), ([b"1", b"y/2"], [0, 1])):
        assert class_names(paths, np.array(labels)) == [str(n) for n in range(max(labels) + 1)]


@pytest.mark.parametrize("split", ["train", "val", "data/val"])
def test_what_all_folders_begin_with_names_no_class(split):
    """So that two lists, of images to learn from and to be tested on, have the same classes."""
    paths = [f"{split}/{name}/{n}.jpg".encode() for n, name in enumerate(("cat", "dog/big", "dog/small"))]
    assert class_names(paths, np.arange(3)) == ["cat", "dog/big", "dog/small"]
    assert class_names(paths[1:], np.arange(2)) == ["big", "small"]
    assert class_names(paths[:1], np.arange(1)) == ["cat"]


@pytest.mark.parametrize(
    ("lines", "line", "words"),
    [
        ("b/one.jpg 1\n\nü.jpg\n", 3, "no label, but line 1 has one"),
        ("\nb/one.jpg\nü.jpg 0\n", 3, "a label, but line 2 has none"),
        ("b/one.jpg 1\n../x/secret.jpg 1\n", 2, "leaves"),
        ("b/one.jpg 1\nb/../../x.jpg 1\n", 2, "leaves"),
        ("b/one.jpg 1\nb/../b/one.jpg 1\n", 2, "leaves"),  # b may be a link to anywhere
        ("/etc/passwd.jpg 1\n", 1, "leaves"),
        ("b/one.jpg 1\nb/\0one.jpg 1\n", 2, "leaves"),
        ("b/one.jpg 1\nb/one.jpg,1\n", 2, "b/one.jpg,1"),
        ("b/one.jpg 1\nb/one.jpg one\n", 2, "no image"),
        ("b/one.jpg 1\n7\n", 2, "'7'"),
        ("b/one.jpg 1.5\n", 1, "no image"),
        ("b/one.jpg 1\nb/one.jpg -2\n", 2, "no image"),
        ("b/one.jpg 1000000\n", 1, "999999"),
    ],
)
def test_bad_lines_are_named(photos, write_files, refused, lines, line, words):
    write_files(photos, {"list.txt": lines})
    refused(f"list:{photos}/list.txt", f"{photos}/list.txt:{line}: ", words)


def test_absolute_paths_inside_the_root_are_fine(photos, write_files):
    write_files(photos, {"list.txt": f"{photos}/b/one.jpg 0\nb..b.jpg 0\n"})
    source = open_source(f"list:{photos}/list.txt")
    assert [source.key(0), source.key(1)] == ["b/one.jpg", "b..b.jpg"]


def test_lists_that_name_nothing(photos, write_files, refused):
    write_files(photos, {"empty.txt": "\n \n", "elsewhere.txt": "c/one.jpg\n"})
    refused(f"list:{photos}/empty.txt", "no line")
    refused(f"list:{photos}/elsewhere.txt", "c/one.jpg does not exist", "another folder")
    refused(f"list:{photos}/empt.txt", f"did you mean {photos}/empty.txt?")
    refused(f"list:{photos}/b", "text file")


def test_paths_that_climb_start_where_the_list_lies(photos, write_files, contents, encode, refused):
    """Lists beside their images: `../` is followed as the system does, as far as the root that is given."""
    lines = "../b/one.jpg 1\n.././a/7 8.png 0\nü.jpg 1\n"
    write_files(photos, {"lists/train.txt": lines, "lists/far.txt": "../../x.jpg\n", "lists/in.txt": "../b/../ü.jpg\n"})
    source = open_source(f"list:{photos}/lists/train.txt?root={photos}")
    assert contents(source) == [("b/one.jpg", encode(0), 1), ("a/7 8.png", encode(2), 0), ("ü.jpg", encode(3), 1)]
    message = refused(f"list:{photos}/lists/train.txt", "train.txt:1", "'../b/one.jpg' leaves", f"root={photos}")
    assert open_source(f"list:{photos}/lists/train.txt?root=" + message.rpartition("root=")[2]).key(0) == "b/one.jpg"
    refused(f"list:{photos}/lists/far.txt?root={photos}", "'../../x.jpg' leaves", f"root={photos.parent}")
    refused(f"list:{photos}/lists/in.txt?root={photos}", "leaves", "may be a link")
    (photos / "elsewhere/deep").mkdir(parents=True)
    (photos / "elsewhere/deep/link").symlink_to(photos / "lists")
    again = open_source(f"list:{photos}/elsewhere/deep/link/train.txt?root={photos}")  # up from where it really lies
    assert contents(again) == contents(source)


def test_a_line_of_a_picture_that_is_not_read_says_so(photos, write_files, refused):
    write_files(photos, {"list.txt": "b/one.jpg 1\nb/two.dng 1\n"})
    refused(f"list:{photos}/list.txt", "list.txt:2", "camera raw: convert")
