"""Filters against numpy written out; columns from tables; several sources as one; what is wrong is one line."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace
from headrace.errors import UserError
from headrace.pipelines import Order, open_source
from headrace.pipelines.loaders.quarantine import Quarantine
from headrace.pipelines.plan.columns import Columns
from headrace.pipelines.plan.given import as_source
from headrace.pipelines.plan.mixed import MixedSource
from headrace.pipelines.plan.order_of import order_of
from headrace.pipelines.plan.sets import open_plan
from headrace.pipelines.plan.spec import MixSpec, SetSpec
from headrace.pipelines.plan.where import Where
from headrace.pipelines.views.reference import reference_views

RNG = np.random.default_rng(0)
TABLE = {
    "width": RNG.integers(50, 400, 40),
    "blur": np.where(np.arange(40) % 7 == 0, np.nan, RNG.random(40)),
    "duplicate": RNG.random(40) < 0.3,
    "kind": np.array(["cat", "dog", "a 'b'", ""])[np.arange(40) % 4],
}
w, b, d, k = TABLE.values()
FILTERS = {
    "width >= 160 and blur < 0.4 and not duplicate": (w >= 160) & (b < 0.4) & ~d,
    "duplicate": d,
    "not (duplicate or width > 200)": ~(d | (w > 200)),
    "100 < width <= 300": (100 < w) & (w <= 300),
    "width * 2 + 10 > 400 or blur / 2 < 0.1": (w * 2 + 10 > 400) | (b / 2 < 0.1),
    "kind == 'cat'": k == "cat",
    'kind in ("dog", "a \'b\'") and width != 100': np.isin(k, ["dog", "a 'b'"]) & (w != 100),
    "width not in (160, 161)": ~np.isin(w, [160, 161]),
    "-width < -200": w > 200,
    "blur == blur": ~np.isnan(b),  # NaN is equal to nothing
    "duplicate == True": d,
}


@pytest.mark.parametrize("text", FILTERS)
def test_a_filter_is_what_numpy_says(text):
    assert np.array_equal(Where(text, "w").rows(TABLE.__getitem__), FILTERS[text])


UNKNOWN = {  # what a table does not say of rows 0 and 1
    "score": np.array([np.nan, np.nan, 3, 4, 5]),
    "flag": np.ma.masked_array([False, False, True, False, True], [1, 1, 0, 0, 0]),
    "kind": np.ma.masked_array(["", "", "cat", "dog", "dog"], [1, 1, 0, 0, 0]),
    "label": np.arange(5),
}


@pytest.mark.parametrize(
    "text, rows",
    [
        ("score != 3", [3, 4]),
        ("not score == 3", [3, 4]),
        ("score not in (3, 4)", [4]),
        ("not score in (3, 4)", [4]),
        ("score not in ()", [2, 3, 4]),
        ("score + 1 != 4", [3, 4]),
        ("flag", [2, 4]),
        ("not flag", [3]),
        ("flag == False", [3]),
        ("flag + 0 < 1", [3]),
        ("kind != 'dog'", [2]),
        ("kind == ''", []),
        ("kind not in ('dog', 'cow')", [2]),
        ("not (kind == 'dog' and flag)", [2, 3]),
        ("not flag or label < 1", [0, 3]),  # true of row 0 whatever its flag is
        ("not (flag and label > 0)", [0, 3]),
        ("label in (1, 3.0)", [1, 3]),
        ("label < 1" + "0" * 400, [0, 1, 2, 3, 4]),
    ],
)
def test_what_is_not_known_passes_no_comparison(text, rows):
    assert np.flatnonzero(Where(text, "w").rows(UNKNOWN.__getitem__)).tolist() == rows


@pytest.mark.parametrize(
    "text, problem",
    [
        ("kind in ('cat', 3)", "compares a text with a number"),
        ("width in (1, 2) in (3, 4)", "after `in` comes a list"),
        ("(width > 3) == duplicate", "is a yes or no; write `not` or `and`"),
        ("width", "gives no yes or no"),
        ("width >", "invalid syntax"),
        ("width and duplicate", "'width' is no yes or no"),
        ("kind > 3", "compares a text with a number"),
        ("kind + 1 > 3", "'kind' is no number"),
        ("width in 3", "after `in` comes a list"),
        ("__import__('os').system('true')", "is no part of a filter"),
        ("width.real > 1", "is no part of a filter"),
        ("[x for x in (1, 2)]", "is no part of a filter"),
        ("(lambda: duplicate)()", "is no part of a filter"),
        ("width ** 9 > 1", "is no part of a filter"),
        ("width is None", "is no comparison"),
        ("not " * 5000 + "duplicate", ""),
        ("(" * 300 + "duplicate" + ")" * 300, ""),
        ("duplicate" + " " * 20_000, "more than 10,000 characters"),
        ("", "invalid syntax"),
    ],
)
def test_what_is_no_filter_is_one_line_and_runs_nothing(text, problem):
    with pytest.raises(UserError) as caught:
        Where(text, "data.train.a.where").rows(TABLE.__getitem__)
    assert problem in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert str(caught.value).startswith("data.train.a.where: ")


@given(st.text(alphabet="width blur()<>=!andornt'\"01,.[]{}+-*/:_", max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_filter_or_one_line(text):
    try:
        found = Where(text, "w").rows(lambda name: TABLE.get(name, TABLE["width"]))
        assert found.shape == (40,) and found.dtype == bool
    except UserError as fault:
        assert "\n" not in str(fault)


@pytest.fixture
def shards(photo_folder, tmp_path):
    from headrace.cli import dispatch

    assert dispatch(["shard", str(photo_folder), str(tmp_path / "shards")]) == 0
    return tmp_path / "shards"


def test_columns_that_shards_know(shards, photo_folder):
    from PIL import Image

    source = open_source(shards)
    columns = Columns(source, None, "w")
    files = sorted(photo_folder.rglob("*.jpg"))
    sizes = {Image.open(file).size for file in files}
    assert set(zip(columns("width").tolist(), columns("height").tolist())) == sizes
    assert sorted(columns("bytes").tolist()) == sorted(file.stat().st_size for file in files)
    assert columns("label").tolist() == [source.label(i) for i in range(24)]
    assert columns("class_name")[3] == source.classes[source.label(3)] and columns("key")[3] == source.key(3)
    with pytest.raises(UserError, match="w: no column 'widht'; did you mean 'width'"):
        columns("widht")


def test_columns_of_a_table_find_their_samples(photo_folder, tmp_path):
    source = open_source(photo_folder)
    names = [source.key(i) for i in range(24)]
    rows = [f"{name.rpartition('/')[2] if i % 2 else name},{i},{i % 3 == 0},x{i}" for i, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["key,score,good,word", *reversed(rows[:20])]))
    columns = Columns(source, str(tmp_path / "t.csv"), "w")
    score = columns("score")
    assert score[:20].tolist() == list(range(20)) and np.isnan(score[20:]).all()
    assert columns("word")[5] == "x5" and np.ma.getmaskarray(columns("word")).tolist() == [False] * 20 + [True] * 4
    assert columns("good")[:4].tolist() == [1, 0, 0, 1]
    with pytest.raises(UserError, match="width: .* does not say it of 24 images; shard the set"):
        columns("width")


@pytest.mark.parametrize(
    "text, problem",
    [
        ("name,score\na,1\n", "has no column 'key'"),
        ("key,score\na,1,2\n", "t.csv:2: 3 values for 2 columns"),
        ("key,score\nnobody,1\n", "no row is about a sample of .*: its keys are such as 'class_0/photo_00.jpg'"),
        ("key,score\na,1\na,2\n", "two rows for the key 'a'"),
    ],
)
def test_tables_that_do_not_fit(photo_folder, tmp_path, text, problem):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=problem):
        Columns(open_source(photo_folder), str(tmp_path / "t.csv"), "w")("score")


@pytest.mark.parametrize(
    "values, problem",
    [(np.ones(24, complex), "holds complex128"), (np.full(24, np.datetime64("2024")), "holds datetime64")],
)
def test_columns_of_other_kinds_are_one_line(photo_folder, tmp_path, values, problem):
    np.save(tmp_path / "odd.npy", values)
    for spec in ({"where": "odd > 1"}, {"weight": "odd"}):
        with pytest.raises(UserError, match=f"data.train.a: odd: {problem}.*; give numbers"):
            open_plan({"a": {"source": str(photo_folder), "table": str(tmp_path), **spec}})


def test_columns_in_a_folder(shards):
    (shards / "columns").mkdir()
    np.save(shards / "columns" / "blur.npy", np.arange(24) / 24)
    np.save(shards / "columns" / "short.npy", np.arange(3))
    columns = Columns(open_source(shards), None, "w")
    assert columns("blur")[12] == 0.5 and "blur" in columns.names()
    with pytest.raises(UserError, match=r"short.npy: has shape \(3,\), the set 24 images"):
        columns("short")
    source = open_plan({"a": {"source": str(shards), "where": "blur >= 0.5 and label < 2"}})
    kept = [i for i in range(12, 24) if open_source(shards).label(i) < 2]
    assert [source.key(i) for i in range(len(source))] == [f"a/{open_source(shards).key(i)}" for i in kept]


def test_several_sources_are_one(photo_folder, shards):
    sources = [open_source(photo_folder), open_source(shards)]
    mixed = MixedSource(["folder", "tars"], sources)
    assert len(mixed) == 48 and mixed.classes == ["class_0", "class_1", "class_2"]
    for index in (0, 23, 24, 47):
        own, inside = sources[index // 24], index % 24
        assert bytes(mixed.read(index)) == bytes(own.read(inside)) and mixed.label(index) == own.label(inside)
        assert mixed.key(index) == f"{['folder', 'tars'][index // 24]}/{own.key(inside)}"
        assert mixed.size(index) == own.size(inside) and mixed.origin(index) == index // 24
    assert mixed.neighbours(5) == (0, 24) and mixed.neighbours(30) == (24, 48)
    stand_ins = [i for i, _ in zip(Quarantine(mixed).candidates(30), range(24))]
    assert sorted(stand_ins) == list(range(24, 48))  # of the same set first


@pytest.mark.parametrize(
    "labels, classes, found", [("by_name", ["b", "a", "c"], 1), ("apart", None, 4), ("ignore", None, -1)]
)
def test_classes_of_several_sets(photo_folder, labels, classes, found):
    one, other = open_source(photo_folder), open_source(photo_folder)
    one.classes, other.classes = ["b", "a", "c"], ["a", "e\u0301", "c"]
    if labels == "by_name":
        other.classes = ["a", "b", "c"]
    mixed = MixedSource(["x", "y"], [one, other], labels)
    b = next(i for i in range(24) if other.label(i) == (0 if labels == "by_name" else 1))
    assert mixed.label(24 + b) == found
    if labels == "apart":
        assert mixed.classes == ["x/b", "x/a", "x/c", "y/a", "y/\u00e9", "y/c"]
    else:
        assert mixed.classes == (classes if labels == "by_name" else None)


def test_views_of_a_second_pass_differ_and_are_the_oracles(photo_folder):
    """Seven photos of two classes are read again and again while the others are read once."""
    sets = {
        "few": {"source": str(photo_folder), "weight": 0.5, "where": "class_name == 'class_0'"},
        "many": {"source": str(photo_folder), "weight": 0.5},
    }
    view = headrace.pipelines.ViewSpec(size=24, jitter=0.8, brightness=0.4)
    mask = headrace.pipelines.RandomMask((3, 3), 0.5)
    with headrace.loader(sets, views=view, batch_size=8, mask=mask, seed=2) as loader:
        batches = [batch for _ in range(2) for batch in loader]
        source, crops = loader.source, {}
        for batch in batches:
            oracle = reference_views(source, loader.inputs, 2, batch.passes, batch.ids)["image"]
            assert ((batch.views["image"] - oracle).abs() * 255 / 4).max() < 1.1
            for row in range(8):
                hidden = headrace.pipelines.draw_mask(mask, 2, int(batch.passes[row]), batch.ids[row : row + 1]).hidden
                assert torch.equal(batch.mask.hidden[row], hidden[0])
                crops[int(batch.ids[row]), int(batch.passes[row])] = batch.views["image"][0, row]
            assert batch.origin.tolist() == [int(i >= 8) for i in batch.ids.tolist()]
    again = [(i, p) for i, p in crops if p and (i, p - 1) in crops]
    assert len(again) > 20 and all(not torch.equal(crops[i, p], crops[i, p - 1]) for i, p in again)


def test_a_file_stands_for_a_plan_wherever_a_source_is_named(photo_folder, tmp_path):
    plan = {
        "sets": {"a": {"source": str(photo_folder), "where": "label == 1"}, "b": str(photo_folder)},
        "mix": {"pure": 0.1},
    }
    (tmp_path / "mix.yaml").write_text(json.dumps(plan))
    source = as_source(f"plan:{tmp_path / 'mix.yaml'}")
    assert len(source) == 8 + 24 and source.mix == MixSpec(pure=0.1)
    (tmp_path / "self.yaml").write_text(f"sets: {{a: {photo_folder}, b: 'plan:{tmp_path / 'self.yaml'}'}}")
    with pytest.raises(UserError, match="self.yaml: names itself among its sets"):
        as_source(f"plan:{tmp_path / 'self.yaml'}")
    (tmp_path / "twice.yaml").write_text(f"sets:\n  a: {photo_folder}\n  a: {photo_folder}")
    with pytest.raises(UserError, match="twice.yaml:3: sets.a: given twice, first on line 2"):
        as_source(f"plan:{tmp_path / 'twice.yaml'}")
    (tmp_path / "wrong.yaml").write_text(f"sets:\n  a:\n    source: {photo_folder}\n    repeat: no\nmix: {{pure: 2}}")
    with pytest.raises(UserError) as caught:
        as_source(f"plan:{tmp_path / 'wrong.yaml'}")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("wrong.yaml:4: data.train.a.repeat: needs a finite number, got 'no'")
    assert "wrong.yaml:5: data.mix.pure: a share lies in [0, 1]" in lines[1] and len(lines) == 2
    for text in ("", "[1]", "sets: 3", "sets: {a: [1]}", "sets: {a: {source: &x b}}", "set: {a: b}", "sets: {}", "\0"):
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(UserError, match=r"^[^\n]*(odd.yaml|data.train)[^\n]*$"):
            as_source(f"plan:{tmp_path / 'odd.yaml'}")
    (tmp_path / "small.yaml").write_text(f"sets: {{a: {{source: {photo_folder}, weight: 1e-1}}}}")
    assert as_source(f"plan:{tmp_path / 'small.yaml'}").plan[0].spec.weight == 0.1
    order = order_of(source, 8, shuffle=False, last="pad")  # for evaluations: one after another
    assert isinstance(order, Order) and order.ids(0).tolist() == list(range(8))


@pytest.mark.parametrize(
    "sets, mix, problem",
    [
        ({}, {}, "data.train: an empty mapping"),
        ({"a": {"weight": 1}}, {}, "data.train.a.source: required, but missing"),
        ({"a": {"source": "PHOTOS", "wieght": 1}}, {}, "data.train.a.wieght: unknown key; did you mean weight?"),
        ({"a": {"source": "PHOTOS", "where": "label > 5"}}, {}, "leaves none of 24 images; widen it"),
        ({"a": {"source": "PHOTOS", "weight": -1}}, {}, "data.train.a.weight: needs a number from 0 to 1e12"),
        ({"a": {"source": "PHOTOS", "weight": 1e308}}, {}, "data.train.a.weight: needs a number from 0 to 1e12"),
        ({"a": {"source": "PHOTOS", "weight": 10**400}}, {}, "data.train.a.weight: needs a number from 0 to 1e12"),
        ({"a": {"source": ""}}, {}, "data.train.a.source: is empty"),
        ({"a": {"source": "PHOTOS", "repeat": "two"}}, {}, "data.train.a.repeat: needs a finite number, got 'two'"),
        (
            {"a": {"source": "PHOTOS", "repeat": float("nan")}},
            {},
            "a.repeat: needs a finite number, got .nan",
        ),
        (
            {"a": {"source": "PHOTOS", "epochs": float("inf")}},
            {},
            "a.epochs: needs a finite number, got .inf",
        ),
        ({"a": {"source": "PHOTOS", "samples": 2.5}}, {}, "data.train.a.samples: needs an integer, got 2.5"),
        ({"a": {"source": "PHOTOS", "draw": "random"}}, {}, "draw: needs one of stratified, replacement, got 'random'"),
        ({"a": {"source": "PHOTOS", "where": 5}}, {}, "data.train.a.where: needs a string, got 5"),
        ({"a": {"source": "PHOTOS", "table": 5}}, {}, "data.train.a.table: needs a string, got 5"),
        ({"a": {"source": "PHOTOS", "weight": "class_name"}}, {}, "weight: class_name: holds texts"),
        ({"": "PHOTOS"}, {}, "data.train: '' is no name of a set"),
        ({"a\nb": "PHOTOS"}, {}, "data.train: 'a\\nb' is no name of a set"),
        ({"a": "PHOTOS"}, {"by": "sizes"}, "data.mix.by: needs one of weight, size, temperature, got 'sizes'"),
        ({"a": "PHOTOS"}, {"exhausted": "end"}, "data.mix.exhausted: needs one of again, stop, drop, got 'end'"),
        ({"a": "PHOTOS"}, {"labels": "names"}, "data.mix.labels: needs one of by_name, apart, ignore"),
        ({"a": "PHOTOS"}, {"pure": True}, "data.mix.pure: needs a finite number, got true"),
        ({"a": "PHOTOS"}, {"epoch": 2.5}, "data.mix.epoch: needs an integer, got 2.5"),
        ({"a": "PHOTOS"}, {"temperature": float("nan")}, "data.mix.temperature: needs a finite number, got .nan"),
        ({"a": {"source": "PHOTOS", "weight": "beauty"}}, {}, "data.train.a: no column 'beauty'"),
        (
            {"a": {"source": "PHOTOS", "repeat": 2, "samples": 5}},
            {},
            "repeat, samples: say once how long the set lasts",
        ),
        ({"a": {"source": "PHOTOS", "weight": {0.5: 1}}}, {}, "say what it is at moment 0"),
        ({"a": {"source": "PHOTOS", "weight": {0: 1, "5 days": 2}}}, {}, "a moment is a share of the run"),
        ({"a": {"source": "nowhere"}}, {}, "nowhere: does not exist"),
        ({"a": "PHOTOS"}, {"exhausted": "stop", "pur": 1}, "data.mix.pur: unknown key; did you mean pure?"),
        (
            {"a": {"source": "PHOTOS", "weight": 1}, "b": "PHOTOS"},
            {},
            "data.train.b: weight: missing; give all sets one",
        ),
        ({"a": {"source": "PHOTOS", "weight": 1}}, {"by": "size"}, "weight: has no effect with data.mix.by: size"),
        ({"a": {"source": "PHOTOS", "weight": {0: 1, 0.5: 2}}}, {}, "0.5 is a share of a run without a length"),
        ({"a": {"source": "PHOTOS", "table": "t.csv"}}, {}, "data.train.a.table: t.csv does not exist"),
    ],
)
def test_plans_that_cannot_be_followed(photo_folder, sets, mix, problem):
    text = json.dumps(sets).replace("PHOTOS", str(photo_folder))
    with pytest.raises(UserError) as caught:
        order_of(open_plan(json.loads(text), mix), 8)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_what_python_hands_over_is_checked_like_a_recipe(photo_folder):
    source = open_plan(
        {
            "a": {"source": photo_folder, "repeat": np.float32(2), "weight": {0: 1, 0.5: 2}},
            "b": {"source": photo_folder, "samples": np.int64(5), "weight": 1},
        }
    )
    assert [p.spec.repeat for p in source.plan] == [2.0, None] and source.plan[1].spec.samples == 5
    assert source.plan[0].spec.moments == {0: 1, 0.5: 2}
    for odd in ({1}, b"x", object(), [photo_folder], 5, None, {5: 6}, {"source": b"x"}, {"source": photo_folder, 1: 2}):
        with pytest.raises(UserError, match="^data.train.a"):
            open_plan({"a": odd})


def test_a_mix_of_one_source_is_an_error(photo_folder):
    assert len(as_source(str(photo_folder), MixSpec())) == 24
    for data in (str(photo_folder), open_source(photo_folder)):
        with pytest.raises(UserError, match="data.mix: has no effect: data.train names one source"):
            as_source(data, MixSpec(pure=0.5))


@pytest.mark.parametrize(
    "specs, mix, shares",
    [
        ([{}, {"where": "label == 0"}], {}, [0.75, 0.25]),
        ([{}, {"repeat": 3}], {}, [0.25, 0.75]),
        ([{}, {"samples": 8}], {}, [0.75, 0.25]),
        ([{}, {"where": "label == 0"}], {"by": "temperature", "temperature": 2}, [3**0.5 / (1 + 3**0.5)] * 1 + [0]),
        ([{"weight": 0.9}, {"weight": 0.1}], {}, [0.9, 0.1]),
    ],
)
def test_shares(photo_folder, specs, mix, shares):
    sets = {name: {"source": str(photo_folder), **spec} for name, spec in zip("ab", specs)}
    order = order_of(open_plan(sets, mix), 40)
    counts = np.array(list(order.given(100).values())) / 4000
    assert abs(counts[0] - shares[0]) < 1e-3


def test_how_long_an_epoch_is(photo_folder):
    sets = {"a": SetSpec(str(photo_folder)), "b": SetSpec(str(photo_folder), repeat=2.5)}
    assert order_of(open_plan(sets), 12).steps_per_epoch == (24 + 60) // 12
    assert order_of(open_plan(sets, {"epoch": 120}), 12).steps_per_epoch == 10
