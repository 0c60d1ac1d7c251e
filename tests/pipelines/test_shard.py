"""Sharding against the files that went in, against three other readers, and through crashes."""

import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import headrace
import numpy as np
import pytest
from headrace.errors import UserError, run_command
from headrace.pipelines import shard as shard_module
from headrace.pipelines.decode import DecodeError, decode, image_size
from headrace.pipelines.shard import main, shard
from headrace.pipelines.sources import open_source
from headrace.pipelines.sources.writer import member_name
from PIL import Image

PHOTOS = Path(headrace.__file__).resolve().parent.parent / "shared/data/imagenet-sample-0.tar"
KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}


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
    shard(folder, out, shard_mb=1, workers=2, progress=False)
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
    shard(folder, tmp_path / "one", shard_mb=1, workers=1, progress=False)
    shard(folder, tmp_path / "five", shard_mb=1, workers=5, progress=False)
    assert tree(tmp_path / "one") == tree(tmp_path / "five") == tree(shards)


def test_seed_and_no_shuffle(tmp_path):
    root = write_files(tmp_path / "in", {f"{n:02d}.png": encode(n, "PNG") for n in range(30)})
    orders = {}
    for seed in (None, 0, 1):
        shard(root, tmp_path / f"out{seed}", shuffle_seed=seed, workers=1, progress=False)
        source = open_source(tmp_path / f"out{seed}")
        orders[seed] = [source.key(i)[-6:-4] for i in range(30)]
    assert orders[None] == sorted(orders[None]) == sorted(orders[0]) == sorted(orders[1])
    assert orders[None] != orders[0] != orders[1] != orders[None]


def test_unlabelled_folder_has_no_cls(tmp_path):
    root = write_files(tmp_path / "in", {"1.jpg": encode(1), "a/2.jpg": encode(2)})
    manifest = shard(root, tmp_path / "out", workers=1, prefix="val", progress=False)
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
    shard(root, tmp_path / "out", workers=1, shuffle_seed=None, progress=False)
    with tarfile.open(tmp_path / "out/train-000000.tar") as archive:
        written = archive.getnames()
    stems = ["50_", "a", "a", "n" * 80, "two_words", "v1_2_final", "_n_-c_d__1"]
    suffixes = ["jpg", "jpg", "png", "tiff", "jpg", "jpg", "jpg"]
    assert written == [f"{i:08d}_{s}.{e}" for i, (s, e) in enumerate(zip(stems, suffixes, strict=True))]
    source = open_source(tmp_path / "out")
    assert {source.read(i).tobytes() for i in range(7)} == {path.read_bytes() for path in root.iterdir()}
    assert len(".".join(member_name(10**12, "x" * 300 + ".jpeg"))) <= 100


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
    shard(root, tmp_path / "out", workers=1, shuffle_seed=None, progress=False)
    source = open_source(tmp_path / "out")
    assert [source.size(i) for i in range(2)] == [(24, 36), (36, 24)]


def test_real_photos(tmp_path):
    if not PHOTOS.exists():
        pytest.skip("the ImageNet sample is not beside the repository")
    with tarfile.open(PHOTOS) as archive:
        members = [m for m in archive if m.isreg()]
        expected = {(digest(archive.extractfile(m).read()), m.name.partition("/")[0]) for m in members}
        archive.extractall(tmp_path / "in", filter="data")
    shard(tmp_path / "in", tmp_path / "out", shard_mb=16, workers=2, progress=False)
    source = open_source(tmp_path / "out")
    assert {(digest(source.read(i)), source.classes[source.label(i)]) for i in range(len(source))} == expected
    assert all(source.size(i) == image_size(source.read(i)) for i in range(0, len(source), 50))


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
        shard(tmp_path / "in", tmp_path / "out", workers=1, progress=False)
    lines = str(caught.value).splitlines()
    assert "13 of 21 files" in lines[0] and "--skip-bad" in lines[-1] and lines[-2] == "  and 3 more"
    assert lines[1] == "  bad/00.jpg: not an image in any known format" and lines[10].startswith("  bad/cut.jpg: trunc")
    assert not (tmp_path / "out").exists()


def test_skip_bad_leaves_them_out_and_says_so(tmp_path):
    good, bad = bad_folder(tmp_path / "in")
    manifest = shard(tmp_path / "in", tmp_path / "out", workers=1, skip_bad=True, progress=False)
    source = open_source(tmp_path / "out")
    assert {source.read(i).tobytes() for i in range(len(source))} == set(good.values()) and len(source) == 8
    assert source.classes == ["bad", "good"] and all(source.label(i) == 1 for i in range(8))
    skipped = {entry["path"]: entry["reason"] for entry in manifest["skipped"]}
    assert set(skipped) == {*bad, "good/gone.jpg"}
    assert skipped["bad/empty.webp"] == "empty file" and skipped["good/gone.jpg"] == "No such file or directory"


def test_nothing_but_bad_images(tmp_path):
    root = write_files(tmp_path / "in", {"a.jpg": b"x"})
    with pytest.raises(UserError, match="nothing would be left"):
        shard(root, tmp_path / "out", workers=1, skip_bad=True, progress=False)
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
            shard(folder, out, workers=1, progress=False)
    assert (tmp_path / "used/train-000000.tar").read_text() == "somebody's"
    (folder / "inside").rmdir()
    for arguments, words in [({"prefix": "a/b"}, "prefix"), ({"shard_mb": 0}, "shard_mb"), ({"workers": 0}, "workers")]:
        with pytest.raises(UserError, match=words):
            shard(folder, tmp_path / "new", **arguments)
    with pytest.raises(UserError, match="already in tars"):
        shard(shards, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_too_little_space_is_known_beforehand(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match="0.0 GB are free"):
        shard(folder, tmp_path / "out", workers=1, progress=False)
    assert not (tmp_path / "out").exists()


def test_full_disk(folder, tmp_path):
    """A limit on the size of files stands in for the disk: the worker's write fails in the middle of a shard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(UserError, match="File too large"):
            shard(folder, tmp_path / "out", shard_mb=1, workers=2, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()


# the command


def test_command(folder, shards, tmp_path, capsys):
    arguments = [str(folder), str(tmp_path / "out"), "--shard-mb", "1", "--workers", "1", "--seed", "0"]
    assert run_command(lambda: main(arguments)) == 0
    assert "96 images (3 classes)" in capsys.readouterr().out and tree(tmp_path / "out") == tree(shards)
    assert run_command(lambda: main(arguments)) == 2
    assert "finished data set" in capsys.readouterr().err
    arguments = [str(folder), str(tmp_path / "plain"), "--no-shuffle", "--prefix", "val"]
    assert run_command(lambda: main(arguments)) == 0
    assert open_source(tmp_path / "plain").key(0) == "val-000000.tar/00000000_photo_0.jpg"


def test_workers_start_without_torch():
    code = "import sys, headrace.pipelines.shard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# interrupted runs

COMMAND = "import sys; from headrace.pipelines.shard import main; from headrace.errors import run_command; "
COMMAND += "sys.exit(run_command(lambda: main(sys.argv[1:])))"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """One image under 6,000 names: a run that lasts a second."""
    root = tmp_path_factory.mktemp("many")
    (root / "0000.jpg").write_bytes(encode(1))
    for n in range(1, 6000):
        (root / f"{n:04d}.jpg").hardlink_to(root / "0000.jpg")
    return root


def start_and_wait_for_a_shard(many, out):
    """A run with its own process group, stopped by the caller once a shard is being written."""
    command = [sys.executable, "-c", COMMAND, str(many), str(out), "--shard-mb", "1", "--workers", "2"]
    run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while run.poll() is None and not list(out.glob(".sharding/*.tar")):
        time.sleep(0.002)
    assert run.poll() is None, run.stderr.read()
    return run


def wait_until_group_is_gone(group):
    for _ in range(1000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_kill_leaves_nothing_that_opens_and_a_rerun_is_whole(many, tmp_path):
    run = start_and_wait_for_a_shard(many, tmp_path / "out")
    run.kill()
    run.communicate()
    assert wait_until_group_is_gone(run.pid), "the workers outlived a killed run"
    assert (tmp_path / "out/.sharding").exists()
    with pytest.raises(UserError, match="did not finish"):
        open_source(tmp_path / "out")
    shard(many, tmp_path / "out", shard_mb=1, workers=2, progress=False)
    shard(many, tmp_path / "undisturbed", shard_mb=1, workers=2, progress=False)
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")
    assert len(open_source(tmp_path / "out")) == 6000


def test_interrupt_leaves_nothing(many, tmp_path):
    run = start_and_wait_for_a_shard(many, tmp_path / "out")
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate()
    assert run.returncode == 130 and "Traceback" not in errors
    assert wait_until_group_is_gone(run.pid) and not (tmp_path / "out").exists()


def test_killed_worker_ends_the_run(many, tmp_path):
    run = start_and_wait_for_a_shard(many, tmp_path / "out")
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, errors = run.communicate()
    assert run.returncode == 2 and "a worker process was killed" in errors
    assert not (tmp_path / "out").exists()


def test_killed_while_moving_the_files_up(folder, shards, tmp_path):
    out = damaged(shards, tmp_path)
    (out / "dataset.json").unlink()
    (out / "train-000001.tar").write_bytes(b"half")
    (out / ".sharding").mkdir()
    (out / ".sharding/9.tar").write_bytes(b"half")
    with pytest.raises(UserError, match="did not finish"):
        open_source(out)
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty \\(mine.txt\\)"):
        shard(folder, out, shard_mb=1, workers=1, progress=False)
    (out / "mine.txt").unlink()
    shard(folder, out, shard_mb=1, workers=1, progress=False)
    assert tree(out) == tree(shards) and not (out / ".sharding").exists()


def test_two_runs_do_not_write_into_one_folder(folder, tmp_path):
    import fcntl

    (tmp_path / "out/.sharding").mkdir(parents=True)
    lock = os.open(tmp_path / "out/.sharding", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another run"):
        shard(folder, tmp_path / "out", workers=1, progress=False)
    os.close(lock)
    shard(folder, tmp_path / "out", workers=1, progress=False)
    assert len(open_source(tmp_path / "out")) == 96


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
