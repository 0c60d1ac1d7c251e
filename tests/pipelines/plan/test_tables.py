"""Tables beside images and the user's own: whose rows are whose, what belongs to other images, parquet."""

import json

import numpy as np
import pytest

from headrace.errors import UserError
from headrace.pipelines import folder_beside, open_source, write_columns
from headrace.pipelines.plan.columns import Columns
from headrace.pipelines.plan.sets import open_plan


def test_columns_that_are_written_beside_images_are_read(photo_folder, tmp_path, capsys):
    source, folder = open_source(photo_folder), folder_beside(photo_folder)
    try:
        write_columns(folder, source, {"blur": np.arange(24) / 24, "odd": np.arange(24) % 2 > 0})
        (folder / "more.csv").write_text("key,word\n" + f"{source.key(5)},five\n")
        capsys.readouterr()
        again = open_source(photo_folder)
        assert "passed over" not in capsys.readouterr().err and len(again) == 24
        plan = open_plan({"a": {"source": str(photo_folder), "where": "blur >= 0.5 and odd"}})
        assert [plan.key(i) for i in range(6)] == [f"a/{source.key(i)}" for i in range(13, 24, 2)]
        plan = open_plan({"a": {"source": str(photo_folder), "where": "word == 'five'"}})
        assert [plan.key(i) for i in range(len(plan))] == [f"a/{source.key(5)}"]
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_of_a_file_they_lie_beside_it(photo_folder, tmp_path):
    names = sorted(path for path in photo_folder.rglob("*.jpg"))
    (tmp_path / "some.txt").write_text("\n".join(str(name) for name in names[:9]))
    name = f"list:{tmp_path / 'some.txt'}?root={photo_folder}"
    source = open_source(name)
    assert folder_beside(name) == tmp_path / "some.txt.columns"
    write_columns(folder_beside(name), source, {"score": np.arange(9)})
    assert len(open_plan({"a": {"source": name, "where": "score > 6"}})) == 2


@pytest.mark.parametrize("kind", ["fewer", "others"])
def test_columns_about_other_images_are_refused(photo_folder, tmp_path, kind):
    """A column in the order of a source says nothing of another one, be it as large."""
    source = open_source(photo_folder)
    write_columns(tmp_path / "columns", source, {"score": np.arange(24)})
    said = json.loads((tmp_path / "columns" / "images.json").read_text())
    assert said["images"] == 24
    said |= {"images": 23} if kind == "fewer" else {"names": "0123456789ab"}
    (tmp_path / "columns" / "images.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="its columns are about 2[34] images, .* has 24.*make them anew"):
        Columns(source, str(tmp_path / "columns"), "data.train.a")
    with pytest.raises(UserError, match="make them anew"):
        write_columns(tmp_path / "columns", source, {"score": np.arange(24)})
    (tmp_path / "columns" / "images.json").write_text("{")
    with pytest.raises(UserError, match="images.json: cannot be read"):
        Columns(source, str(tmp_path / "columns"), "data.train.a")


def test_a_file_name_that_several_images_have_is_no_key(photo_folder, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        (tmp_path / "set" / folder / "1.jpg").write_bytes(next(photo_folder.rglob("*.jpg")).read_bytes())
    (tmp_path / "t.csv").write_text("key,score\n1.jpg,3\n")
    columns = Columns(open_source(tmp_path / "set"), str(tmp_path / "t.csv"), "w")
    with pytest.raises(UserError, match="'1.jpg' is the name of several images, such as x/1.jpg and y/1.jpg"):
        columns("score")


@pytest.mark.parametrize(
    "text, problem",
    [("", "has no column 'key'"), ("key,score,score\na,1,2\n", "two columns are called 'score'")],
)
def test_tables_that_are_none(photo_folder, tmp_path, text, problem):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=problem):
        Columns(open_source(photo_folder), str(tmp_path / "t.csv"), "w")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no column"):
        Columns(open_source(photo_folder), str(tmp_path / "empty"), "w")


def test_parquet_is_read_as_it_says(photo_folder, tmp_path):
    """Numbers, texts, yes and no, with gaps; rows in any order; nothing known of rows that it lacks."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra [tables]")
    from pyarrow import parquet

    source = open_source(photo_folder)
    keys = [source.key(i) for i in range(24)]
    given = np.random.default_rng(0).permutation(24)[:20].tolist()
    table = pyarrow.table(
        {
            "key": [keys[i] for i in given],
            "score": [None if i % 5 == 0 else i / 2 for i in given],
            "whole": given,
            "word": [None if i % 3 == 0 else f"w{i % 4}" for i in given],
            "good": [None if i % 4 == 0 else i % 2 == 1 for i in given],
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    rows = {i: i for i in given}

    def kept(where):
        plan = open_plan({"a": {"source": str(photo_folder), "table": str(tmp_path / "t.parquet"), "where": where}})
        return [plan.key(i) for i in range(len(plan))]

    def expected(test):
        return [f"a/{keys[i]}" for i in range(24) if i in rows and test(i)]

    assert kept("score < 6") == expected(lambda i: i % 5 and i < 12)
    assert kept("not score < 6") == expected(lambda i: i % 5 and i >= 12)
    assert kept("word in ('w1', 'w2')") == expected(lambda i: i % 3 and i % 4 in (1, 2))
    assert kept("good") == expected(lambda i: i % 4 and i % 2 == 1)
    assert kept("whole != 3 or good") == expected(lambda i: i != 3 or (i % 4 and i % 2 == 1))
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match="t.parquet: cannot be read") as caught:
        kept("score < 6")
    assert "\n" not in str(caught.value)


def test_parquet_without_its_reader_is_one_line(photo_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'headrace\[tables\]'"):
        Columns(open_source(photo_folder), str(tmp_path / "t.parquet"), "w")
