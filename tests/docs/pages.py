"""What a page of the documentation says one can do, done: its files written, its commands run, its output compared.

Blocks, by language and first line:

python, yaml, ``# name.py``                          becomes the file of that name
python, ``# name.py, instead of: an old line``       its second line takes the place of that line of the file
python, any other first line                         runs as it stands, in one namespace for the page
sh                                                   a command a line; a comment may say which exit code is meant
text                                                 lines that the last sh block printed, but for numbers and spaces

Everything happens in this process, in a folder of the page's own.
"""

import argparse
import contextlib
import importlib
import io
import os
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import headrace
from headrace import kernels
from headrace.cli import COMMANDS, dispatch
from headrace.errors import UserError, run_command
from headrace.pipelines.images.rules import Rules, use_rules
from headrace.pipelines.sources import open_source
from headrace.train import pretrain
from headrace.train.recipe.recipe import load_recipe

ROOT = Path(headrace.__file__).parent
COMMAND_WORDS = ("headrace", "python", "torchrun", "make", "pip")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml))(?:, instead of: (.*))?")


@contextlib.contextmanager
def standing_in(folder: Path):
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@dataclass
class Said:
    """One command as the page has it, and what became of it."""

    line: str
    code: int
    wanted: int
    output: str


def pages() -> dict[str, str]:
    """Name -> text of every page that is written for users."""
    return {path.name: path.read_text() for path in [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]}


def blocks(text: str) -> list[tuple[str, str]]:
    return _BLOCK.findall(text)


def commands(text: str) -> list[str]:
    """The lines of all sh blocks; one that ends in a backslash goes on in the next."""
    lines = [block.replace("\\\n", " ").splitlines() for language, block in blocks(text) if language == "sh"]
    return [line for block in lines for line in block if line.strip() and not line.startswith("#")]


def indented(text: str) -> list[str]:
    """Commands outside of blocks, in lines of their own that are indented."""
    return re.findall(rf"^    ((?:{'|'.join(COMMAND_WORDS)}) .*)$", _BLOCK.sub("", text), re.MULTILINE)


def alike(line: str) -> str:
    """A line without what may differ from run to run: the digits of numbers, and the widths of columns."""
    return " ".join(re.sub(r"\d[\d,]*(\.\d+)?(e[+-]\d+)?", "#", line).split())


class Page:
    """A page that is carried out. `substitute` maps a line to the words that are run in its place; None: only parse."""

    def __init__(self, text: str, folder: Path, substitute) -> None:
        self.text, self.folder, self.substitute = text, folder, substitute
        self.said: list[Said] = []
        self.namespace: dict = {}

    @contextlib.contextmanager
    def inside(self):
        """In the page's folder, whose modules can be imported until it is left."""
        path = list(sys.path)
        cache = {"HEADRACE_CACHE": str(self.folder / "cache")}
        with standing_in(self.folder), mock.patch.dict(os.environ, cache):
            sys.path.insert(0, str(self.folder))
            try:
                yield self
            finally:
                sys.path[:] = path
                kernels.configure({})
                self.forget()

    def forget(self) -> None:
        """Modules of the page's files are imported anew: they may have been changed, or be those of another test."""
        for name, module in list(sys.modules.items()):
            own = str(getattr(module, "__file__", None) or "").startswith(str(self.folder))
            if own or (self.folder / f"{name}.py").is_file():
                del sys.modules[name]
        importlib.invalidate_caches()

    def carry_out(self) -> None:
        printed: list[str] = []
        for language, block in blocks(self.text):
            first = block.split("\n", 1)[0]
            match = _FILE.fullmatch(first) if language in ("python", "yaml") else None
            if match and match[2]:
                file = self.folder / match[1]
                assert file.read_text().count(match[2]) == 1, first
                file.write_text(file.read_text().replace(match[2], block.splitlines()[1].strip()))
            elif match:
                (self.folder / match[1]).write_text(block)
            elif language == "python":
                exec(compile(block, "page", "exec"), self.namespace)
            elif language == "sh":
                done = [self.command(line) for line in commands(f"```sh\n{block}```")]
                self.said += done
                printed = [alike(line) for one in done for line in one.output.splitlines()]
            elif language == "text" and printed:
                for line in block.splitlines():
                    assert line == "..." or alike(line) in printed, f"{line!r} was not printed"

    def command(self, line: str) -> Said:
        wanted = re.search(r"# *exit code (\d)", line)
        words = self.substitute(line)
        self.forget()
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = parse(shlex.split(line, comments=True)) if words is None else run(words)
        return Said(line, code, int(wanted[1]) if wanted and words is not None else 0, output.getvalue())


def run(words: list[str]) -> int:
    """Runs a command in this process, by the rules of a new one; returns its exit code."""
    use_rules(Rules())
    with mock.patch.dict(os.environ):
        while "=" in words[0]:
            name, _, os.environ[name] = words[0].partition("=")
            words = words[1:]
        if words[0] == "headrace":
            return run_command(lambda: dispatch(words[1:]))
        assert words[0] == "python", words
        module = words[1] == "-m"
        with mock.patch.object(sys, "argv", words[2 if module else 1 :]):
            try:
                (runpy.run_module if module else runpy.run_path)(words[2 if module else 1], run_name="__main__")
            except SystemExit as end:
                return end.code or 0
    return 0


class _Parsed(Exception):
    pass


def parse(words: list[str]) -> int:
    """Has the command's own parser read a command, and resolves the recipe and the keys that it names."""
    while "=" in words[0]:
        words = words[1:]
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, f"make {words[1]}: no such target"
        return 0
    if words[0] == "pip":
        return 0
    if words[0] == "torchrun" and "headrace.cli" in words:
        return parse(["headrace", *words[words.index("headrace.cli") + 1 :]])
    if words[0] == "torchrun":
        main, rest = pretrain.main, words[words.index("train/pretrain.py") + 1 :]
    elif words[0] == "python":
        assert words[1] == "-m" and words[2].startswith("headrace."), words
        main, rest = importlib.import_module(words[2]).main, words[3:]
    else:
        main, rest = importlib.import_module(f"headrace.{COMMANDS[words[1]][0]}").main, words[2:]

    def stop(method):
        def parsed(self, args=None, namespace=None):
            raise _Parsed(method(self, args, namespace))

        return parsed

    parser = argparse.ArgumentParser
    with (
        mock.patch.object(parser, "parse_args", stop(parser.parse_args)),
        mock.patch.object(parser, "parse_intermixed_args", stop(parser.parse_intermixed_args)),
    ):
        try:
            main(rest)
        except _Parsed as done:
            (given,) = done.args
        except SystemExit as end:
            return end.code or 0
        else:
            raise AssertionError(f"{words}: read no arguments")
    if getattr(given, "recipe", None):
        with standing_in(ROOT):
            load_recipe(given.recipe, given.overrides)
    for word in words:
        source = re.fullmatch(r"(?:data\.\w+=)?(\w+:/(?!/).*)", word)  # its kind and options must be known
        try:
            open_source(source[1]) if source else None
        except UserError as fault:
            if "does not exist" not in str(fault):
                raise
    return 0
