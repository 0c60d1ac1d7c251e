"""The page on kernels: its code is written to files, its commands run, and what it shows is what they print."""

import importlib
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

import headrace
from headrace.cli import dispatch

PAGE = Path(headrace.__file__).parent / "docs" / "kernels.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def alike(line):
    """A line without what may differ from run to run: numbers' digits and the widths of columns."""
    return " ".join(re.sub(r"\d+(\.\d+)?(e[+-]\d+)?", "#", line).split())


def command(line, folder, monkeypatch):
    """Runs one line of a shell block in this process; returns the exit code."""
    words = shlex.split(line)
    with monkeypatch.context() as inside:
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            inside.setenv(name, value)
        for name in ("my_attention", "my_triton"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        if words[0] == "python":
            runpy.run_path(str(folder / words[1]), run_name="__main__")
            return 0
        assert words[0] == "headrace"
        return dispatch(words[1:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="the page shows what a machine without a GPU prints")
def test_the_page_does_what_it_says(tmp_path, monkeypatch, capsys):
    pytest.importorskip("triton")
    assert os.environ.get("TRITON_INTERPRET") == "1"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    printed, codes = [], []
    for language, text in BLOCK.findall(PAGE.read_text()):
        first = text.splitlines()[0]
        if language == "python" and ", instead of: " in first:
            name, _, old = first.removeprefix("# ").partition(", instead of: ")
            file = tmp_path / name
            assert file.read_text().count(old) == 1
            file.write_text(file.read_text().replace(old, text.splitlines()[1].strip()))
        elif language == "python":
            (tmp_path / first.removeprefix("# ")).write_text(text)
        elif language == "sh":
            for line in text.splitlines():
                codes.append((line, command(line, tmp_path, monkeypatch)))
            printed = [alike(line) for line in capsys.readouterr().out.splitlines()]
        elif language == "text":
            for line in text.splitlines():
                assert line == "..." or alike(line) in printed, line
    assert [code for line, code in codes if " check " in line] == [1, 0, 0]
    assert all(code == 0 for line, code in codes if " check " not in line) and len(codes) >= 6
