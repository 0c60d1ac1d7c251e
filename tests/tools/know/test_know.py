"""`headrace know` over small sets: what it finds, what it writes, and what it makes of faults."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from browser import assert_shown_well
from html_pages import assert_stands_alone
from pictures import jpeg, picture, write_pictures
from PIL import Image, ImageOps

from headrace.cli import dispatch
from headrace.errors import UserError
from headrace.pipelines.plan.columns import Columns
from headrace.pipelines.plan.where import Where
from headrace.pipelines.sources import open_source
from headrace.tools.know.know import know

CAT, DOG, OWL, CAR = (picture(seed) for seed in range(4))


@pytest.fixture
def set_of(tmp_path, monkeypatch):
    """Function(files) -> their folder `own`; the working directory is the one around it."""
    monkeypatch.chdir(tmp_path)
    return lambda files, name="own": write_pictures(tmp_path / name, files)


def run(capsys, *words):
    code = dispatch(["know", *map(str, words), "--workers", "1", "--json", "found.json"])
    return code, capsys.readouterr().out, json.loads(open("found.json").read())


def names(group):
    return [key.split("/")[-1] for key in group]


def test_what_is_found_and_written(set_of, capsys):
    small = CAT.resize((80, 60))
    dark = Image.fromarray((np.asarray(DOG) * 0.05).astype(np.uint8))
    files = {
        "a.jpg": small,
        "b.jpg": CAT,
        "c.jpg": ImageOps.mirror(OWL),
        "d.jpg": OWL,
        "e.jpg": dark,
        "f.jpg": b"no image",
    }
    code, said, found = run(capsys, set_of(files))
    assert code == 0 and found["images"] == 6
    assert found["duplicates"] == [["a.jpg", "b.jpg"], ["c.jpg", "d.jpg"]]
    assert found["unreadable"] == [{"key": "f.jpg", "reason": "not an image in any known format"}]
    assert found["outliers"]["dark"]["keys"] == ["e.jpg"]
    assert found["where"] == "readable and not duplicate and not outlier"
    assert "2 groups, 2 images more than needed" in said and "1 unreadable" in said

    source = open_source("own")
    columns = Columns(source, None, "data.train.own")
    # of a group the largest is kept; of two as large the one of more bytes
    c, d = ((source.root / name).stat().st_size for name in ("c.jpg", "d.jpg"))
    kept = np.flatnonzero(Where(found["where"], "where").rows(columns))
    assert [source.key(i) for i in kept] == ["b.jpg", "c.jpg" if c >= d else "d.jpg"]
    assert columns("width").tolist() == [80, 160, 160, 160, 160, 0]
    assert columns("group").tolist() == [0, 0, 1, 1, -1, -1]
    page = assert_stands_alone(open("know/know.html").read())
    assert any(attributes.get("alt") == "e.jpg" for attributes, _ in page.all("img"))
    shown = [text for attributes, text in page.all("code")]
    assert any(found["where"] in text and "table:" not in text for text in shown)
    assert "not (brightness < 0.08)" in shown


def test_beside_shards_the_table_needs_no_name(set_of, capsys):
    set_of({"x/a.jpg": CAT, "x/b.jpg": jpeg(CAT, 40), "y/c.jpg": DOG})
    assert dispatch(["shard", "own", "shards", "--workers", "1", "--no-shuffle"]) == 0
    run(capsys, "shards")
    set_of({"mix.yaml": b"sets:\n  own: {source: shards, where: 'not duplicate and label == 0'}\n"}, ".")
    source = open_source("plan:mix.yaml")
    assert [key.split("_")[-1] for key in map(source.key, range(len(source)))] == ["a.jpg"]
    assert dispatch(["check", "shards"]) == 0


def test_images_of_another_set(set_of, capsys):
    set_of({"1.jpg": CAT, "2.jpg": DOG, "3.jpg": OWL})
    set_of({"1.jpg": CAR, "2.jpg": jpeg(ImageOps.mirror(OWL), 50)}, "val")
    set_of({"1.jpg": CAR}, "test")
    code, said, found = run(capsys, "own", "--against", "val", "test")
    assert [(one["data"], one["found"], one["pairs"]) for one in found["against"]] == [
        ("val", 1, [["3.jpg", "2.jpg"]]),
        ("test", 0, []),
    ]
    assert np.load("own/columns/leaked.npy").tolist() == [False, False, True]
    assert found["where"] == "not leaked" and "in val: 1 of its 2 images" in said
    assert_stands_alone(open("know/know.html").read())


def test_equal_keys_of_two_sets_and_in_one(set_of, capsys):
    set_of({"1.jpg": CAT, "2.jpg": DOG}, "one")
    set_of({"1.jpg": DOG, "2.jpg": OWL}, "two")
    set_of({"mix.yaml": b"sets: {one: one, two: two}", "list.txt": b"one/1.jpg\none/1.jpg\none/2.jpg\n"}, ".")
    found = run(capsys, "plan:mix.yaml")[2]
    assert found["duplicates"] == [["one/2.jpg", "two/1.jpg"]]
    dispatch(["know", "list:list.txt", "--out", "listed", "--workers", "1"])
    assert "1 keys are of several images, such as 'one/1.jpg' of 2" in capsys.readouterr().err
    assert np.load("list.txt.columns/duplicate.npy").tolist() == [False, True, False]


def test_a_set_that_has_changed_since_is_refused(set_of, capsys):
    run(capsys, set_of({"1.jpg": CAT, "2.jpg": DOG}))
    set_of({"1.jpg": CAT, "2.jpg": OWL})
    with pytest.raises(UserError, match="holds measurements of another set, or of own as it was") as fault:
        dispatch(["know", "own"])
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere"], "does not exist"),
        (["own", "--radius", "30"], "--radius: 0 to 20 bits, not 30"),
        (["own", "--workers", "0"], "--workers: must be at least 1"),
        (["own", "--part", "3/2"], "--part: is one of 0/2 ... 1/2, not 3/2"),
        (["http://localhost/x-{0..1}.tar#samples=9"], "a stream"),
        (["own", "--json", "own"], "is a folder"),
    ],
)
def test_mistakes_are_one_line(set_of, words, said):
    set_of({"1.jpg": CAT})
    with pytest.raises(UserError, match=said) as fault:
        dispatch(["know", *words])
    assert "\n" not in str(fault.value) and not os.path.exists("know")


def test_damaged_measurements(set_of, capsys):
    run(capsys, set_of({"1.jpg": CAT, "2.jpg": DOG}))
    with open("own/columns/.know/thumbs.npy", "r+b") as file:
        file.truncate(300)
    with pytest.raises(UserError, match="damaged measurements .* delete this folder"):
        dispatch(["know", "own"])


def test_parts_make_the_same_as_one(set_of):
    set_of({f"{n:03d}.jpg": picture(n, (40, 30)) for n in range(150)} | {"z.jpg": picture(7, (80, 60))})
    whole = know("own", out="whole", workers=1, progress=False)
    shutil.rmtree("own/columns")
    assert know("own", out="parts", workers=1, part=(1, 2), progress=False) is None
    assert not os.path.exists("parts/know.html")
    parts = know("own", out="parts", workers=1, part=(0, 2), progress=False)
    assert whole.columns.keys() == parts.columns.keys()
    for name, values in whole.columns.items():
        np.testing.assert_array_equal(values, parts.columns[name])
    assert [group.tolist() for group in parts.groups] == [[7, 150]]


def test_a_killed_run_goes_on_where_it_was(set_of, tmp_path):
    """SIGKILL at any moment: nothing half-written counts, what was finished is not measured again."""
    set_of({f"{n:03d}.jpg": picture(n) for n in range(16)} | {"zz.jpg": b"broken"})
    lines = "".join(f"own/{n % 16:03d}.jpg\n" for n in range(1200)) + "own/zz.jpg\n"
    set_of({"list.txt": lines.encode()}, ".")
    command = [
        sys.executable,
        "-m",
        "headrace.cli",
        "know",
        "list:list.txt",
        "--no-cuts",
        "--workers",
        "1",
        "--no-pictures",
    ]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    blocks = lambda: sorted((tmp_path / "list.txt.columns/.know").glob("*.npz"))
    deadline = time.monotonic() + 100
    while len(blocks()) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {file: file.stat().st_mtime_ns for file in blocks()}
    assert 3 <= len(finished) < 19
    know("list:list.txt", workers=1, part=(0, 2), progress=False)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    found = know("list:list.txt", workers=1, pictures=False, progress=False)
    assert found.measured.bad == [(1200, "not an image in any known format")]
    assert len(found.groups) == 16 and found.columns["duplicate"].sum() == 1200 - 16


def test_labels_that_contradict_each_other(set_of, capsys):
    files = {f"a/{n}.jpg": picture(n, (40, 30)) for n in range(20, 32)} | {"c/z.jpg": DOG}
    files |= {f"b/{n}.jpg": picture(n, (40, 30)) for n in range(40, 52)} | {"a/x.jpg": CAT, "b/y.jpg": jpeg(CAT, 50)}
    code, said, found = run(capsys, set_of(files))
    assert found["labels"]["conflicts"] == [[{"key": "a/x.jpg", "class": "a"}, {"key": "b/y.jpg", "class": "b"}]]
    assert found["labels"]["few"] == [{"class": "c", "images": 1}]
    assert "labels: 1 groups of several classes; classes of few images: c (1)" in said
    source = open_source("own")
    marked = np.flatnonzero(np.load("own/columns/label_conflict.npy"))
    assert [source.key(i) for i in marked] == ["a/x.jpg", "b/y.jpg"]
    assert_stands_alone(open("know/know.html").read())


def test_nothing_to_leave_out(set_of, capsys):
    code, said, found = run(capsys, set_of({"1.jpg": CAT, "2.jpg": DOG}), "--no-pictures")
    assert found["where"] == "" and "where:" not in said
    assert "ought to be left out" in open("know/know.html").read()


def test_the_page_in_a_browser(set_of, tmp_path):
    """All sections that there are, with keys and classes that are long."""
    name = "a class whose name is longer than a line of a small telephone"
    files = {f"{'ab'[n % 2]}/{n}.jpg": picture(n, (80, 60)) for n in range(24)}
    files |= {f"{name}/{'x' * 90}.jpg": jpeg(picture(3, (80, 60)), 40), f"{name}/y.jpg": b"no image"}
    files |= {"a/wide.jpg": picture(50, (400, 60)), "b/dark.jpg": Image.new("RGB", (60, 60))}
    set_of(files)
    set_of({"a/1.jpg": picture(4, (80, 60))}, "val")
    words = ["--against", "val", "--encoder", "pixels:8", "--cosine", "0.9", "--workers", "1"]
    assert dispatch(["know", "own", *words]) == 0
    assert_shown_well(tmp_path, [tmp_path / "know" / "know.html"])
