"""ImageNet in folders and in its archives: the same samples, labels and order, whatever it is kept in."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import scipy.io

from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.imagenet_tar import ImageNetTar
from headrace.pipelines.sources.matlab import MatlabError, read_matlab
from headrace.pipelines.spec import ByteSource

WNIDS = ["n01440764", "n01443537", "n02084071", "n15075141"]
NUMBERS = (10026, 9, 11, 100)  # of the files: as text, not in numerical order
SYNSETS = [  # (ILSVRC id, wnid, children): ids are not in the order of the wnids, and the last row is no class
    (1, "n02084071", 0), (2, "n15075141", 0), (3, "n01440764", 0), (4, "n01443537", 0), (5, "n00001740", 4),
]  # fmt: skip
TRUTH = [3, 1, 1, 2, 4]  # ids of the validation images
VAL_LABELS = [0, 2, 2, 3, 1]  # ranks of their wnids among the sorted
VAL_NAMES = [f"ILSVRC2012_val_{n:08d}.JPEG" for n in range(1, 6)]


@pytest.fixture
def train(encode):
    """wnid -> file name -> bytes; the classes come in no order."""
    shuffled = [WNIDS[2], WNIDS[0], WNIDS[3], WNIDS[1]]
    return {w: {f"{w}_{n}.JPEG": encode(10 * WNIDS.index(w) + i) for i, n in enumerate(NUMBERS)} for w in shuffled}


@pytest.fixture
def val(encode):
    return {name: encode(50 + n) for n, name in reversed(list(enumerate(VAL_NAMES)))}


@pytest.fixture
def train_tar(train, tar_bytes):
    return tar_bytes({f"{wnid}.tar": tar_bytes(files) for wnid, files in train.items()})


def in_folders(train):
    return {f"train/{wnid}/{name}": data for wnid, files in train.items() for name, data in files.items()}


def expected(train):
    pairs = (
        (f"{wnid}/{name}", data, WNIDS.index(wnid)) for wnid, files in train.items() for name, data in files.items()
    )
    return sorted(pairs)


def meta_mat(compress=True, columns=("ILSVRC2012_ID", "WNID", "num_children")):
    """meta.mat as MATLAB writes it: a struct array of mixed numbers and text."""
    synsets = np.zeros((len(SYNSETS), 1), [(name, object) for name in ("words", *columns, "children")])
    for row, values in zip(synsets[:, 0], SYNSETS, strict=True):
        row["words"], row["children"] = "Hai, weißer", np.arange(values[2], dtype=float)
        for name, value in zip(("ILSVRC2012_ID", "WNID", "num_children"), values, strict=True):
            if name in columns:
                row[name] = float(value) if name != "WNID" else value
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets}, do_compression=compress)
    return file.getvalue()


def devkit(tar_bytes, **options):
    top, truth = "ILSVRC2012_devkit_t12", "".join(f"{number}\n" for number in TRUTH).encode()
    files = {"readme.txt": b"", "data/meta.mat": meta_mat(**options)}
    files["data/ILSVRC2012_validation_ground_truth.txt"] = truth
    return tar_bytes({f"{top}/{name}": data for name, data in files.items()}, "w:gz")


# train


def test_archive_equals_folders(tmp_path, train, train_tar, write_files, contents):
    write_files(tmp_path / "folders", in_folders(train))
    write_files(tmp_path / "archive", {"ILSVRC2012_img_train.tar": train_tar})
    folders = open_source(f"imagenet:{tmp_path}/folders?split=train")
    names = (
        "imagenet:{}/archive",
        "{}/archive/ILSVRC2012_img_train.tar",
        "{}/archive",
        "imagenet:{}/archive?split=train",
    )
    assert contents(folders) == expected(train) and folders.classes == WNIDS
    for name in names:
        source = open_source(name.format(tmp_path))
        assert isinstance(source, ImageNetTar) and isinstance(source, ByteSource)
        assert contents(source) == contents(folders) and source.classes == folders.classes
        assert source.label_source == folders.label_source == "folder"
        again = pickle.loads(pickle.dumps(source))
        assert contents(again) == contents(source) and again.name == source.name and len(pickle.dumps(source)) < 5000


def test_archive_is_read_through_one_map(tmp_path, train_tar, write_files):
    source = open_source(write_files(tmp_path, {"x.tar": train_tar}) / "x.tar")
    assert source.read(0).base is source.read(15).base and not source.read(0).flags.writeable
    assert source.index.dtype.itemsize == 28 and source.size(0) is None
    (tmp_path / "x.tar").write_bytes(train_tar + b"more")
    with pytest.raises(OSError, match="size has changed"):
        pickle.loads(pickle.dumps(source)).read(0)


def test_lists_decide_where_they_are(tmp_path, train, write_files, contents):
    lines = [(f"{wnid}/{name}", 3 - WNIDS.index(wnid)) for wnid in WNIDS[:3] for name in train[wnid]]
    write_files(tmp_path, in_folders(train) | {"meta/train.txt": "".join(f"{path} {n}\n" for path, n in lines)})
    for name in (f"imagenet:{tmp_path}", tmp_path):
        source = open_source(name)
        assert [(key, label) for key, _, label in contents(source)] == lines
        assert source.read(0).tobytes() == train[WNIDS[0]][lines[0][0].split("/")[1]]
        assert source.classes == ["0", WNIDS[2], WNIDS[1], WNIDS[0]]  # as the list says, not by rank


@pytest.mark.parametrize("form", ["names", "lines"])
@pytest.mark.parametrize("kept_in", ["folders", "archive"])
def test_subsets(tmp_path, train, train_tar, write_files, contents, form, kept_in, refused):
    chosen = [(WNIDS[3], f"{WNIDS[3]}_9.JPEG"), (WNIDS[1], f"{WNIDS[1]}_10026.JPEG")]
    write_files(tmp_path, in_folders(train) if kept_in == "folders" else {"ILSVRC2012_img_train.tar": train_tar})
    if form == "names":
        write_files(tmp_path, {"meta/1percent.txt": "".join(f"{name}\n" for _, name in chosen)})
    else:
        lines = "".join(f"{wnid}/{name} {WNIDS.index(wnid)}\n" for wnid, name in chosen)
        write_files(tmp_path, {"meta/train_1percent.txt": lines, "meta/1percent.txt": "not this one.jpg\n"})
    source = open_source(f"imagenet:{tmp_path}?subset=1percent")
    wanted = [(f"{wnid}/{name}", train[wnid][name], WNIDS.index(wnid)) for wnid, name in chosen]
    assert contents(source) == (wanted if kept_in == "folders" else sorted(wanted)) and source.classes == WNIDS
    refused(f"imagenet:{tmp_path}?subset=10percent", "meta/10percent.txt")
    refused(f"imagenet:{tmp_path}?subset=1percent&split=val", "split=train")
    refused(f"imagenet:{tmp_path}?subset=2percent", "1percent")
    write_files(tmp_path, {"meta/10percent.txt": f"{WNIDS[0]}_9.JPEG\nn99999999_1.JPEG\n"})
    refused(f"imagenet:{tmp_path}?subset=10percent", "n99999999_1.JPEG" if kept_in == "folders" else "1 images")


def test_damaged_archives_name_the_inner_tar(tmp_path, train, tar_bytes, write_files, refused):
    inner = tar_bytes(train[WNIDS[1]])
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        last = archive.getmembers()[-1]
    whole = {f"{WNIDS[0]}.tar": tar_bytes(train[WNIDS[0]])}
    for size in (last.offset + 100, last.offset_data + 10):
        write_files(tmp_path, {"x.tar": tar_bytes(whole | {f"{WNIDS[1]}.tar": inner[:size]})})
        refused(tmp_path / "x.tar", "x.tar", f"{WNIDS[1]}.tar", "copy it again")
    write_files(tmp_path, {"x.tar": tar_bytes(whole | {"n02084071.tar": b"<html>not found</html>" * 30})})
    refused(tmp_path / "x.tar", "n02084071.tar", "no tar header")
    complete = tar_bytes(whole | {f"{WNIDS[1]}.tar": inner})
    write_files(tmp_path, {"x.tar": complete[: len(tar_bytes(whole)) + 100]})
    refused(tmp_path / "x.tar", "x.tar", "copy it again")
    write_files(tmp_path, {"x.tar": tar_bytes({"a/n1.tar": inner, "b/n1.tar": inner})})
    refused(tmp_path / "x.tar", "two tars of one name")
    write_files(tmp_path, {"x.tar": tar_bytes({"n1.tar": tar_bytes({"notes.txt": b""})})})
    refused(tmp_path / "x.tar", "no image")


def test_a_negative_size_does_not_hang(tmp_path, write_files, refused):
    member = tarfile.TarInfo("x.jpg")
    member.pax_headers = {"size": "-1536"}
    write_files(tmp_path, {"x.tar": member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)})
    refused(tmp_path / "x.tar", "-1,536")


def test_empty_classes_do_not_count(tmp_path, train, tar_bytes, write_files):
    empty = {"n00000001.tar": tar_bytes({})} | {f"{w}.tar": tar_bytes(files) for w, files in train.items()}
    source = open_source(write_files(tmp_path, {"x.tar": tar_bytes(empty)}) / "x.tar")
    assert source.classes == WNIDS and source.label(0) == 0


# val and test


@pytest.mark.parametrize("labels_from", ["meta", "devkit"])
@pytest.mark.parametrize("kept_in", ["folder", "archive", "the archive itself"])
def test_val(tmp_path, val, tar_bytes, write_files, contents, labels_from, kept_in):
    if labels_from == "meta":
        lines = "".join(f"{name} {label}\n" for name, label in zip(VAL_NAMES, VAL_LABELS, strict=True))
        write_files(tmp_path, {"meta/val.txt": lines, "meta/synsets.txt": "".join(f"{wnid}\n" for wnid in WNIDS)})
    else:
        write_files(tmp_path, {"ILSVRC2012_devkit_t12.tar.gz": devkit(tar_bytes)})
    if kept_in == "folder":
        write_files(tmp_path, {f"val/{name}": data for name, data in val.items()})
    else:
        write_files(tmp_path, {"ILSVRC2012_img_val.tar": tar_bytes(val)})
    name = f"imagenet:{tmp_path}?split=val"
    source = open_source(name if kept_in != "the archive itself" else f"imagenet:{tmp_path}/ILSVRC2012_img_val.tar")
    assert contents(source) == [(name, val[name], label) for name, label in zip(VAL_NAMES, VAL_LABELS, strict=True)]
    assert source.classes == WNIDS and source.label_source == "list"
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_val_in_a_folder_per_class(tmp_path, val, write_files, contents, refused):
    files = {f"val/{WNIDS[label]}/{name}": val[name] for name, label in zip(VAL_NAMES, VAL_LABELS, strict=True)}
    source = open_source(f"imagenet:{write_files(tmp_path, files)}?split=val")
    assert sorted((key.split("/")[1], label) for key, _, label in contents(source)) == sorted(
        zip(VAL_NAMES, VAL_LABELS, strict=True)
    )
    write_files(tmp_path, {"meta/val.txt": f"{VAL_NAMES[0]} 0\n"})
    refused(f"imagenet:{tmp_path}?split=val", "val.txt", f"{VAL_NAMES[0]} does not exist")


@pytest.mark.parametrize("kept_in", ["folder", "archive"])
def test_val_without_labels_is_refused(tmp_path, val, tar_bytes, write_files, refused, kept_in):
    folder = {f"val/{name}": data for name, data in val.items()}
    write_files(tmp_path, folder if kept_in == "folder" else {"ILSVRC2012_img_val.tar": tar_bytes(val)})
    name = f"imagenet:{tmp_path}?split=val"
    refused(name, "no labels for val", "meta/val.txt", "ILSVRC2012_devkit_t12.tar.gz")
    write_files(tmp_path, {"ILSVRC2012_devkit_t12.tar.gz": devkit(tar_bytes)[:-60]})
    refused(name, "ILSVRC2012_devkit_t12.tar.gz", "download it again")
    write_files(tmp_path, {"ILSVRC2012_devkit_t12.tar.gz": devkit(tar_bytes, columns=("ILSVRC2012_ID", "WNID"))})
    refused(name, "ILSVRC2012_devkit_t12.tar.gz", "num_children")
    if kept_in == "archive":  # a list that lacks an image
        write_files(tmp_path, {"meta/val.txt": f"{VAL_NAMES[0]} 0\n"})
        refused(name, f"no line for {VAL_NAMES[1]}")


def test_devkit_knows_only_validation_images(tmp_path, val, tar_bytes, write_files, refused):
    write_files(tmp_path, {"ILSVRC2012_devkit_t12.tar.gz": devkit(tar_bytes), "val/ILSVRC2012_val_00000006.JPEG": b""})
    refused(f"imagenet:{tmp_path}?split=val", "ILSVRC2012_val_00000006.JPEG", "only for 5")


@pytest.mark.parametrize("kept_in", ["list", "folder", "archive"])
def test_test_has_no_labels(tmp_path, val, tar_bytes, write_files, contents, kept_in):
    files = {name.replace("val", "test"): data for name, data in val.items()}
    if kept_in == "archive":  # published with a folder in it
        write_files(
            tmp_path, {"ILSVRC2012_img_test_v10102019.tar": tar_bytes({f"test/{n}": d for n, d in files.items()})}
        )
    else:
        write_files(tmp_path, {f"test/{name}": data for name, data in files.items()})
    if kept_in == "list":  # the published list labels all of them 0
        write_files(tmp_path, {"meta/test.txt": "".join(f"{name} 0\n" for name in sorted(files))})
    source = open_source(f"imagenet:{tmp_path}?split=test")
    found = [(key.removeprefix("test/"), data, label) for key, data, label in contents(source)]
    assert found == [(name, files[name], -1) for name in sorted(files)] and source.classes is None


def test_missing_parts_are_named(tmp_path, val, train_tar, tar_bytes, write_files, refused):
    write_files(tmp_path, {"ILSVRC2012_img_train.tar": train_tar, "notes.txt": "no tar"})
    refused(f"imagenet:{tmp_path}?split=val", "neither a folder val nor ILSVRC2012_img_val.tar")
    refused(f"imagenet:{tmp_path}/ILSVRC2012_img_train.tar?split=val", "the archive of train, not of val")
    refused(f"imagenet:{tmp_path}/notes.txt", "no tar header")


# MATLAB files


@pytest.mark.parametrize("compress", [False, True])
def test_matlab_agrees_with_scipy(compress):
    mixed = np.zeros((1, 2), [("name", object), ("values", object)])
    mixed[0, 0] = ("größe", np.arange(5, dtype=np.int16))
    mixed[0, 1] = ("", np.array([]))
    file = io.BytesIO()
    variables = {"s": mixed, "x": np.arange(6.0).reshape(2, 3), "long_variable_name": "text", "b": np.uint8([1, 2])}
    scipy.io.savemat(file, variables, do_compression=compress)
    found = read_matlab(file.getvalue())
    assert found.keys() == variables.keys() and found["long_variable_name"] == "text"
    assert found["x"].tolist() == [0, 3, 1, 4, 2, 5] and found["b"].tolist() == [1, 2]  # columns first
    assert [s["name"] for s in found["s"][:1]] == ["größe"] and found["s"][0]["values"].tolist() == [0, 1, 2, 3, 4]
    assert len(found["s"][1]["values"]) == 0


def test_damaged_matlab_files_are_refused():
    whole = meta_mat(compress=False)
    with pytest.raises(MatlabError, match="no MATLAB file"):
        read_matlab(b"HDF" * 100)
    for size in range(136, len(whole), 61):
        with pytest.raises(MatlabError):
            read_matlab(whole[:size])


def test_matlab_byte_flips_never_escape():
    """Any damage is a `MatlabError` or other values, never another exception."""
    whole, rng = meta_mat(compress=False), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(rng.integers(128, len(whole)))] ^= int(rng.integers(1, 256))
        try:
            read_matlab(bytes(damaged))
        except MatlabError:
            pass
