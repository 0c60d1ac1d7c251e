"""Text is UTF-8 wherever a command is run: in files, and on terminals as far as these can show it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import headrace

ROOT = Path(headrace.__file__).parent
PACKAGES = ("schema", "pipelines", "kernels", "models", "train", "tools", "benchmarks")
ELSEWHERE = ("Image", "os", "tarfile", "zipfile", "webbrowser")  # whose `open` has no text


def without_encoding(tree):
    """Lines of calls that read or write text in the encoding of the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        owner = getattr(getattr(node.func, "value", None), "id", None)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name == "read_text" and not node.args or name == "write_text" and len(node.args) < 2:
            yield from () if "encoding" in given else (node.lineno,)
        elif name == "fdopen" or name == "open" and owner not in ELSEWHERE:
            at = 1 if isinstance(node.func, ast.Name) or name == "fdopen" else 0
            mode = given.get("mode", node.args[at] if len(node.args) > at else None)
            binary = mode is not None and not (isinstance(mode, ast.Constant) and "b" not in str(mode.value))
            yield from () if binary or "encoding" in given else (node.lineno,)
        elif any(
            isinstance(given.get(key), ast.Constant) and given[key].value for key in ("text", "universal_newlines")
        ):
            yield from () if "encoding" in given else (node.lineno,)


def test_text_has_an_encoding():
    files = [*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]
    found = [f"{f.relative_to(ROOT)}:{n}" for f in files for n in without_encoding(ast.parse(f.read_text("utf-8")))]
    assert found == []


@pytest.mark.parametrize(
    "code, lines",
    [
        ("open(p)", 1), ("open(p, 'a')", 1), ("open(p, 'rb')", 0), ("open(p, encoding='utf-8')", 0), ("open(p, m)", 0),
        ("p.open()", 1), ("p.open('rb')", 0), ("p.read_text()", 1), ("p.read_text('utf-8-sig')", 0),
        ("p.write_text(t)", 1), ("os.open(p, f)", 0), ("os.fdopen(3, 'w')", 1), ("subprocess.run(c, text=True)", 1),
    ],
)  # fmt: skip
def test_the_scan_finds_it(code, lines):
    assert len(list(without_encoding(ast.parse(code)))) == lines


def test_a_locale_that_knows_ascii_only(tmp_path, photo_folder):
    """A run and a store of features, of images whose names are UTF-8, Latin-1 and plain."""
    names = [b"B\xc3\xa4r.jpg", b"B\xe4r.jpg", *(b"%d.jpg" % n for n in range(6))]
    photos = sorted(photo_folder.rglob("*.jpg"))
    folder = os.fsencode(tmp_path / "r\u00f6hre")
    for label in (b"a", b"b"):
        os.makedirs(os.path.join(folder, label))
        for name, photo in zip(names, photos):
            os.link(photo, os.path.join(folder, label, name))
    commands = [
        ["pretrain", "mae_vit-tiny", "--smoke", b"data.train=" + folder, "train.max_steps=1", "train.out=run"],
        ["embed", "run", folder, "--out", "features"],
        ["browse", folder, "mae_vit-tiny", "--samples", "4", "--out", "looked"],
    ]
    code = "import sys\nfrom headrace.cli import dispatch\nfrom headrace.errors import run_command\n"
    code += "arguments = ' '.join(sys.argv[1:]).split(' ; ')\n"
    code += "sys.exit(run_command(lambda: max([dispatch(one.split(' ')) for one in arguments])))"
    arguments = b" ; ".join(b" ".join(map(os.fsencode, command)) for command in commands).split(b" ")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=os.environ | locale, capture_output=True, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr.decode()
    assert b"step 1/1 ? loss" in ran.stdout
    keys = next(tmp_path.glob("features/*/keys.txt")).read_bytes().splitlines()
    shown = ["B\u00e4r.jpg".encode(), rb"B\xe4r.jpg", *names[2:]]  # what is no text, as Python writes it
    assert sorted(keys) == sorted(label + b"/" + name for label in (b"a", b"b") for name in shown)
