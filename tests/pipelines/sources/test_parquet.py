"""Images in parquet files, on a disk and as a data set on Hugging Face."""

import hashlib
import json

import pytest
from readers import equal, reader, taken
from servers import serving

from headrace.errors import UserError
from headrace.pipelines.check import check
from headrace.pipelines.identity import identity
from headrace.pipelines.shard import shard
from headrace.pipelines.sources import open_source

pa = pytest.importorskip("pyarrow", reason="needs the extra [tables]")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra [tables]")

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def features(**columns):
    return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}


@pytest.fixture(scope="module")
def photos(photo_folder):
    return [path.read_bytes() for path in sorted(photo_folder.rglob("*.jpg"))]


@pytest.fixture(scope="module")
def folder(photos, tmp_path_factory):
    """24 photos in three files of two row groups of four, as Hugging Face's tools write them."""
    root = tmp_path_factory.mktemp("parquet")
    (root / "data").mkdir()
    told = features(image={"_type": "Image"}, label={"_type": "ClassLabel", "names": ["ant", "bee", "cat"]})
    for number in range(3):
        some = range(8 * number, 8 * number + 8)
        rows = {"image": [{"bytes": photos[i], "path": f"{i}.jpg"} for i in some], "label": [i % 3 for i in some]}
        schema = pa.schema([("image", STRUCT), ("label", pa.int64())], metadata=told)
        file = root / "data" / f"train-{number:05d}-of-00003.parquet"
        pq.write_table(pa.table(rows, schema=schema), file, row_group_size=4)
    return root


def test_rows_are_samples_in_order(folder, photos, contents):
    source = open_source(f"parquet:{folder}")
    assert contents(source) == [
        (f"data/train-{i // 8:05d}-of-00003.parquet/{i % 8:06d}", photos[i], i % 3) for i in range(24)
    ]
    assert source.classes == ["ant", "bee", "cat"] and source.neighbours(9) == (8, 12)
    assert identity(source) == identity(open_source(f"parquet:{folder}?image=image&label=label&split=train"))
    assert check(f"parquet:{folder}", decode=True, workers=1).sound


def test_batches_are_those_of_a_folder_and_of_shards(folder, photo_folder, tmp_path):
    shard(f"parquet:{folder}", tmp_path / "shards", workers=1, progress=False)
    assert len(open_source(tmp_path / "shards")) == 24
    expected = taken(reader(f"parquet:{folder}"), 12)
    list_file = tmp_path / "list.txt"
    found = sorted(file.relative_to(photo_folder) for file in photo_folder.rglob("*.jpg"))
    list_file.write_text("".join(f"{file} {number % 3}\n" for number, file in enumerate(found)))
    same = taken(reader(open_source(f"list:{list_file}?root={photo_folder}"), blocks=4), 12)
    assert equal(expected, same)
    ranks = [taken(reader(f"parquet:{folder}", rank, 2), 7, 5) for rank in range(2)]  # resumed on two
    assert [a[0] + b[0] for a, b in zip(*ranks)] == [one[0] for one in expected[5:]]


def test_columns_are_found_or_named(tmp_path, photos, contents, refused):
    def write(name="a.parquet", **columns):
        pq.write_table(pa.table(columns), tmp_path / name)
        return f"parquet:{tmp_path}"

    name = write(photo=photos[:3], kind=["wolf", None, "elk"], n=[1, 2, 3])
    assert open_source(name).classes is None
    labelled = open_source(f"{name}?label=kind")
    assert labelled.classes == ["elk", "wolf"] and [labelled.label(i) for i in range(3)] == [1, -1, 0]
    numbered = open_source(f"{name}?label=n")
    assert numbered.classes == ["0", "1", "2", "3"] and numbered.label(2) == 3
    refused(f"{name}?label=x", "no column of labels 'x'")
    refused(f"{name}?image=kind", "no column of images 'kind'")
    refused(write(photo=photos[:3], other=photos[:3]), "2 columns of images", "?image=photo")
    assert bytes(open_source(f"{name}?image=other").read(1)) == photos[1]
    refused(write(n=[1]), "0 columns of images")
    refused(write(image=photos[:1], label=[-7]), "label", "-7")
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": "x.jpg"}, {"bytes": None, "path": "../x"}],
                                               STRUCT)}), tmp_path / "a.parquet")  # fmt: skip
    (tmp_path / "x.jpg").write_bytes(photos[5])
    named = open_source(name)
    assert bytes(named.read(0)) == photos[5]
    with pytest.raises(OSError, match="no path inside the folder"):
        named.read(1)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    refused(name, "a.parquet", "cannot be read", "download it again")
    (tmp_path / "a.parquet").unlink()
    refused(name, "no .parquet file")
    for split in ("train", "test"):
        write(f"{split}-00000-of-00001.parquet", image=photos[:2] if split == "test" else photos[:1])
    refused(name, "holds the splits test, train", "?split=")
    assert len(open_source(f"{name}?split=test")) == 2
    refused(f"{name}?split=tset", "did you mean test")


def test_a_data_set_on_hugging_face(folder, photos, monkeypatch, tmp_path, contents):
    """With faults; whole files once each, by the checksums of the hub's list."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    files = sorted((folder / "data").iterdir())
    with serving(folder, share=0.1, stall=0.1) as server:

        def answer(request):
            if request.path.startswith("/api/datasets/me/photos/tree/main"):
                row = lambda f: {"oid": hashlib.sha256(f.read_bytes()).hexdigest(), "size": f.stat().st_size}
                rows = [
                    {"type": "file", "path": f"data/{f.name}", "size": f.stat().st_size, "lfs": row(f)} for f in files
                ]
                return 200, json.dumps(rows).encode()
            request.path = request.path.removeprefix("/datasets/me/photos/resolve/main")
            return None if request.path.endswith(".parquet") else (404, b"")

        server.answer = answer
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        far = open_source("hf://datasets/me/photos")
        assert contents(far) == contents(open_source(f"parquet:{folder}"))
        assert identity(far) == identity(open_source(f"parquet:{folder}"))
        assert not list((tmp_path / "shards").glob("*.tar"))
        assert equal(taken(reader(f"parquet:{folder}"), 12), taken(reader("hf://datasets/me/photos?split=train"), 12))
        assert len(list((tmp_path / "shards").glob("*.tar"))) == 3
        with pytest.raises(UserError, match="no option 'splt'"):
            open_source("hf://datasets/me/photos?splt=train")
        with pytest.raises(UserError, match="404"):
            open_source("hf://datasets/me/none")


def test_without_pyarrow_one_line_says_what_to_install(folder, monkeypatch, refused):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    refused(f"parquet:{folder}", "needs the extra [tables]", "pip install")
