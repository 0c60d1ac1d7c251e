"""Sharding against the files that went in, against three other readers, and through crashes."""

import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.errors import UserError, run_command
from headrace.pipelines import shard as shard_module
from headrace.pipelines.images.decode import DecodeError, decode, image_size
from headrace.pipelines.images.encode import Encoding
from headrace.pipelines.shard import main
from headrace.pipelines.shard import shard as shard_source
from headrace.pipelines.sharding.plan import ShardOptions
from headrace.pipelines.sharding.writer import member_name
from headrace.pipelines.sources import open_source

KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}


def shard(source, out, shard_mb=256, workers=1, skip_bad=False, part=(0, 1), **options):
    options = ShardOptions(shard_mb, **options)
    return shard_source(source, out, options, workers=workers, skip_bad=skip_bad, part=part, progress=False)


def encode(seed, kind="JPEG", height=24, width=36, **options):
    """Noise; every seed gives other bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_files(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def files():
    """Every format and 90 larger JPEGs in three classes: 3.4 MB, so that 1 MiB a shard makes several."""
    made = {f"c{n % 3}/photo {n}.JPEG": encode(n, height=120, width=200, quality=95) for n in range(90)}
    return made | {f"c0/same.{suffix}": encode(100, kind) for suffix, kind in KINDS.items()}


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("images"), files)


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "shards"
    shard(folder, out, shard_mb=1, workers=2)
    return out


def damaged(shards, tmp_path):
    return Path(shutil.copytree(shards, tmp_path / "copy"))


# what is written


def test_every_byte_label_and_size_survives(files, folder, shards):
    source = open_source(shards)
    assert source.classes == ["c0", "c1", "c2"] and source.label_source == "folder"
    expected = {digest(data): (int(name[1]), image_size(data)) for name, data in files.items()}
    found = {digest(source.read(i)): (source.label(i), source.size(i)) for i in range(len(source))}
    assert found == expected and len(source) == len(files) == len(expected)
    order = np.random.RandomState(0).permutation(len(files))  # positions are a permutation of the sorted paths
    for position, index in enumerate(order):
        name = sorted(files)[index]
        assert source.read(position).tobytes() == files[name]
        stem, suffix = Path(name).stem.replace(" ", "_"), Path(name).suffix.lower().replace("jpeg", "jpg")
        assert source.key(position).endswith(f".tar/{position:08d}_{stem}{suffix}")


def test_manifest_tells_the_truth(files, shards):
    manifest = json.loads((shards / "dataset.json").read_text())
    entries = manifest["shards"]
    assert len(entries) > 2 and [e["name"] for e in entries] == [f"train-{n:06d}.tar" for n in range(len(entries))]
    for entry in entries:
        data = (shards / entry["name"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), digest(data)) and len(data) <= 1 << 20
        with tarfile.open(shards / entry["name"]) as archive:
            assert entry["samples"] == sum(not m.name.endswith(".cls") for m in archive)
    assert manifest["samples"] == len(files) == sum(e["samples"] for e in entries)
    assert manifest["bytes"] == sum(e["bytes"] for e in entries) and manifest["seed"] == 0
    assert (manifest["format"], manifest["version"], manifest["skipped"]) == ("headrace-shards", 1, [])
    names = {e["name"] for e in entries} | {e["name"][:-3] + "idx" for e in entries}
    assert set(os.listdir(shards)) == names | {"dataset.json", "index.npy"}


def test_idx_agrees_with_tarfile_and_is_what_dali_would_write(shards, tmp_path):
    wds2idx = pytest.importorskip("wds2idx")
    for path in shards.glob("*.tar"):
        first, *lines = path.with_suffix(".idx").read_text().splitlines()
        assert first == f"v1.2 {len(lines)}"
        with tarfile.open(path) as archive:
            members = [(m.name.partition(".")[2], m.offset_data, m.size, m.name) for m in archive]
        words = [word for line in lines for word in line.split(" ")]
        assert [tuple(words[i : i + 4]) for i in range(0, len(words), 4)] == [tuple(map(str, m)) for m in members]
        with wds2idx.IndexCreator(str(path), str(tmp_path / "dali.idx"), verbose=False) as creator:
            creator.create_index()
        assert (tmp_path / "dali.idx").read_text() == path.with_suffix(".idx").read_text()


def test_dali_reads_the_same_samples(shards):
    dali = pytest.importorskip("nvidia.dali")
    tars = sorted(map(str, shards.glob("*.tar")))
    source = open_source(shards)

    @dali.pipeline_def(batch_size=len(source), num_threads=1, device_id=None)
    def read():
        images, classes = dali.fn.readers.webdataset(
            paths=tars, index_paths=[t[:-3] + "idx" for t in tars], ext=[";".join(KINDS), "cls"]
        )
        return images, classes

    pipeline = read()
    pipeline.build()
    images, classes = pipeline.run()
    for i in range(len(source)):
        assert images.at(i).tobytes() == source.read(i).tobytes()
        assert int(classes.at(i).tobytes()) == source.label(i)


def test_webdataset_reads_the_same_samples(shards):
    wds = pytest.importorskip("webdataset")
    source = open_source(shards)
    samples = list(wds.WebDataset(sorted(map(str, shards.glob("*.tar"))), shardshuffle=False))
    assert len(samples) == len(source)
    for i, sample in enumerate(samples):
        (image,) = (sample[kind] for kind in KINDS if kind in sample)
        assert image == source.read(i).tobytes() and int(sample["cls"]) == source.label(i)
        assert source.key(i).partition("/")[2].partition(".")[0] == sample["__key__"]


def test_same_bytes_for_any_number_of_workers(folder, shards, tmp_path):
    shard(folder, tmp_path / "one", shard_mb=1)
    shard(folder, tmp_path / "five", shard_mb=1, workers=5)
    assert tree(tmp_path / "one") == tree(tmp_path / "five") == tree(shards)


def test_seed_and_no_shuffle(tmp_path):
    root = write_files(tmp_path / "in", {f"{n:02d}.png": encode(n, "PNG") for n in range(30)})
    orders = {}
    for seed in (None, 0, 1):
        shard(root, tmp_path / f"out{seed}", seed=seed)
        source = open_source(tmp_path / f"out{seed}")
        orders[seed] = [source.key(i)[-6:-4] for i in range(30)]
    assert orders[None] == sorted(orders[None]) == sorted(orders[0]) == sorted(orders[1])
    assert orders[None] != orders[0] != orders[1] != orders[None]


def test_unlabelled_folder_has_no_cls(tmp_path):
    root = write_files(tmp_path / "in", {"1.jpg": encode(1), "a/2.jpg": encode(2)})
    manifest = shard(root, tmp_path / "out", prefix="val")
    assert manifest["classes"] is None and manifest["label_source"] == "none"
    with tarfile.open(tmp_path / "out/val-000000.tar") as archive:
        assert {m.name[-4:] for m in archive} == {".jpg"}
    source = open_source(tmp_path / "out")
    assert source.classes is None and [source.label(i) for i in range(2)] == [-1, -1]


def test_awkward_names(tmp_path):
    names = ["a.jpg", "a.png", "two words.jpg", "v1.2.final.jpg", "ünï-cödé_1.JPG", "n" * 200 + ".tiff", "50%.jpeg"]
    kinds = [KINDS[Path(name).suffix[1:].lower().replace("jpeg", "jpg")] for name in names]
    root = write_files(
        tmp_path / "in", {name: encode(n, kind) for n, (name, kind) in enumerate(zip(names, kinds, strict=True))}
    )
    shard(root, tmp_path / "out", seed=None)
    with tarfile.open(tmp_path / "out/train-000000.tar") as archive:
        written = archive.getnames()
    stems = ["50_", "a", "a", "n" * 80, "two_words", "v1_2_final", "_n_-c_d__1"]
    suffixes = ["jpg", "jpg", "png", "tiff", "jpg", "jpg", "jpg"]
    assert written == [f"{i:08d}_{s}.{e}" for i, (s, e) in enumerate(zip(stems, suffixes, strict=True))]
    source = open_source(tmp_path / "out")
    assert {source.read(i).tobytes() for i in range(7)} == {path.read_bytes() for path in root.iterdir()}
    assert len(".".join(member_name(10**12, "x" * 300 + ".jpeg", encode(1)))) <= 100
    assert member_name(3, "no suffix", encode(1, "PNG")) == ("00000003_no_suffix", "png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_size_is_that_of_the_upright_image(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(1, kind, exif=exif)
    assert image_size(data) == decode(data).shape[:2] == ((24, 36) if orientation < 5 else (36, 24))


def test_index_holds_upright_sizes(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    root = write_files(tmp_path / "in", {"a.jpg": encode(1), "b.jpg": encode(2, exif=exif)})
    shard(root, tmp_path / "out", seed=None)
    source = open_source(tmp_path / "out")
    assert [source.size(i) for i in range(2)] == [(24, 36), (36, 24)]


def test_photos_with_several_workers(photo_folder, tmp_path):
    expected = {(digest(path.read_bytes()), path.parent.name) for path in photo_folder.rglob("*.jpg")}
    shard(photo_folder, tmp_path / "out", None, workers=2, shard_samples=5)
    source = open_source(tmp_path / "out")
    assert {(digest(source.read(i)), source.classes[source.label(i)]) for i in range(24)} == expected
    assert all(source.size(i) == decode(source.read(i)).shape[:2] for i in range(24)) and len(source) == 24


# bad images


def test_truncated_images_of_every_kind_are_found():
    exif = Image.Exif()
    exif[0x010E] = "x"
    thumbnail = encode(3)
    tagged = encode(2, height=200, exif=b"Exif\0\0" + exif.tobytes()[6:] + thumbnail)
    assert image_size(tagged) == (200, 36)
    for data in (*(encode(1, kind, height=100) for kind in KINDS.values()), tagged):
        with pytest.raises(DecodeError):
            image_size(data[: len(data) * 6 // 10])


def bad_folder(root):
    good = {f"good/{n}.jpg": encode(n) for n in range(8)}
    bad = {f"bad/{n:02d}.jpg": b"no image" for n in range(9)}
    bad |= {"bad/cut.jpg": encode(1)[:-40], "bad/cut.png": encode(1, "PNG")[:-40], "bad/empty.webp": b""}
    write_files(root, good | bad)
    (root / "good/gone.jpg").symlink_to(root / "nowhere")
    return good, bad


def test_bad_images_are_listed_and_nothing_is_kept(tmp_path):
    good, bad = bad_folder(tmp_path / "in")
    with pytest.raises(UserError) as caught:
        shard(tmp_path / "in", tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert "13 of 21 files" in lines[0] and "--skip-bad" in lines[-1] and lines[-2] == "  and 3 more"
    assert lines[1] == "  bad/00.jpg: not an image in any known format" and lines[10].startswith("  bad/cut.jpg: trunc")
    assert not (tmp_path / "out").exists()


def test_skip_bad_leaves_them_out_and_says_so(tmp_path):
    good, bad = bad_folder(tmp_path / "in")
    manifest = shard(tmp_path / "in", tmp_path / "out", skip_bad=True)
    source = open_source(tmp_path / "out")
    assert {source.read(i).tobytes() for i in range(len(source))} == set(good.values()) and len(source) == 8
    assert source.classes == ["bad", "good"] and all(source.label(i) == 1 for i in range(8))
    skipped = {entry["path"]: entry["reason"] for entry in manifest["skipped"]}
    assert set(skipped) == {*bad, "good/gone.jpg"}
    assert skipped["bad/empty.webp"] == "empty file" and skipped["good/gone.jpg"] == "No such file or directory"


def test_nothing_but_bad_images(tmp_path):
    root = write_files(tmp_path / "in", {"a.jpg": b"x"})
    with pytest.raises(UserError, match="nothing would be left"):
        shard(root, tmp_path / "out", skip_bad=True)
    assert not (tmp_path / "out").exists()


# where it may be written


def test_refused_places(folder, shards, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/train-000000.tar").write_text("somebody's")
    (folder / "inside").mkdir(exist_ok=True)
    cases = [
        (shards, "finished data set"),
        (folder / "inside/out", "lies inside the source"),
        (tmp_path / "used", "not empty \\(train-000000.tar\\)"),
        (tmp_path / "file/out", "cannot write the shards"),
    ]
    for out, words in cases:
        with pytest.raises(UserError, match=words):
            shard(folder, out)
    assert (tmp_path / "used/train-000000.tar").read_text() == "somebody's"
    (folder / "inside").rmdir()
    cases = [({"prefix": "a/b"}, "prefix"), ({"shard_mb": 0}, "shard-mb"), ({"workers": 0}, "workers")]
    cases += [({"shard_samples": 5}, "one of the two"), ({"encoding": Encoding(0)}, "max-side")]
    for arguments, words in [*cases, ({"encoding": Encoding(9, 99)}, "quality"), ({"part": (2, 2)}, "--part")]:
        with pytest.raises(UserError, match=words):
            shard(folder, tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_too_little_space_is_known_beforehand(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match="needs 3 MB, 1 MB are free"):
        shard(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_full_disk_before_a_shard_is_finished(folder, tmp_path):
    """A limit on the size of files stands in for the disk: the worker's write fails in the middle of a shard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(UserError, match="File too large"):
            shard(folder, tmp_path / "out", shard_mb=1, workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()


# the command


def test_command(folder, shards, tmp_path, capsys):
    arguments = [str(folder), str(tmp_path / "out"), "--shard-mb", "1", "--workers", "1", "--seed", "0"]
    assert run_command(lambda: main(arguments)) == 0
    assert "96 images (3 classes)" in capsys.readouterr().out and tree(tmp_path / "out") == tree(shards)
    assert run_command(lambda: main(arguments)) == 0
    assert "96 images (3 classes)" in capsys.readouterr().out and tree(tmp_path / "out") == tree(shards)
    assert run_command(lambda: main([*arguments, "--max-side", "9"])) == 2
    assert "finished data set" in capsys.readouterr().err and tree(tmp_path / "out") == tree(shards)
    arguments = [str(folder), str(tmp_path / "plain"), "--no-shuffle", "--prefix", "val"]
    assert run_command(lambda: main(arguments)) == 0
    assert open_source(tmp_path / "plain").key(0) == "val-000000.tar/00000000_photo_0.jpg"


def test_workers_start_without_torch():
    code = "import sys, headrace.pipelines.shard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# damaged data sets


def test_damage_is_refused_when_opened(shards, tmp_path):
    manifest = json.loads((shards / "dataset.json").read_text())
    index = np.load(shards / "index.npy")
    beyond = index.copy()
    beyond["offset"][5] = 1 << 40

    def case(words, file, data):
        out = damaged(shards, tmp_path)
        (out / file).unlink()
        if data is not None:
            (out / file).write_bytes(data)
        with pytest.raises(UserError, match=words):
            open_source(out)
        shutil.rmtree(out)

    def npy(array):
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    case("train-000001.tar.*bytes instead of", "train-000001.tar", (shards / "train-000001.tar").read_bytes()[:-600])
    case("missing: train-000001.tar", "train-000001.tar", None)
    case("version 2", "dataset.json", json.dumps(manifest | {"version": 2}).encode())
    case("cannot be read", "dataset.json", b'{"format": ')
    case("cannot be read", "index.npy", None)
    case("do not match", "index.npy", npy(index[:-1]))
    case("past the end", "index.npy", npy(beyond))


def test_someone_elses_dataset_json_is_no_manifest(tmp_path):
    root = write_files(tmp_path, {"dataset.json": b'{"labels": null}', "a.png": encode(1, "PNG")})
    assert open_source(root).key(0) == "a.png"


def test_shards_pickle_without_their_maps_and_index(shards):
    source = open_source(shards)
    source.read(0)
    data = pickle.dumps(source)
    again = pickle.loads(data)
    assert len(data) < 2000 and again.read(7).tobytes() == source.read(7).tobytes() and again.key(7) == source.key(7)
