"""CIFAR in the pickles that Python 2 wrote, and pickles that are something else."""

import io
import os
import pickle
import pickletools
import resource
import struct

import numpy as np
import pytest
from PIL import Image

from headrace.errors import UserError
from headrace.pipelines.images.decode import decode, image_size
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.png import encode_png
from headrace.pipelines.sources.unpickle import load_pickle
from headrace.pipelines.spec import ByteSource

ROWS = 3
NAMES10 = [f"name {n}" for n in range(10)]
FILES10 = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}


def string(value):
    data = value.encode("latin-1") if isinstance(value, str) else value
    return b"U" + bytes([len(data)]) + data if len(data) < 256 else b"T" + struct.pack("<i", len(data)) + data


def python2(value):
    """The opcodes of protocol 2 for a value, strings as Python 2's."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(key) + python2(item) for key, item in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, np.ndarray):
        dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        shape = b"".join(map(python2, value.shape)) + b"\x86"
        return made + b"(K\x01" + shape + dtype + b"\x89" + string(value.tobytes()) + b"tb"
    return string(value)


def dump(value):
    return b"\x80\x02" + python2(value) + b"."


def batch(seed, key="labels", classes=10, **changes):
    rng = np.random.default_rng(seed)
    content = {
        "batch_label": "training batch",
        key: rng.integers(0, classes, ROWS).tolist(),
        "data": rng.integers(0, 256, (ROWS, 3072), dtype=np.uint8),
        "filenames": [f"leptodactylus_s_{n:06d}.png" for n in range(ROWS)],
    }
    return content | changes


@pytest.fixture
def cifar10(tmp_path, write_files):
    folder = tmp_path / "data/cifar-10-batches-py"
    files = FILES10["train"] + FILES10["test"]
    batches = {name: batch(seed) for seed, name in enumerate(files)}
    write_files(folder, {name: dump(content) for name, content in batches.items()})
    write_files(folder, {"batches.meta": dump({"num_cases_per_batch": ROWS, "label_names": NAMES10})})
    return folder, batches


def pixels_of(content, row):
    """By the published description: 1,024 bytes of red, of green, of blue, each row by row."""
    data = content["data"][row]
    return np.array([[[data[c * 1024 + 32 * y + x] for c in range(3)] for x in range(32)] for y in range(32)])


def test_the_fixture_is_a_pickle_of_python_2():
    content = batch(1)
    found = pickle.loads(dump(content), encoding="latin1")
    assert (found.pop("data") == content.pop("data")).all() and found == content


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10(cifar10, split):
    folder, batches = cifar10
    for name in (f"cifar10:{folder}?split={split}", f"cifar10:{folder.parent}?split={split}"):
        source = open_source(name)
        assert (
            isinstance(source, ByteSource) and source.classes == NAMES10 and len(source) == ROWS * len(FILES10[split])
        )
        for index in range(len(source)):
            file, row = FILES10[split][index // ROWS], index % ROWS
            encoded = source.read(index)
            assert (
                encoded.dtype == np.uint8
                and encoded.ndim == 1
                and image_size(encoded) == source.size(index) == (32, 32)
            )
            assert (decode(encoded) == pixels_of(batches[file], row)).all()
            assert source.label(index) == batches[file]["labels"][row] and source.key(index) == f"{file}/{row:05d}.png"


def test_cifar10_is_recognised_and_pickles_without_pixels(cifar10, contents):
    folder, _ = cifar10
    source = open_source(folder)
    assert source.name == f"cifar10:{folder}" and contents(open_source(folder.parent)) == contents(source)
    dumped = pickle.dumps(source)
    assert len(dumped) < 1000 and contents(pickle.loads(dumped)) == contents(source)


def test_cifar100_has_fine_labels(tmp_path, write_files):
    content = batch(1, "fine_labels", 100) | {"coarse_labels": [0] * ROWS}
    names = [f"fine {n}" for n in range(100)]
    meta = {"fine_label_names": names, "coarse_label_names": ["coarse"] * 20}
    files = {"train": dump(content), "test": dump(batch(2, "fine_labels", 100)), "meta": dump(meta)}
    write_files(tmp_path / "cifar-100-python", files)
    for name in (tmp_path, f"cifar100:{tmp_path}/cifar-100-python?split=train"):
        source = open_source(name)
        assert source.classes == names and [source.label(i) for i in range(ROWS)] == content["fine_labels"]
        assert (decode(source.read(1)) == pixels_of(content, 1)).all() and source.key(2) == "train/00002.png"


@pytest.mark.parametrize("protocol", range(5))
def test_pickles_of_python_3_work_too(cifar10, protocol):
    folder, _ = cifar10
    content = batch(9)
    (folder / "test_batch").write_bytes(pickle.dumps(content, protocol))
    source = open_source(f"cifar10:{folder}?split=test")
    assert (decode(source.read(2)) == pixels_of(content, 2)).all() and source.label(2) == content["labels"][2]


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker):
    yield "os", pickle.dumps({"data": Runs(os.mkdir, str(marker))})
    yield "builtins", pickle.dumps({"data": Runs(eval, f"__import__('os').mkdir({str(marker)!r})")})
    yield "getattr", pickle.dumps([Runs(getattr, "", "join")], 2)
    yield "numpy", b"\x80\x02cnumpy\nload\n" + string(str(marker)) + b"\x85R."
    yield "multiarray.fromfile", b"\x80\x02cnumpy.core.multiarray\nfromfile\n" + string(str(marker)) + b"\x85R."
    yield "os", f"cos\nmkdir\n(V{marker}\ntR.".encode()
    yield "pickle", b"\x80\x02cpickle\nloads\nU\x01.\x85R."
    yield "ndarray.tofile", b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93."


def test_hostile_pickles_run_nothing(cifar10, tmp_path, refused):
    folder, _ = cifar10
    marker = tmp_path / "ran"
    for name, data in hostile(marker):
        pickletools.dis(data, io.StringIO())  # it is a pickle, so a refusal is not for its form
        (folder / "test_batch").write_bytes(data)
        refused(f"cifar10:{folder}?split=test", folder / "test_batch", "asks for", name)
        assert not marker.exists()
    pickle.loads(next(hostile(marker))[1])
    assert marker.exists()  # the standard unpickler does run it


@pytest.mark.parametrize(
    "change",
    [
        {"data": [[0] * 3072] * ROWS},
        {"data": np.zeros((ROWS, 3071), np.uint8)},
        {"data": np.zeros((ROWS + 1, 3072), np.uint8)},
        {"labels": [0] * (ROWS - 1)},
        {"labels": "012"},
        {"data": "pixels"},
    ],
    ids=["lists", "narrow", "more rows", "fewer labels", "text for labels", "text for data"],
)
def test_other_contents_are_refused(cifar10, refused, change):
    folder, _ = cifar10
    (folder / "data_batch_3").write_bytes(dump(batch(1) | change))
    refused(f"cifar10:{folder}", folder / "data_batch_3", "3072")


def test_arrays_of_other_kinds_are_refused(cifar10, refused):
    folder, _ = cifar10
    for array in (np.zeros((ROWS, 768), np.int32), np.zeros((ROWS, 3072), object), np.zeros((ROWS, 3072), bool)):
        (folder / "data_batch_3").write_bytes(pickle.dumps(batch(1) | {"data": array}, 4))
        refused(f"cifar10:{folder}", folder / "data_batch_3")


@pytest.mark.parametrize("labels", [[0, 1, 10], [0, -1, 1], [0, 1, "2"]], ids=str)
def test_labels_without_a_class_are_refused(cifar10, refused, labels):
    folder, _ = cifar10
    (folder / "test_batch").write_bytes(dump(batch(1, labels=labels)))
    refused(f"cifar10:{folder}?split=test", "none of 10 classes")


def test_a_few_bytes_do_not_fill_the_memory(cifar10, refused):
    folder, _ = cifar10
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), hard))  # far less than each of these asks for
    try:
        for bomb in (b"Nr\xff\xff\xff\x7f.", b"\x96" + struct.pack("<Q", 1 << 34) + b".", b"T\xff\xff\xff\x7f."):
            (folder / "test_batch").write_bytes(b"\x80\x05" + bomb)
            message = refused(f"cifar10:{folder}?split=test", folder / "test_batch", "plain data")
            assert "MemoryError" not in message
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_missing_and_cut_files_are_named(cifar10, refused):
    folder, _ = cifar10
    whole = (folder / "data_batch_2").read_bytes()
    for size in (0, 1, 10, 500, len(whole) - 1):
        (folder / "data_batch_2").write_bytes(whole[:size])
        refused(f"cifar10:{folder}", folder / "data_batch_2", "plain data")
    (folder / "data_batch_2").unlink()
    refused(f"cifar10:{folder}", folder / "data_batch_2", "does not exist")
    refused(f"cifar100:{folder}", folder / "meta")
    refused(f"cifar10:{folder}?split=val", "choose from train, test")


def test_byte_flips_never_escape(tmp_path):
    """Any damage is a `UserError` or other values, never another exception."""
    whole, rng = dump(batch(1)), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        at = rng.choice([rng.integers(0, 200), rng.integers(len(whole) - 200, len(whole))])
        damaged[at] ^= int(rng.integers(1, 256))
        (tmp_path / "x").write_bytes(damaged)
        try:
            load_pickle(tmp_path / "x")
        except UserError:
            pass


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (7, 300), (200, 500)])
def test_png_is_what_pillow_reads(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_png(pixels).tobytes()))
    image.verify()  # the checksums
    assert image.format == "PNG" and (decode(encode_png(pixels)) == pixels).all()
