"""What YAML means in a recipe, where its values were written, and that what is rendered reads back the same."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import UserError
from headrace.schema.yaml_nodes import Node, parse, render


def read(text: str) -> Node:
    return parse(text, lambda line: f"x.yaml:{line}")


def values(node: Node):
    if isinstance(node.value, dict):
        return {key: values(child) for key, child in node.value.items()}
    return [values(child) for child in node.value] if isinstance(node.value, list) else node.value


def problems(text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(text)
    return str(caught.value).split("\n")


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-4", 1e-4),
        ("1.e3", 1000.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("on", "on"),
        ("No", "No"),
        ("y", "y"),
        ("True", True),
        ("false", False),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-3", -3),
        ("2024-01-31", "2024-01-31"),
        ("~", None),
        ("", None),
        ('"1"', "1"),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    got = values(read(f"key: {text}\n"))["key"]
    assert got == value and type(got) is type(value)


def test_nan_and_the_empty_document():
    assert math.isnan(read(".nan").value)
    assert read("") == Node(None, "x.yaml:1")


def test_origins_are_the_lines_of_keys_and_items():
    node = read("a:\n  b:\n    text\n  1: [x,\n    y]\n'null':\n- z\n")
    a = node.value["a"]
    assert (a.origin, a.value["b"].origin, a.value["1"].origin) == ("x.yaml:1", "x.yaml:2", "x.yaml:4")
    assert [item.origin for item in a.value["1"].value] == ["x.yaml:4", "x.yaml:5"]
    assert (node.value["null"].origin, node.value["null"].value[0].origin) == ("x.yaml:6", "x.yaml:7")


def test_all_doubled_keys_are_reported():
    assert problems("train:\n  lr: 1\n  amp: true\n  lr: 2\nviews: [{a: 1, a: 1}]\n'train':\n  lr: 3\n") == [
        "x.yaml:4: train.lr: given twice, first on line 2",
        "x.yaml:5: views[0].a: given twice, first on line 5",
        "x.yaml:6: train: given twice, first on line 1",
    ]


NO_PLACE = "YAML error: anchors, aliases and tags have no place here"


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "train:\n\tlr: 1\n",
            "2: YAML error: while scanning for the next token, found character '\\t' that cannot start any token",
        ),
        ("a: 1\nb: [1\nc: 2\n", "3: YAML error: while parsing a flow sequence, expected ',' or ']', but got ':'"),
        ("a: 1\n---\nb: 1\n", "2: YAML error: expected a single document in the stream, but found another document"),
        ("a: &x 1\n", f"1: {NO_PLACE}"),
        ("a: 1\nb: *x\n", f"2: {NO_PLACE}"),
        ("a: !!python/name:os.system\n", f"1: {NO_PLACE}"),
        ("\n- !!map {}\n", f"2: {NO_PLACE}"),
        ("a: 1\nb: \x07\n", "2: character '\\x07' cannot be part of YAML"),
        ("a: 1\n? [b]\n: 1\n", "2: a key must be a word, not a list or a mapping"),
    ],
)
def test_broken_yaml_names_its_line(text, message):
    assert problems(text) == [f"x.yaml:{message}"]


TRAPS = ["null", "on", "No", "y", "1e-4", "0x1F", "1:30", ".inf", "~", "a: b", "# c", "<<", "a\n", "2024-01-31"]
TEXTS = st.text(max_size=30) | st.sampled_from(TRAPS)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
NESTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=12
)


@settings(deadline=None)
@given(value=st.dictionaries(TEXTS, NESTS, min_size=1, max_size=4))
def test_rendered_values_read_back_the_same(value):
    text = render(value, Node({}, "x.yaml"))
    assert repr(values(read(text))) == repr(value)
    assert repr(yaml.safe_load(text)) == repr(value), "a reader of YAML 1.1 sees other values"
