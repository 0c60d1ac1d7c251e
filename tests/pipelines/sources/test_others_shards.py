"""MDS, LitData and LMDB: laid out here by hand, and written by their own packages where these are installed."""

import contextlib
import io
import json
import multiprocessing
import os
import pickle
import struct

import numpy as np
import pytest
from PIL import Image
from readers import equal, reader, taken

from headrace.pipelines.sources import open_source

PACK = struct.pack


def table(samples, config=b""):
    """Number of samples, positions, what a writer has to say, samples."""
    start = 4 * (len(samples) + 2) + len(config)
    ends = [start + sum(map(len, samples[:n])) for n in range(len(samples) + 1)]
    return PACK(f"<{len(ends) + 1}I", len(samples), *ends) + config + b"".join(samples)


def mds_by_hand(root, images, labels, each=4, **changes):
    """Columns in the order of their names, sizes of those without one first."""
    config = {"version": 2, "format": "mds", "compression": None, "hashes": [], "size_limit": 1 << 26, "zip_data": None}
    config |= {"column_names": ["n", "name", "x", "y"], "column_encodings": ["uint16", "str", "jpeg", "int"]}
    config |= {"column_sizes": [2, None, None, 8]} | changes
    root.mkdir(exist_ok=True)
    shards = []
    for first in range(0, len(images), each):
        some = range(first, min(first + each, len(images)))
        samples = [
            PACK("<II", 1 + i % 3, len(images[i]))
            + PACK("<H", i)
            + b"abc"[: 1 + i % 3]
            + images[i]
            + PACK("<q", labels[i])
            for i in some
        ]
        data, name = table(samples, json.dumps(config).encode()), f"shard.{first // each:05d}.mds"
        (root / name).write_bytes(data)
        raw = {"basename": name, "bytes": len(data), "hashes": {}}
        shards.append(config | {"samples": len(samples), "raw_data": raw})
    (root / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return root


def litdata_by_hand(root, images, labels, each=4, **changes):
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = {"type": "builtins.dict", "context": json.dumps(["image", "label"]), "children_spec": [leaf, leaf]}
    config = {"compression": None, "chunk_size": each, "chunk_bytes": None, "data_format": ["jpeg", "int"]}
    config |= {"data_spec": json.dumps([1, spec]), "encryption": None, "item_loader": "PyTreeLoader"} | changes
    root.mkdir(exist_ok=True)
    chunks = []
    for first in range(0, len(images), each):
        some = range(first, min(first + each, len(images)))
        data = table([PACK("<II", len(images[i]), 8) + images[i] + PACK("<q", labels[i]) for i in some])
        name = f"chunk-0-{first // each}.bin"
        (root / name).write_bytes(data)
        chunks.append({"chunk_bytes": len(data), "chunk_size": len(some), "dim": None, "filename": name})
    (root / "index.json").write_text(json.dumps({"chunks": chunks, "config": config, "updated_at": "0"}))
    return root


@pytest.fixture(scope="module")
def photos(photo_folder):
    return [path.read_bytes() for path in sorted(photo_folder.rglob("*.jpg"))]


LABELS = [(7 * i) % 5 for i in range(24)]
BY_HAND = {"mds": mds_by_hand, "litdata": litdata_by_hand}


@pytest.mark.parametrize("kind", BY_HAND)
def test_samples_are_read_in_order(kind, photos, tmp_path, contents):
    root = BY_HAND[kind](tmp_path / "set", photos, LABELS)
    source = open_source(f"{kind}:{root}")
    name = {"mds": "shard.{:05d}.mds", "litdata": "chunk-0-{}.bin"}[kind].format
    assert contents(source) == [(f"{name(i // 4)}/{i % 4:06d}", photos[i], LABELS[i]) for i in range(24)]
    assert source.classes == ["0", "1", "2", "3", "4"] and source.neighbours(9) == (8, 12)
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


@pytest.mark.parametrize("kind", BY_HAND)
def test_batches_and_resume_are_those_of_files(kind, photos, photo_folder, tmp_path):
    root = BY_HAND[kind](tmp_path / "set", photos, LABELS)
    files = tmp_path / "list.txt"
    found = sorted(file.relative_to(photo_folder) for file in photo_folder.rglob("*.jpg"))
    files.write_text("".join(f"{file} {label}\n" for file, label in zip(found, LABELS)))
    expected = taken(reader(open_source(f"list:{files}?root={photo_folder}"), blocks=4), 12)
    assert equal(expected, taken(reader(f"{kind}:{root}"), 12))
    ranks = [taken(reader(f"{kind}:{root}", rank, 2), 7, 5) for rank in range(2)]
    assert [a[0] + b[0] for a, b in zip(*ranks)] == [one[0] for one in expected[5:]]


def test_fields_are_chosen_or_named(photos, tmp_path, refused):
    root = mds_by_hand(tmp_path / "mds", photos, LABELS)
    assert [open_source(f"mds:{root}?label=n").label(i) for i in range(24)] == list(range(24))
    refused(f"mds:{root}?label=name", "no field of whole numbers 'name'", "n, y")
    refused(f"mds:{root}?image=y", "no field of images 'y'")
    mds_by_hand(root, photos, LABELS, column_encodings=["uint16", "bytes", "jpeg", "int"])
    refused(f"mds:{root}", "2 fields of encoded images", "?image=name")
    assert bytes(open_source(f"mds:{root}?image=x").read(5)) == photos[5]
    mds_by_hand(root, photos, LABELS, column_encodings=["uint16", "str", "pil", "int"])
    refused(f"mds:{root}", "0 fields of encoded images")
    refused(f"mds:{mds_by_hand(root, photos, [-2] * 24)}", "y: -2 to -2")
    leaf = {"type": None, "context": None, "children_spec": []}
    pair = {"type": "builtins.tuple", "context": "null", "children_spec": [leaf, leaf]}
    root = litdata_by_hand(tmp_path / "pairs", photos, LABELS, data_spec=json.dumps([1, pair]))
    assert open_source(f"litdata:{root}").classes is None
    assert [open_source(f"litdata:{root}?label=1").label(i) for i in range(24)] == LABELS


def test_what_is_not_read_is_one_line(photos, tmp_path, refused):
    root = mds_by_hand(tmp_path / "mds", photos, LABELS)
    refused(f"mds:{tmp_path}", "no index.json in it")
    data = (root / "shard.00002.mds").read_bytes()
    for damaged in (data[:-1], data[:20], b"", data[:4] + b"\xff" + data[5:], data[:20] + bytes(4) + data[24:]):
        (root / "shard.00002.mds").write_bytes(damaged)
        refused(f"mds:{root}", "shard.00002.mds", "copy it again")
    (root / "shard.00002.mds").unlink()
    refused(f"mds:{root}", "shard.00002.mds", "No such file")
    index = json.loads((root / "index.json").read_text())
    for shard in index["shards"]:
        shard["compression"] = "zstd"
    (root / "index.json").write_text(json.dumps(index))
    refused(f"mds:{root}", "compressed with zstd", "its own reader")
    index["shards"][0]["raw_data"]["basename"] = "../mds/shard.00000.mds"
    (root / "index.json").write_text(json.dumps(index))
    refused(f"mds:{root}", "index.json", "cannot be read")
    refused(f"mds:{mds_by_hand(root, photos, LABELS, version=3)}", "version 2")
    (root / "index.json").write_text("{}")
    refused(f"mds:{root}", "it has no shards")
    refused(f"litdata:{litdata_by_hand(tmp_path / 'a', photos, LABELS, compression='zstd')}", "compression zstd")
    refused(f"litdata:{litdata_by_hand(tmp_path / 'b', photos, LABELS, item_loader='TokensLoader')}", "TokensLoader")


@pytest.mark.parametrize("kind", ["lists of files", "images"])
def test_mds_of_its_own_writer(kind, photos, photo_folder, tmp_path, contents):
    streaming = pytest.importorskip("streaming", reason="needs the extra [writers]")
    columns = {"image": "jpeg" if kind == "images" else "bytes", "label": "int32", "weight": "float32", "note": "json"}
    files = sorted(photo_folder.rglob("*.jpg"))
    with streaming.MDSWriter(out=str(tmp_path / "set"), columns=columns, size_limit=8192, hashes=["sha1"]) as writer:
        for i, file in enumerate(files):
            image = Image.open(file) if kind == "images" else photos[i]
            writer.write({"image": image, "label": LABELS[i], "weight": i / 7, "note": {"i": [i] * i}})
    source = open_source(f"mds:{tmp_path / 'set'}")
    assert [(data, label) for _, data, label in contents(source)] == list(zip(photos, LABELS))
    assert len({key.partition("/")[0] for key, _, _ in contents(source)}) > 3
    theirs = streaming.StreamingDataset(local=str(tmp_path / "set"), shuffle=False, batch_size=1)
    assert [theirs[i]["label"] for i in range(24)] == LABELS  # their order is ours


@pytest.mark.parametrize("kind", ["images", "bytes and numbers", "nested", "compressed"])
def test_litdata_of_its_own_writer(kind, photos, photo_folder, tmp_path, contents, refused):
    pytest.importorskip("litdata", reason="needs the extra [writers]")
    from litdata.streaming.writer import BinaryWriter

    with contextlib.redirect_stdout(io.StringIO()):
        packed = {"compression": "zstd"} if kind == "compressed" else {}
        writer = BinaryWriter(str(tmp_path / "set"), chunk_size=5, **packed)
        for i, file in enumerate(sorted(photo_folder.rglob("*.jpg"))):
            image = photos[i] if kind == "bytes and numbers" else Image.open(file)
            sample = {"index": i, "image": image, "class": LABELS[i]}
            writer[i] = {"index": i, "all": sample} if kind == "nested" else sample
        writer.done()
        writer.merge(1)
    if kind == "compressed":
        refused(f"litdata:{tmp_path / 'set'}", "written with compression", "shard what its own reader reads")
        return
    if kind == "bytes and numbers":
        pytest.importorskip("pyarrow", reason="needs the extra [tables]")
    source = open_source(f"litdata:{tmp_path / 'set'}" + ("?label=all.class" if kind == "nested" else ""))
    assert [(data, label) for _, data, label in contents(source)] == list(zip(photos, LABELS))
    assert source.neighbours(7) == (5, 10)


def test_lmdb(photos, photo_folder, tmp_path, contents, refused, monkeypatch):
    lmdb = pytest.importorskip("lmdb", reason="needs the extra [lmdb]")
    order = np.random.default_rng(0).permutation(24)
    with lmdb.open(str(tmp_path / "set"), map_size=1 << 26) as database, database.begin(write=True) as writer:
        for i in order:
            writer.put(f"image-{i:05d}".encode(), photos[i])
        writer.put(b"num-samples", b"24")
    said = []
    source = open_source(tmp_path / "set", said.append)  # told by its data.mdb
    assert contents(source) == [(f"image-{i:05d}", photos[i], -1) for i in range(24)] and source.classes is None
    assert said == [f"lmdb:{tmp_path / 'set'}: passed over: 1 value that are no image files"]
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)
    here = taken(reader(open_source(f"folder:{photo_folder}"), blocks=False), 12)
    there = taken(
        reader(f"lmdb:{tmp_path / 'set'}", 1, 2, blocks=False), 8, 4
    )  # resumed, the second half of each batch
    assert [one[0] for one in there] == [one[0][2:] for one in here[4:]]
    assert all(a[1].equal(b[1][:, 2:]) for a, b in zip(there, here[4:]))
    forked = multiprocessing.get_context("fork").Process(target=lambda: os._exit(contents(source)[3][1] != photos[3]))
    forked.start()
    forked.join(60)
    assert forked.exitcode == 0 and bytes(source.read(3)) == photos[3]
    with lmdb.open(str(tmp_path / "none"), map_size=1 << 20) as database, database.begin(write=True) as writer:
        writer.put(b"a", b"text")
    refused(f"lmdb:{tmp_path / 'none'}", "none of its 1 values is an image")
    (tmp_path / "none" / "data.mdb").write_bytes(b"x" * 9000)
    refused(f"lmdb:{tmp_path / 'none'}", "cannot be read as LMDB")
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    refused(f"lmdb:{tmp_path / 'set'}", "needs the extra [lmdb]", "pip install")
