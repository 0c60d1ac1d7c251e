"""What is typed on a command line is taken as typed where the field is a text; elsewhere it is YAML."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sections import build, problems

from headrace.train.recipe import config


@dataclass(frozen=True)
class Texts:
    text: str = ""
    maybe: str | None = "x"
    path: Path | None = None
    either: float | str = 0.0
    word: tuple[str, ...] | Literal["all"] = "all"
    options: dict[str, Any] = field(default_factory=dict)
    table: dict[str, str] = field(default_factory=dict)
    sets: str | dict[str, dict[str, str]] = ""
    whole: int = 0


def typed(key: str, text: str) -> Any:
    value = build({"s": Texts}, f"s.{key}={text}")["s"]
    for name in key.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


AS_TYPED = (
    "photos #2", "#2", "a: b", "{x}", "[a, b]", "'a'", '"a', " a ", "yes", "true", "2024", "1e3", "0x1F", "007", "-",
    "~", "null", "", "!x", "&a", "*", "a\tb", "a\nb", "%", "@x", "`", "|", ">", "?", ": ", "\udce4", "\x07", "{", "a=b",
    "---",
)  # fmt: skip


@pytest.mark.parametrize("text", AS_TYPED)
def test_what_is_typed_for_a_text_is_taken_as_typed(write, text):
    write(x="s: {text: before, path: before, table: {a: before}}\n")
    assert (typed("text", text), typed("table.a", text), typed("sets", text)) == (text, text, text)
    if text not in ("", "null"):  # nothing, where that can be
        assert (typed("maybe", text), typed("path", text)) == (text, Path(text).expanduser())
    else:
        assert typed("maybe", text) is None


@given(st.text())
def test_any_text_is_taken_as_typed(text):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "x.yaml").write_text("", encoding="utf-8")
        tree = config.load(f"{folder}/x.yaml", [f"s.text={text}"])
    assert config.build(tree, {"s": Texts})["s"].text == text


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("either", "0.5", 0.5), ("either", "10 epochs", "10 epochs"), ("either", "a #1", "a #1"),
        ("word", "all", "all"), ("word", "[a, 2024]", ("a", "2024")),
        ("options.a", "5", 5), ("options.a", "photos #2", "photos #2"), ("options.a", "[1, 2]", [1, 2]),
        ("options.a", "a: b: c", "a: b: c"), ("whole", " 1e3 ", 1000),
        ("sets", "{a: {source: b}}", {"a": {"source": "b"}}), ("sets", "{}", "{}"),
    ],
)  # fmt: skip
def test_the_type_of_the_field_says_what_is_a_text(write, key, text, value):
    write(x="")
    assert typed(key, text) == value


@pytest.mark.parametrize(
    "key, text, reason",
    [
        ("whole", "5 #2", "'5 #2': a space and # begin a comment; leave it out"),
        ("word", "[a, b] # c", "'[a, b] # c': a space and # begin a comment; leave it out"),
        ("whole", "{5", "YAML error: while parsing a flow mapping, expected ',' or '}', but got '<stream end>'"),
        ("whole", "a", "needs an integer, got 'a'"),
    ],
)
def test_typed_values_are_checked(write, key, text, reason):
    write(x="")
    assert problems(typed, key, text) == [f"command line: s.{key}: {reason}"]


def test_numbers_are_texts_where_the_field_is_one(write):
    write(x="s:\n  text: 2024\n  maybe: 1e3\n  path: 007\n  word: [1.50, 0x10]\n  either: 7\n")
    assert build({"s": Texts})["s"] == Texts("2024", "1e3", Path("007"), 7.0, ("1.50", "0x10"))
