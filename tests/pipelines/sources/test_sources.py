"""Sources against what was put into them: order, labels, bytes, names, and what is refused."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from headrace.errors import UserError
from headrace.pipelines.sources import open_source, tar
from headrace.pipelines.sources.folder import FolderSource
from headrace.pipelines.sources.shards import INDEX, ShardSource
from headrace.pipelines.spec import ByteSource


def encode(seed, kind="JPEG", **options):
    """Noise of (30 + seed, 40) pixels; every seed gives other bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (30 + seed, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_files(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_tar(path, files, form=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def contents(source):
    return [(source.key(i), source.read(i).tobytes(), source.label(i)) for i in range(len(source))]


# a folder of images


def test_folder_order_labels_and_bytes(tmp_path):
    files = {
        "b/one.JPG": encode(1),
        "a/deep/er/two.png": encode(2, "PNG"),
        "a/a b.ü.webp": encode(3, "WEBP"),
        "a-b/z.jpeg": encode(4),
        "a-b/a.gif": encode(5, "GIF"),
    }
    ignored = {"a/._one.jpg": b"mac", ".hidden/x.jpg": encode(1), "a/.x.jpg": b"", "c/notes.txt": b"", "a/jpg": b""}
    source = open_source(write_files(tmp_path, files | ignored))
    assert isinstance(source, FolderSource) and isinstance(source, ByteSource)
    assert source.classes == ["a", "a-b", "b"] and source.label_source == "folder"
    # "-" sorts before "/", so a-b's files come before a's, whatever the order of the classes
    expected = [("a-b/a.gif", 1), ("a-b/z.jpeg", 1), ("a/a b.ü.webp", 0), ("a/deep/er/two.png", 0), ("b/one.JPG", 2)]
    assert contents(source) == [(key, files[key], label) for key, label in expected]
    assert source.read(0).dtype == np.uint8 and source.read(0).ndim == 1 and source.size(0) is None


@pytest.mark.parametrize("names", [["x.jpg", "a/1.jpg", "b/2.jpg"], ["a/1.jpg", "a/2.jpg"], ["1.jpg"]])
def test_folder_without_labels(tmp_path, names):
    source = open_source(write_files(tmp_path, {name: encode(1) for name in names}))
    assert source.classes is None and source.label_source == "none"
    assert {source.label(i) for i in range(len(source))} == {-1} and len(source) == len(names)


def test_folder_follows_links_but_no_loops(tmp_path):
    write_files(tmp_path, {"data/a/1.jpg": encode(1), "elsewhere/2.jpg": encode(2)})
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/b/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "data/a/pipe.jpg")  # opening it would wait for ever
    source = FolderSource(tmp_path / "data")
    assert [source.key(i) for i in range(len(source))] == ["a/1.jpg", "b/2.jpg", "b/gone.jpg"]
    assert source.classes == ["a", "b"]
    with pytest.raises(FileNotFoundError):
        source.read(2)


def test_folder_with_names_that_are_no_utf8(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    with open(path, "wb") as file:
        file.write(encode(1))
    source = FolderSource(tmp_path)
    assert source.key(0) == "caf\\xe9.jpg" and source.read(0).tobytes() == encode(1)


def test_folder_pickles(tmp_path):
    source = FolderSource(write_files(tmp_path, {"a/1.jpg": encode(1), "b/2.jpg": encode(2)}))
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


# what cannot be opened


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        open_source(path)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in (str(path), *words)), message


def test_refusals_say_what_is_there(tmp_path):
    write_files(tmp_path, {"photos/a.txt": b"", "photos/deep/b.TXT": b"", "photos/README": b"", "list.csv": b""})
    (tmp_path / "empty").mkdir()
    write_files(tmp_path, {"both/x/y.jpg": encode(1)})
    write_tar(tmp_path / "both/s.tar", {"a.jpg": encode(1)})
    refused(tmp_path / "photo", "does not exist", f"did you mean {tmp_path / 'photos'}?")
    refused(tmp_path / "phots" / "train", "does not exist", f"did you mean {tmp_path / 'photos'}?")
    refused(tmp_path / "list.csv", "neither a folder nor a .tar")
    refused(tmp_path / "empty", "empty")
    refused(tmp_path / "photos", "no image", "2 .txt", "1 without a suffix")
    refused(tmp_path / "both", "tars", "x/y.jpg")


# tars


FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("form", FORMATS)
def test_members_agree_with_tarfile(tmp_path, form):
    names = [f"{'d' * 60}/{'s' * n}.jpg" for n in (3, 34, 35, 36, 90)]
    names += [] if form == "ustar" else ["n" * 300 + ".jpg", "ü" * 70 + ".jpg", "späße.jpg"]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=FORMATS[form]) as archive:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = (0, 1, 511, 512, 513)[number % 5]
            member.mtime = 1.5 if form == "pax" else 1  # a fraction needs a pax record of its own
            archive.addfile(member, io.BytesIO(bytes([number + 1]) * member.size))
            folder = tarfile.TarInfo(f"folder{number}")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            link = tarfile.TarInfo(f"link{number}")
            link.type, link.linkname = tarfile.SYMTYPE, "l" * 150 if form != "ustar" else "l"
            link.size = 700  # a link has no data, whatever its header says
            archive.addfile(link)
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
    with open(path, "rb") as file:
        assert list(tar.members(file.fileno())) == expected
    assert [name for name, *_ in expected] == names


@pytest.mark.parametrize(("name", "size"), [("a.jpg", 0), ("b" * 96 + ".jpg", 8**11 - 1), ("00_x.cls", 12345)])
def test_header_is_that_of_tarfile(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    assert tar.header(name, size) == member.tobuf(tarfile.USTAR_FORMAT)


def test_sizes_beyond_octal():
    member = tarfile.TarInfo("x.jpg")
    member.size = 9 << 30
    assert tar._octal(member.tobuf(tarfile.GNU_FORMAT)[124:136]) == 9 << 30


def foreign_samples():
    """One member list with every freedom that WebDataset leaves, and the samples it means."""
    files = {
        "train/0001.json": b"{}",
        "train/0001.JPG": encode(1),
        "train/0001.cls": b" 7\n",
        "train/0002.mask.png": encode(2, "PNG"),  # the first image member counts
        "train/0002.jpg": encode(3),
        "other/0002.jpg": encode(4),  # same name in another folder: another sample
        "other/0002.cls": b"-1",
        "text/0003.txt": b"no image here",
        ".hidden.jpg": encode(5),
        "noextension": b"",
        "last.cls": b"3",
        "last.webp": encode(6, "WEBP"),
    }
    expected = [("train/0001.JPG", 7), ("train/0002.mask.png", -1), ("other/0002.jpg", -1), ("last.webp", 3)]
    return files, expected


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("index", [None, "v1.2 1\njpg 9999999 1 nonsense.jpg\n"], ids=["bare", "with .idx"])
def test_foreign_tars(tmp_path, form, index):
    files, expected = foreign_samples()
    write_tar(tmp_path / "b.tar", files, FORMATS[form])
    write_tar(tmp_path / "a.tar", {"x.png": encode(9, "PNG")}, FORMATS[form])
    write_files(tmp_path, {"._b.tar": b"mac", "README.md": b""})
    if index:  # foreign indices are not trusted: the headers are the truth
        (tmp_path / "b.idx").write_text(index)
    source = open_source(tmp_path)
    assert isinstance(source, ShardSource) and isinstance(source, ByteSource)
    wanted = [("a.tar/x.png", encode(9, "PNG"), -1)]
    wanted += [(f"b.tar/{name}", files[name], label) for name, label in expected]
    assert contents(source) == wanted
    assert source.classes == [str(n) for n in range(8)] and source.label_source == "cls" and source.size(0) is None
    again = pickle.loads(pickle.dumps(source))
    assert contents(again) == wanted
    single = open_source(tmp_path / "a.tar")
    assert contents(single) == wanted[:1] and single.classes is None and single.label_source == "none"


def test_reads_are_views_of_one_map_per_shard(tmp_path):
    source = ShardSource(write_tar(tmp_path / "x.tar", {"a.jpg": encode(1), "b.jpg": encode(2)}))
    first, again, second = source.read(0), source.read(0), source.read(1)
    assert np.shares_memory(first, again) and not first.flags.owndata and not first.flags.writeable
    assert first.base is second.base  # the whole shard, mapped once


def test_foreign_damage_is_refused(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", {f"{n}.jpg": encode(n) for n in range(5)}).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        last = archive.getmembers()[-1]
    for name, end in {"data.tar": last.offset_data + last.size - 1, "header.tar": last.offset + 100}.items():
        (tmp_path / name).write_bytes(whole[:end])
        refused(tmp_path / name, "copy it again")
    (tmp_path / "data.tar").write_bytes(whole[: last.offset_data + last.size])  # no end mark: every byte is there
    assert len(open_source(tmp_path / "data.tar")) == 5
    (tmp_path / "text.tar").write_bytes(b"hello" * 300)
    refused(tmp_path / "text.tar", "no tar header at byte 0")
    refused(write_tar(tmp_path / "texts.tar", {"a.txt": b"x"}), "no member of its tars is an image")
    refused(write_tar(tmp_path / "named.tar", {"a.jpg": encode(1), "a.cls": b"cat"}), "a.cls", "cat")


def test_shard_that_changes_under_the_reader(tmp_path):
    source = ShardSource(write_tar(tmp_path / "x.tar", {"a.jpg": encode(1), "b.jpg": encode(2)}))
    os.truncate(tmp_path / "x.tar", 1000)  # mapped and read, this would kill the process
    with pytest.raises(OSError, match="size has changed"):
        source.read(1)


def test_many_shards_raise_the_limit_of_open_files(tmp_path, monkeypatch):
    import resource

    for n in range(3):
        write_tar(tmp_path / f"{n}.tar", {"a.jpg": encode(n)})
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 600))
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: limits.append(pair))
    ShardSource(tmp_path)
    assert limits == [(3 + 512, 600)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 514))
    with pytest.raises(UserError, match="514"):
        ShardSource(tmp_path)


def test_an_index_row_is_28_bytes():
    assert INDEX.itemsize == 28
