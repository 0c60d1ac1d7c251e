"""The sources keep to the oldest Python that the package says it needs."""

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest

import headrace

ROOT = Path(headrace.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OLDEST = tuple(map(int, re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["requires-python"]).groups()))
# methods and keywords that came later, by names that mean nothing else; what is found through modules is looked up
LATER_METHODS = {
    "full_match": (3, 13), "from_uri": (3, 13), "is_junction": (3, 12), "with_segments": (3, 12), "move_into": (3, 14),
    "copy_into": (3, 14),
}  # fmt: skip
LATER_NAMES = {"batched": (3, 12), "sumprod": (3, 12), "override": (3, 12), "process_cpu_count": (3, 13)}
LATER_KEYWORDS = {
    "onexc": (3, 12), "delete_on_close": (3, 12), "walk_up": (3, 12), "case_sensitive": (3, 12),
    "recurse_symlinks": (3, 13), "follow_wrapper_chains": (3, 14),
}  # fmt: skip


def newer(text):
    """What of a source is newer than `OLDEST`. Names of the standard library are looked up where that runs."""
    tree = ast.parse(text, feature_version=OLDEST)
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names if _ours(alias.name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and _ours(node.module):
            yield from (f"{node.module}.{a.name}" for a in node.names if not _has(node.module, a.name))
        elif isinstance(node, ast.Attribute):
            owner = modules.get(ast.unparse(node.value))
            if owner and not _has(owner, node.attr):
                yield f"{owner}.{node.attr}"
            elif LATER_METHODS.get(node.attr, OLDEST) > OLDEST:
                yield node.attr
        elif isinstance(node, ast.keyword) and LATER_KEYWORDS.get(node.arg, OLDEST) > OLDEST:
            yield f"{node.arg}="


def _ours(module):
    return module.split(".")[0] in sys.stdlib_module_names and module != "__future__"


def _has(module, name):
    if sys.version_info[:2] > OLDEST:
        return LATER_NAMES.get(name, OLDEST) <= OLDEST
    found = importlib.import_module(module)
    if hasattr(found, name) or name == "*":
        return True
    return hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None


def test_nothing_is_newer_than_what_is_required():
    files = [p for p in ROOT.rglob("*.py") if not {".venv", "build", "runs"} & set(p.relative_to(ROOT).parts)]
    assert {str(p.relative_to(ROOT)): found for p in files if (found := list(newer(p.read_text("utf-8"))))} == {}


@pytest.mark.parametrize(
    "code, found",
    [
        ("import shutil\nshutil.rmtree(p, onexc=f)", ["onexc="]),
        ("from itertools import batched", ["itertools.batched"]),
        ("import os\nos.process_cpu_count()", ["os.process_cpu_count"]),
        ("Path('x').full_match('*')", ["full_match"]),
        ("import hashlib\nhashlib.file_digest(f, 'md5')", []),
    ],
)
def test_the_scan_finds_it(code, found):
    assert list(newer(code)) == found


def test_newer_syntax_is_found():
    with pytest.raises(SyntaxError):
        list(newer("type X = int"))


def test_every_page_names_the_same_python():
    said = [(ROOT / "README.md").read_text("utf-8"), (ROOT / "tools" / "setup.sh").read_text("utf-8")]
    versions = {version for text in said for version in re.findall(r"Python (3\.\d+) or newer", text)}
    assert versions == {".".join(map(str, OLDEST))}
